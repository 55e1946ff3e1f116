"""An event, from the outbox of a database to a broker."""

from __future__ import annotations

import json

import pytest
from redis.asyncio import Redis

from postgres.delivery_helpers import ROUTE, attempts, delivering, open_route, wait_until_settled
from support import connected, insert_event, wait_until
from targets.brokers import valkey

pytestmark = pytest.mark.asyncio


async def test_an_event_reaches_the_stream_that_its_route_names(live, tmp_path):
    """A route to an address delivers the events of the outbox; while the server is not available, it waits.

    Fails when: the scheme finds no target, options do not reach it, or an outage uses up attempts.
    """
    running = valkey(tmp_path)
    async with connected(live.dsn) as connection:
        address = f"valkey://127.0.0.1:{running.port}/1"
        await open_route(connection, address=address, attempts=1, target={"stream": "events"})
        async with delivering(live.dsn, allow_private="127.0.0.1"):
            event = await insert_event(connection, note="hello")
            await wait_until(
                lambda: connection.fetchval("select count(*) from iu_route_attempt where failure_code = 'connect'"),
                "the outage is seen",
            )
            for _ in running.running():
                await wait_until_settled(connection)
                async with Redis(port=running.port, db=1, decode_responses=True) as redis:
                    ((_, fields),) = await redis.xrange("events")

        assert fields["id"] == str(event)
        assert fields["idempotency_key"] == f"outbound:{ROUTE}:{event}"
        assert json.loads(fields["data"]) == {"note": "hello"}
        assert [row[1] for row in await attempts(connection, event)][-1] == "sent"
