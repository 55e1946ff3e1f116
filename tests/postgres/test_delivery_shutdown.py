"""Deliveries at the graceful shutdown of a consumer."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from postgres.delivery_helpers import RecordingTarget, count_deliveries, delivering, open_route, wait_until_settled
from support import connected, insert_event, wait_until

pytestmark = pytest.mark.asyncio


async def test_a_graceful_shutdown_settles_running_calls_and_returns_the_rest(live):
    """A graceful shutdown begins no delivery, settles the calls that run, and leaves the others to the next consumer.

    Fails when: the shutdown cancels calls, or new calls begin.
    """
    recording = RecordingTarget(lambda _: anyio.sleep(0.3))
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=3)
        events = [await insert_event(connection) for _ in range(12)]
        async with delivering(live.dsn, recording.target()):
            await wait_until(lambda: asyncio.sleep(0, len(recording.calls) == 3), "three calls")
        assert len(recording.delivered) == 3
        assert await count_deliveries(connection) == 9
        assert await connection.fetchval("select released from iu_delivery_lease")
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
        assert recording.delivered == dict.fromkeys(events, 1)
