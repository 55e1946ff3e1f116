"""A connection pooler in transaction mode: a real PgBouncer, if one is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from cli.command import run
from faults.pooler import pooling, unavailable
from iu_listen import embedded
from iu_listen.admin import traces
from iu_listen.model.errors import Refused
from iu_listen.model.observation import BatchRan, Listening, Polling
from iu_listen.model.routing import Wake
from iu_listen.postgres import trace
from iu_listen.postgres.session import session
from postgres.listener_helpers import wait_until_armed
from support import apply_package, attempted, connected, consuming, insert_event, wait_until

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.slow,
    pytest.mark.skipif(bool(unavailable()), reason=unavailable()),
]


@pytest.fixture(scope="module")
def dsns() -> Iterator[tuple[str, str]]:
    """The connection strings of a database with an open worker gate: direct, and through
    PgBouncer in transaction mode."""
    with TemporaryDirectory(prefix="iu-listen-pooler-") as name:
        root = Path(name)
        root.chmod(0o755)
        with embedded.running(root, embedded.DEFAULT_MAJOR, durable=False, tcp=True) as server:
            direct = server.tcp_dsn("iu")
            asyncio.run(apply_package(direct))
            with pooling(direct) as pooler:
                asyncio.run(pooler.start())
                yield direct, pooler.dsn


async def test_a_consumer_behind_a_transaction_pooler_polls(dsns):
    """Behind a pooler in transaction mode the consumer reports within 5 s that it polls, and routes all events.

    Fails when: LISTEN is not tested, or a session parameter or named statement is sent through the pooler.
    """
    direct, pooled = dsns
    async with consuming(pooled, listening=False) as observer, connected(direct) as connection:
        said = await observer.wait_for(Polling, timeout=5)
        events = [await insert_event(connection) for _ in range(20)]

        async def all_there() -> bool:
            return set(events) <= set(await attempted(connection))

        await wait_until(all_there, "everything is routed")

        assert "transaction mode" in said.why
        assert observer.of(Listening) == []


async def test_a_direct_listener_session_wakes_a_pooled_worker(dsns):
    """With a listen_dsn that bypasses the pooler, notifications wake the consumer, and
    batches go through the pooler."""
    direct, pooled = dsns
    async with (
        consuming(pooled, listen_dsn=direct, catch_up=300, session_timeout=1000) as observer,
        connected(direct) as connection,
    ):
        await wait_until_armed(connection)
        event = await insert_event(connection)
        await observer.wait_for(BatchRan, lambda o: o.wake is Wake.NOTIFY and o.batch.seen)

        assert event in await attempted(connection)


async def test_a_consumer_leaves_pooled_sessions_unchanged(dsns):
    """After a consumer used the pooler, its server sessions have no setting, lock or
    prepared statement of the consumer."""
    direct, pooled = dsns
    async with consuming(pooled, listening=False):
        pass
    async with connected(direct) as connection:
        locks = await connection.fetchval(
            "select count(*) from pg_locks l where l.locktype = 'advisory' and l.pid <> pg_backend_pid()"
        )
    through = await asyncpg.connect(pooled, statement_cache_size=0)
    async with through.transaction():
        left = await through.fetchval("select count(*) from pg_prepared_statements where name <> ''")
        idle = await through.fetchval("show idle_session_timeout")
    through.terminate()

    assert (locks, left, idle) == (0, 0, "0")


async def test_an_export_ended_through_a_pooler_leaves_no_lock(dsns):
    """trace-export --end holds its lock only during its transaction, because a session of the pooler stays open.

    Fails when: the lease is taken for the life of the session.
    """
    direct, pooled = dsns
    async with session(pooled, name="test") as operator, connected(direct) as other:
        assert operator.pooled
        await other.fetchval("select fn_iu_trace_register('traces')")
        assert await traces.end(operator, "traces") == 0
        assert await traces.end(operator, "traces") is None
        assert await other.fetchval("select count(*) from pg_locks where locktype = 'advisory' and objsubid = 2") == 0
        # A trace export that has its own session keeps its lease.
        await other.fetchval("select fn_iu_trace_register('traces')")
        assert await other.fetchval("select pg_try_advisory_lock($1, hashtext('traces'))", trace.TRACE_KEY)
        with pytest.raises(Refused, match="the trace export is running"):
            await traces.end(operator, "traces")


async def test_a_pooler_in_statement_mode_is_refused_with_a_hint(dsns):
    """A pooler in statement mode causes an error with a hint that names the setting to change.

    Fails when: every error before a session is open counts as an unreachable server.
    """
    direct, _ = dsns
    with pooling(direct, "statement") as pooler:
        await pooler.start()
        done = await asyncio.to_thread(run, "status", dsn=pooler.dsn)

    assert done.code == 3
    assert "statement pooling mode" in done.err
    assert "Set pool_mode of the pooler to transaction or to session" in done.err
    assert "host and port" not in done.err


#: The settings and locks that a session of the pooler did not have at its start.
LEFT = """
    select coalesce(string_agg(s.name || ' = ' || s.setting, ', '), '') as settings,
           (select count(*) from pg_locks l where l.locktype = 'advisory') as locks
      from pg_settings s
     where s.source = 'session'
       and s.name not in ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'extra_float_digits')"""


async def test_commands_leave_pooled_sessions_unchanged(dsns):
    """Commands through a transaction pooler set a safe search_path, and leave its sessions unchanged.

    Fails when: a setting is made for the session (lock_timeout of an apply), or the driver makes one.
    """
    direct, pooled = dsns
    async with connected(direct) as owner:
        # An apply that has nothing to do sets no lock_timeout.
        await owner.execute("update iu_migration set checksum = repeat('0', 64) where name = 'functions/health'")
    commands = (
        "gate close worker", "apply --no-backup test", "probe", "status", "doctor", "emit --count 2", "completeness", "cursor show",
        "retention set attempts --keep 90d", "retention run --yes", "retention set attempts --off", "gate open worker",
        "dead-letter replay --all",
    )  # fmt: skip
    for command in commands:
        done = await asyncio.to_thread(run, *command.split(), dsn=pooled)
        assert "Traceback" not in done.err, command
        assert done.code == 0 or not command.startswith("apply"), done.out
        through = await asyncpg.connect(pooled, statement_cache_size=0)
        async with through.transaction():
            assert tuple(await through.fetchrow(LEFT)) == ("", 0), command
        through.terminate()
    async with session(pooled, name="test") as command:
        assert command.pooled
        assert await command.fetchval("show search_path") == "pg_catalog, pg_temp"
        assert await command.fetchval("show row_security") == "off"
