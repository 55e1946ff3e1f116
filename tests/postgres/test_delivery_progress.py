"""Health detects deliveries that make no progress, and names the reason of a paused route.

The SQL is in worker/009 and functions/delivery_status.
"""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from postgres.delivery_helpers import ROUTE, open_route
from support import WORKER, connected, drain, insert_event

pytestmark = pytest.mark.asyncio

#: The delivery waits for its next attempt, and later deliveries of its subject are parked behind it.
PARK = """
    with first as (update iu_route_delivery set subject_key = 1, due_at = now() + interval '1 hour', tries = 1 returning *)
    insert into iu_route_delivery (route_code, worker_name, event_ref, subject_key, created_at)
    select f.route_code, f.worker_name, gen_random_uuid(), f.subject_key, f.created_at from first f,"""
#: The state of deliveries that have waited for an hour, and whether the worker is unhealthy because of it.
HAPPENED = {
    "nothing": ("select 1", True),
    "they failed long ago, and are due": (
        "update iu_route_delivery set due_at = now() - interval '1 hour', failed_at = due_at, tries = 1",
        True,
    ),
    "others were settled a moment ago": (
        """insert into iu_delivery_lease (worker_name, owner, seconds, settled_at)
           values ('iu_outbound_default', gen_random_uuid(), 15, now())""",
        False,
    ),
    "others were settled long ago": (
        """insert into iu_delivery_lease (worker_name, owner, seconds, settled_at)
           values ('iu_outbound_default', gen_random_uuid(), 15, now() - interval '1 hour')""",
        True,
    ),
    "an attempt may take that long": (
        """update iu_outbound_route set delivery_policy = '{"deadline": 3600}'""",
        False,
    ),
    "they are young": ("update iu_route_delivery set created_at = now()", False),
    "their time has not come": ("update iu_route_delivery set due_at = now() + interval '1 hour'", False),
    "an earlier one of their subject waits for its time": (
        f"{PARK} generate_series(1, 3)",
        False,
    ),
    "another subject waits for nothing": (
        (
            f"{PARK} generate_series(1, 3) union all "
            "select 'iu.version_applied.workflow', 'iu_outbound_default', gen_random_uuid(), 2, now() - interval '1 hour'"
        ),
        True,
    ),
    "a lock is closed": ("update dot_config set value = 'false' where key = 'iu_core.delivery_enabled'", False),
    "the circuit breaker is open": (
        "insert into iu_delivery_breaker (route_code, opened_at, why) values ('iu.version_applied.workflow', now(), 'down')",
        False,
    ),
}


async def health(connection: asyncpg.Connection) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await connection.fetchval("select fn_iu_route_worker_health($1)::text", WORKER))
    return answer


@pytest.mark.parametrize("happened", HAPPENED)
async def test_stalled_deliveries_are_unhealthy_without_a_known_reason(live, happened):
    """Deliveries that are due while none is settled make the worker unhealthy, unless a known reason explains it.

    A known reason is a closed switch, an open circuit breaker, a long deadline, or a delivery that is not due.

    Fails when: fn_iu_delivery_progress_missing is not called, or ignores one of these cases.
    """
    statement, red = HAPPENED[happened]
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await insert_event(connection)
        await drain(connection)
        await connection.execute("update iu_route_delivery set created_at = now() - interval '1 hour'")
        await connection.execute(statement)
        answer = await health(connection)
        assert [ROUTE in reason for reason in answer["reasons"]] == ([True] if red else []), answer
        assert answer["healthy"] is not red


@pytest.mark.parametrize(("column", "code"), [("opened_at", "breaker_open"), ("stopped_at", "dead_letter_budget")])
async def test_a_paused_route_is_a_warning_of_health(live, column, code):
    """An open circuit breaker and a spent budget of dead letters are warnings of health, with the route and the reason.

    Fails when: health does not read iu_delivery_breaker.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await drain(connection)
        await connection.execute(
            f"insert into iu_delivery_breaker (route_code, {column}, why) values ($1, now(), 'http_503')", ROUTE
        )
        answer = await health(connection)
        assert answer["healthy"]
        found = [w for w in answer["warnings"] if w["code"] == code]
        hint = "; iu-listen delivery list" if column == "stopped_at" else ""
        assert found == [{"code": code, "figure": 1, "detail": f"{ROUTE}: http_503{hint}"}]
