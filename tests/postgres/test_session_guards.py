"""Properties of every session of a consumer on the server: search_path, row security, time-outs, and their number."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from iu_listen.app import PostgresSessions
from iu_listen.model.delivery import TakeRequest
from iu_listen.model.errors import Refused, SessionLost
from iu_listen.model.observation import SessionFailed
from iu_listen.model.settings import Settings
from iu_listen.postgres.connection import Connection
from iu_listen.postgres.session import ask, session
from postgres.delivery_helpers import RecordingTarget, delivering, open_route, wait_until_settled
from support import MANY, connected, insert_event, wait_until

pytestmark = pytest.mark.asyncio

SHOW = """
    select pg_catalog.current_setting('search_path') as path, pg_catalog.current_setting('row_security') as policies,
           pg_catalog.current_setting('client_connection_check_interval') as checked,
           (select s.setting::int from pg_catalog.pg_settings s where s.name = 'statement_timeout') as milliseconds"""

PLANS = "select sum(generic_plans + custom_plans) from pg_catalog.pg_prepared_statements where statement like $1"


async def every_session(dsn: str, stack: AsyncExitStack, **settings: Any) -> dict[str, tuple[Connection, float]]:
    """Open each session of a running consumer once; return it with the longest wait of its client, in seconds."""
    loaded = Settings(dsn=dsn, **settings)
    sessions = PostgresSessions(loaded)
    opened: dict[str, tuple[Any, float]] = {
        "worker": (sessions.worker(), loaded.batch_deadline),
        "listener": (sessions.listener(lambda _: None), loaded.deadline),
        "monitor": (sessions.monitor(), 3),
        "completeness": (sessions.completeness(), loaded.batch_deadline),
        "metrics": (sessions.metrics(), loaded.batch_deadline),
        "deliveries": (sessions.deliveries(lambda: None), loaded.deadline),
        "traces": (sessions.trace_source(), loaded.batch_deadline),
    }
    found: dict[str, tuple[Connection, float]] = {}
    for name, (manager, patience) in opened.items():
        one = await stack.enter_async_context(manager)
        for attribute in ("_connection", "_settler", "_taker"):
            if hasattr(one, attribute):
                found[f"{name}{attribute}"] = getattr(one, attribute), patience
    assert len(found) == 8
    return found


async def test_every_session_of_a_consumer_has_safe_settings(live):
    """Each session looks names up in pg_catalog only and hides no row, and its statements
    end before its client gives up.

    Fails when: session_settings.sql leaves one of the settings out, or a session is opened without its time-out.
    """
    async with connected(live.dsn) as owner:
        # A role or a database may be configured differently.
        name = await owner.fetchval("select current_database()")
        await owner.execute(f"alter database {name} set search_path = public, pg_catalog")
        await owner.execute(f"alter database {name} set row_security = on")
    async with AsyncExitStack() as stack:
        for name, (connection, patience) in (await every_session(live.dsn, stack)).items():
            row = await connection.fetchrow(SHOW)
            assert (row["path"], row["policies"], row["checked"]) == ("pg_catalog, pg_temp", "off", "2s"), name
            assert patience * 500 < row["milliseconds"] < patience * 1000, name
    async with session(live.dsn, name="test") as command:
        row = await command.fetchrow(SHOW)
        assert (row["path"], row["policies"], row["checked"]) == ("pg_catalog, pg_temp", "off", "2s")


async def test_repeated_statements_are_parsed_once(live):
    """A session parses each statement that it repeats once: the batch, the take and the settlement.

    Fails when: a statement is prepared without a name, because the driver then has it parsed at every execution.
    """
    settings = Settings(dsn=live.dsn)
    sessions = PostgresSessions(settings)
    wants = [TakeRequest(route="none", capacity=1, position=0, deadline=30)]
    async with sessions.worker() as outbox, sessions.deliveries(lambda: None) as deliveries:
        for _ in range(3):
            await outbox.run_batch(10)
            await outbox.run_batch(10, wants)
            await deliveries.take(wants, [], [])
            await deliveries.settle([])
        plans = {
            name: await connection.fetchval(PLANS, f"%{name}%")
            for name, connection in {
                "fn_iu_route_worker_run($1, $2)::text": outbox._connection,
                "fn_iu_delivery_hand_over": outbox._connection,
                "fn_iu_delivery_take": deliveries._taker,
                "fn_iu_delivery_settle": deliveries._settler,
            }.items()
        }
    assert plans == dict.fromkeys(plans, 3)


async def test_a_long_table_lock_leaves_a_bounded_number_of_sessions(live):
    """While event_outbox is locked, a consumer that gives up its waits again and again
    has a bounded number of sessions.

    Fails when: neither statement_timeout nor the end of former sessions ends the abandoned sessions.
    """
    recording = RecordingTarget()
    counts = []
    async with connected(live.dsn) as connection, connected(live.dsn) as locker:
        await open_route(connection)
        first = await insert_event(connection)
        async with delivering(live.dsn, recording.target(), deadline=0.5, batch_deadline=1, catch_up=0.5) as seen:
            await wait_until_settled(connection)
            async with locker.transaction():
                await locker.execute("lock table event_outbox in access exclusive mode")
                for failures in range(1, 12):
                    await seen.wait_for(SessionFailed, lambda _, n=failures: len(seen.of(SessionFailed)) >= n, 30)
                    counts.append(
                        await connection.fetchval(
                            "select count(*) from pg_stat_activity where datname = current_database()"
                            " and application_name like 'iu-listen %'"
                        )
                    )
            await wait_until(lambda: _written(connection), "the outbox takes events")
            await wait_until_settled(connection)
    assert recording.delivered[first] == 1
    assert recording.delivered.total() == 2
    assert max(counts) <= 12, counts


async def _written(connection: asyncpg.Connection) -> bool:
    await insert_event(connection)
    return True


async def test_temporary_objects_do_not_replace_tables_of_functions(live):
    """Temporary tables and domains with names of tables and types that our functions use are not used by them.

    Fails when: the search_path of a function, or of a session of ours, does not name pg_temp last.
    """
    types = ("jsonb", "xid8", "pg_snapshot", "text", "int8", "timestamptz", "regclass")
    async with connected(live.dsn) as writer, session(live.dsn, name="test") as command:
        for one in (writer, command):
            for name in types:
                await one.execute(f"create domain pg_temp.{name} as pg_catalog.name check (false)")
            await one.execute("create temporary table event_outbox (id pg_catalog.int4)")
            await one.execute("create temporary table pg_class (id pg_catalog.int4)")
            event = await one.fetchval("select public.fn_iu_emit_event('version_applied', 'a', null, 'test', '{}')")
            done = await one.fetchval("select public.fn_iu_route_worker_run('iu_outbound_default', 10)")
            assert json.loads(done)["status"] == "ran", done
            assert await one.fetchval("select event_ref from public.iu_route_attempt where event_ref = $1", event)
            await one.fetchval("select public.fn_iu_route_worker_health('iu_outbound_default')")


@pytest.mark.parametrize("guard", ["former sessions are ended", "the server ends them"])
async def test_an_abandoned_session_ends_on_the_server(live, guard: str):
    """A statement that waits for a lock ends soon after its client has gone: by the next session, or by the server."""
    sessions = PostgresSessions(Settings(dsn=live.dsn, batch_deadline=60))
    async with connected(live.dsn) as locker, locker.transaction():
        await locker.execute("lock table event_outbox in access exclusive mode")
        async with sessions.completeness() as auditor:
            waiting = auditor._connection
            pid = waiting.get_server_pid()
            if guard == "former sessions are ended":
                # Otherwise the server would end the session by itself.
                await waiting.execute("set client_connection_check_interval = 0")
            with pytest.raises(SessionLost):
                await ask(waiting, 0.5, "select count(*) from public.event_outbox")
        if guard == "former sessions are ended":
            await asyncio.wait_for(_open(sessions), 1.9)

        async def gone() -> bool:
            return not await locker.fetchval(
                "select count(*) from pg_stat_get_activity($1) where pid = $1 and wait_event_type = 'Lock'", pid
            )

        await wait_until(gone, "the server process has gone", 8)


async def _open(sessions: PostgresSessions) -> None:
    async with sessions.completeness():
        pass


async def test_the_number_of_sessions_has_a_hard_limit(live):
    """If former sessions do not end on the server, no further one is opened.

    Fails when: EarlierSessions.replace() does not count former sessions that still exist.
    """
    sessions = PostgresSessions(Settings(dsn=live.dsn))
    async with AsyncExitStack() as stack:
        # A session that is about to end still counts.
        others = [await stack.enter_async_context(connected(live.dsn)) for _ in range(3)]
        rows = [
            await c.fetchrow("select pid, backend_start from pg_stat_activity where pid = pg_backend_pid()")
            for c in others
        ]
        sessions._earlier._known["completeness"] += [(row["pid"], row["backend_start"]) for row in rows]
        with pytest.raises(SessionLost, match="3 earlier sessions"):
            await _open(sessions)


HIDING = {
    "no policy at all": "alter table {table} enable row level security",
    "a policy that hides some rows": "alter table {table} enable row level security; "
    "create policy partly on {table} for select using (random() < 0.5)",
    "forced on the owner": "alter table {table} owner to iu_test_hidden; "
    "alter table {table} enable row level security; alter table {table} force row level security",
}


@pytest.fixture
def hidden(live, server):
    """A role of its own that may read and write all tables, and has no other rights."""
    server.execute(
        "do $$ begin create role iu_test_hidden login; exception when duplicate_object or unique_violation then null; end $$"
    )
    return "iu_test_hidden"


@pytest.mark.parametrize("hiding", HIDING)
@pytest.mark.parametrize("table", ["event_outbox", "iu_route_attempt", "iu_outbound_route", "dot_config"])
async def test_rows_hidden_by_a_policy_are_an_error(live, hidden, hiding: str, table: str):
    """A role from which a policy hides rows gets an error, both in a session of a consumer and in its own session.

    Fails when: row_security is on in our sessions, or in fn_iu_route_worker_run.
    """
    async with connected(live.dsn) as owner:
        await owner.execute(
            f"grant select, insert, update, delete on all tables in schema public to {hidden};"
            f"grant usage, select on all sequences in schema public to {hidden};" + HIDING[hiding].format(table=table)
        )
        await owner.execute(MANY, 20)
    async with session(live.dsn, name="test") as ours:
        await ours.execute(f"set role {hidden}")
        with pytest.raises((asyncpg.InsufficientPrivilegeError, Refused)):
            await ours.fetch(f"select * from public.{table}")
        with pytest.raises(Refused) as refused:
            await ask(ours, 5, f"select count(*) from public.{table}")
        assert "BYPASSRLS" in refused.value.hint or "NO FORCE ROW LEVEL SECURITY" in refused.value.hint
    async with connected(live.dsn) as theirs:
        await theirs.execute(f"set role {hidden}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await theirs.fetchval("select fn_iu_route_worker_run('iu_outbound_default')")
        await theirs.execute("reset role")
        assert await theirs.fetchval("select last_event_id from iu_route_worker_cursor") is None
