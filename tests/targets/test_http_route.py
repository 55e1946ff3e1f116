"""A route to a webhook, from the event in the database to the answer in the audit."""

from __future__ import annotations

import asyncio
import json

import anyio
import pytest

from postgres.delivery_helpers import ROUTE, attempts, delivering, open_route, wait_until_settled
from support import connected, insert_event, wait_until
from targets.http_receivers import raw, response

pytestmark = pytest.mark.asyncio


async def test_an_event_goes_to_a_webhook_and_its_answer_into_the_audit(live):
    """An event of a route to http:// arrives with its key after one failed attempt; both attempts are in the audit.
    Fails when: the target of a route is not found by its address, or an answer is not settled.
    """

    async def behave(reader, writer):
        first = len(server.requests) == 1
        writer.write(response(500, b"not yet") if first else response(204))
        await writer.drain()
        return True

    async with raw(behave) as server, connected(live.dsn) as connection:
        address = f"http://localhost:{server.port}/hook"
        await open_route(connection, address=address, backoff=0.01, target={"mode": "binary"})
        event = await insert_event(connection)
        async with delivering(live.dsn, allow_private="localhost"):
            await wait_until_settled(connection)

        assert [(row[0], row[1], row[3]) for row in await attempts(connection, event)] == [
            (1, "failed", "http_500"),
            (2, "sent", None),
        ]
    one, two = server.requests
    assert f"idempotency-key: outbound:{ROUTE}:{event}\r\n".encode() in one
    assert b"POST /hook HTTP/1.1\r\n" in two
    assert one.partition(b"\r\n\r\n")[2] == two.partition(b"\r\n\r\n")[2]
    json.loads(one.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("status", [401, 403, 404, 502])
async def test_a_receiver_that_is_being_deployed_makes_no_dead_letter(live, status):
    """While a receiver answers 401, 403, 404 or 502 to all, no attempt is counted; afterwards each event arrives once.

    Fails when: one of these statuses rejects the event, or uses up attempts while no delivery of the route succeeds.
    """
    deployed = True

    async def behave(reader, writer):
        writer.write(response(204) if deployed else response(status, b"no backend"))
        await writer.drain()
        return True

    async with raw(behave) as server, connected(live.dsn) as connection:
        address = f"http://localhost:{server.port}/hook"
        await open_route(
            connection, address=address, attempts=2, backoff=0.01, backoff_max=0.02, trial_interval_max=0.1
        )
        async with delivering(live.dsn, allow_private="localhost"):
            await insert_event(connection)
            await wait_until_settled(connection)
            deployed = False
            for _ in range(10):
                await insert_event(connection)
                # A slow stream of events, each with a few attempts.
                await anyio.sleep(0.05)
            await wait_until(lambda: connection.fetchval("select trials >= 5 from iu_delivery_breaker"), "probes")
            deployed = True
            await wait_until_settled(connection)
        assert await connection.fetchval("select count(*) from iu_route_dead_letter") == 0
        assert await connection.fetchval("select count(*) from iu_route_attempt where status = 'sent'") == 11


async def test_one_event_that_a_receiver_does_not_find_is_a_dead_letter(live):
    """If a receiver answers 404 to one event and accepts the others, that event becomes a dead letter.

    Fails when: an answer that may be an outage never uses up an attempt.
    """

    async def behave(reader, writer):
        writer.write(response(404, b"no such thing") if b"odd" in server.requests[-1] else response(204))
        await writer.drain()
        return True

    async with raw(behave) as server, connected(live.dsn) as connection:
        address = f"http://localhost:{server.port}/hook"
        await open_route(
            connection, address=address, attempts=2, backoff=0.01, backoff_max=0.02, trial_interval_max=0.1
        )
        async with delivering(live.dsn, allow_private="localhost"):
            odd = await insert_event(connection, note="odd")
            ended = "select exists (select from iu_route_dead_letter where event_ref = $1)"
            while not await connection.fetchval(ended, odd):
                await insert_event(connection)
                await asyncio.sleep(0.01)
            await wait_until_settled(connection)
        assert await connection.fetchval("select array_agg(failure_code) from iu_route_dead_letter") == ["http_404"]
