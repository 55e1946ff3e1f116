"""Measurements for metrics: the figures of one worker, at the cost of one worker, with every kind of lag."""

from __future__ import annotations

import anyio
import asyncpg
import pytest

from iu_listen.model.errors import Refused
from iu_listen.model.settings import Settings
from iu_listen.postgres.earlier_sessions import EarlierSessions
from iu_listen.postgres.metrics import LATENCY_SAMPLE, metrics_session
from support import WORKER, connected, drain, insert_event, wait_until

pytestmark = pytest.mark.asyncio

OTHERS = """insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
            select 'other ' || n, 'domain ' || n, lineage from iu_route_worker_cursor, generate_series(1, 3) n
             where worker_name = 'iu_outbound_default'"""


async def lag(connection: asyncpg.Connection, part: str, worker: str = WORKER) -> tuple[float, float]:
    """The number of waiting items of a part, and the time that the oldest has waited, in seconds."""
    rows = await connection.fetch("select * from fn_iu_metrics($1) where part = $2", worker, part)
    found = {row["what"]: row["figure"] for row in rows}
    return found["lag_items"], found["lag_seconds"]


@pytest.mark.parametrize(
    ("statement", "times"),
    [("select * from fn_iu_metrics('iu_outbound_default')", 1), ("select * from v_iu_worker_health", 4)],
)
async def test_a_backlog_is_computed_once(live, statement, times):
    """Measuring one worker computes the health of that worker once; status computes it once for each worker.

    Fails when: all workers are computed and the others dropped afterwards, or each column computes it again.
    """
    async with connected(live.dsn) as connection:
        await connection.execute(OTHERS)
        await insert_event(connection)
        await connection.execute("set track_functions = 'all'")
        await connection.fetch(statement)
        await connection.execute("select pg_stat_force_next_flush()")
        calls = await connection.fetchval(
            "select calls from pg_stat_user_functions where funcname = 'fn_iu_route_worker_health'"
        )
        assert calls == times


async def test_metrics_belong_to_the_requested_worker(live):
    """A figure belongs to the requested worker, or to the whole database."""
    async with connected(live.dsn) as connection:
        await connection.execute(OTHERS)
        await insert_event(connection)
        rows = await connection.fetch("select * from fn_iu_metrics($1)", WORKER)
        assert {row["worker_name"] for row in rows} == {None, WORKER}
        assert (await lag(connection, "backlog"))[0] == 1
        assert (await lag(connection, "backlog", "other 1"))[0] == 0


async def test_prepared_transactions_count_as_open(live):
    """Open transactions that wrote events are counted, both of sessions and prepared ones.

    Fails when: only sessions are counted.
    """
    async with connected(live.dsn) as writer, connected(live.dsn) as second, connected(live.dsn) as looker:
        if await writer.fetchval("show max_prepared_transactions") == "0":
            pytest.skip("this server allows no prepared transactions")
        gid = "iu measure " + await writer.fetchval("select current_database()")
        assert await lag(looker, "open_transaction") == (0, 0)
        await writer.execute("begin")
        await insert_event(writer)
        await writer.execute(f"prepare transaction '{gid}'")
        try:
            items, seconds = await lag(looker, "open_transaction")
            assert items == 1
            assert seconds > 0
            async with second.transaction():
                await insert_event(second)
                assert (await lag(looker, "open_transaction"))[0] == 2
        finally:
            await writer.execute(f"rollback prepared '{gid}'")
        assert (await lag(looker, "open_transaction"))[0] == 0


async def test_a_busy_worker_does_not_hide_the_latency_of_another(live):
    """The latency of decisions covers the worker's own attempts, also if another worker has decided more since.

    Fails when: the latest attempts are limited before those of the worker are selected.
    """
    async with connected(live.dsn) as connection:
        for _ in range(3):
            await insert_event(connection)
        await drain(connection)
        await connection.execute(
            """with foreign_event as (
                   insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
                   select 'system', 'alert', 'alert', 'immediate' from generate_series(1, 40) returning id)
               insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key)
               select e.id, 'outbound', 'r', 'dry_run', 'outbound:r:' || e.id from foreign_event e"""
        )
        ask = "select cardinality(seconds), last_id from fn_iu_decision_latency($1, 0, $2)"
        last = await connection.fetchval("select max(id) from iu_route_attempt")
        assert tuple(await connection.fetchrow(ask, WORKER, 5)) == (3, last)
        # At most ten times the requested number of attempts is read.
        assert tuple(await connection.fetchrow(ask, WORKER, 4)) == (0, last)


@pytest.mark.parametrize("pooled", [False, True])
async def test_an_abandoned_measurement_ends_on_the_server(live, pooled):
    """The server ends a slow measurement before its client gives it up, and no query is left running.

    Fails when: the session has no statement_timeout, or one longer than the client's deadline;
    behind a pooler, in its transaction.
    """
    settings = Settings.load({}, {"dsn": live.dsn, "batch_deadline": "3"})
    async with connected(live.dsn) as holder, connected(live.dsn) as looker, holder.transaction():
        await holder.execute("lock table iu_route_worker_cursor")
        async with metrics_session(settings, EarlierSessions()) as surveyor:
            if pooled:
                surveyor._connection.pooled = True
                await surveyor._connection.execute("reset statement_timeout")
            with pytest.raises(Refused, match="statement timeout"), anyio.fail_after(10):
                await surveyor.measure()
        running = "select count(*) from pg_stat_activity where application_name like 'iu-listen metrics%' and state = 'active'"

        async def none() -> bool:
            return await looker.fetchval(running) == 0

        await wait_until(none, "nothing runs on")


async def test_a_measurement_has_all_its_figures(live):
    """The measuring session returns the latencies since its last query, and the figures of everything that waits."""
    async with (
        connected(live.dsn) as connection,
        metrics_session(Settings(dsn=live.dsn), EarlierSessions()) as surveyor,
    ):
        await surveyor.measure()
        for _ in range(LATENCY_SAMPLE + 1):
            await insert_event(connection)
        await drain(connection)
        survey = await surveyor.measure()
        assert len(survey.latencies) == LATENCY_SAMPLE
        assert {m.what for m in survey.measures} == {
            "gate", "notification_queue", "refused_emits", "healthy", "lag_items", "lag_seconds",
        }  # fmt: skip


async def test_an_export_is_listed_before_the_first_attempt(live):
    """A trace export has a lag, of no attempt, in a database without attempts.

    Fails when: the view joins the last attempt, which does not exist.
    """
    async with connected(live.dsn) as connection:
        await connection.execute("select fn_iu_trace_register('new')")
        (row,) = await connection.fetch("select name, items, since from v_iu_trace_lag")
        assert tuple(row) == ("new", 0, None)
