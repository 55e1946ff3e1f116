"""What a run of retention reads, however large the log and the audit are and whatever is known of them."""

from __future__ import annotations

import asyncpg
import pytest

from iu_listen.postgres import retention
from support import MANY, connected, drain, rows_read

pytestmark = pytest.mark.asyncio

EVENTS = 3000
KINDS = ("events", "attempts", "dead_letters")
KNOWN = ("nothing", "that all is empty")
KEEP = "1 millisecond"

TABLES = "^(event_outbox|iu_route_)"


async def remove(session: asyncpg.Connection, what: str) -> int:
    """One run in pages of 300; how many rows it removed."""
    return sum([answer["gone"] async for answer in retention.batches(session, what, KEEP, 300, 0, 60)])


@pytest.mark.parametrize("known", KNOWN)
async def test_a_row_that_goes_costs_a_few_reads(live, known):
    """Pages of the log, the attempts and the dead letters are read once, and what is in them by its key.

    Fails when: a run may read a table whole.
    """
    await costs(live.dsn, known)


@pytest.mark.parametrize("known", KNOWN)
async def test_a_row_that_goes_from_partitions_costs_a_few_reads(partitioned, known):
    """The same where the log is cut into months.

    Fails when: the row that is locked may be looked up through the index on its domain, which every row of the page has
    in common: a batch of 300 took a minute.
    """
    await costs(partitioned.dsn, known)


async def costs(dsn: str, known: str) -> None:
    """Remove a log of which the planner knows nothing, or what is not so any more."""
    async with connected(dsn) as session, connected(dsn) as writer:
        for table in await writer.fetch(
            "select oid::regclass::text as name from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
        ):
            await writer.execute(f"alter table {table['name']} set (autovacuum_enabled = off)")
        if known == "that all is empty":
            await writer.execute("analyze")
        for what in KINDS:
            assert await remove(session, what) == 0
        await writer.execute(MANY, EVENTS)
        await writer.execute(
            """insert into iu_route_dead_letter (worker_name, event_ref, route_code, idempotency_key, event_snapshot,
                                                 failure_code, resolved_at, resolution)
               select 'x', id, 'x', 'x:' || id, '{}', 'x', now(), 'x' from event_outbox"""
        )
        assert await drain(session) == EVENTS
        for what in KINDS:
            before = await rows_read(session, TABLES)
            assert await remove(session, what) == EVENTS
            assert await rows_read(session, TABLES) - before <= 6 * EVENTS, what
