"""The role of retention, iu_listen_janitor: the permitted and the forbidden actions."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import asyncpg

from conftest import Database
from deploy.role_helpers import INSERT, JANITOR, Logins, allowed, assert_every_privilege_is_needed
from iu_listen.admin import retention
from iu_listen.install import requirements
from iu_listen.postgres import queries
from support import connected, open_gate, run_batch


async def run_retention_statements(connection: asyncpg.Connection) -> None:
    """Run every statement of `iu-listen retention run`, in the transaction of the caller."""
    await requirements.require_primary(connection)
    await requirements.require_package(connection)
    await queries.rows(connection, "retention/policies")
    await queries.rows(connection, "retention/plan", None, None)
    await queries.rows(connection, "retention/readers")
    async with retention.only_run(connection) as other:
        assert other is None
    assert await retention.partitions(connection, "1 hour", 3) is None
    # The query with which a run on a partitioned outbox finds that partitions belong to the owner.
    assert await queries.rows(connection, "retention/partitions", "1 hour", None, 10) == []
    for what in retention.POLICY_NAMES:
        gone = [a["gone"] async for a in retention.batches(connection, what, None, 100, 0, 60)]
        assert gone == [1], (what, gone)


def test_a_janitor_needs_each_of_its_privileges(applied: Database, roles: Logins) -> None:
    """A janitor removes events, attempts and dead letters; without any single one of its privileges it cannot."""

    async def run() -> None:
        async with connected(applied.dsn) as owner:
            await open_gate(applied.dsn)
            await owner.execute(INSERT, uuid4(), "version_applied")
            assert (await run_batch(owner))["seen"] == 1
            await owner.execute(
                """delete from iu_route_attempt;
                   insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key, created_at)
                   select e, 'outbound', 'x', 'skipped', 'outbound:x:' || e, 'epoch' from (select gen_random_uuid()) x(e);
                   insert into iu_route_dead_letter (worker_name, event_ref, route_code, idempotency_key, event_snapshot,
                                                     failure_code, resolved_at, resolution, attempt_no)
                   values ('x', gen_random_uuid(), 'x', 'x', '{}', 'x', 'epoch', 'x', 0);
                   update event_outbox set created_at = 'epoch';
                   update iu_retention_policy set enabled = true"""
            )
            await assert_every_privilege_is_needed(owner, JANITOR, lambda: run_retention_statements(owner))

    asyncio.run(run())


#: Statements that a janitor may not execute.
FORBIDDEN = (
    "update iu_retention_policy set keep = '1 second'",
    "update iu_retention_policy set enabled = true",
    "update dot_config set value = 'true'",
    "select value from dot_config",
    "update iu_route_worker_cursor set prev = '3:3:'",
    "delete from iu_route_worker_cursor",
    "update event_outbox set created_at = 'epoch'",
    "update event_outbox set event_domain = 'iu'",
    "truncate event_outbox",
    "select safe_payload from event_outbox",
    "select event_snapshot from iu_route_dead_letter",
    "update iu_route_dead_letter set resolved_at = now()",
    "update iu_route_attempt set created_at = 'epoch'",
    "select fn_iu_route_worker_run('iu_outbound_default', 1)",
    "create or replace function fn_iu_retention_releasable(p_event_ref uuid) returns boolean language sql return true",
)


def test_a_janitor_is_refused_every_forbidden_statement(applied: Database, roles: Logins) -> None:
    """A janitor cannot set a policy, open a gate, move a cursor, route, or read a payload."""
    dsn = roles.add(JANITOR)

    assert allowed(dsn, FORBIDDEN) == []
