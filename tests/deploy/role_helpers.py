"""Helpers for the tests of deploy/postgres/roles.sql: login roles, privileges, and statements that are refused."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import asyncpg

from conftest import Database
from support import connected

ROLES = (Path(__file__).parents[2] / "deploy" / "postgres" / "roles.sql").read_text()
PRODUCERS = (Path(__file__).parents[2] / "deploy" / "postgres" / "producers.sql").read_text()
CONSUMER, READER, OPERATOR, JANITOR, EXPORTER = GROUPS = (
    "iu_listen_consumer", "iu_listen_reader", "iu_listen_operator", "iu_listen_janitor", "iu_listen_exporter",
)  # fmt: skip
#: Removes all default privileges, as in a database with strict administration.
HARDEN = """
    revoke all on schema public from public;
    revoke execute on all functions in schema public from public;
"""
#: An event whose id has this prefix cannot be recorded as dry run: the worker makes a dead letter of it.
POISON = """
    create function poison() returns trigger language plpgsql as $$
    begin raise exception 'poisoned'; end $$;
    create trigger poison before insert on iu_route_attempt for each row
        when (new.status = 'dry_run' and new.event_ref::text like '{prefix}%') execute function poison();
"""
#: A registered event type without a route.
UNROUTED = """
    insert into event_type_registry (event_domain, event_type, event_stream, delivery_lane)
    values ('iu', 'noted', 'update', 'immediate')
"""
#: A route that may deliver, so that the seam is called.
LIVE_ROUTE = """
    update dot_config set value = 'true' where key = 'iu_core.delivery_enabled';
    update dot_config set value = 'live,called,queued' where key = 'iu_core.delivery_live_routes';
    update dot_config set value = 'public.target' where key = 'iu_core.delivery_sql_functions';
    create function public.target(idempotency_key text, event jsonb) returns void language sql as '';
    insert into event_type_registry (event_domain, event_type, event_stream, delivery_lane)
    values ('iu', 'sent', 'update', 'immediate');
    insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled, dry_run,
                                   delivery_policy)
    values ('live', 'iu', 'sent', 'update', 'vector', 'x', true, false, '{}'),
           ('queued', 'iu', 'sent', 'update', 'workflow', 'x', true, false,
            '{"dead_letters_in_a_row": 1, "trial_interval_max": 0.01}'),
           ('called', 'iu', 'sent', 'update', 'sql_function', 'public.target', true, false, '{}')
"""
INSERT = """
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane)
    values ($1, 'iu', $2, 'update', 'immediate')
"""
INSERT_LARGE = """
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane, safe_payload)
    values ($1, 'iu', $2, 'update', 'immediate', jsonb_build_object('note', repeat('x', 5000)))
"""
PREFIX = "dead0000"


def poison_event_id() -> UUID:
    """An event id with the prefix of POISON."""
    return UUID(PREFIX + uuid4().hex[8:])


class Logins:
    """The login roles of one test."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.names: list[str] = []

    def add(self, *groups: str) -> str:
        """Create a login role in these groups; return its DSN."""
        name, password = f"iu_test_{secrets.token_hex(6)}", secrets.token_hex(12)
        within = f" in role {', '.join(groups)}" if groups else ""
        execute(self._database.dsn, f"create role {name} login password '{password}'{within}")
        self.names.append(name)
        parts = urlsplit(self._database.dsn)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{name}:{password}@{host}"))


def execute(dsn: str, *statements: str) -> None:
    async def run() -> None:
        async with connected(dsn) as connection:
            for statement in statements:
                await connection.execute(statement)

    asyncio.run(run())


def fetchval(dsn: str, statement: str, *args: Any) -> Any:
    async def run() -> Any:
        async with connected(dsn) as connection:
            return await connection.fetchval(statement, *args)

    return asyncio.run(run())


@asynccontextmanager
async def acting_as(connection: asyncpg.Connection, role: str) -> AsyncIterator[None]:
    """Use a role for the length of a block; call this within a transaction."""
    await connection.execute(f"set local role {role}")
    yield
    await connection.execute("reset role")


async def refused(connection: asyncpg.Connection, statement: str) -> bool:
    """Whether a statement fails because of a missing privilege, and for no other reason."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return True
    finally:
        await transaction.rollback()
    return False


GRANTED_PRIVILEGES = """
    select format('%s on %s %s', a.privilege_type, 'table', c.oid::regclass) as what
      from pg_class c cross join lateral aclexplode(c.relacl) a
     where a.grantee = $1::regrole and c.relkind in ('r', 'v')
    union all
    select format('%s on sequence %s', a.privilege_type, c.oid::regclass)
      from pg_class c cross join lateral aclexplode(c.relacl) a
     where a.grantee = $1::regrole and c.relkind = 'S'
    union all
    select format('%s (%I) on table %s', a.privilege_type, t.attname, t.attrelid::regclass)
      from pg_attribute t cross join lateral aclexplode(t.attacl) a
     where a.grantee = $1::regrole
    union all
    select format('execute on function %s', p.oid::regprocedure)
      from pg_proc p cross join lateral aclexplode(p.proacl) a
     where a.grantee = $1::regrole
    union all
    select format('usage on schema %I', n.nspname)
      from pg_namespace n cross join lateral aclexplode(n.nspacl) a
     where a.grantee = $1::regrole
     order by 1
"""


async def assert_every_privilege_is_needed(
    owner: asyncpg.Connection, role: str, work: Callable[[], Awaitable[None]]
) -> None:
    """Assert that a role can do its work, and that it cannot without any single one of its privileges."""
    granted = [row["what"] for row in await owner.fetch(GRANTED_PRIVILEGES, role)]
    assert len(granted) > 25
    unneeded = []
    for revoked in [None, *granted]:
        transaction = owner.transaction()
        await transaction.start()
        try:
            if revoked:
                await owner.execute(f"revoke {revoked} from {role}")
            async with acting_as(owner, role):
                await work()
            if revoked:
                unneeded.append(revoked)
        except Exception as error:
            if revoked is None or "permission denied" not in str(error):
                raise AssertionError(f"without {revoked}") from error
        finally:
            await transaction.rollback()
    assert unneeded == []


def allowed(dsn: str, statements: tuple[str, ...]) -> list[str]:
    """Those of the statements that do not fail because of a missing privilege."""

    async def run() -> list[str]:
        async with connected(dsn) as connection:
            return [statement for statement in statements if not await refused(connection, statement)]

    return asyncio.run(run())
