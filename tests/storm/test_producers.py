"""Many producers at full speed while the consumer runs: the measurement of the writers in bench/suite without its timings."""

from __future__ import annotations

import anyio
import pytest

from support import connected, consuming, insert_event, wait_until

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

WRITERS = 8
EVENTS_EACH = 400


async def test_under_load_every_event_is_routed_and_few_producers_notify(live):
    """Every event of concurrent producers gets its attempt, and fewer than one commit in twenty notifies.

    Fails when: producers send NOTIFY also while the consumer is busy, or the consumer becomes idle under load.
    """
    heard = []
    async with consuming(live.dsn, catch_up=300, session_timeout=1000), connected(live.dsn) as connection:
        async with connected(live.dsn) as ear:
            await ear.add_listener("iu_event_outbox", lambda *_: heard.append(1))

            async def write() -> None:
                async with connected(live.dsn) as writer:
                    for _ in range(EVENTS_EACH):
                        await insert_event(writer)

            async with anyio.create_task_group() as tasks:
                for _ in range(WRITERS):
                    tasks.start_soon(write)

            async def all_routed() -> bool:
                return await connection.fetchval("select count(*) from iu_route_attempt") == WRITERS * EVENTS_EACH

            await wait_until(all_routed, "every event has its attempt", timeout=60)
        distinct = await connection.fetchval("select count(distinct event_ref) from iu_route_attempt")

    assert distinct == WRITERS * EVENTS_EACH
    assert len(heard) < WRITERS * EVENTS_EACH / 20
