"""probe: shows the seed's table on any database, and leaves nothing behind."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest

from cli.command import (
    POISON,
    REMEDY,
    ROUTE,
    Done,
    Tree,
    catalogue,
    execute,
    holding,
    on_one_server,
    portrait,
    refused,
    rows,
    run,
    value,
)
from iu_listen.model.observation import BatchRan
from support import connected, consuming, drain, insert_event

#: The seed's table, copied by hand from seeds/ and not from the module: id and figures.
SEED = [
    ("SETUP", "master t, worker t"),
    ("A", "event_outbox iu rows = 3"),
    (
        "B",
        (
            "seen=3, attempts_written=3, skipped=0, dead_lettered=0; "
            "3 rows outbound/dry_run/iu.version_applied.workflow; cursor advanced"
        ),
    ),
    ("C", "seen=0; attempts still 3"),
    ("D", "seen=3 but table still 3"),
    (
        "E",
        (
            "dead_lettered=3; 3 failed attempts; failure_code=worker_process_error; "
            "seam_failclosed=t; v_iu_route_dead_letter_open = 3"
        ),
    ),
    ("F", "status=replayed, decision=dry_run, resolved=true, attempt_no=2; dlq resolved=1 / open=2"),
    ("G", "health.healthy=true; v_iu_route_attempt_summary = dry_run 4 / failed 3; backlog 0"),
    ("H", "worker gate off → worker_gate_closed; master gate off → master_gate_closed"),
]
#: The objects that the seed looked for after the rollback, and their expected numbers.
ZERO = {
    "worker tables": "0",
    "worker functions": "0",
    "event_outbox iu (of the probe)": "0",
    "iu_route_attempt (of the probe)": "0",
    "worker config key": "0",
    "gates": "iu_core.routes_master_enabled=true",
    "outbound routes": f"{ROUTE} true/true",
    "safety check": "1",
}


def probe(dsn: str, *args: str, **more: Any) -> Done:
    return run("probe", "--json", *args, dsn=dsn, **more)


# -- output ------------------------------------------------------------------------------------------------------


def test_the_seeds_table(substrate):
    """Without the package, every row of the seed's table has the expected figures, and nothing remains."""
    before = portrait(substrate.dsn)
    done = probe(substrate.dsn)

    assert done.code == 0, done.err
    answer = done.json
    assert set(answer) == {"pass", "installed", "probes", "footprint"}
    assert answer["pass"] is True
    assert answer["installed"] is False
    assert [(p["id"], p["expected"]) for p in answer["probes"]] == SEED
    for row in answer["probes"]:
        assert set(row) == {"id", "scenario", "expected", "observed", "pass"}
        assert row["observed"] == row["expected"]
        assert row["pass"] is True
    for item, figures in answer["footprint"].items():
        assert figures["pass"] is True, item
        assert figures["expected"] == figures["observed"]
    assert ZERO.items() <= {item: figures["observed"] for item, figures in answer["footprint"].items()}.items()
    assert portrait(substrate.dsn) == before


@on_one_server
def test_the_table_for_people(substrate):
    """Without --json, a table shows expected and observed figures side by side, and PASS is the last word."""
    done = run("probe", dsn=substrate.dsn)
    assert done.code == 0
    for id, expected in SEED:
        line = next(line for line in done.out.splitlines() if line.lstrip().startswith(f"{id} "))
        assert line.count(expected[:30]) == 2, line
        assert line.rstrip().endswith("ok")
    assert done.out.rstrip().endswith("PASS")
    assert "the package, created for the probe" in done.out
    assert "\x1b" not in done.out + done.err


def test_the_installed_package(applied):
    """If the package is installed, the probe tests the installed objects, and changes no row or object of them."""
    before = portrait(applied.dsn)
    done = probe(applied.dsn)
    assert done.code == 0, done.err
    assert done.json["installed"] is True
    assert [(p["id"], p["observed"]) for p in done.json["probes"]] == SEED
    assert portrait(applied.dsn) == before


@on_one_server
def test_a_history(live):
    """Existing events, attempts and dead letters do not change the figures of the probe."""

    async def history() -> None:
        async with connected(live.dsn) as connection:
            await connection.execute(POISON)
            for _ in range(7):
                await insert_event(connection)
            await connection.execute(
                "select fn_iu_emit_event('version_applied', 'poison', gen_random_uuid(), 'a', '{}')"
            )
            await drain(connection)
            await connection.execute(REMEDY)
            await insert_event(connection)

    anyio.run(history)
    before = portrait(live.dsn)
    assert value(live.dsn, "select count(*) from v_iu_route_dead_letter_open") == 1
    done = probe(live.dsn)
    assert done.code == 0, done.out
    assert portrait(live.dsn) == before


@on_one_server
def test_a_history_before_the_package(substrate):
    """Events that are older than the package do not disturb its probe.

    Fails when: the probe's cursor reads the events that 005 has just stamped.
    """
    execute(
        substrate.dsn, "select fn_iu_emit_event('version_applied', 'x', null, 'a', '{}') from generate_series(1, 50)"
    )
    before = portrait(substrate.dsn)
    done = probe(substrate.dsn)
    assert done.code == 0, done.out + done.err
    assert portrait(substrate.dsn) == before


@on_one_server
@pytest.mark.parametrize("kind", ["substrate", "applied"])
def test_other_routes(server, kind, request):
    """Other enabled routes for the same events, or a disabled route of the seed, do not disturb the probe."""
    dsn = request.getfixturevalue(kind).dsn
    execute(
        dsn,
        f"""update iu_outbound_route set enabled = false where route_code = '{ROUTE}';
            insert into iu_outbound_route
                (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled, dry_run)
            select 'other ' || n, 'iu', 'version_applied', 'update', 'report', 'x', true, true
              from generate_series(1, 3) n""",
    )
    before = portrait(dsn)
    done = probe(dsn)
    assert done.code == 0, done.out
    assert portrait(dsn) == before


@on_one_server
def test_closed_gates(applied):
    """A closed master gate is opened for the probe only, inside its transaction."""
    execute(applied.dsn, "update dot_config set value = 'false' where key = 'iu_core.routes_master_enabled'")
    before = portrait(applied.dsn)
    done = probe(applied.dsn)
    assert done.code == 0, done.out
    assert portrait(applied.dsn) == before


# -- beside a live consumer --------------------------------------------------------------------------------------


@pytest.mark.asyncio
@on_one_server
async def test_beside_a_working_consumer(live):
    """A probe passes beside a consumer under load, which waits no longer than the lock timeout, and misses nothing."""
    limit = 1.0
    stop = anyio.Event()
    written = 0

    async def load() -> None:
        nonlocal written
        async with connected(live.dsn) as writer:
            while not stop.is_set():
                await writer.execute(
                    """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
                       select 'iu', 'version_applied', 'update', 'immediate' from generate_series(1, 20)"""
                )
                written += 20

    async with consuming(live.dsn) as recorder, anyio.create_task_group() as tasks:
        tasks.start_soon(load)
        await recorder.wait_for(BatchRan, lambda b: b.batch.seen > 0)
        for _ in range(3):
            already = len(recorder.of(BatchRan))
            done = await anyio.to_thread.run_sync(partial(probe, live.dsn, "--lock-timeout", str(limit)))
            assert done.code == 0, done.out + done.err
            assert sum(b.batch.seen for b in recorder.of(BatchRan)[already:]) > 0
        stop.set()
    longest = max(b.batch.seconds for b in recorder.of(BatchRan))
    assert longest < limit + 0.5

    async with connected(live.dsn) as connection:
        await drain(connection)
        assert await connection.fetchval("select count(*) from event_outbox") == written
        assert await connection.fetchval("select count(distinct event_ref) from iu_route_attempt") == written
        assert await connection.fetchval("select count(*) from iu_route_attempt") == written


# -- locks -------------------------------------------------------------------------------------------------------


@on_one_server
@pytest.mark.parametrize("kind", ["substrate", "applied"])
def test_the_probe_ends_while_another_session_holds_a_lock(server, kind, request):
    """A lock of another session on the routes ends the probe within the lock timeout, and nothing remains."""
    dsn = request.getfixturevalue(kind).dsn
    before = portrait(dsn)
    with holding(dsn, "lock table iu_outbound_route"):
        done = refused(1, "lock", "--lock-timeout")("probe", "--lock-timeout", "0.5", dsn=dsn)
    assert done.seconds < 0.5 + 3
    assert portrait(dsn) == before


@on_one_server
def test_the_probe_ends_while_another_session_changes_a_gate(applied):
    """A gate that another session is changing ends the probe within the lock timeout."""
    with holding(applied.dsn, "update dot_config set value = 'true'"):
        done = refused(1, "lock")("probe", "--lock-timeout", "0.5", dsn=applied.dsn)
    assert done.seconds < 0.5 + 3


@on_one_server
@pytest.mark.parametrize("at", ["A", "E"])
def test_the_probe_delays_no_other_session(substrate, tmp_path, at):
    """A probe that takes longer than the lock timeout is ended, because other sessions wait for its locks.

    Without the package, the outbox itself is locked from the start, and not only the routes from scenario E on.
    """
    tree = Tree(tmp_path)
    file = {"A": "probe/emit", "E": "probe/drop_safety_check"}[at]
    text = (tree.root / "sql/queries" / f"{file}.sql").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    tree.edit(f"sql/queries/{file}.sql", "\n".join(lines), "do $$ begin perform pg_sleep(20); end $$")
    if at == "A":
        tree.edit(
            f"sql/queries/{file}.sql",
            "do $$ begin perform pg_sleep(20); end $$",
            "select null::uuid from pg_sleep(20) where $1::int > 0",
        )
    before = portrait(substrate.dsn)
    done = refused(1, "held locks for longer than 1 s")("probe", "--lock-timeout", "1", dsn=substrate.dsn, env=tree.env)
    assert done.seconds < 20
    assert portrait(substrate.dsn) == before


# -- databases without a probe -----------------------------------------------------------------------------------


@on_one_server
def test_half_a_package(substrate):
    """The probe refuses an incomplete package, and names the differing object."""
    execute(substrate.dsn, "create table iu_route_worker_cursor (worker_name text)")
    before = catalogue(substrate.dsn)
    refused(1, "half applied", "iu_route_worker_cursor")("probe", dsn=substrate.dsn)
    assert catalogue(substrate.dsn) == before


@on_one_server
def test_two_probes_at_once(applied):
    """A second probe waits for the first or is refused by the lock timeout; neither leaves anything."""
    before = portrait(applied.dsn)

    async def both() -> list[Done]:
        found: list[Done] = []

        async def one() -> None:
            found.append(await anyio.to_thread.run_sync(partial(run, "probe", dsn=applied.dsn)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            tasks.start_soon(one)
        return found

    found = anyio.run(both)
    assert 0 in {done.code for done in found}
    assert all(done.code == 0 or "lock" in done.err or "Try again" in done.err for done in found), found
    assert portrait(applied.dsn) == before
    assert rows(applied.dsn, "select from event_outbox") == []
