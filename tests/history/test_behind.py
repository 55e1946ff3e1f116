"""A consumer that keeps running through a failover to a copy that is behind: an asynchronous standby, or a restore."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import asyncpg
import pytest

from clusters import cluster
from iu_listen import embedded
from postgres.delivery_helpers import RecordingTarget, delivering, open_route, wait_until_settled
from support import MANY, apply_package, connected, wait_until

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]


@pytest.mark.parametrize("order", ["none", "subject"])
@pytest.mark.parametrize("major", embedded.MAJORS)
async def test_a_running_consumer_delivers_after_its_server_returned_to_an_earlier_state(major: int, order: str):
    """After its server returned to an earlier state, a consumer that was running before delivers the new events.

    Fails when: a delivery session begins at the ids that an earlier session had reached. The restored lease row names
    this consumer, so the consumer is not a new owner.
    """
    recording = RecordingTarget()
    with cluster(major) as server:
        dsn = server.dsn("postgres")
        await apply_package(dsn)
        async with connected(dsn) as connection:
            await open_route(connection, order=order)
        async with delivering(dsn, recording.target()):
            async with connected(dsn) as connection:
                await connection.execute(MANY, 10)
                await wait_until_settled(connection)
            before = Path(f"{server.data}.before")
            server.stop()
            subprocess.run(["cp", "-a", server.data, before], check=True)
            server.start()
            await wait_until(lambda: _emit(dsn, 500), "the server takes writes")
            async with connected(dsn) as connection:
                await wait_until_settled(connection)
            assert recording.delivered.total() == 510
            server.stop("immediate")
            shutil.rmtree(server.data)
            before.rename(server.data)
            server.start()
            await wait_until(lambda: _emit(dsn, 50), "the server takes writes")
            async with connected(dsn) as connection:
                await wait_until_settled(connection)
                assert await connection.fetchval("select count(*) from iu_route_attempt where status = 'sent'") == 60


async def _emit(dsn: str, count: int) -> bool:
    try:
        async with connected(dsn) as connection:
            await connection.execute(MANY, count)
    except (OSError, asyncpg.PostgresError):
        return False
    return True
