"""The role of operators, iu_listen_operator: the permitted and the forbidden actions."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from conftest import Database
from deploy.role_helpers import (
    INSERT,
    LIVE_ROUTE,
    OPERATOR,
    POISON,
    PREFIX,
    Logins,
    allowed,
    execute,
    poison_event_id,
)
from iu_listen.admin import dead_letters, event_types, gates, retention, routes, traces
from iu_listen.postgres import completeness, queries
from support import WORKER, connected, open_gate, run_batch


def test_an_operator_can_change_gates_routes_and_cursors(applied: Database, roles: Logins) -> None:
    """A login role with only iu_listen_operator can run the CLI's statements for an operator."""
    dsn = roles.add(OPERATOR)

    async def run() -> None:
        async with connected(applied.dsn) as owner, connected(dsn) as operator:
            await owner.execute(POISON.format(prefix=PREFIX))
            await owner.execute(INSERT, poison_event_id(), "version_applied")
            await gates.set_gate(operator, "worker", opened=True)
            assert (await run_batch(owner))["dead_lettered"] == 1
            await owner.execute("drop trigger poison on iu_route_attempt")
            letter = (await queries.rows(operator, "list_dead_letters", False, None, None, None, None, None, None, 10))[
                0
            ]["id"]
            assert (await queries.rows(operator, "show_dead_letter", letter))[0]["event_snapshot"]
            answer = await dead_letters.replay(operator, letter, None, without_delivery=True)
            assert (answer["status"], answer["decision"]) == ("replayed", "dry_run")
            assert (await queries.rows(operator, "set_route", "iu.version_applied.workflow", False))[0][
                "enabled"
            ] is False
            assert await queries.value(operator, "reset_cursor", WORKER, "3:3:") == "3:3:"
            assert await queries.value(operator, "reset_cursor", WORKER, None)
            await owner.execute(LIVE_ROUTE)
            await routes.route_live(operator, "called", live=False, why="a test", actor=None)
            await routes.route_live(operator, "called", live=True, why="a test", actor=None)
            assert (await queries.rows(operator, "route_switches", "called"))[0]["live"]
            assert await operator.fetchval("select count(*) from iu_delivery_change where why = 'a test'") == 2
            assert (await retention.set_policy(operator, "events", "30 days"))["enabled"]
            await owner.execute("select fn_iu_trace_register('traces')")
            assert await traces.end(operator, "traces") == 0
            await event_types.reset_refused(operator)

    asyncio.run(run())


def test_an_operator_can_cancel_replay_and_resolve_in_bulk(applied: Database, roles: Logins) -> None:
    """A login role with only iu_listen_operator cancels deliveries, and replays and resolves dead letters, in parts.

    Fails when: deploy/postgres/roles.sql does not let the operator lock a lease, or execute one of these functions.
    """
    dsn = roles.add(OPERATOR)

    async def run() -> None:
        async with connected(applied.dsn) as owner, connected(dsn) as operator:
            await owner.execute(LIVE_ROUTE)
            await open_gate(applied.dsn)
            await owner.execute(
                "insert into iu_delivery_lease (worker_name, owner, seconds) values ($1, gen_random_uuid(), 9)", WORKER
            )
            for _ in range(3):
                await owner.execute(INSERT, uuid4(), "sent")
            await run_batch(owner)
            await routes.route_live(operator, "queued", live=False, why="a test", actor=None)
            found = await dead_letters.cancel_plan(operator, "queued", None)
            parts = dead_letters.cancel(operator, "queued", None, found["last_id"], "a test", None)
            assert [part async for part in parts] == [3]
            await routes.route_live(operator, "queued", live=True, why="a test", actor=None)
            which = dead_letters.DeadLetterFilter(route="queued")
            planned = await dead_letters.plan(operator, which)
            answers = [a async for a in dead_letters.replay_all(operator, planned, which, None, "a test", None)]
            assert answers[0]["answers"] == {"queued": 3}
            await routes.route_live(operator, "queued", live=False, why="a test", actor=None)
            assert [part async for part in dead_letters.cancel(operator, "queued", None, 9, "a test", None)] == [3]
            resolved = dead_letters.resolve_all(
                operator, await dead_letters.plan(operator, which), which, "a test", None
            )
            assert [part async for part in resolved] == [(3, 3)]
            assert await queries.rows(operator, "delivery/problems", "queued") == []

    asyncio.run(run())


def test_an_operator_can_check_completeness_and_repair(applied: Database, roles: Logins) -> None:
    """A login role with only iu_listen_operator finds a deleted attempt, has it routed again, and accepts another.

    Fails when: deploy/postgres/roles.sql does not let the operator draw new positions, or write the tables of the
    audit.
    """
    dsn = roles.add(OPERATOR)

    async def run() -> None:
        async with connected(applied.dsn) as owner, connected(dsn) as operator:
            await open_gate(applied.dsn)
            await owner.execute(INSERT, uuid4(), "version_applied")
            await run_batch(owner)
            await owner.execute("delete from iu_route_attempt")
            assert (await found(operator))["missing"] == 1
            assert await completeness.repair(operator, WORKER, 10) == {"restamped": 1, "accepted": 0, "more": False}
            assert (await run_batch(owner))["attempts_written"] == 1
            await completeness.confirm(operator, WORKER)
            assert (await completeness.counts(operator, WORKER))["missing"] == 0
            await owner.execute("delete from iu_route_attempt")
            assert (await found(operator))["missing"] == 1
            assert await queries.value(operator, "completeness/accept", WORKER) == 1
            assert (await found(operator))["missing"] == 0

    async def found(connection: asyncpg.Connection) -> dict[str, Any]:
        page = await completeness.page(connection, WORKER, 1000, 0)
        while not page.over:
            page = await completeness.page(connection, WORKER, 1000, page.number)
        return await completeness.counts(connection, WORKER)

    asyncio.run(run())


#: Statements that an operator may not execute.
FORBIDDEN = (
    "insert into dot_config (key, value) values ('x', 'true')",
    "update dot_config set key = 'x'",
    "delete from dot_config",
    "update iu_outbound_route set target_ref = 'elsewhere'",
    "insert into iu_outbound_route select * from iu_outbound_route",
    "update iu_route_attempt set status = 'sent'",
    "delete from iu_route_attempt",
    "delete from iu_route_dead_letter",
    "delete from event_outbox",
    "select fn_iu_retention_run('events')",
    "insert into iu_retention_policy (what, keep) values ('x', '1 day')",
    "update iu_retention_policy set total_gone = 0",
    "update iu_route_dead_letter set event_snapshot = '{}'",
    "update iu_route_worker_cursor set lineage = gen_random_uuid()",
    "select fn_iu_outbox_reanchor(p_plan => true)",
    "update event_outbox set event_domain = 'system'",
    (
        "insert into event_outbox (event_domain, event_type, event_stream, delivery_lane) "
        "values ('iu', 'version_applied', 'update', 'immediate')"
    ),
    "select fn_iu_route_worker_run('iu_outbound_default', 1)",
    "alter table iu_outbound_route disable trigger zz_iu_outbound_route_guard",
)


def test_an_operator_is_refused_every_forbidden_statement(applied: Database, roles: Logins) -> None:
    """An operator cannot add a gate, change a target, change the audit, or make a route live by SQL."""
    dsn = roles.add(OPERATOR)

    assert allowed(dsn, FORBIDDEN) == []
    with pytest.raises(asyncpg.CheckViolationError):
        execute(dsn, "update iu_outbound_route set dry_run = false")
