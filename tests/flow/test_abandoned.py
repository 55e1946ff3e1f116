"""Calls that ignore their cancellation, made by real tasks: they are abandoned, counted, and not waited for."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import anyio
import pytest

from iu_listen.flow import call_executor as module
from iu_listen.flow.call_executor import CallExecutor
from iu_listen.flow.call_tasks import TargetQueue
from iu_listen.flow.detached import within
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import Delivery, Event, Result, TakenDelivery

pytestmark = pytest.mark.anyio

IGNORED = (Result.FAILED, "target_ignores_cancellation")
SENT = (Result.SENT, "")


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Calls are abandoned 50 ms after their cancellation."""
    monkeypatch.setattr(module, "ABANDON_AFTER", 0.05)


class Odd:
    """A target whose first calls ignore their cancellation until they are told to end.

    Args:
        how: The body of such a call; it receives the event that ends it.
        many: The number of such calls.
    """

    def __init__(self, how: Callable[[asyncio.Event], Awaitable[None]], many: int = 1) -> None:
        self._how = how
        self._many = many
        self.called = 0
        self.ended = 0
        self.end = asyncio.Event()
        # The calls of a failing test end after 5 s, so the test does not hang.
        asyncio.get_running_loop().call_later(5, self.end.set)

    async def deliver(self, _: Delivery) -> None:
        self.called += 1
        if self.called <= self._many:
            try:
                await self._how(self.end)
            finally:
                self.ended += 1


async def swallow(end: asyncio.Event) -> None:
    while not end.is_set():
        with suppress(asyncio.CancelledError):
            await end.wait()


async def behind_a_shield(end: asyncio.Event) -> None:
    with anyio.CancelScope(shield=True):
        await end.wait()


async def clean_up(end: asyncio.Event) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        await swallow(end)


def taken(number: int, deadline: float = 0.05) -> TakenDelivery:
    event = Event(id=uuid4(), domain="iu", type="t", stream="s")
    return TakenDelivery(
        Delivery(id=number, route="r", idempotency_key=f"k{number}", attempt=1, event=event, deadline=deadline), None
    )


@asynccontextmanager
async def calling() -> AsyncIterator[tuple[CallExecutor, list[tuple[str, str, int]]]]:
    """Calls of a consumer that always considers the switches open, and the reports of abandoned calls."""
    told: list[tuple[str, str, int]] = []
    made = CallExecutor(
        WakeEvent(), time.monotonic, report_abandoned=lambda d, called, running: told.append((d.route, called, running))
    )
    made.switches_checked_at = made.lease_valid_until = math.inf
    async with anyio.create_task_group() as tasks:
        made.watch(tasks)
        made.set_deadlines([0.05])
        yield made, told
        tasks.cancel_scope.cancel()


async def until(fact: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not fact():
            await anyio.sleep(0.001)


def lane_of(target: Odd, deliveries: int, concurrency: int = 1, called: str = "workflow crm") -> TargetQueue:
    queue = deque(taken(number) for number in range(deliveries))
    return TargetQueue(concurrency=concurrency, max_failing=100, target=target, called=called, waiting=queue)


@pytest.mark.parametrize("how", [swallow, behind_a_shield, clean_up])
async def test_a_call_that_ignores_its_cancellation_is_abandoned(how):
    """An abandoned call is recorded once, with its own code, and frees its place; its later end has no effect.

    Fails when: the place of such a call is not free, or its later result is recorded as well.
    """
    target = Odd(how)
    queue = lane_of(target, 3)
    async with calling() as (calls, told):
        calls.begin(queue)
        await until(lambda: len(calls.done) == 3)
        assert [(o.taken.delivery.id, o.result, o.code) for o in calls.done] == [(0, *IGNORED), (1, *SENT), (2, *SENT)]
        assert calls.done[0].detail == "no answer within 0.05 s, and 0.05 s after its cancellation the call still ran"
        assert told == [("r", "workflow crm", 1)]
        assert (list(calls.running()), queue.running, target.ended) == ([], 0, 0)
        target.end.set()
        await until(lambda: target.ended)
        queue.waiting.append(taken(3))
        calls.begin(queue)
        await until(lambda: len(calls.done) == 4)
    assert queue.running == 0


async def test_an_abandoned_call_is_not_cancelled_any_more():
    """A call that swallows its cancellation is not cancelled again after it was abandoned.

    Fails when: it is cancelled for ever.
    """
    cancelled = 0

    async def count(end: asyncio.Event) -> None:
        nonlocal cancelled
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                cancelled += 1

    target = Odd(count)
    async with calling() as (calls, told):
        calls.begin(lane_of(target, 1))
        await until(lambda: told)
        before = cancelled
        await anyio.sleep(0.05)
        assert before > 0
        assert cancelled <= before + 1
        target.end.set()
        await until(lambda: target.ended)


async def test_a_call_that_was_given_up_is_abandoned_too():
    """A call is also abandoned, without a record, if its delivery was given up.

    Fails when: only calls after their deadline are abandoned.
    """
    target = Odd(swallow)
    queue = lane_of(target, 0)
    queue.waiting = deque([taken(0, deadline=60), taken(1)])
    async with calling() as (calls, told):
        calls.begin(queue)
        await until(lambda: target.called)
        calls.give_up(next(calls.running()))
        await until(lambda: told and calls.done)
        assert [o.taken.delivery.id for o in calls.done] == [1]
        target.end.set()
        await until(lambda: target.ended)
        assert len(calls.done) == 1


async def test_the_end_waits_for_no_call():
    """The task group of the calls ends, and calls that go on are reported.

    Fails when: such a call is a task of the group.
    """
    target = Odd(swallow)
    queue = lane_of(target, 0)
    queue.waiting.append(taken(0, deadline=60))
    with anyio.fail_after(5):
        async with calling() as (calls, told):
            calls.begin(queue)
            await until(lambda: target.called)
    assert (told, calls.done, target.ended) == ([("r", "workflow crm", 1)], [], 0)
    queue.waiting.append(taken(1))
    calls.begin(queue)
    await anyio.sleep(0.01)
    assert target.called == 1
    target.end.set()
    await until(lambda: target.ended)


async def test_the_abandoned_calls_of_one_target_are_bounded(monkeypatch):
    """While two abandoned calls of a target run, it is not called again; another target is, and later it is as well.

    Fails when: abandoned calls are not counted, or still count after they have ended.
    """
    monkeypatch.setattr(module, "MAX_ABANDONED", 2)
    target, other = Odd(swallow, many=2), Odd(swallow, many=0)
    queue, beside, elsewhere = lane_of(target, 3), lane_of(target, 1), lane_of(other, 1, called="workflow erp")
    async with calling() as (calls, told):
        calls.begin(queue)
        await until(lambda: len(told) == 2)
        assert [running for *_, running in told] == [1, 2]
        assert calls.too_many_abandoned(queue)
        for each in (queue, beside, elsewhere):
            calls.begin(each)
        await until(lambda: other.called)
        assert (target.called, queue.running, len(queue.waiting), len(beside.waiting)) == (2, 0, 1, 1)
        target.end.set()
        await until(lambda: not calls.too_many_abandoned(queue))
        for each in (queue, beside):
            calls.begin(each)
        await until(lambda: target.called == 4)


async def test_a_worker_that_is_cancelled_before_it_begins_is_replaced():
    """If all tasks of the loop are cancelled before a task has begun its call, the call is made by another task.

    Fails when: the queue counts on a task that has never begun.
    """
    target = Odd(swallow, many=0)
    queue = lane_of(target, 1)
    async with calling() as (calls, _):
        before = asyncio.all_tasks()
        calls.begin(queue)
        (worker,) = asyncio.all_tasks() - before
        worker.cancel()
        await until(lambda: target.called)


async def test_a_scope_that_a_target_leaves_open_ends_no_other_work():
    """If a target leaves a cancel scope open, its call has succeeded and only its task ends.

    Fails when: the error that our scopes raise then counts as a fault of the consumer.
    """

    async def leave_open(_: asyncio.Event) -> None:
        anyio.CancelScope().__enter__()

    queue = lane_of(Odd(leave_open), 2)
    async with calling() as (calls, _):
        calls.begin(queue)
        await until(lambda: len(calls.done) == 2)
        calls.close_queue(queue)
        await anyio.sleep(0.01)
        assert [(o.result, o.code) for o in calls.done] == [SENT, SENT]


async def test_a_fault_of_our_own_in_a_worker_is_loud(monkeypatch):
    """A defect in the code of the consumer ends the consumer.

    Fails when: the error stays with its task, and the route stops.
    """

    def broken(_: object) -> None:
        raise LookupError("a fault")

    monkeypatch.setattr(module, "outcome_of", broken)
    with pytest.RaisesGroup(LookupError), anyio.fail_after(5):
        async with calling() as (calls, _):
            calls.begin(lane_of(Odd(swallow, many=0), 1))
            await anyio.sleep_forever()


@pytest.mark.parametrize("how", [swallow, behind_a_shield])
async def test_closing_a_target_takes_bounded_time(how):
    """Closing a target is cancelled and abandoned after a bounded time. Fails when: its end is waited for."""
    end = asyncio.Event()
    asyncio.get_running_loop().call_later(5, end.set)
    began = anyio.current_time()
    with anyio.fail_after(10):
        await within(0.01, 0.05, lambda: how(end))
        with pytest.raises(LookupError):
            await within(1, 1, _raise)
    assert anyio.current_time() - began < 4
    end.set()


async def _raise() -> None:
    raise LookupError
