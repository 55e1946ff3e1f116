"""The monitor: blockers that are reported once, and a batch that never gets its answer."""

from __future__ import annotations

import anyio
import pytest

from flow.fakes import World, consuming, until
from iu_listen.flow.monitor import FIRST_ROUND_DELAY, MONITOR_INTERVAL, OVERDUE_AFTER
from iu_listen.model.errors import NoAnswer, SessionLost
from iu_listen.model.monitoring import Blocker
from iu_listen.model.observation import BatchRan, BlockerCleared, BlockerFound, SessionFailed

pytestmark = pytest.mark.anyio

LATE = Blocker(what="late_event", who="pid 7", effect="it waits", seconds=11.0)


async def test_a_culprit_is_told_once_an_episode():
    """Each blocker is reported when it begins and when it ends, and not in between; a second time is reported again.

    Fails when: every round reports it, or its end is not reported.
    """
    world = World()
    async with consuming(world) as (_, seen):
        await seen.wait_for(BatchRan)
        for episode in (1, 2):
            world.blockers = [LATE]
            await until(lambda n=episode: len(seen.of(BlockerFound)) >= n, within=100)
            await anyio.sleep(60)
            world.blockers = []
            await until(lambda n=episode: len(seen.of(BlockerCleared)) >= n, within=100)
            await anyio.sleep(60)
        assert [o.blocker for o in seen.of(BlockerFound)] == [LATE, LATE]
        assert [o.blocker for o in seen.of(BlockerCleared)] == [LATE, LATE]


async def test_a_brief_consumer_needs_no_monitor():
    """The monitor opens its session shortly after the first batch, so a consumer that ends before opens none.

    Fails when: every consumer that routes a few events, for example in a test, has one more session.
    """
    world = World(monitor_lost=SessionLost("refused"))
    async with consuming(world) as (_, seen):
        await seen.wait_for(BatchRan)
        await anyio.sleep(FIRST_ROUND_DELAY / 2)
        assert seen.of(SessionFailed) == []
        await anyio.sleep(FIRST_ROUND_DELAY)
        assert [o.session for o in seen.of(SessionFailed)] == ["monitor"]


async def test_suspects_of_one_queue_are_one_episode():
    """A NOTIFY queue that stays full is reported once, although another session is suspected in every round.

    Fails when: a new suspect counts as a new blocker.
    """
    world = World()
    async with consuming(world) as (_, seen):
        for pid in range(20):
            world.blockers = [Blocker(what="notify_queue", who=f"pid {pid}", effect="it is full")]
            await anyio.sleep(5)
        assert (len(seen.of(BlockerFound)), len(seen.of(BlockerCleared))) == (1, 0)


async def test_an_answer_that_was_lost_is_not_waited_for():
    """If the server process of a batch is idle again, although no answer arrived, the batch is given up within seconds.

    Fails when: the server is not asked, and the batch is waited for until its deadline.
    """
    world = World()
    async with consuming(world) as (_, seen):
        await seen.wait_for(BatchRan)
        world.swallowed, world.works = True, False
        world.insert()
        await until(lambda: "works 4711" in world.calls, within=100)
        began = anyio.current_time()
        await until(lambda: "abandon" in world.calls, within=100)
        world.swallowed = False
        failed = await seen.wait_for(SessionFailed)
        assert anyio.current_time() - began < OVERDUE_AFTER + 2 * MONITOR_INTERVAL + 1
        assert "lost in the network" in failed.why
        await until(lambda: not world.events, within=100)


async def test_a_long_batch_is_left_alone():
    """A batch that the server still works on is waited for, and so is one that ends between two checks.

    Fails when: the monitor gives up a batch without asking the server.
    """
    world = World(batch_seconds=40)
    async with consuming(world) as (_, seen):
        await seen.wait_for(BatchRan)
        assert world.calls.count("works 4711") > 10
        world.batch_seconds = OVERDUE_AFTER + 0.5
        await anyio.sleep(100)
        world.works = False
        await anyio.sleep(1000)
        assert "abandon" not in world.calls


async def test_a_server_that_answers_nobody_is_given_up():
    """If neither the session of the monitor nor a new one gets an answer, the batch is given up.

    Fails when: only an answer of the server can end the wait.
    """
    world = World()
    async with consuming(world) as (_, seen):
        await seen.wait_for(BatchRan)
        world.swallowed = True
        world.monitor_lost = NoAnswer("no answer within 3 s")
        world.insert()
        await until(lambda: "abandon" in world.calls, within=100)
        world.swallowed, world.monitor_lost = False, None
        await until(lambda: not world.events, within=100)


async def test_a_patrol_without_a_session_harms_nobody():
    """If the session of the monitor is refused, the monitor gives up no batch and reports the error once.

    Fails when: any loss of the monitor's session counts as a dead path, or every attempt is reported.
    """
    world = World(monitor_lost=SessionLost("too many connections"), batch_seconds=20)
    async with consuming(world) as (_, seen):
        world.insert(3)
        await until(lambda: not world.events, within=100)
        await anyio.sleep(300)
        assert "abandon" not in world.calls
        assert [o.session for o in seen.of(SessionFailed)] == ["monitor"]
