"""The consumer with lost sessions, a lease held elsewhere, outages and stops, against a simulated database."""

from __future__ import annotations

import time

import anyio
import pytest

from flow.fakes import World, consuming, until
from iu_listen.flow.backoff import BACKOFF_BASE
from iu_listen.model.errors import Refused, SessionLost
from iu_listen.model.observation import BatchRan, LeaseTaken, Listening, SessionFailed, StandingBy, Stopped, Stopping
from iu_listen.model.routing import Wake

pytestmark = pytest.mark.anyio

LONG = {"catch_up": 300, "session_timeout": 1000}


async def at_work(world: World) -> None:
    await until(lambda: world.armed and world.calls[-1] == "batch")
    await anyio.sleep(0.01)


async def test_a_lost_worker_session_is_replaced_and_both_begin_anew():
    """After the loss of the worker session the consumer connects, takes the lease, runs a batch, and listens again.

    Fails when: the listener session outlives the lease, or the first batch is not called a reconnect.
    """
    world = World()
    async with consuming(world, **LONG) as (_, seen):
        await at_work(world)
        before = len(seen.seen)
        world.calls.clear()
        world.lost = SessionLost("gone")
        world.insert()
        failed = await seen.wait_for(SessionFailed)
        assert (failed.session, failed.why) == ("worker", "gone")
        assert not world.armed
        world.lost = None
        ran = await seen.wait_for(BatchRan, after=before)
        assert (ran.wake, ran.batch.seen) == (Wake.RECONNECT, 1)
        await seen.wait_for(Listening, after=before)
        assert [c for c in world.calls if c in ("connect", "lease", "listen")] == ["connect", "lease", "listen"]


async def test_pauses_grow_in_an_outage_up_to_the_cap_and_vary():
    """In an outage the pauses between connects grow up to the cap, and differ between consumers.

    Fails when: the backoff does not grow or has no jitter.
    """
    pauses = []
    for seed in (1, 2):
        world = World(lost=SessionLost("down"))
        async with consuming(world, seed=seed, **LONG, reconnect_max=10) as (_, seen):
            await until(lambda seen=seen: len(seen.of(SessionFailed)) >= 40)
            pauses.append([f.retry_in for f in seen.of(SessionFailed)])
    first, second = pauses
    assert first != second
    assert BACKOFF_BASE / 2 <= first[0] <= BACKOFF_BASE
    assert max(first) <= 10
    assert sum(first[-20:]) > 20 * 3


async def test_only_a_successful_batch_resets_the_backoff():
    """While a database accepts connections and refuses batches, the pauses grow; a successful batch resets them.

    Fails when: the backoff is reset by a connection instead of a batch, or never.
    """
    world = World(lost=None)
    async with consuming(world, **LONG, reconnect_max=100) as (_, seen):
        await at_work(world)

        def full_disk() -> None:
            if world.events == 1:
                raise Refused("disk full")

        world.on_look = full_disk
        world.insert()
        await until(lambda: len(seen.of(SessionFailed)) >= 15)
        assert max(f.retry_in for f in seen.of(SessionFailed)) > 10
        world.on_look = lambda: None
        await until(lambda: not world.events)
        await at_work(world)
        world.lost = SessionLost("gone")
        world.insert()
        failures = len(seen.of(SessionFailed))
        await until(lambda: len(seen.of(SessionFailed)) > failures)
        assert seen.of(SessionFailed)[-1].retry_in <= BACKOFF_BASE


async def test_a_batch_without_its_heartbeat_does_not_reset_the_backoff():
    """While batches succeed and heartbeats are refused, the pauses grow.

    Fails when: the backoff is reset before the heartbeat is written.
    """
    world = World(beat_lost=Refused("disk full"))
    async with consuming(world, **LONG, reconnect_max=100) as (_, seen):
        await until(lambda: len(seen.of(SessionFailed)) >= 15)
        assert max(f.retry_in for f in seen.of(SessionFailed)) > 10


async def test_an_hour_of_outage_ends_by_itself():
    """After an outage of an hour the consumer works again within the longest pause."""
    began, world = time.monotonic(), World()
    async with consuming(world, **LONG, reconnect_max=10) as (_, seen):
        await at_work(world)
        world.lost = world.bell_lost = SessionLost("down")
        world.rings()
        await anyio.sleep(3600)
        before, now = len(seen.seen), anyio.current_time()
        assert 300 < len(seen.of(SessionFailed)) < 1500
        world.lost = world.bell_lost = None
        world.events = 5
        await seen.wait_for(BatchRan, lambda b: b.batch.seen == 5, after=before)
        assert anyio.current_time() - now <= 10.1
        await seen.wait_for(Listening, after=before)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("error", [SessionLost("gone"), Refused("too many notifications in the NOTIFY queue")])
async def test_no_error_of_the_bell_ends_the_work(error):
    """If the listener session fails, the worker session goes on and the listener session is opened again.

    Fails when: _keep_listening() lets Refused through, and the whole consumer ends.
    """
    world = World(bell_lost=error)
    async with consuming(world, **LONG, poll_interval=1) as (_, seen):
        await seen.wait_for(SessionFailed)
        world.events = 1
        await seen.wait_for(BatchRan, lambda b: b.batch.seen == 1)
        world.bell_lost = None
        await seen.wait_for(Listening)
        assert world.calls.count("connect") == 1


async def test_a_standby_names_the_holder_once_and_takes_over():
    """A standby reports each lease holder once, and takes the lease within a second after it is free.

    Fails when: the standby works without the lease.
    """
    world = World(holder="pid 7", events=1)
    async with consuming(world, catch_up=5.0) as (_, seen):
        await anyio.sleep(600)
        assert [s.holder for s in seen.of(StandingBy)] == ["pid 7"]
        assert not {"batch", "listen"} & set(world.calls)
        assert world.beats[-1][1:3] == ("standing_by", "pid 7")
        assert len(world.beats) > 100
        world.holder = "pid 8"
        await anyio.sleep(600)
        assert [s.holder for s in seen.of(StandingBy)] == ["pid 7", "pid 8"]
        world.holder, now = None, anyio.current_time()
        await seen.wait_for(LeaseTaken)
        ran = await seen.wait_for(BatchRan)
        assert ran.batch.seen == 1
        assert anyio.current_time() - now < 1
        assert world.beats[-1][1] == "idle"


async def stopped(world: World, consumer, seen, within: float) -> None:
    """Stop, and check the time and the reported reason."""
    now = anyio.current_time()
    consumer.stop("SIGTERM")
    await seen.wait_for(Stopped)
    assert anyio.current_time() - now <= within
    assert [s.why for s in seen.of(Stopping)] == ["SIGTERM"]


async def test_stopped_while_asleep_it_leaves_at_once():
    """An idle consumer that is asked to stop ends at once, and its last heartbeat shows it.

    Fails when: stop() does not wake the consumer.
    """
    world = World()
    async with consuming(world, **LONG) as (consumer, seen):
        await at_work(world)
        await stopped(world, consumer, seen, within=0)
        assert world.beats[-1][1:3] == ("stopped", "SIGTERM")
        assert not world.armed


async def test_stopped_in_a_batch_it_ends_the_batch_first():
    """A consumer that is asked to stop finishes the running batch and begins no other.

    Fails when: stop() cancels instead of asking.
    """
    world = World(events=10_000, batch_seconds=3)
    async with consuming(world, **LONG) as (consumer, seen):
        await until(lambda: world.looks)
        await anyio.sleep(1)
        await stopped(world, consumer, seen, within=2.01)
        assert [b.batch.seen for b in seen.of(BatchRan)] == [5000]
        assert seen.of(Stopped)[0].events == 5000
        assert world.beats[-1][1:3] == ("stopped", "SIGTERM")


async def test_stopped_while_standing_by_it_leaves_at_once():
    """A standby that is asked to stop ends at once and has run no batch."""
    world = World(holder="pid 7")
    async with consuming(world, **LONG) as (consumer, seen):
        await seen.wait_for(StandingBy)
        await anyio.sleep(5)
        await stopped(world, consumer, seen, within=0)
        assert world.beats[-1][1:3] == ("stopped", "SIGTERM")
        assert not seen.of(BatchRan)


async def test_stopped_in_backoff_it_leaves_at_once():
    """A consumer that is asked to stop during its backoff ends at once."""
    world = World(lost=SessionLost("down"))
    async with consuming(world, **LONG, reconnect_max=300) as (consumer, seen):
        await until(lambda: seen.of(SessionFailed) and seen.of(SessionFailed)[-1].retry_in > 20)
        await anyio.sleep(1)
        await stopped(world, consumer, seen, within=0)
        assert world.calls[-1] == "connect"


async def test_stopped_while_polling_it_leaves_at_once():
    """A consumer without a listener session that is asked to stop does not wait for its next poll."""
    world = World(no_bell="off")
    async with consuming(world, **LONG, poll_interval=60) as (consumer, seen):
        await anyio.sleep(100)
        await stopped(world, consumer, seen, within=0.01)
        assert world.beats[-1][1:3] == ("stopped", "SIGTERM")


async def test_stopped_while_a_batch_is_lost_it_leaves_without_another_try():
    """A session that is lost during a stop is not replaced."""
    world = World(events=1, batch_seconds=3)
    async with consuming(world, **LONG) as (consumer, seen):
        await until(lambda: world.looks)
        world.lost = SessionLost("gone")
        await stopped(world, consumer, seen, within=3.01)
        assert world.calls.count("connect") == 1
        assert not seen.of(SessionFailed)


async def test_stopped_while_it_takes_the_lease_it_leaves_at_once():
    """A stop that arrives between two steps of a standby is not overlooked.

    Fails when: the ring is cleared between the check for a stop and the wait.
    """
    world = World(holder="pid 7")
    async with consuming(world, **LONG) as (consumer, seen):
        await seen.wait_for(StandingBy)
        tries = world.calls.count("lease")
        await until(lambda: world.calls.count("lease") > tries, within=1)
        await stopped(world, consumer, seen, within=0.6)
