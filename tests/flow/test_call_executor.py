"""Calls of targets by real tasks: the task that makes a call, and the effect of a cancellation from inside a target."""

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

from iu_listen.flow.call_executor import CallExecutor
from iu_listen.flow.call_tasks import TargetQueue
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import Delivery, Event, Result, TakenDelivery

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """The backend in which any code can cancel any task."""
    return "asyncio"


class Remembers:
    """A target that keeps the task of each call.

    Args:
        behave: Called by the first delivery after its task was recorded.
    """

    def __init__(self, behave: Callable[[], Awaitable[object]] | None = None) -> None:
        self.tasks: list[asyncio.Task[object]] = []
        self._behave = behave

    async def deliver(self, delivery: Delivery) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        if self._behave and delivery.id == 0:
            await self._behave()


def taken(number: int) -> TakenDelivery:
    """A delivery with a deadline of 50 ms."""
    event = Event(id=uuid4(), domain="iu", type="t", stream="s")
    return TakenDelivery(
        Delivery(id=number, route="r", idempotency_key=f"k{number}", attempt=1, event=event, deadline=0.05), None
    )


@asynccontextmanager
async def calling() -> AsyncIterator[tuple[CallExecutor, WakeEvent]]:
    """Calls of a consumer that always considers the switches open, and the wake that signals ended calls."""
    wake = WakeEvent()
    calls = CallExecutor(wake, time.monotonic)
    calls.switches_checked_at = calls.lease_valid_until = math.inf
    async with anyio.create_task_group() as tasks:
        calls.watch(tasks)
        calls.set_deadlines([0.05])
        yield calls, wake
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("when", ["never", "while it waits", "as it is called"])
async def test_one_task_makes_the_calls_one_after_the_other_and_another_one_when_it_was_cancelled(when):
    """One task makes one call after another; if a cancellation from a target ends it, a new one
    takes over and no call is lost.

    Fails when: a waiting task is cancelled and still used, or a task is cancelled as it gets a
    call and the call is forgotten.
    """
    target = Remembers()
    queue = TargetQueue(concurrency=2, target=target)
    async with calling() as (calls, wake):
        for number in range(3):
            if when == "while it waits" and target.tasks:
                target.tasks[-1].cancel()
                await asyncio.wait(target.tasks[-1:])
            queue.waiting.append(taken(number))
            calls.begin(queue)
            if when == "as it is called" and target.tasks:
                target.tasks[-1].cancel()
            wake.clear()
            assert await wake.wait(5)
            with anyio.fail_after(5):
                while queue.idle is None:
                    await anyio.sleep(0)
            assert (queue.running, queue.starting) == (0, None)
        calls.close_queue(queue)
        with anyio.fail_after(5):
            await asyncio.wait(target.tasks)
    assert [(o.taken.delivery.id, o.result) for o in calls.done] == [(n, Result.SENT) for n in range(3)]
    assert len(set(target.tasks)) == (1 if when == "never" else 3)


async def cancelled_future() -> None:
    """Wait for a future that was cancelled elsewhere."""
    broken = asyncio.get_running_loop().create_future()
    broken.cancel()
    await broken


async def swallowed_and_late() -> None:
    """Ignore a cancellation, and exceed the deadline."""
    asyncio.current_task().cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    await asyncio.sleep(60)


async def late_and_cancelled() -> None:
    """Exceed the deadline, and raise another cancellation than that of the deadline."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    await cancelled_future()


@pytest.mark.parametrize(
    ("behave", "code"),
    [(cancelled_future, "target_cancelled"), (swallowed_and_late, "timeout"), (late_and_cancelled, "timeout")],
)
async def test_who_lets_a_cancellation_out_fails_alone(behave, code):
    """A target that raises a cancellation fails its own call, and the next call in the
    queue is made without a new request.

    Fails when: such a cancellation ends the dispatcher or the queue of its route, or the outcome of the call is lost
    because its deadline has passed as well.
    """
    target = Remembers(behave)
    queue = TargetQueue(concurrency=1, max_failing=2, target=target, waiting=deque(taken(n) for n in range(3)))
    async with calling() as (calls, _):
        calls.begin(queue)
        with anyio.fail_after(5):
            while len(calls.done) < 3:
                await anyio.sleep(0.001)
        assert list(calls.running()) == []
    assert [(o.result, o.code) for o in calls.done] == [(Result.FAILED, code), (Result.SENT, ""), (Result.SENT, "")]


def test_a_late_call_is_followed_by_the_next_one_in_a_program_of_asyncio():
    """In a program that asyncio.run runs, and not anyio.run, a task that a deadline has ended is replaced, too.

    Fails when: the task that takes its place makes a cancel scope in a callback, because anyio finds no event loop there
    if the package sniffio is installed. The route then delivers nothing more.
    """

    async def main() -> list[Result]:
        queue = TargetQueue(
            concurrency=1, max_failing=2, target=Remembers(lambda: asyncio.sleep(60)),
            waiting=deque(taken(n) for n in range(3)),
        )  # fmt: skip
        async with calling() as (calls, _):
            calls.begin(queue)
            with anyio.move_on_after(5):
                while len(calls.done) < 3:
                    await anyio.sleep(0.001)
        return [outcome.result for outcome in calls.done]

    assert asyncio.run(main()) == [Result.FAILED, Result.SENT, Result.SENT]
