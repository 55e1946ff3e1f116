"""A server that crashes during a batch, in the middle of a tick."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import asyncpg
import pytest

from faults.load import check_each_event_once
from steps import DETAINED, STEPS, held, waiting
from support import connected, consuming, insert_event, run_batch, wait_until

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]


async def over(session: asyncpg.Connection) -> bool:
    return session.is_closed()


async def answers(dsn: str) -> bool:
    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        async with connected(dsn):
            return True
    return False


async def test_a_server_crash_at_any_step_of_a_page_loses_no_event(primary):
    """A server that crashes at any step of a page in the middle of a tick continues at that page without an operator.

    Fails when: the tick or its position is not stored in one transaction with the attempts.
    """
    dsn = primary.tcp_dsn()
    async with connected(dsn) as admin:
        await admin.execute(DETAINED)
    for step in STEPS:
        async with connected(dsn) as admin:
            async with admin.transaction():
                for _ in range(7):
                    await insert_event(admin)
            assert (await run_batch(admin, 2))["more"]
        async with (
            connected(dsn) as admin,
            held(dsn, step) as holder,
            consuming(dsn, batch_limit=2, reconnect_max=0.1),
        ):
            os.kill(await waiting(admin), signal.SIGKILL)
            # The session that holds the lock ends with the server.
            await wait_until(lambda: over(holder), "the server is down")
            await wait_until(lambda: answers(dsn), "the server is up again")
            await check_each_event_once(dsn)
    async with connected(dsn) as admin:
        assert await admin.fetchval("select total_seen from iu_route_worker_cursor") == 7 * len(STEPS)
