"""Helpers for the tests of retention: old events, old dead letters, runs and plans."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import asyncpg

from postgres.routes import open_live_route
from support import run_batch

KEEP = "90 days"


async def old_event(
    connection: asyncpg.Connection, created: str = "now() - interval '100 days'", domain: str = "iu"
) -> UUID:
    """Insert an event with a given created_at."""
    kind = {"iu": "'version_applied', 'update'", "system": "'alert', 'alert'"}[domain]
    return await connection.fetchval(
        f"""insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at)
            values ('{domain}', {kind}, 'immediate', {created}) returning id"""
    )


async def run_retention(
    connection: asyncpg.Connection, what: str = "events", keep: str | None = KEEP, limit: int = 1000
) -> list[dict[str, Any]]:
    """Run retention batch by batch; return the answers."""
    answers: list[dict[str, Any]] = []
    after = None
    while len(answers) < 1000:
        answer = json.loads(
            await connection.fetchval(
                "select fn_iu_retention_run($1, $2, $3::text::interval, $4::text::jsonb)::text",
                what, limit, keep, after and json.dumps(after),
            )
        )  # fmt: skip
        answers.append(answer)
        after = answer["after"]
        if after is None:
            return answers
    raise AssertionError(f"no end after 1000 batches: {answers[-3:]}")


async def remove(
    connection: asyncpg.Connection, what: str = "events", keep: str | None = KEEP, limit: int = 1000
) -> int:
    """Run retention; return the number of removed rows."""
    return sum(answer["gone"] for answer in await run_retention(connection, what, keep, limit))


async def remaining_events(connection: asyncpg.Connection) -> set[UUID]:
    """The events of the outbox."""
    return {row["id"] for row in await connection.fetch("select id from event_outbox")}


async def planned_counts(connection: asyncpg.Connection, keep: str = KEEP) -> dict[tuple[str, str, str | None], int]:
    """The plan as a table of counts."""
    rows = await connection.fetch("select * from fn_iu_retention_plan($1::text::interval)", keep)
    return {(row["what"], row["verdict"], row["who"]): row["count"] for row in rows}


async def add_worker(connection: asyncpg.Connection, name: str = "second", domain: str = "iu") -> None:
    """Register a further cursor, at the beginning."""
    await connection.execute(
        "insert into iu_route_worker_cursor (worker_name, event_domain, lineage) select $1, $2, lineage from iu_outbox_anchor",
        name, domain,
    )  # fmt: skip


async def old_dead_letter(
    connection: asyncpg.Connection, created: str = "now() - interval '100 days'"
) -> tuple[UUID, UUID]:
    """Create an old event that became a dead letter; return both ids. The route is a dry run afterwards."""
    await open_live_route(connection)
    event = await old_event(connection, created)
    assert (await run_batch(connection))["dead_lettered"] == 1
    await connection.execute("update iu_outbound_route set dry_run = true")
    return event, await connection.fetchval("select id from iu_route_dead_letter where event_ref = $1", event)


async def age_attempts(connection: asyncpg.Connection) -> None:
    """Make all attempts and dead letters 100 days older."""
    await connection.execute("update iu_route_attempt set created_at = created_at - interval '100 days'")
    await connection.execute(
        """update iu_route_dead_letter set created_at = created_at - interval '100 days',
                  resolved_at = resolved_at - interval '100 days'"""
    )
