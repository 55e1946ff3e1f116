"""What a run of retention reads, however large the log and the audit are and whatever is known of them."""

from __future__ import annotations

import json

import asyncpg
import pytest

from support import MANY, connected, drain

pytestmark = pytest.mark.asyncio

EVENTS = 3000
KINDS = ("events", "attempts", "dead_letters")
KNOWN = ("nothing", "that all is empty")
KEEP = "1 millisecond"

#: Rows that were read so far, through whichever index or none.
READS = """
    select (select sum(i.idx_tup_read) from pg_stat_user_indexes i where i.relname ~ '^(event_outbox|iu_route_)')::bigint
         + (select sum(t.seq_tup_read) from pg_stat_user_tables t where t.relname ~ '^(event_outbox|iu_route_)')::bigint
"""


async def reads(session: asyncpg.Connection) -> int:
    await session.fetchval("select pg_stat_force_next_flush()")
    return await session.fetchval(READS)


async def remove(session: asyncpg.Connection, what: str) -> int:
    """One run in pages of 300; how many rows it removed."""
    gone, after = 0, None
    while True:
        answer = json.loads(
            await session.fetchval(
                "select fn_iu_retention_run($1, 300, $2::text::interval, $3::text::jsonb)::text", what, KEEP, after
            )
        )
        gone += answer["gone"]
        if answer["after"] is None:
            return gone
        after = json.dumps(answer["after"])


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
            before = await reads(session)
            assert await remove(session, what) == EVENTS
            assert await reads(session) - before <= 6 * EVENTS, what
