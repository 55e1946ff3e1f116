"""A small load for the tests of single faults, and the conditions that must hold after it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from uuid import UUID

import asyncpg

from support import attempted, connected, insert_event, wait_until


async def append_events(dsn: str, until: asyncio.Event, acknowledged: list[UUID]) -> None:
    """Write events one after the other, reconnect after every loss, and collect the acknowledged events."""
    while not until.is_set():
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            async with connected(dsn) as connection:
                while not until.is_set():
                    acknowledged.append(await insert_event(connection))


async def wait_for_more_events(acknowledged: list[UUID], more: int) -> None:
    enough = len(acknowledged) + more

    async def written() -> bool:
        return len(acknowledged) >= enough

    await wait_until(written, f"{more} more events are written", 30)


async def wait_until_attempted(connection, event: UUID, within: float = 15) -> None:
    async def there() -> bool:
        return event in await attempted(connection)

    await wait_until(there, "it is attempted", within)


async def check_each_event_once(dsn: str, within: float = 15) -> set[UUID]:
    """Wait until every event of the outbox has one attempt, and no attempt is without its event; return the events."""
    async with connected(dsn) as connection:

        async def all_there() -> bool:
            return await connection.fetchval(
                "select not exists (select id from event_outbox except select event_ref from iu_route_attempt)"
            )

        await wait_until(all_there, "every event is attempted", within)
        events = Counter(row["id"] for row in await connection.fetch("select id from event_outbox"))
        assert Counter(await attempted(connection)) == events
        return set(events)
