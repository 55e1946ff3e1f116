"""The role of the trace export, iu_listen_exporter: the permitted and the forbidden actions."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg

from conftest import Database
from deploy.role_helpers import EXPORTER, INSERT, POISON, Logins, allowed, assert_every_privilege_is_needed
from iu_listen.install import requirements
from iu_listen.model.settings import Settings
from iu_listen.postgres.trace import TraceSession
from support import connected, open_gate, run_batch


async def run_export_statements(connection: asyncpg.Connection, settings: Settings) -> None:
    """Run every statement of the trace export, in the transaction of the caller."""
    await requirements.require_primary(connection)
    await requirements.require_package(connection)
    assert await TraceSession(connection, settings, "new").take_lease() is None
    source = TraceSession(connection, settings, "traces")
    assert await source.take_lease() is None
    place = await source.tick()
    assert place is not None
    page = await source.page(place, 100)
    assert [span.name.split()[0] for span in page.spans] == ["send", "process", "dead_letter"]
    await source.accepted(page, 0)
    again = await source.place_since(datetime(2000, 1, 1, tzinfo=UTC))
    assert len(await source.spans_after(again)) == 1
    await source.keep_alive()
    assert len((await source.page(again, 100)).spans) == 3


def test_an_exporter_needs_each_of_its_privileges(applied: Database, roles: Logins) -> None:
    """An exporter reads the data of spans and stores its position; without any one of its privileges it cannot."""

    async def run() -> None:
        async with connected(applied.dsn) as owner:
            await open_gate(applied.dsn)
            await owner.execute("select fn_iu_trace_register('traces')")
            await owner.execute(POISON.format(prefix=""))
            await owner.execute(INSERT, uuid4(), "version_applied")
            assert (await run_batch(owner))["dead_lettered"] == 1
            await owner.execute("alter table iu_route_attempt disable trigger poison")
            settings = Settings.load({}, {"dsn": applied.dsn})
            await assert_every_privilege_is_needed(owner, EXPORTER, lambda: run_export_statements(owner, settings))

    asyncio.run(run())


#: Statements that an exporter may not execute.
FORBIDDEN = (
    "select safe_payload from event_outbox",
    "select event_snapshot from iu_route_dead_letter",
    "delete from iu_route_attempt",
    "delete from iu_trace_cursor",
    "update iu_trace_cursor set lineage = gen_random_uuid()",
    "update dot_config set value = 'true'",
    "update iu_route_worker_cursor set prev = '3:3:'",
    "select fn_iu_route_worker_run('iu_outbound_default', 1)",
)


def test_an_exporter_is_refused_every_forbidden_statement(applied: Database, roles: Logins) -> None:
    """An exporter cannot read a payload or change the audit, and has no other privilege."""
    dsn = roles.add(EXPORTER)

    assert allowed(dsn, FORBIDDEN) == []
