"""Producers: the role iu_listen_producer, roles without a group, and IU Core's application."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import asyncpg
import pytest

from conftest import Database
from deploy.role_helpers import INSERT, PRODUCERS, Logins, execute, fetchval
from iu_listen import emit
from iu_listen.model.routing import CHANNEL
from iu_listen.postgres.listener import BELL_KEY
from support import connected


def test_a_producer_can_write_events_and_read_none(applied: Database, roles: Logins) -> None:
    """A login in iu_listen_producer can emit and insert, gets the id, and can neither read nor change an event.

    Fails when: the emitter reads rows that the role may not read, or the role may read payloads.
    """
    execute(applied.dsn, PRODUCERS, PRODUCERS)
    dsn = roles.add("iu_listen_producer")

    async def run() -> None:
        async with connected(dsn) as producer:
            assert await producer.fetchval(
                "select fn_iu_emit_event('version_applied', 'unit/1', gen_random_uuid(), 'shop', '{}')"
            )
            assert await producer.fetchval(
                """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
                   values ('iu', 'version_applied', 'update', 'immediate') returning id"""
            )
            assert await emit(producer, "version_applied", {"n": 1})
            with pytest.raises(asyncpg.UndefinedObjectError):
                await producer.fetchval("select fn_iu_emit_event('nothing', 'unit/1', gen_random_uuid(), 'shop', '{}')")
            for statement in (
                "select safe_payload from event_outbox",
                "update event_outbox set event_domain = 'x'",
                "delete from event_outbox",
                "update dot_config set value = 'true'",
                "select * from iu_route_dead_letter",
                "insert into event_type_registry values ('iu', 'x', 'update', 'immediate')",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await producer.execute(statement)

    asyncio.run(run())


def test_the_package_requires_no_new_privilege_of_producers(applied: Database, roles: Logins) -> None:
    """A role that could insert events before the package still can: stamp and bell need no EXECUTE privilege."""
    dsn = roles.add()
    execute(
        applied.dsn,
        f"grant usage on schema public to {roles.names[0]}; grant insert on event_outbox to {roles.names[0]};"
        f"grant select on event_type_registry to {roles.names[0]}",
    )

    async def run() -> None:
        event, heard = uuid4(), asyncio.Event()
        async with connected(applied.dsn) as sleeper, connected(dsn) as writer:
            # An idle consumer listens, and holds the lock of the bell.
            await sleeper.add_listener(CHANNEL, lambda *_: heard.set())
            await sleeper.execute("select pg_advisory_lock($1, hashtext('iu/1'))", BELL_KEY)
            await writer.execute(INSERT, event, "version_applied")
            async with asyncio.timeout(15):
                await heard.wait()
            assert await sleeper.fetchval(
                "select event_seq > 0 and xact_id > '3' from event_outbox where id = $1", event
            )

    asyncio.run(run())


def test_the_application_can_still_change_its_own_tables(applied: Database, roles: Logins) -> None:
    """After roles.sql, IU Core's application can still change its routes and settings.

    Fails when: a function that a guard calls with the privileges of the application is revoked from public.
    """
    app = roles.add()
    execute(
        applied.dsn,
        f"grant usage on schema public to {roles.names[0]};"
        f"grant select, insert, update, delete on iu_outbound_route, dot_config to {roles.names[0]}",
    )
    execute(
        app,
        "update iu_outbound_route set enabled = not enabled",
        """update iu_outbound_route set delivery_policy = '{"attempts": 3}'""",
        "update dot_config set value = value",
        "insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref)"
        " values ('new', 'iu', 'version_applied', 'update', 'workflow', 'x')",
        "delete from iu_outbound_route where route_code = 'new'",
        "insert into dot_config (key, value) values ('mine', 'x')",
        "update dot_config set value = 'new' where key = 'iu_core.delivery_live_routes'",
        "delete from dot_config where key = 'mine'",
    )
    # A route that the application takes off the list is a dry run again.
    execute(applied.dsn, "select fn_iu_route_live(route_code, true, 'a test') from iu_outbound_route")
    execute(app, "update dot_config set value = '' where key = 'iu_core.delivery_live_routes'")
    assert fetchval(applied.dsn, "select bool_and(dry_run) from iu_outbound_route")
    with pytest.raises(asyncpg.CheckViolationError, match="there is no setting attemps"):
        execute(app, """update iu_outbound_route set delivery_policy = '{"attemps": 3}'""")
