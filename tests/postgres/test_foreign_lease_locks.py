"""A role without any rights holds our advisory locks: it is named, and a consumer works without the lock."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio

from iu_listen.admin.doctor import examine
from iu_listen.model.observation import LeaseTaken, StandingBy
from iu_listen.postgres.lease import LEASE_KEY
from iu_listen.postgres.session import session
from support import WORKER, attempted, connected, consuming, insert_event, wait_until

pytestmark = pytest.mark.asyncio

HOLD = "select pg_advisory_lock($1, hashtext($2))"


@pytest_asyncio.fixture
async def stranger(live, server) -> AsyncIterator[asyncpg.Connection]:
    """A session of a role that may only connect, with the application name of a consumer."""
    if live.server is None:
        pytest.skip("roles without a password need a server of ours")
    name = f"iu_test_{secrets.token_hex(6)}"
    async with connected(live.dsn) as admin:
        await admin.execute(f"create role {name} login")
        parts = urlsplit(live.dsn)
        dsn = urlunsplit(parts._replace(netloc=f"{name}@{parts.netloc.rpartition('@')[2]}"))
        async with connected(dsn) as connection:
            await connection.execute(f"set application_name = 'iu-listen worker {WORKER}'")
            yield connection
        await admin.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{name}'")
        await admin.execute(f"drop role {name}")


async def test_a_lock_of_a_foreign_session_is_no_lease(live, stranger):
    """While such a session holds the lock of the lease, one consumer works, another is standby, and the role is named.

    Fails when: the lock alone decides, or the application_name decides the owner of the lock.
    """
    await stranger.fetchval(HOLD, LEASE_KEY, WORKER)
    role = await stranger.fetchval("select session_user::text")
    async with connected(live.dsn) as connection, consuming(live.dsn, catch_up=0.5) as first:
        event = await insert_event(connection)

        async def routed() -> bool:
            return event in await attempted(connection)

        await wait_until(routed, "the event is routed")
        async with consuming(live.dsn, catch_up=0.5, waits_for=StandingBy) as second:
            said = (await second.wait_for(StandingBy)).holder
            assert "consumer" in said
            assert role in said
            assert not second.of(LeaseTaken)
            async with session(live.dsn, name="test") as asking:
                found = {f.what: f for f in await examine(asking, WORKER)}
                health = await asking.fetchval("select public.fn_iu_route_worker_health($1)::text", WORKER)
            assert found["lease"].level == "fail"
            assert role in found["lease"].found
            assert found["foreign lease"].level == "fail"
            assert '"healthy": true' in health
            assert "foreign_lease" in health
            assert len(first.of(LeaseTaken)) == 1
            # The role releases the lock: the consumer that works takes it, and keeps the lease.
            await stranger.execute("select pg_advisory_unlock_all()")

            async def held() -> bool:
                return await connection.fetchval(
                    "select count(*) = 1 from fn_iu_lease_holders($1, $2) where not unauthorized", LEASE_KEY, WORKER
                )

            await wait_until(held, "the consumer holds the lock")
            assert not second.of(LeaseTaken)
        assert len(first.of(LeaseTaken)) == 1


async def test_a_session_with_the_right_role_holds_the_lease(live):
    """A session of a role that may move the cursor holds the lease with any application name."""
    async with connected(live.dsn) as holder:
        await holder.fetchval(HOLD, LEASE_KEY, WORKER)
        async with consuming(live.dsn, waits_for=StandingBy) as observer:
            assert "pid" in (await observer.wait_for(StandingBy)).holder
            assert not observer.of(LeaseTaken)
