"""When a consumer opens its delivery sessions, and when it closes them."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from iu_listen.model.delivery import Reject
from iu_listen.model.observation import Listening
from postgres.couriers import Arrivals, delivering, open_route, settled
from support import connected, insert_event, wait_until

pytestmark = pytest.mark.asyncio

SESSIONS = """
    select count(*) from pg_stat_activity
     where datname = current_database() and application_name like 'iu-listen delivery %'"""


async def no_session(connection: asyncpg.Connection) -> None:
    """Wait until no consumer has a delivery session."""

    async def none() -> bool:
        return not await connection.fetchval(SESSIONS)

    await wait_until(none, "there is no delivery session", 15)


async def test_where_no_route_delivers_there_is_no_session(live):
    """A consumer without a live route checks once, and then has no delivery session.

    Fails when: closing a delivery session opens the next one, many times in a second.
    """
    async with connected(live.dsn) as connection, delivering(live.dsn, Arrivals().target()) as seen:
        await seen.wait_for(Listening)
        await no_session(connection)
        for _ in range(50):
            await asyncio.sleep(0.02)
            assert await connection.fetchval(SESSIONS) == 0
            await insert_event(connection)


async def test_what_begins_without_an_event_is_found(live):
    """A replay is delivered if it is queued while no delivery session is open and its route becomes live.

    Fails when: only a batch that queues deliveries opens a delivery session.
    """

    async def reject(_: object) -> None:
        raise Reject("broken")

    arrivals = Arrivals()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        event = await insert_event(connection)
        async with delivering(live.dsn, Arrivals(reject).target()):
            await settled(connection)
        await connection.execute("update iu_outbound_route set dry_run = true")
        async with delivering(live.dsn, arrivals.target()) as seen:
            await seen.wait_for(Listening)
            await no_session(connection)
            await open_route(connection)
            await connection.execute("select fn_iu_route_dead_letter_replay(id, 'ann') from iu_route_dead_letter")
            await settled(connection)
        assert arrivals.arrived == {event: 1}
