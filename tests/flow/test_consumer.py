"""The loop of the consumer against a simulated database: when it polls, arms, becomes idle and wakes up."""

from __future__ import annotations

from itertools import pairwise

import anyio
import pytest

from flow.fakes import World, consuming, until
from iu_listen.flow.wake_policy import ARM_WAIT_MAX, BUSY_BATCH
from iu_listen.model.observation import (
    BatchRan,
    LeaseTaken,
    Listening,
    NotificationMissed,
    Polling,
    SessionFailed,
    Started,
    StateChanged,
    Stopping,
)
from iu_listen.model.routing import State, Wake

pytestmark = pytest.mark.anyio

#: Longest idle time in these tests: so long that a test notices if something waits for it.
CATCH_UP = 300
LONG = {"catch_up": CATCH_UP, "session_timeout": 1000}


def asleep(world: World) -> bool:
    return world.armed and world.calls[-1:] == ["batch"] and not world.events


async def sleep_sets_in(world: World) -> None:
    """Wait until the consumer is idle and armed."""
    await until(lambda: asleep(world))
    await anyio.sleep(0.01)


async def test_it_starts_with_a_look_under_the_lease():
    """The consumer runs a batch right after it took the lease, before it has a listener session."""
    world = World(events=3)
    async with consuming(world, **LONG) as (_, seen):
        await seen.wait_for(Listening)
        kinds = [type(o) for _, o in seen.seen]
        assert kinds[:2] == [Started, LeaseTaken]
        first = await seen.wait_for(BatchRan)
        assert (first.wake, first.batch.seen) == (Wake.START_UP, 3)


async def test_it_drains_before_it_rests():
    """Full batches follow each other without a pause until one is not full. Fails when: ``more`` is ignored."""
    world = World(events=12_000)
    async with consuming(world, **LONG) as (_, seen):
        await until(lambda: not world.events)
        await sleep_sets_in(world)
        assert [b.batch.seen for b in seen.of(BatchRan)][:3] == [5000, 5000, 2000]
        assert all(later - earlier == pytest.approx(0.001) for earlier, later in pairwise(world.looks[:3]))


async def test_it_looks_once_more_after_arming_and_only_then_sleeps():
    """Between arming and idleness the consumer runs exactly one batch.

    Fails when: the batch after arm() is taken out.
    """
    world = World()
    async with consuming(world, **LONG):
        await sleep_sets_in(world)
        assert world.calls[-2:] == ["arm", "batch"]
        calls = list(world.calls)
        await anyio.sleep(CATCH_UP * 0.7)
        assert world.calls == calls


async def test_an_event_that_commits_without_a_notification_just_before_arming_is_found():
    """An event that commits without NOTIFY just before the consumer arms is routed at once, not by the catch-up poll.

    Fails when: the batch after arm() is taken out.
    """
    world = World()
    async with consuming(world, **LONG) as (_, seen):
        await sleep_sets_in(world)
        before = len(seen.seen)
        # A busy period, so that the consumer arms again without a notification that is left from its start.
        world.on_arm = lambda: setattr(world, "events", 1)
        world.insert(BUSY_BATCH)
        found = await seen.wait_for(BatchRan, lambda b: b.batch.seen == 1, after=before)
        now, world.on_arm = anyio.current_time(), lambda: None
        assert found.wake is not Wake.CATCH_UP
        assert now < 1


async def test_a_ring_wakes_it_at_once():
    """An event that commits while the consumer is idle is routed at the same instant, and the wake-up is named."""
    world = World()
    async with consuming(world, **LONG) as (_, seen):
        await sleep_sets_in(world)
        before, now = len(seen.seen), anyio.current_time()
        world.insert()
        ran = await seen.wait_for(BatchRan, after=before)
        assert (ran.wake, ran.batch.seen) == (Wake.NOTIFY, 1)
        assert anyio.current_time() - now == pytest.approx(world.batch_seconds)


async def test_a_ring_during_a_batch_is_not_lost():
    """If a notification arrives while a batch runs, after its snapshot, the event is routed right after that batch.

    Fails when: the notification is cleared after the batch instead of before it.
    """
    world = World()
    async with consuming(world, **LONG) as (_, seen):
        await sleep_sets_in(world)
        late = [1]
        world.on_look = lambda: world.insert(late.pop()) if late else None
        before, now = len(seen.seen), anyio.current_time()
        world.insert()
        await until(lambda: sum(b.batch.seen for _, b in seen.seen[before:] if isinstance(b, BatchRan)) == 2)
        assert anyio.current_time() - now < 0.1


async def test_without_any_ring_it_looks_once_a_catch_up():
    """Without notifications an idle consumer polls after 0.8 to 1 times `catch_up`, at random.

    Fails when: the timer or its jitter is taken out.
    """
    world = World()
    async with consuming(world, **LONG) as (_, seen):
        await sleep_sets_in(world)
        woken = len(world.looks)
        await anyio.sleep(25 * CATCH_UP)
        gaps = [later - earlier for earlier, later in pairwise(world.looks[woken:])]
        assert all(CATCH_UP * 0.8 <= gap <= CATCH_UP + 0.01 for gap in gaps)
        assert max(gaps) - min(gaps) > CATCH_UP * 0.05
        assert {b.wake for b in seen.of(BatchRan)[-10:]} == {Wake.CATCH_UP}


async def test_under_load_it_stays_awake_and_writers_need_not_ring():
    """A consumer under load polls without being armed; when the load ends, it lingers, arms and runs a batch.

    Fails when: a busy consumer stays armed.
    """
    world = World()
    async with consuming(world, **LONG, linger=0.05) as (_, seen):
        await sleep_sets_in(world)
        rings, ring = [], world.rings
        world.rings = lambda: (rings.append(1), ring())
        world.calls.clear()
        for _ in range(1000):
            world.insert()
            await anyio.sleep(0.001)
        assert world.calls.count("disarm") == 1
        assert "arm" not in world.calls
        assert len(rings) <= 5
        ended = anyio.current_time()
        await sleep_sets_in(world)
        assert anyio.current_time() - ended >= 0.04
        assert world.calls[-2:] == ["arm", "batch"]
        assert {b.wake for b in seen.of(BatchRan)[-300:]} <= {Wake.LINGER, Wake.NOTIFY}


async def test_a_slow_stream_is_answered_by_the_bell():
    """If events come 20 ms apart, each sends a notification and is routed at once."""
    world = World()
    async with consuming(world, **LONG) as (_, seen):
        await sleep_sets_in(world)
        world.calls.clear()
        for _ in range(50):
            world.insert()
            await anyio.sleep(0.02)
        assert world.calls == ["batch"] * 50
        assert {b.wake for b in seen.of(BatchRan)[-50:]} == {Wake.NOTIFY}


async def test_while_arming_is_refused_it_keeps_looking():
    """While the consumer cannot arm because of an uncommitted producer, it polls with growing pauses of at most 50 ms.

    Fails when: a refused arming counts as a granted one.
    """
    world = World(silent_writers=1)
    async with consuming(world, **LONG) as (_, seen):
        await until(lambda: "arm" in world.calls)
        tried = len(world.looks)
        await anyio.sleep(10)
        gaps = [later - earlier for earlier, later in pairwise(world.looks[tried:])]
        assert max(gaps) <= ARM_WAIT_MAX + 0.002
        assert gaps[-1] > 5 * gaps[0]
        now = anyio.current_time()
        world.events, world.silent_writers = 1, 0
        await seen.wait_for(BatchRan, lambda b: b.batch.seen == 1)
        assert anyio.current_time() - now <= ARM_WAIT_MAX + 0.002
        await sleep_sets_in(world)


async def test_a_missed_notification_is_reported_once_and_found_by_polling():
    """A lost listener session is reported once and replaced by polling; a new one causes a batch at once after LISTEN.

    Fails when: the batch after LISTEN is taken out.
    """
    world = World()
    async with consuming(world, **LONG, poll_interval=60, reconnect_max=300) as (_, seen):
        await sleep_sets_in(world)
        world.lose_bell("gone")
        lost = await seen.wait_for(SessionFailed)
        assert (lost.session, lost.why) == ("listener", "gone")
        await anyio.sleep(3000)
        assert {b.wake for b in seen.of(BatchRan)[-20:]} == {Wake.POLL}
        assert not seen.of(Polling)
        before = len(seen.seen)
        world.bell_lost, world.on_listen = None, lambda: setattr(world, "events", 1)
        await seen.wait_for(Listening, after=before)
        now = anyio.current_time()
        await seen.wait_for(BatchRan, lambda b: b.batch.seen == 1, after=before)
        assert anyio.current_time() - now < 0.1
        await sleep_sets_in(world)


async def test_a_bell_that_is_lost_while_arming_is_no_bell():
    """A listener session that breaks in arm() neither ends the consumer nor makes it idle.

    Fails when: _arm_or_disarm() lets SessionLost through, so that the lease is lost with the listener session.
    """
    world = World()
    world.on_arm = world.lose_bell
    async with consuming(world, **LONG, poll_interval=1) as (_, seen):
        await seen.wait_for(SessionFailed)
        await anyio.sleep(10)
        assert world.calls.count("connect") == 1
        assert {f.session for f in seen.of(SessionFailed)} == {"listener"}
        world.events = 1
        await seen.wait_for(BatchRan, lambda b: (b.batch.seen, b.wake) == (1, Wake.POLL))


async def test_where_listening_cannot_work_it_polls_and_says_why_once():
    """A connection pooler that makes LISTEN impossible is reported once and retried once a
    minute, while the consumer polls.

    After the pooler is gone, the consumer listens.

    Fails when: ListenUnavailable is treated like a lost session, and the log fills.
    """
    world = World(no_bell="a pooler is in between")
    async with consuming(world, **LONG, poll_interval=0.5) as (_, seen):
        await anyio.sleep(600)
        assert [p.why for p in seen.of(Polling)] == ["a pooler is in between"]
        assert world.calls.count("listen") in (10, 11)
        assert max(b - a for a, b in pairwise(world.looks)) < 0.51
        world.no_bell = ""
        await seen.wait_for(Listening)
        await sleep_sets_in(world)


async def test_a_missed_notification_is_told_from_a_late_one():
    """A catch-up poll that finds events without a notification reports a missed notification,
    unless one comes within LATE_NOTIFICATION.

    Fails when: the wait for a late notification is taken out, or the report.
    """
    world = World(deaf=True)
    async with consuming(world, **LONG) as (_, seen):
        await sleep_sets_in(world)
        world.insert(7)
        lost = await seen.wait_for(NotificationMissed)
        assert lost.events == 7
        found = [b for b in seen.of(BatchRan) if b.batch.seen]
        assert [b.wake for b in found] == [Wake.CATCH_UP]
        await sleep_sets_in(world)
        world.events = 3
        before = len(seen.seen)
        await seen.wait_for(BatchRan, lambda b: b.batch.seen == 3, after=before)
        await anyio.sleep(0.2)
        world.rings()
        await anyio.sleep(CATCH_UP * 3)
        assert len(seen.of(NotificationMissed)) == 1


async def test_a_closed_gate_is_said_once_and_obeyed_when_it_opens():
    """Behind a closed gate the consumer is idle and reports it once; the notification of
    the opened gate wakes it at once."""
    world = World(status="worker_gate_closed", events=2)
    async with consuming(world, **LONG) as (_, seen):
        await until(lambda: world.armed and world.calls[-1] == "batch")
        await anyio.sleep(3 * CATCH_UP)
        assert [(s.state, s.why) for s in seen.of(StateChanged)] == [(State.GATE_CLOSED, "worker_gate_closed")]
        now, world.status = anyio.current_time(), "ran"
        world.rings()
        await seen.wait_for(BatchRan, lambda b: b.batch.seen == 2)
        assert anyio.current_time() - now < 0.01
        assert [s.state for s in seen.of(StateChanged)] == [State.GATE_CLOSED, State.IDLE]
        assert world.beats[-1][1] == "idle"


async def test_a_worker_that_refuses_says_why():
    """A database with a foreign history is not read, and the log and the heartbeat give the reason."""
    world = World(status="foreign_history", reason="foreign_cursor", events=2)
    async with consuming(world, **LONG) as (_, seen):
        await anyio.sleep(3 * CATCH_UP)
        assert [(s.state, s.why) for s in seen.of(StateChanged)] == [(State.REFUSING, "foreign_cursor")]
        assert world.beats[-1][1:3] == ("refusing", "foreign_cursor")
        assert not sum(b.batch.seen for b in seen.of(BatchRan))


async def test_an_unknown_status_is_a_refusal():
    """A status that this version does not know is a refusal with that status as the reason, not a crash."""
    world = World(status="from_the_future")
    async with consuming(world, **LONG) as (_, seen):
        changed = await seen.wait_for(StateChanged)
        assert (changed.state, changed.why) == (State.REFUSING, "from_the_future")


async def test_it_beats_once_a_cadence_under_load_and_at_rest():
    """Two heartbeats are never further apart than the interval, and under load not every batch sends one.

    Fails when: a busy consumer sends no heartbeat, or one for every batch.
    """
    world = World(batch_seconds=0.01)
    async with consuming(world, catch_up=5.0):
        await sleep_sets_in(world)
        await anyio.sleep(60)
        for _ in range(60_000):
            world.insert()
            await anyio.sleep(0.001)
        world.events += 10_000_000
        await until(lambda: not world.events)
        beats = [at for at, *_ in world.beats]
        assert max(b - a for a, b in pairwise(beats)) <= 5.0 + 0.1
        assert len(beats) < (anyio.current_time() - world.looks[0]) / 2
        assert "busy" in {state for _, state, *_ in world.beats}


async def test_a_heartbeat_says_whether_it_listens():
    """The heartbeat shows whether the consumer listens or polls."""
    world = World(no_bell="off")
    async with consuming(world, catch_up=1.0) as (_, seen):
        await anyio.sleep(10)
        assert not world.beats[-1][3]
        world.no_bell = ""
        await seen.wait_for(Listening)
        await anyio.sleep(10)
        assert world.beats[-1][3]


async def test_stopping_is_noted_once():
    """A second request to stop has no effect: one stop is reported, with the first reason."""
    world = World()
    async with consuming(world, **LONG) as (consumer, seen):
        await sleep_sets_in(world)
        consumer.stop("first")
        consumer.stop("second")
        assert [s.why for s in seen.of(Stopping)] == ["first"]
