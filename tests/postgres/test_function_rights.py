"""A target function runs with the rights of its caller: its permitted owners, and its permitted callers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from conftest import Database, TestServer
from postgres.routes import ROUTE
from support import connected, insert_event, run_batch

pytestmark = pytest.mark.asyncio

#: A function that tries to gain the rights of its caller, and fails at its first call so that it is replayed.
TROJAN = """
    create schema crm authorization {owner};
    create function crm.f(k text, e jsonb) returns void language plpgsql as $$
    begin
        -- What SET ROLE has given up comes back.
        reset role;
        if current_setting('is_superuser') = 'on' then
            execute 'alter role {owner} superuser';
        end if;
        if not exists (select from public.iu_route_attempt a where a.idempotency_key = k) then
            raise exception 'please replay me';
        end if;
    end $$;
    alter function crm.f(text, jsonb) owner to {owner};
    grant usage on schema crm to public;
    update dot_config set value = 'crm.f' where key = 'iu_core.delivery_sql_functions';
    update dot_config set value = 'true' where key = 'iu_core.delivery_enabled';
    update iu_outbound_route set target_kind = 'sql_function', target_ref = 'crm.f';
"""
ALL = """
    grant usage on schema public to {role};
    grant select, insert, update, delete on all tables in schema public to {role};
    grant usage, select on all sequences in schema public to {role};
"""


@dataclass
class Roles:
    """Login roles of one test, with the rights on the tables that a consumer or an operator needs."""

    database: Database
    server: TestServer
    made: list[str] = field(default_factory=list)

    async def add(self, connection: asyncpg.Connection, *groups: str) -> tuple[str, str]:
        """Create a role; return its name and its connection string."""
        name = f"iu_test_{secrets.token_hex(6)}"
        for group in groups:
            await connection.execute(
                f"do $$ begin create role {group}; exception when duplicate_object or unique_violation then null; end $$"
            )
        within = f" in role {', '.join(groups)}" if groups else ""
        await connection.execute(f"create role {name} login{within}")
        self.made.append(name)
        await connection.execute(ALL.format(role=name))
        parts = urlsplit(self.database.dsn)
        return name, urlunsplit(parts._replace(netloc=f"{name}@{parts.netloc.rpartition('@')[2]}"))


@pytest.fixture
def roles(live: Database, server: TestServer) -> Iterator[Roles]:
    if live.server is None:
        pytest.skip("roles without a password need a server of ours")
    made = Roles(live, server)
    yield made
    for name in made.made:
        server.execute(f"alter role {name} nosuperuser", f"drop owned by {name}")
    server.execute(f"drop database if exists {urlsplit(live.dsn).path[1:]} with (force)")
    for name in made.made:
        server.execute(f"drop role {name}")


async def test_a_function_gets_no_rights_from_the_role_that_replays(live, roles):
    """A superuser, an owner, and a role that has assumed another one cannot replay; the role of the operator can.

    So the function gets no additional rights from its caller.

    Fails when: fn_iu_delivery_caller does not check the role, or checks current_user alone.
    """
    async with connected(live.dsn) as admin:
        mallory, _ = await roles.add(admin)
        consumer, consumers = await roles.add(admin, "iu_listen_consumer")
        _, operators = await roles.add(admin, "iu_listen_operator")
        stranger, strangers = await roles.add(admin)
        await admin.execute(TROJAN.format(owner=mallory))
        await admin.execute("select fn_iu_route_live($1, true, 'a test', 'tester')", ROUTE)
        await insert_event(admin)
        async with connected(consumers) as worker:
            assert (await run_batch(worker))["dead_lettered"] == 1

        replay = "select fn_iu_route_dead_letter_replay(d.id) from iu_route_dead_letter d"
        for role in (None, consumer):
            if role:
                await admin.execute(f"set role {role}")
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="is not called as role postgres"):
                await admin.execute(replay)
            await admin.execute("reset role")
        await admin.execute(f"set session authorization {consumer}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="is not called as role postgres"):
            await admin.execute(replay)
        await admin.execute("reset session authorization")
        async with connected(strangers) as other:
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match=f"is not called as role {stranger}"):
                await other.execute(replay)
        assert not await admin.fetchval("select rolsuper from pg_roles where rolname = $1", mallory)
        assert await admin.fetchval("select attempt_no from iu_route_dead_letter where resolved_at is null") == 1
        async with connected(operators) as operator:
            await operator.execute(replay)
        assert await admin.fetchval("select resolved_at is not null from iu_route_dead_letter")


async def test_a_batch_of_a_superuser_calls_no_function_of_another_role(live, roles):
    """If a superuser runs the batch, a function of another role is refused, and a function of its own is called."""
    async with connected(live.dsn) as admin:
        mallory, _ = await roles.add(admin)
        await admin.execute(TROJAN.format(owner=mallory))
        await admin.execute("select fn_iu_route_live($1, true, 'a test', 'tester')", ROUTE)
        await insert_event(admin)
        assert (await run_batch(admin))["dead_lettered"] == 1
        assert not await admin.fetchval("select rolsuper from pg_roles where rolname = $1", mallory)
        assert "is not called as role" in await admin.fetchval("select failure_detail from iu_route_dead_letter")
        await admin.execute("alter function crm.f(text, jsonb) owner to postgres")
        await insert_event(admin)
        assert (await run_batch(admin))["dead_lettered"] == 1
        assert (
            await admin.fetchval("select count(*) from iu_route_dead_letter where failure_detail like '%replay me'")
            == 1
        )
