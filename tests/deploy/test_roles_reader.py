"""The role of readers, iu_listen_reader: the permitted and the forbidden actions."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from conftest import Database
from deploy.role_helpers import OPERATOR, READER, Logins, allowed
from iu_listen.admin import dead_letters, doctor, gates
from iu_listen.admin.health import worker_health
from iu_listen.install import requirements, verify
from iu_listen.postgres import completeness, queries
from support import WORKER, connected


def test_a_reader_can_run_every_query_of_the_state(applied: Database, roles: Logins) -> None:
    """A login role with only iu_listen_reader runs every query of the state, in a read-only session."""
    dsn = roles.add(READER)

    async def run() -> None:
        async with connected(dsn) as reader:
            await reader.execute("set default_transaction_read_only = on")
            await requirements.require_package(reader)
            assert (await worker_health(reader, WORKER))["healthy"]
            for name in (
                "workers",
                "consumers",
                "ledger",
                "unsafe_routes",
                "blockers",
                "registered_types",
            ):
                await queries.rows(reader, name)
            assert [gate["open"] for gate in await gates.all_gates(reader)] == [True, False, False]
            await queries.rows(reader, "completeness/passes", 10)
            await queries.rows(reader, "attempt_summary", 10)
            await queries.rows(reader, "list_attempts", None, None, 10, None)
            await queries.rows(reader, "list_attempts_of", uuid4(), None, None, 10)
            await queries.rows(reader, "retention/plan_page", "1 second", None, 10)
            await queries.rows(reader, "worker_counts")
            await queries.rows(reader, "list_dead_letters", True, None, None, None, None, None, None, 10)
            assert (
                await dead_letters.page(reader, dead_letters.DeadLetterFilter(), resolved=False, before=None, limit=10)
            ).total == 0
            assert await dead_letters.kinds(reader) == []
            await queries.rows(reader, "delivery/routes", 10)
            await queries.rows(reader, "delivery/parked", 10, 10)
            await queries.rows(reader, "list_routes", None)
            await queries.rows(reader, "retention/policies")
            await queries.rows(reader, "retention/plan", "1 second", None)
            await queries.rows(reader, "retention/readers")
            await queries.rows(reader, "completeness/missing", WORKER, 10)
            await completeness.counts(reader, WORKER)
            for view in (
                "v_iu_route_attempt_summary",
                "v_iu_event_backlog",
                "v_iu_route_dead_letter_open",
                "v_iu_worker_health",
            ):
                await reader.fetch(f"select * from {view}")
        async with connected(dsn) as reader:
            findings = await doctor.examine(reader, WORKER)
            denied = [f for f in findings if "permission denied" in f.found]
            assert not denied

    asyncio.run(run())


@pytest.mark.parametrize("group", [READER, OPERATOR])
def test_readers_and_operators_see_no_statement_of_other_sessions(applied: Database, roles: Logins, group: str) -> None:
    """Readers and operators cannot see statements of other sessions and the values in them, and doctor says so.

    Fails when: the group has pg_read_all_stats.
    """
    dsn = roles.add(group)

    async def run() -> None:
        async with connected(applied.dsn) as writer, connected(dsn) as reader:
            await writer.execute("select 'an IBAN'")
            seen = await reader.fetch("select query from pg_stat_activity where pid <> pg_backend_pid()")
            assert not any("IBAN" in (row["query"] or "") for row in seen)
            said = [finding.what for finding in await doctor.examine(reader, WORKER)]
            assert "other sessions" in said
            assert "open transactions" not in said

    asyncio.run(run())


#: Statements that a reader may not execute.
FORBIDDEN = (
    "select safe_payload from event_outbox",
    "select event_snapshot from iu_route_dead_letter",
    "select * from information_unit",
    "select fn_iu_route_worker_run('iu_outbound_default', 1)",
    "select fn_iu_route_dead_letter_replay(gen_random_uuid())",
    "select fn_iu_completeness_page('iu_outbound_default')",
    "select fn_iu_completeness_repair('iu_outbound_default')",
    "update iu_completeness_missing set accepted_at = now()",
    "update dot_config set value = 'true'",
    "update iu_outbound_route set enabled = false",
    "update iu_route_worker_cursor set prev = '3:3:'",
    "delete from iu_consumer_heartbeat",
    (
        "insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key) "
        "values (gen_random_uuid(), 'outbound', 'x', 'sent', 'x')"
    ),
)


def test_a_reader_is_refused_every_forbidden_statement(applied: Database, roles: Logins) -> None:
    """A reader cannot read payloads, run a batch, replay, or move a cursor."""
    dsn = roles.add(READER)

    assert allowed(dsn, FORBIDDEN) == []


def test_a_reader_can_run_all_checks(applied: Database, roles: Logins) -> None:
    """A reader can run all checks from W1 on, except the one that calls the delivery seam."""
    dsn = roles.add(READER, OPERATOR)

    async def run() -> None:
        async with connected(dsn) as operator:
            wrong = [check for check in await verify.verify(operator) if not check.passed]
            assert wrong == []

    asyncio.run(run())
