"""Calls of targets, by real tasks: who makes them, and what a cancellation of a target's own ends."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from uuid import uuid4

import anyio
import pytest

from iu_listen.flow.calls import Calls, Lane
from iu_listen.flow.ring import Ring
from iu_listen.model.delivery import Delivery, Event, Result, Taken

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """Where anybody can cancel any task."""
    return "asyncio"


class Remembers:
    """A target that keeps the task of each call."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[object]] = []

    async def deliver(self, _: Delivery) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)


def taken(number: int) -> Taken:
    """A delivery."""
    event = Event(id=uuid4(), domain="iu", type="t", stream="s")
    return Taken(Delivery(id=number, route="r", idempotency_key=f"k{number}", attempt=1, event=event), None)


@pytest.mark.parametrize("when", ["never", "while it waits", "as it is called"])
async def test_one_task_makes_the_calls_one_after_the_other_and_another_one_when_it_was_cancelled(when):
    """Who has made a call waits for the next; one that a target's own cancellation ends is replaced, and no call is lost.

    Fails when: the one that waits is cancelled and still called, or is called and what it was called for is forgotten.
    """
    ring, target = Ring(), Remembers()
    calls = Calls(ring, time.monotonic)
    lane = Lane(concurrency=2, target=target)
    async with anyio.create_task_group() as tasks:
        calls.watch(tasks)
        for number in range(3):
            calls.answered, calls.trusted = time.monotonic(), time.monotonic() + 60
            if when == "while it waits" and target.tasks:
                target.tasks[-1].cancel()
                await anyio.sleep(0.01)
            lane.queue.append(taken(number))
            calls.begin(lane)
            if when == "as it is called" and target.tasks:
                target.tasks[-1].cancel()
            ring.clear()
            assert await ring.wait_rung(5)
            await anyio.sleep(0.01)
            assert (lane.workers, lane.starting) == (0, False)
        tasks.cancel_scope.cancel()
    assert [(o.taken.delivery.id, o.result) for o in calls.done] == [(n, Result.SENT) for n in range(3)]
    assert len(set(target.tasks)) == (1 if when == "never" else 3)


async def test_who_lets_a_cancellation_out_fails_alone():
    """The call fails, and the next in the queue is made although nobody asks anew.

    Fails when: such a cancellation ends the work, or the queue of its lane.
    """

    class LetsOut(Remembers):
        async def deliver(self, delivery: Delivery) -> None:
            await super().deliver(delivery)
            if delivery.id == 0:
                broken = asyncio.get_running_loop().create_future()
                broken.cancel()
                await broken

    target = LetsOut()
    calls = Calls(Ring(), time.monotonic)
    async with anyio.create_task_group() as tasks:
        calls.watch(tasks)
        calls.answered, calls.trusted = time.monotonic(), time.monotonic() + 60
        lane = Lane(concurrency=1, most_failing=2, target=target, queue=deque(taken(n) for n in range(3)))
        calls.begin(lane)
        with anyio.fail_after(5):
            while len(calls.done) < 3:
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert [(o.result, o.code) for o in calls.done] == [
        (Result.FAILED, "target_cancelled"),
        (Result.SENT, ""),
        (Result.SENT, ""),
    ]
