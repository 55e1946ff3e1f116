"""When a consumer opens its delivery sessions, and when it closes them."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from iu_listen.app import PostgresSessions
from iu_listen.model.delivery import Reject, TakeRequest
from iu_listen.model.errors import Refused, SessionLost
from iu_listen.model.observation import Listening
from iu_listen.model.settings import Settings
from postgres.delivery_helpers import ROUTE, RecordingTarget, delivering, open_route, wait_until_settled
from support import connected, drain, insert_event, wait_until

pytestmark = pytest.mark.asyncio

SESSIONS = """
    select count(*) from pg_stat_activity
     where datname = current_database() and application_name like 'iu-listen delivery %'"""


async def no_session(connection: asyncpg.Connection) -> None:
    """Wait until no consumer has a delivery session."""

    async def none() -> bool:
        return not await connection.fetchval(SESSIONS)

    await wait_until(none, "there is no delivery session", 15)


async def test_a_consumer_without_a_live_route_has_no_delivery_session(live):
    """A consumer without a live route checks once, and then has no delivery session.

    Fails when: closing a delivery session opens the next one, many times in a second.
    """
    async with connected(live.dsn) as connection, delivering(live.dsn, RecordingTarget().target()) as seen:
        await seen.wait_for(Listening)
        await no_session(connection)
        for _ in range(50):
            await asyncio.sleep(0.02)
            assert await connection.fetchval(SESSIONS) == 0
            await insert_event(connection)


async def test_a_replay_is_delivered_without_an_open_delivery_session(live):
    """A replay is delivered if it is queued while no delivery session is open and its route becomes live.

    Fails when: only a batch that queues deliveries opens a delivery session.
    """

    async def reject(_: object) -> None:
        raise Reject("broken")

    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        event = await insert_event(connection)
        async with delivering(live.dsn, RecordingTarget(reject).target()):
            await wait_until_settled(connection)
        await connection.execute("update iu_outbound_route set dry_run = true")
        async with delivering(live.dsn, recording.target()) as seen:
            await seen.wait_for(Listening)
            await no_session(connection)
            await open_route(connection)
            await connection.execute("select fn_iu_route_dead_letter_replay(id, 'ann') from iu_route_dead_letter")
            await wait_until_settled(connection)
        assert recording.delivered == {event: 1}


async def test_the_first_take_of_a_session_has_the_deadline_of_a_batch(live):
    """The first take, which reads past all settled deliveries that vacuum kept, may last longer than `deadline`; a later
    take may not.

    Fails when: the first take has the deadline of the others, so that each session ends before it has a position.
    """
    async with connected(live.dsn) as locker, connected(live.dsn) as connection:
        await open_route(connection)
        await insert_event(connection)
        await drain(connection)
        sessions = PostgresSessions(Settings(dsn=live.dsn, deadline=0.5, batch_deadline=30))
        async with sessions.deliveries(lambda: None) as deliveries:
            assert (await deliveries.take_lease()).held
            want = TakeRequest(route=ROUTE, capacity=10, position=0, deadline=1)
            await locker.execute("begin; lock table event_outbox in access exclusive mode")
            first = asyncio.create_task(deliveries.take([want], [], []))
            await asyncio.sleep(1.2)
            assert not first.done()
            await locker.execute("rollback")
            assert len((await first).taken) == 1
            await locker.execute("begin; lock table event_outbox in access exclusive mode")
            with pytest.raises((SessionLost, Refused)):
                await deliveries.take([want], [], [])
            await locker.execute("rollback")
