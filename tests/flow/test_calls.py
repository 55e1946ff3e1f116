"""Calls of targets, by real tasks: who makes them, and what a cancellation of a target's own ends."""

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

from iu_listen.flow.calls import Calls
from iu_listen.flow.ring import Ring
from iu_listen.flow.workers import Lane
from iu_listen.model.delivery import Delivery, Event, Result, Taken

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """Where anybody can cancel any task."""
    return "asyncio"


class Remembers:
    """A target that keeps the task of each call.

    Args:
        behave: What the first call does after that.
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


def taken(number: int) -> Taken:
    """A delivery that may take 50 ms."""
    event = Event(id=uuid4(), domain="iu", type="t", stream="s")
    return Taken(
        Delivery(id=number, route="r", idempotency_key=f"k{number}", attempt=1, event=event, deadline=0.05), None
    )


@asynccontextmanager
async def calling() -> AsyncIterator[tuple[Calls, Ring]]:
    """Calls of a consumer that knows for ever that the locks are open, and the ring of those that have ended."""
    ring = Ring()
    calls = Calls(ring, time.monotonic)
    calls.answered = calls.trusted = math.inf
    async with anyio.create_task_group() as tasks:
        calls.watch(tasks)
        calls.expect([0.05])
        yield calls, ring
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("when", ["never", "while it waits", "as it is called"])
async def test_one_task_makes_the_calls_one_after_the_other_and_another_one_when_it_was_cancelled(when):
    """Who has made a call waits for the next; one that a target's own cancellation ends is replaced, and no call is lost.

    Fails when: the one that waits is cancelled and still called, or is called and what it was called for is forgotten.
    """
    target = Remembers()
    lane = Lane(concurrency=2, target=target)
    async with calling() as (calls, ring):
        for number in range(3):
            if when == "while it waits" and target.tasks:
                target.tasks[-1].cancel()
                await asyncio.wait(target.tasks[-1:])
            lane.queue.append(taken(number))
            calls.begin(lane)
            if when == "as it is called" and target.tasks:
                target.tasks[-1].cancel()
            ring.clear()
            assert await ring.wait_rung(5)
            with anyio.fail_after(5):
                while lane.idle is None:
                    await anyio.sleep(0)
            assert (lane.workers, lane.starting) == (0, None)
        calls.leave(lane)
        with anyio.fail_after(5):
            await asyncio.wait(target.tasks)
    assert [(o.taken.delivery.id, o.result) for o in calls.done] == [(n, Result.SENT) for n in range(3)]
    assert len(set(target.tasks)) == (1 if when == "never" else 3)


async def cancelled_future() -> None:
    """Waits for what somebody else has cancelled."""
    broken = asyncio.get_running_loop().create_future()
    broken.cancel()
    await broken


async def swallowed_and_late() -> None:
    """Is cancelled, does not care, and takes too long."""
    asyncio.current_task().cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    await asyncio.sleep(60)


async def late_and_cancelled() -> None:
    """Takes too long, and lets out another cancellation than the one that ends it."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    await cancelled_future()


@pytest.mark.parametrize(
    ("behave", "code"),
    [(cancelled_future, "target_cancelled"), (swallowed_and_late, "timeout"), (late_and_cancelled, "timeout")],
)
async def test_who_lets_a_cancellation_out_fails_alone(behave, code):
    """The call fails, and the next in the queue is made although nobody asks anew.

    Fails when: such a cancellation ends the work, or the queue of its lane; or nobody hears what came of the call, because
    its deadline was over as well. A review found it.
    """
    target = Remembers(behave)
    lane = Lane(concurrency=1, most_failing=2, target=target, queue=deque(taken(n) for n in range(3)))
    async with calling() as (calls, _):
        calls.begin(lane)
        with anyio.fail_after(5):
            while len(calls.done) < 3:
                await anyio.sleep(0.001)
        assert list(calls.under_way()) == []
    assert [(o.result, o.code) for o in calls.done] == [(Result.FAILED, code), (Result.SENT, ""), (Result.SENT, "")]
