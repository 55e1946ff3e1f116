"""Calls with several deliveries: which deliveries form a group, and what happens to them when their call fails."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

import anyio
import pytest

from iu_listen.flow.call_executor import CallExecutor
from iu_listen.flow.call_tasks import TargetQueue
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import Delivery, Event, Failed, Reject, Result, TakenDelivery

pytestmark = pytest.mark.anyio

DEADLINE = 0.05


@pytest.fixture
def anyio_backend():
    """The tasks that call targets are tasks of asyncio."""
    return "asyncio"


def taken(number: int, **changes: Any) -> TakenDelivery:
    """A delivery with a deadline of 50 ms; ``changes`` are fields of Delivery and of TakenDelivery."""
    own = {name: changes.pop(name) for name in ("alone", "subject_key") if name in changes}
    event = Event(id=uuid4(), domain="iu", type="t", stream="s")
    one = Delivery(id=number, route="r", idempotency_key=f"k{number}", attempt=1, event=event, deadline=DEADLINE)
    return TakenDelivery(replace(one, **changes), **own)


def queue_of(*deliveries: TakenDelivery, **fields: Any) -> TargetQueue:
    """A queue with these waiting deliveries, for groups of at most four."""
    return TargetQueue(**{"concurrency": 1, "max_failing": 100, "group": 4, "waiting": deque(deliveries), **fields})


def ids(deliveries: Sequence[TakenDelivery | Delivery]) -> list[int]:
    return [one.delivery.id if isinstance(one, TakenDelivery) else one.id for one in deliveries]


def group_of(queue: TargetQueue) -> list[TakenDelivery]:
    """Take the deliveries of the next call."""
    first = queue.waiting.popleft()
    return [first, *queue.take_others(first)]


class Grouping:
    """A target for groups that records the ids of each call. ``behave`` makes the result of a group."""

    def __init__(self, behave: Callable[[Sequence[Delivery]], Awaitable[Any]] | None = None) -> None:
        self.calls: list[list[int]] = []
        self._behave = behave

    async def deliver(self, delivery: Delivery) -> None:
        self.calls.append([delivery.id])

    async def deliver_group(self, deliveries: Sequence[Delivery]) -> Mapping[Delivery, BaseException]:
        self.calls.append(ids(deliveries))
        return (await self._behave(deliveries) if self._behave else None) or {}


@asynccontextmanager
async def calling(report: Callable[..., object] = print) -> AsyncIterator[CallExecutor]:
    """Calls of a consumer that always considers the switches open; ``report`` is called for each failed group."""
    calls = CallExecutor(WakeEvent(), time.monotonic, report_group_failed=report)
    calls.switches_checked_at = calls.lease_valid_until = math.inf
    async with anyio.create_task_group() as tasks:
        calls.watch(tasks)
        calls.set_deadlines([DEADLINE])
        yield calls
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.001)


@pytest.mark.parametrize(
    ("deliveries", "group"),
    [
        ([taken(n) for n in range(6)], [0, 1, 2, 3]),
        ([taken(0)], [0]),
        ([taken(0), taken(1), taken(2, attempt=2), taken(3)], [0, 1]),
        ([taken(0, attempt=2), taken(1)], [0]),
        ([taken(0), taken(1, alone=True)], [0]),
        ([taken(0), taken(1, deadline=9)], [0]),
    ],
    ids=["most", "one", "a later attempt", "first a later attempt", "quarantine", "another deadline"],
)
async def test_the_deliveries_of_a_group(deliveries, group):
    """A group has the next deliveries in their order: first attempts with the same deadline, outside of quarantine.

    Fails when: a delivery that has failed before shares a call, or a call has two deadlines.
    """
    queue = queue_of(*deliveries)
    assert ids(group_of(queue)) == group
    assert ids(queue.waiting) == ids(deliveries)[len(group) :]


async def test_a_call_waits_for_a_full_group_only_if_asked():
    """Without group_wait a call never waits; with it, it waits from the first look until that time, or until the group
    is full.

    Fails when: each look at the queue prolongs the wait, or a full group or a repeated attempt waits.
    """
    queue = queue_of(taken(0))
    assert queue.waits(100) == 0
    queue.group_wait = 0.5
    assert (queue.waits(100), queue.waits(100.25), queue.waits(100.5)) == (0.5, 0.25, 0)
    group_of(queue)
    assert queue.waits(101) == 0
    queue.waiting.extend(taken(n) for n in range(3))
    assert queue.waits(102) == 0.5
    queue.waiting.append(taken(3))
    assert queue.waits(102.1) == 0
    assert queue_of(taken(0, attempt=2), group_wait=0.5).waits(100) == 0


async def test_a_returned_failure_is_that_of_one_delivery():
    """The deliveries that a call returns fail, each with its exception; the others have succeeded.

    A failure beside a success counts as that of one delivery and not of the target, wherever it is in the group.
    """

    async def first_two(deliveries: Sequence[Delivery]) -> dict[Delivery, BaseException]:
        return {deliveries[0]: Reject("no", code="x"), deliveries[1]: KeyError("k")}

    target = Grouping(first_two)
    queue = queue_of(*(taken(n) for n in range(4)), target=target)
    async with calling() as calls:
        calls.begin(queue)
        await until(lambda: len(calls.done) == 4)
        assert list(calls.running()) == []
    assert target.calls == [[0, 1, 2, 3]]
    outcomes = {o.taken.delivery.id: (o.result, o.code, o.near_success) for o in calls.done}
    assert (outcomes[2][0], outcomes[3][0], queue.failing) == (Result.SENT, Result.SENT, 2)
    assert outcomes[0] == (Result.REJECTED, "x", True)
    assert outcomes[1] == (Result.FAILED, "target_error", True)


async def raising(_: object) -> None:
    """Fail the whole group."""
    raise Failed("all of them")


async def late(_: object) -> None:
    """Exceed the deadline."""
    await anyio.sleep(60)


async def exiting(_: object) -> None:
    """Exit, which must not end the process."""
    raise SystemExit(1)


async def cancelled(_: object) -> None:
    """Raise a CancelledError, although no cancellation was requested."""
    raise asyncio.CancelledError


async def deaf(_: object) -> None:
    """Ignore the cancellation at the deadline for longer than a call may."""
    for _ in range(30):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("behave", "why"),
    [
        (raising, "failed: all of them"),
        (late, "timeout"),
        (exiting, "SystemExit"),
        (cancelled, "cancelled by the target itself"),
        (deaf, "the call still ran"),
    ],
)
async def test_the_deliveries_of_a_failed_group_are_called_one_by_one(behave, why):
    """However the call of a group fails, its deliveries get no outcome; each is called alone, before later deliveries.

    These calls begin only after the state of the route was read again, because it may be paused now.

    Fails when: such a failure is an outcome of all deliveries, or the next group contains them again, or the calls
    begin before the state of the route was read.
    """
    target, failed = Grouping(behave), []
    queue = queue_of(*(taken(n) for n in range(5)), target=target)
    async with calling(lambda *report: failed.append(report)) as calls:
        calls.begin(queue)
        await until(lambda: queue.held)
        calls.begin(queue)
        await anyio.sleep(0.01)
        assert (target.calls, calls.done, list(calls.running())) == ([[0, 1, 2, 3]], [], [])
        queue.held = False
        calls.begin(queue)
        await until(lambda: len(calls.done) == 5)
    assert target.calls[1:] == [[0], [1], [2], [3], [4]]
    assert {o.result for o in calls.done} == {Result.SENT}
    ((delivery, called, number, reason),) = failed
    assert (delivery.id, called, number) == (0, "", 4)
    assert why in reason


async def test_a_group_that_is_given_up_does_not_return():
    """The deliveries of a group are all running, and those that are given up do not return to the queue.

    Those of an ordered route without a subject are not given up; they return, because their call was cancelled.
    """
    target = Grouping(late)
    queue = queue_of(*(taken(n, subject_key=n or None) for n in range(4)), target=target)
    async with calling() as calls:
        calls.begin(queue)
        await until(lambda: target.calls)
        assert ids(list(calls.running())) == [0, 1, 2, 3]
        for one in calls.running():
            if one.subject_key is not None:
                calls.give_up(one)
        assert ids(list(calls.running())) == [0]
        await until(lambda: queue.held)
        assert (ids(queue.waiting), calls.done) == ([0], [])
