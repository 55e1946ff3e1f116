"""The number of rows that commands, and statements that run by themselves, read of large tables: it is bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cli.command import execute, rows, run, value
from clusters import cluster
from iu_listen.admin import dead_letters
from iu_listen.postgres import queries
from iu_listen.postgres.session import session
from support import WORKER, apply_package, connected, rows_read

#: Number of events, attempts, open dead letters, pending deliveries, and events that lack attempts and are accepted. A statement that reads a whole table exceeds BOUND.
SIZE = 60_000
#: Largest number of rows that a command may read of one table: four counts up to 10 001, and some rows.
BOUND = 45_000
TABLES = ("event_outbox", "iu_route_attempt", "iu_route_dead_letter", "iu_route_delivery", "iu_completeness_missing")

# Event n has one attempt, one open dead letter, and a pending delivery of another event, of a route that is a dry run; all
# subjects of the route are parked. The events are listed as incomplete and accepted. No transaction but the first has written, and all are
# old.
FILL = f"""
    alter table event_outbox disable trigger user;
    insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled)
    values ('all', 'iu', 'version_applied', 'update', 'workflow', 'x', true),
           ('rare', 'iu', 'rare', 'update', 'workflow', 'x', false),
           ('deep', 'iu', 'deep', 'update', 'workflow', 'x', true);
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane, event_subject_ref, event_seq,
                              created_at)
    select ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, 'iu', 'version_applied', 'update', 'immediate',
           ('00000000-0000-0000-0000-' || lpad((n % 9)::text, 12, '0'))::uuid, n, now() - interval '30 days'
      from generate_series(1, {SIZE}) n;
    insert into iu_route_attempt (event_ref, route_kind, route_code, status, decision, failure_code, idempotency_key,
                                  created_at)
    select o.id, 'outbound', 'all', case when o.event_seq = 7 then 'failed' else 'dry_run' end, 'dry_run', 'x',
           'outbound:all:' || o.id, o.created_at
      from event_outbox o order by o.event_seq;
    insert into iu_route_dead_letter (id, worker_name, event_ref, route_code, idempotency_key, event_snapshot, failure_code,
                                      created_at)
    select o.id, '{WORKER}', o.id, 'all', 'outbound:all:' || o.id,
           jsonb_build_object('event_domain', 'iu', 'event_seq', o.event_seq, 'event_subject_ref', o.event_subject_ref),
           'x', o.created_at + o.event_seq * interval '1 s'
      from event_outbox o;
    insert into iu_route_delivery (route_code, worker_name, event_ref, subject_key, route_count, due_at, created_at)
    select 'deep', '{WORKER}', overlay(o.id::text placing '1' from 1)::uuid, o.event_seq % 9, 1, case when o.event_seq < {SIZE} then 'infinity'::timestamptz end,
           o.created_at + o.event_seq * interval '1 s'
      from event_outbox o order by o.event_seq;
    insert into iu_completeness_missing (worker_name, event_ref, found, wanted, confirmed_at, accepted_at)
    select '{WORKER}', o.id, 0, 1, now(), now() from event_outbox o;
    alter table event_outbox enable trigger user;
    alter table event_outbox enable always trigger zz_event_outbox_stamp;
    alter table event_outbox enable always trigger zz_event_outbox_restamp;
    alter table event_outbox enable always trigger zz_event_outbox_bell;
    select setval('event_outbox_event_seq', {SIZE});
"""
#: The worker has read everything; has read nothing; is in the middle of a tick.
POSITIONS = {
    "read": "prev = pg_current_snapshot(), tick = null, pos_seq = null, pos_id = null, tick_floor = null",
    "unread": "prev = '3:3:', tick = null, pos_seq = null, pos_id = null, tick_floor = null",
    "tick": f"""prev = '3:3:', tick = pg_current_snapshot(), tick_floor = 1, pos_seq = {SIZE - 5}, hi_seq = {SIZE},
                pos_id = (select id from event_outbox where event_seq = {SIZE - 5})""",
}
SESSIONS = """
    select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()
"""
FIRST = "00000000-0000-0000-0000-000000000001"


@dataclass
class Grown:
    """A database whose tables are large. ``read`` sets how far the worker has read.

    ``planned_early`` is the number of rows of each table that health and metrics read in a session that planned their
    statements while the tables were empty.
    """

    dsn: str
    planned_early: dict[str, int] = field(default_factory=dict)

    def read(self, position: str) -> None:
        execute(self.dsn, f"update iu_route_worker_cursor set {POSITIONS[position]}, last_run_at = clock_timestamp()")

    async def fill(self) -> None:
        """Fill the tables, beside a session that has planned its statements before."""
        async with connected(self.dsn) as connection:
            for first in (True, False):
                before = await self.costs(1)
                for statement in ("worker_health", "metrics"):
                    await queries.rows(connection, statement, WORKER)
                await connection.fetchval("select pg_stat_force_next_flush()")
                self.planned_early = {table: n - before[table] for table, n in (await self.costs(1)).items()}
                if first:
                    await connection.execute(FILL)
                    await connection.execute(f"update iu_route_worker_cursor set {POSITIONS['read']}")

    async def costs(self, sessions: int = 0) -> dict[str, int]:
        """The rows that were read so far, by table. A session reports them at its end: all but so many must have ended."""
        async with connected(self.dsn) as connection:
            while await connection.fetchval(SESSIONS) > sessions:
                await asyncio.sleep(0.01)
            return {table: await rows_read(connection, f"^{table}$") for table in TABLES}


@pytest.fixture(scope="module", params=["pg16", "pg18"])
def grown(request: pytest.FixtureRequest) -> Iterator[Grown]:
    """Large tables, with statistics of the time when they were empty."""
    with cluster(int(request.param[2:])) as server:
        asyncio.run(apply_package(server.dsn()))
        for table in TABLES:
            execute(server.dsn(), f"alter table {table} set (autovacuum_enabled = off)")
        execute(server.dsn(), f"analyze {', '.join(TABLES)}")
        grown = Grown(server.dsn())
        asyncio.run(grown.fill())
        yield grown


@pytest.fixture(scope="module")
def analyzed(grown: Grown) -> Grown:
    """The same with statistics, as autovacuum makes them: of the large tables only."""
    execute(grown.dsn, f"analyze {', '.join(TABLES)}")
    return grown


def excess(before: dict[str, int], after: dict[str, int], bound: int = BOUND) -> dict[str, int]:
    """The tables of which more rows were read than the bound."""
    return {table: after[table] - before[table] for table in TABLES if after[table] - before[table] > bound}


def test_plans_do_not_depend_on_the_size_at_their_time(grown):
    """A session that planned its statements while the tables were empty reads no event to find that none waits.

    Fails when: health may choose a sequential scan.
    """
    assert grown.planned_early["event_outbox"] < 100
    assert grown.planned_early["iu_route_dead_letter"] < BOUND
    assert grown.planned_early["iu_route_delivery"] < BOUND
    assert grown.planned_early["iu_completeness_missing"] < 100


STATEMENTS: dict[str, tuple[Any, ...]] = {
    "worker_health": (WORKER,),
    "metrics": (WORKER,),
    "decision_latency": (WORKER, 10, 200),
    "host_beats": ("host", WORKER),
    "blockers": (),
    "delivery/anything": (WORKER,),
    "is_drained": (WORKER,),
    "completeness/due": (WORKER, 3600.0),
    "trace/exports": (),
}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_statement_that_runs_by_itself_reads_a_bounded_number_of_rows(grown, statement, position):
    """Health, metrics and the statements of the monitor read a bounded number of rows, wherever the worker is.

    In the middle of a tick, the events before the position are not read again.

    Fails when: a count has no bound, the rest of a tick is searched from its beginning, or the index of the dead letters
    of a worker is removed.
    """

    async def ask() -> dict[str, int]:
        async with connected(grown.dsn) as connection:
            before = await grown.costs(1)
            await queries.rows(connection, statement, *STATEMENTS[statement])
            await connection.fetchval("select pg_stat_force_next_flush()")
            return excess(before, await grown.costs(1))

    grown.read(position)
    assert asyncio.run(ask()) == {}


def test_the_dead_letters_of_another_worker_are_not_read(grown):
    """A worker without dead letters does not read those of others to find that out.

    Fails when: the index of the dead letters of a worker is removed.
    """
    execute(grown.dsn, "insert into iu_route_worker_cursor (worker_name, event_domain, lineage) "
                       "select 'other', 'other', lineage from iu_route_worker_cursor")  # fmt: skip
    before = asyncio.run(grown.costs())
    (row,) = rows(grown.dsn, "select fn_iu_route_worker_health('other') ->> 'open_dead_letters' as open")
    assert row["open"] == "0"
    assert excess(before, asyncio.run(grown.costs()), 100) == {}
    execute(grown.dsn, "delete from iu_route_worker_cursor where worker_name = 'other'")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "health", "status", "doctor", "cursor show", "worker list", "route list",
        "attempts", f"attempts --event {FIRST}", "attempts --status failed", "attempts --status failed --limit 1",
        "dead-letter list", "dead-letter list --route all", "dead-letter list --failure never",
        "dead-letter list --route rare", f"dead-letter list --event {FIRST}", f"dead-letter show {FIRST}",
        "delivery list", f"trace {FIRST}", "retention show", "retention plan --keep 1d", "route backtest all --since 90d",
    ],
)  # fmt: skip
def test_a_command_reads_a_bounded_number_of_rows(analyzed, command):
    """Each everyday command reads at most a few times 10 000 rows of a table, while the worker has read nothing.

    Fails when: a query has no bound, or its index is removed.
    """
    analyzed.read("unread")
    before = asyncio.run(analyzed.costs())
    done = run(*command.split(), dsn=analyzed.dsn)
    assert done.code in (0, 1), done.err
    assert excess(before, asyncio.run(analyzed.costs())) == {}


@pytest.mark.slow
def test_a_count_above_ten_thousand_is_capped_and_exact_on_request(analyzed):
    """health and status say "more than 10 000"; status --exact and retention plan --exact count all rows.

    Fails when: a capped figure is shown as a number, or --exact has a bound.
    """
    analyzed.read("unread")
    health = run("health", dsn=analyzed.dsn).out
    assert "warning: backlog: more than 10 000" in health
    assert "warning: open dead letters: more than 10 000" in health
    capped = run("status", "--json", dsn=analyzed.dsn).json
    assert (capped["workers"][0]["backlog"], capped["workers"][0]["open_dead_letters"]) == (10_001, 10_001)
    assert sum(a["attempts"] for a in capped["attempts"]) == 10_000
    shown = run("status", dsn=analyzed.dsn).out
    assert "The newest 10 000 attempts" in shown
    assert "more than 10 000" in shown
    exact = run("status", "--exact", "--json", dsn=analyzed.dsn).json
    assert (exact["workers"][0]["backlog"], exact["workers"][0]["open_dead_letters"]) == (SIZE, SIZE)
    assert sum(a["attempts"] for a in exact["attempts"]) == SIZE
    assert [k["open"] for k in exact["dead_letters"]] == [SIZE]
    for answer, deliveries, accepted in ((capped, 10_001, 10_001), (exact, SIZE, SIZE)):
        assert [(d["pending"], d["more"]) for d in answer["deliveries"]] == [(deliveries, answer is capped)]
        assert answer["completeness"][0]["accepted"] == accepted


def test_deliveries_of_a_worker_are_counted_up_to_a_bound(grown):
    """Metrics count up to 10 001 pending deliveries, and give the age of the oldest one; another worker has none of them.

    Fails when: the deliveries of other workers are counted, or the age is not that of the first one.
    """
    figures = """select figure from fn_iu_metrics($1) where what = $2 and part = 'delivery'"""
    execute(grown.dsn, "insert into iu_route_worker_cursor (worker_name, event_domain, lineage) "
                       "select 'other', event_domain, lineage from iu_route_worker_cursor")  # fmt: skip
    try:
        for worker, items in ((WORKER, 10_001), ("other", 0)):
            assert value(grown.dsn, figures, worker, "lag_items") == items
        assert 29 * 86400 < value(grown.dsn, figures, WORKER, "lag_seconds") < 31 * 86400
        before = asyncio.run(grown.costs())
        assert value(grown.dsn, figures, "other", "lag_seconds") == 0
        assert excess(before, asyncio.run(grown.costs())) == {}
    finally:
        execute(grown.dsn, "delete from iu_route_worker_cursor where worker_name = 'other'")


def test_health_searches_the_oldest_deliveries_of_a_live_route(grown):
    """Health searches the oldest 10 000 deliveries of a route for one that was never attempted.

    Fails when: the search has no bound, and all deliveries are replays that wait for their subject.
    """
    switches = """update dot_config set value = %s where key = 'iu_core.delivery_enabled';
                  update dot_config set value = %s where key = 'iu_core.delivery_live_routes';
                  update iu_outbound_route set dry_run = %s where route_code = 'deep'"""
    execute(grown.dsn, switches % ("'true'", "'deep'", "false"))
    try:
        assert value(grown.dsn, "select paused_by from v_iu_delivery where route_code = 'deep'") is None
        before = asyncio.run(grown.costs())
        assert value(grown.dsn, "select fn_iu_delivery_progress_missing($1)", WORKER) == []
        assert excess(before, asyncio.run(grown.costs()), 20_100) == {}
    finally:
        execute(grown.dsn, switches % ("'false'", "''", "true"))


@pytest.mark.slow
def test_deliveries_are_listed_up_to_a_bound(analyzed):
    """delivery list counts up to 10 000 deliveries of a route and says so, and searches as many for parked ones.

    With --exact it reads all.

    Fails when: a figure of a part is shown as that of all, or --exact has a bound.
    """
    shown = run("delivery", "list", dsn=analyzed.dsn)
    assert "more than 10 000" in shown.out
    assert "Only the oldest deliveries were searched for parked ones: deep." in shown.out + shown.err
    some = run("delivery", "list", "--json", dsn=analyzed.dsn).json
    assert [(r["pending"], r["more"]) for r in some["routes"]] == [(10_001, True)]
    assert sum(p["depth"] + 1 for p in some["parked"]) == 10_000
    every = run("delivery", "list", "--exact", "--json", dsn=analyzed.dsn).json
    assert [(r["pending"], r["more"]) for r in every["routes"]] == [(SIZE, False)]
    assert sum(p["depth"] + 1 for p in every["parked"]) == SIZE
    assert [p["waits_for"] for p in every["parked"]] == [p["waits_for"] for p in some["parked"]]


@pytest.mark.parametrize(
    ("key", "number", "missing"),
    [(f"outbound:gone:{FIRST}", 1, 0), ("foreign", 1, 0), (f"outbound:gone:{FIRST}", 2, 1)],
    ids=["unknown route", "foreign key", "incomplete"],
)
def test_a_page_of_a_confirmation_reads_a_bounded_number_of_rows(grown, key, number, missing):
    """A suspected event is confirmed in pages: each reads twenty attempts for each event of its limit.

    The attempt is found though its key has the code of no known route, or is none of this package.

    Fails when: all attempts are read at once, not all of them are read, or the attempts that were read are not counted.
    """

    async def confirm() -> tuple[int, list[dict[str, int]]]:
        pages, large = 0, []
        async with connected(grown.dsn) as connection:
            # The first page checks the first event; the others are not checked.
            await connection.fetchval("select fn_iu_completeness_page($1, 1, 0)", WORKER)
            await connection.execute("update iu_completeness_pass set walked = true")
            await connection.fetchval("select pg_stat_force_next_flush()")
            answer: dict[str, Any] = {"status": "walking"}
            while answer["status"] != "passed":
                before = await grown.costs(1)
                answer = json.loads(await connection.fetchval("select fn_iu_completeness_page($1, 100)::text", WORKER))
                await connection.fetchval("select pg_stat_force_next_flush()")
                pages += 1
                large += [over] if (over := excess(before, await grown.costs(1), 3000)) else []
            assert answer["missing"] == missing
        return pages, large

    grown.read("read")
    first = f"event_ref = '{FIRST}'"
    execute(grown.dsn, f"""
        delete from iu_completeness_missing where {first};
        update iu_route_attempt set route_code = 'gone', idempotency_key = '{key}', attempt_no = {number}
         where {first}""")  # fmt: skip
    try:
        pages, large = asyncio.run(confirm())
        assert large == []
        assert pages > SIZE / 2000
    finally:
        execute(grown.dsn, f"""
            delete from iu_completeness_missing where {first};
            delete from iu_completeness_pass;
            insert into iu_completeness_missing (worker_name, event_ref, found, wanted, confirmed_at, accepted_at)
            values ('{WORKER}', '{FIRST}', 0, 1, now(), now());
            update iu_route_attempt set route_code = 'all', idempotency_key = 'outbound:all:{FIRST}', attempt_no = 1
             where {first}""")  # fmt: skip


@pytest.mark.slow
def test_a_retention_plan_judges_the_oldest_rows(analyzed):
    """retention plan judges the oldest 10 000 rows of each policy and says so; with --exact it judges all.

    Fails when: the plan has no bound, or does not say that there are more rows.
    """
    analyzed.read("read")
    plan = run("retention", "plan", "--keep", "1d", "--json", dsn=analyzed.dsn).json
    assert plan["capped"] == ["events", "attempts", "dead_letters"]
    assert {p["what"]: p["count"] for p in plan["plan"]} == dict.fromkeys(plan["capped"], 10_000)
    assert "at least 10 000 rows older than 1 day" in run("retention", "plan", "--keep", "1d", dsn=analyzed.dsn).out
    exact = run("retention", "plan", "--keep", "1d", "--exact", "--json", dsn=analyzed.dsn).json
    assert exact["capped"] == []
    assert {p["what"]: p["count"] for p in exact["plan"]} == dict.fromkeys(plan["capped"], SIZE)


@pytest.mark.slow
def test_a_backtest_judges_the_newest_events(analyzed):
    """route backtest judges at most 10 000 events and says so; with --exact it judges all.

    Fails when: the backtest has no bound, or does not say that there are more events.
    """
    some = run("route", "backtest", "all", "--since", "90d", "--json", dsn=analyzed.dsn).json
    assert (sum(e["events"] for e in some["events"]), some["whole"]) == (10_000, False)
    every = run("route", "backtest", "all", "--since", "90d", "--exact", "--json", dsn=analyzed.dsn).json
    assert (sum(e["events"] for e in every["events"]), every["whole"]) == (SIZE, True)


@pytest.mark.slow
def test_attempts_of_a_route_are_searched_among_the_newest(analyzed):
    """attempts --route searches the newest 100 000 and says so; with --exact it finds older ones; failed ones are indexed.

    Fails when: the search has no bound, does not say so, or failed attempts have one.
    """
    assert "searched" not in run("attempts", "--route", "rare", dsn=analyzed.dsn).err
    insert = """insert into iu_route_attempt (id, event_ref, route_kind, route_code, status, idempotency_key)
                overriding system value values (200000, gen_random_uuid(), 'outbound', 'all', 'dry_run', 'last')"""
    execute(analyzed.dsn, insert)
    try:
        found = run("attempts", "--route", "all", dsn=analyzed.dsn)
        assert "The newest 100 000 attempts were searched." in found.out + found.err
        assert len(run("attempts", "--route", "all", "--json", dsn=analyzed.dsn).json) == 1
        assert len(run("attempts", "--route", "all", "--exact", "--json", dsn=analyzed.dsn).json) == 20
        assert len(run("attempts", "--status", "failed", "--json", dsn=analyzed.dsn).json) == 1
    finally:
        execute(analyzed.dsn, "delete from iu_route_attempt where id = 200000")


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [{"subject": FIRST}, {"route": "rare"}, {"failure": "never"}])
def test_dead_letters_are_searched_among_the_newest(analyzed, monkeypatch, chosen):
    """A search that no index serves reads the newest dead letters and says so; with --exact it reads all.

    Fails when: the search has no bound, or does not say that there are older ones.
    """
    monkeypatch.setattr(dead_letters, "MAX_SEARCHED", 1000)
    wanted = dead_letters.DeadLetterFilter(**chosen)

    async def ask(*, exact: bool) -> tuple[dead_letters.DeadLetterPage, dict[str, int]]:
        async with session(analyzed.dsn, name="test") as connection:
            before = await analyzed.costs(1)
            page = await dead_letters.page(connection, wanted, resolved=True, before=None, limit=1, exact=exact)
            await connection.fetchval("select pg_stat_force_next_flush()")
            return page, excess(before, await analyzed.costs(1), 4000)

    page, over = asyncio.run(ask(exact=False))
    assert (page.whole, over) == (False, {})
    page, over = asyncio.run(ask(exact=True))
    assert page.whole
    # Event 1 has the subject of every ninth event; no dead letter has the other two.
    assert page.total == (SIZE // 9 + 1 if "subject" in chosen else 0)
