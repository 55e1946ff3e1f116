"""The flag that the tasks of a consumer wait for."""

from __future__ import annotations

import anyio
import pytest

from iu_listen.flow.wake_event import WakeEvent

pytestmark = pytest.mark.anyio


async def test_silence_ends_with_the_timeout():
    """A wait that nothing ends takes exactly the timeout and returns False."""
    began = anyio.current_time()
    assert not await WakeEvent().wait(300)
    assert anyio.current_time() - began == pytest.approx(300)


async def test_a_ring_before_the_wait_counts():
    """A ring that was set before the wait ends the wait at once.

    Fails when: the ring is an edge (a condition variable) and not a level.
    """
    ring, began = WakeEvent(), anyio.current_time()
    ring.set()
    assert await ring.wait(300)
    assert anyio.current_time() == began


async def test_a_ring_during_the_wait_ends_it():
    """A ring wakes all waiting tasks at once."""
    ring, woken = WakeEvent(), []

    async def wait():
        assert await ring.wait(300)
        woken.append(anyio.current_time() - began)

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(wait)
        await anyio.sleep(7)
        ring.set()
    assert woken == pytest.approx([7, 7])


async def test_ringing_twice_is_ringing_once():
    """Setting a ring twice is the same as once: one clear resets it."""
    ring = WakeEvent()
    ring.set()
    ring.set()
    ring.clear()
    assert not await ring.wait(1)


async def test_a_ring_stays_until_it_is_cleared():
    """Waiting does not reset a ring; only clear() does."""
    ring = WakeEvent()
    ring.set()
    assert await ring.wait(1)
    assert await ring.wait(1)
    ring.clear()
    assert not await ring.wait(1)


async def test_clearing_a_silent_ring_leaves_its_waiters_waiting_for_the_same_flag():
    """Clearing a ring that is not set does not detach a task that already waits.

    Fails when: clear() makes a new flag whether or not the old one was set.
    """
    ring = WakeEvent()
    async with anyio.create_task_group() as tasks:
        answers = []

        async def wait():
            answers.append(await ring.wait(300))

        tasks.start_soon(wait)
        await anyio.sleep(1)
        ring.clear()
        ring.set()
    assert answers == [True]
