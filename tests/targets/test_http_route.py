"""A route that delivers to a webhook, from the event in the database to the answer in the audit."""

from __future__ import annotations

import json

import pytest

from postgres.couriers import ROUTE, attempts, delivering, open_route, settled
from support import connected, insert_event
from targets.counterparts import raw, response

pytestmark = pytest.mark.asyncio


async def test_an_event_goes_to_a_webhook_and_its_answer_into_the_audit(live):
    """An event of a route to http:// reaches the receiver with its key, first in vain, then not; the audit says so.
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
            await settled(connection)

        assert [(row[0], row[1], row[3]) for row in await attempts(connection, event)] == [
            (1, "failed", "http_500"),
            (2, "sent", None),
        ]
    one, two = server.requests
    assert f"idempotency-key: outbound:{ROUTE}:{event}\r\n".encode() in one
    assert b"POST /hook HTTP/1.1\r\n" in two
    assert one.partition(b"\r\n\r\n")[2] == two.partition(b"\r\n\r\n")[2]
    json.loads(one.partition(b"\r\n\r\n")[2])
