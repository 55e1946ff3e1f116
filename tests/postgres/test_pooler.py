"""A pooler in transaction mode in between: a real PgBouncer, where one is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from cli.command import run
from iu_listen import embedded
from iu_listen.model.errors import Refused
from iu_listen.model.facts import Wake
from iu_listen.model.observation import BatchRan, Listening, Polling
from iu_listen.postgres import trace
from iu_listen.postgres.session import session
from lab.pooler import missing, pooling
from postgres.bells import sleep_sets_in
from support import apply_package, attempted, connected, consuming, insert_event, wait_until

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


@pytest.fixture(scope="module")
def dsns() -> Iterator[tuple[str, str]]:
    """A database with the package applied, open, directly and through PgBouncer in transaction mode."""
    with TemporaryDirectory(prefix="iu-listen-pooler-") as name:
        root = Path(name)
        root.chmod(0o755)
        with embedded.running(root, embedded.DEFAULT_MAJOR, durable=False, tcp=True) as server:
            direct = server.tcp_dsn("iu")
            asyncio.run(apply_package(direct))
            with pooling(direct) as pooler:
                asyncio.run(pooler.start())
                yield direct, pooler.dsn


async def test_a_transaction_pooler_is_found_out_and_polled_through(dsns):
    """Behind a pooler in transaction mode the consumer says within seconds that it polls, and routes all the same.

    Fails when: nothing proves that LISTEN hears, or a session parameter or named statement is sent through the pooler.
    """
    direct, pooled = dsns
    async with consuming(pooled, listening=False) as watcher, connected(direct) as connection:
        said = await watcher.wait_for(Polling, timeout=5)
        events = [await insert_event(connection) for _ in range(20)]

        async def all_there() -> bool:
            return set(events) <= set(await attempted(connection))

        await wait_until(all_there, "everything is routed")

        assert "transaction mode" in said.why
        assert watcher.of(Listening) == []


async def test_a_direct_bell_beside_a_pooled_worker_wakes(dsns):
    """With listen_dsn past the pooler, batches go through it and the bell wakes them."""
    direct, pooled = dsns
    async with (
        consuming(pooled, listen_dsn=direct, catch_up=300, lease=1000) as watcher,
        connected(direct) as connection,
    ):
        await sleep_sets_in(connection)
        event = await insert_event(connection)
        await watcher.wait_for(BatchRan, lambda o: o.wake is Wake.NOTIFY and o.batch.seen)

        assert event in await attempted(connection)


async def test_nothing_of_ours_stays_in_the_pooled_sessions(dsns):
    """After a consumer went through the pooler, its server sessions hold no setting, lock or statement of ours."""
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


async def test_an_export_that_is_ended_through_a_pooler_leaves_no_lock(dsns):
    """trace-export --end holds its lock no longer than its transaction: a session of the pooler outlives it.

    Fails when: the lease is taken for the life of the session.
    """
    direct, pooled = dsns
    async with session(pooled, name="test") as operator, connected(direct) as other:
        assert operator.pooled
        await other.fetchval("select fn_iu_trace_register('traces')")
        assert await trace.end(operator, "traces") == 0
        assert await trace.end(operator, "traces") is None
        assert await other.fetchval("select count(*) from pg_locks where locktype = 'advisory' and objsubid = 2") == 0
        # And whoever exports by a session of its own is not ended.
        await other.fetchval("select fn_iu_trace_register('traces')")
        assert await other.fetchval("select pg_try_advisory_lock($1, hashtext('traces'))", trace.TRACE_KEY)
        with pytest.raises(Refused, match="the export runs"):
            await trace.end(operator, "traces")


async def test_a_pooler_in_statement_mode_is_named(dsns):
    """A pooler that allows no transaction is an error whose hint says what to set.

    Fails when: every error before a session is there is taken for a server that cannot be reached.
    """
    direct, _ = dsns
    with pooling(direct, "statement") as pooler:
        await pooler.start()
        done = await asyncio.to_thread(run, "status", dsn=pooler.dsn)

    assert done.code == 3
    assert "statement pooling mode" in done.err
    assert "set pool_mode of the pooler to transaction or to session" in done.err
    assert "host and port" not in done.err


#: What a session of the pooler has that it did not have when it began.
LEFT = """
    select coalesce(string_agg(s.name || ' = ' || s.setting, ', '), '') as settings,
           (select count(*) from pg_locks l where l.locktype = 'advisory') as locks
      from pg_settings s
     where s.source = 'session'
       and s.name not in ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'extra_float_digits')"""


async def test_no_command_leaves_a_setting_or_a_lock_in_the_pool(dsns):
    """Commands through a transaction pooler look names up in no schema, and leave its sessions as they were.

    Fails when: a setting is made for the session (lock_timeout of an apply), or the driver's own one is.
    """
    _, pooled = dsns
    commands = (
        "apply --no-backup test", "probe", "status", "doctor", "emit --count 2", "audit", "cursor show",
        "retention set attempts --keep 90d", "retention run --yes", "retention set attempts --off", "gate open worker",
        "dead-letter replay --all",
    )  # fmt: skip
    for command in commands:
        done = await asyncio.to_thread(run, *command.split(), dsn=pooled)
        assert "Traceback" not in done.err, command
        through = await asyncpg.connect(pooled, statement_cache_size=0)
        async with through.transaction():
            assert tuple(await through.fetchrow(LEFT)) == ("", 0), command
        through.terminate()
    async with session(pooled, name="test") as command:
        assert command.pooled
        assert await command.fetchval("show search_path") == "pg_catalog, pg_temp"
        assert await command.fetchval("show row_security") == "off"
