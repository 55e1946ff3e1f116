"""Quarantine: deliveries that were in flight when a lease ended uncleanly are attempted alone.

The SQL is in functions/delivery_lease and delivery_settle; the code is in flow/quarantine.py.
"""

from __future__ import annotations

import anyio
import asyncpg
import pytest

from iu_listen import Delivery
from postgres.delivery_helpers import RecordingTarget, add_route, delivering, open_route, wait_until_settled
from support import MANY, connected, drain

pytestmark = pytest.mark.asyncio

OTHER = "other"
#: Enough events that deliveries are in flight when those in quarantine are due, half a
#: second after the lease was taken.
EVENTS = 100
DELIVERIES = "select id, route_code, alone, tries, due_at is not null as due from iu_route_delivery order by id"


async def end_uncleanly(connection: asyncpg.Connection, count: int) -> set[int]:
    """Queue deliveries of two routes, with a lease that ended while the first `count`
    were in flight; return their ids."""
    await open_route(connection, concurrency=10)
    await add_route(connection, OTHER, concurrency=10)
    await connection.execute(MANY, EVENTS)
    await drain(connection)
    first = (await connection.fetch(DELIVERIES))[:count]
    ids = [row["id"] for row in first]
    await connection.execute(
        """insert into iu_delivery_lease (worker_name, owner, seconds, renewed_at, in_flight_routes, in_flight_ids)
           values ('iu_outbound_default', gen_random_uuid(), 1, now() - interval '1 minute', $1, $2)""",
        [row["route_code"] for row in first],
        ids,
    )
    return set(ids)


@pytest.mark.parametrize("count", [1, 5])
async def test_deliveries_in_flight_at_a_crash_are_quarantined(live, count):
    """A single delivery in flight spends an attempt, several spend none; exactly these deliveries are marked as alone.

    Fails when: fn_iu_delivery_interrupted does not set the mark, or fn_iu_delivery_settle_failed does not.
    """
    async with connected(live.dsn) as connection:
        suspects = await end_uncleanly(connection, count)
        await connection.execute(
            "select fn_iu_delivery_lease('iu_outbound_default', gen_random_uuid(), 60, false, null)"
        )
        rows = await connection.fetch(DELIVERIES)
        assert {row["id"]: row["tries"] for row in rows if row["alone"]} == dict.fromkeys(suspects, int(count == 1))
        assert {row["id"] for row in rows if row["due"]} == suspects


@pytest.mark.parametrize("spread", [0.0, 0.02])
async def test_quarantined_deliveries_are_attempted_alone(live, spread):
    """Five deliveries in quarantine, of two routes, are called one after another; other deliveries run in parallel.

    Fails when: the mark does not reach the consumer, a delivery in quarantine does not wait for in-flight deliveries,
    or other deliveries are taken and begin beside it.
    """
    running: set[int] = set()
    most: dict[int, int] = {}

    async def behave(delivery: Delivery) -> None:
        running.add(delivery.id)
        # A call beside it would begin long before this one ends. Calls end together (spread 0) or one after another.
        await anyio.sleep(0.1 + spread * (delivery.id % 7))
        for id in running:
            most[id] = max(most.get(id, 0), len(running))
        running.remove(delivery.id)

    recording, others = RecordingTarget(behave), RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        suspects = await end_uncleanly(connection, 5)
        async with delivering(live.dsn, recording.target(), others.target(OTHER)):
            await wait_until_settled(connection)
    assert {id for id, beside in most.items() if beside == 1} >= suspects
    assert max(most.values()) > 1
    assert len(most) == 2 * EVENTS
