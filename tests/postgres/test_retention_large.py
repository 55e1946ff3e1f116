"""The number of rows that retention reads, for large tables and with missing or outdated statistics."""

from __future__ import annotations

import asyncpg
import pytest

from iu_listen.admin import retention
from support import MANY, connected, drain, rows_read

pytestmark = pytest.mark.asyncio

EVENTS = 3000
KINDS = ("events", "attempts", "dead_letters")
KNOWN = ("nothing", "that all is empty")
KEEP = "1 millisecond"

TABLES = "^(event_outbox|iu_route_)"


async def remove(session: asyncpg.Connection, what: str) -> int:
    """Run retention in pages of 300; return the number of removed rows."""
    return sum([answer["gone"] async for answer in retention.batches(session, what, KEEP, 300, 0, 60)])


@pytest.mark.parametrize("known", KNOWN)
async def test_removing_a_row_costs_a_few_reads(live, known):
    """Retention reads each page of events, attempts and dead letters once, and related rows by their keys.

    Fails when: a run may read a whole table.
    """
    await costs(live.dsn, known)


@pytest.mark.parametrize("known", KNOWN)
async def test_removing_a_row_from_partitions_costs_a_few_reads(partitioned, known):
    """Retention reads as few rows if the outbox is partitioned by month.

    Fails when: the locked row may be looked up by the index on its domain, which all rows of the page share, so that a
    page reads the rows of the whole domain again and again.
    """
    await costs(partitioned.dsn, known)


async def costs(dsn: str, known: str) -> None:
    """Remove all rows while the planner has no statistics, or those of empty tables."""
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
