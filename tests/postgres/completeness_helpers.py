"""Helpers for the tests of the completeness check: passes, repairs, and events that lose their attempts."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import asyncpg

from support import WORKER


async def check_page(
    connection: asyncpg.Connection, limit: int = 1000, number: int | None = None, worker: str = WORKER
) -> dict[str, Any]:
    """Check one page."""
    return json.loads(
        await connection.fetchval("select fn_iu_completeness_page($1, $2, $3)::text", worker, limit, number)
    )


async def continue_pass(
    connection: asyncpg.Connection, number: int | None, limit: int = 1000, worker: str = WORKER
) -> list[dict[str, Any]]:
    """Continue a pass to its end, which must come within 1000 pages; return the answer of each page."""
    answers: list[dict[str, Any]] = []
    for _ in range(1000):
        answers.append(await check_page(connection, limit, number, worker))
        if answers[-1]["status"] not in ("walking", "confirming"):
            assert answers[-1]["status"] == "passed", answers[-1]
            return answers
        number = answers[-1]["pass"]
    raise AssertionError(f"after 1000 steps there is no end: {answers[-1]}")


async def run_pass(connection: asyncpg.Connection, limit: int = 1000, worker: str = WORKER) -> list[dict[str, Any]]:
    """Run a whole pass from the beginning."""
    return await continue_pass(connection, 0, limit, worker)


async def missing_events(connection: asyncpg.Connection, worker: str = WORKER) -> dict[UUID, tuple[int, int]]:
    """Events that are listed as missing: the number of attempts found, and the number wanted."""
    rows = await connection.fetch(
        "select event_ref, found, wanted from v_iu_completeness_missing where worker_name = $1 and accepted_at is null",
        worker,
    )
    return {row["event_ref"]: (row["found"], row["wanted"]) for row in rows}


async def repair(connection: asyncpg.Connection, limit: int = 1000) -> dict[str, Any]:
    return json.loads(await connection.fetchval("select fn_iu_completeness_repair($1, $2)::text", WORKER, limit))


async def confirm(connection: asyncpg.Connection) -> int:
    return json.loads(await connection.fetchval("select fn_iu_completeness_confirm($1)::text", WORKER))["missing"]


async def append_events(connection: asyncpg.Connection, events: int) -> list[UUID]:
    """Append events in one transaction with one statement."""
    rows = await connection.fetch(
        """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
           select 'iu', 'version_applied', 'update', 'immediate' from generate_series(1, $1::int) returning id""",
        events,
    )
    return [row["id"] for row in rows]


async def delete_attempts(connection: asyncpg.Connection, *events: UUID, code: str | None = None) -> None:
    """Delete attempts of these events by hand."""
    await connection.execute(
        "delete from iu_route_attempt where event_ref = any ($1) and ($2::text is null or route_code = $2)",
        list(events), code,
    )  # fmt: skip


async def add_unrelated_attempts(connection: asyncpg.Connection, attempts: int) -> None:
    """Add attempts of events that no longer exist, so that later attempts lie far from the beginning of the table."""
    await connection.execute(
        """insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key)
           select e.id, 'outbound', 'ballast', 'dry_run', 'outbound:ballast:' || e.id
             from (select gen_random_uuid() as id from generate_series(1, $1::int)) e""",
        attempts,
    )
