"""The cost for producers: transactions a second of pgbench, each of which writes one event."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path

from suite.bench import Bench
from suite.measurements.measurement import Measurement, Metric, Outcome, Run
from suite.sizes import Sizes
from suite.systems import OURS, System

#: A plain insert, as an application writes it: the bell is a trigger of the table.
INSERT = """
insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref, safe_payload)
values ('iu', 'version_applied', 'update', 'immediate', gen_random_uuid(), '{"n": 1}')
"""
NOTIFY = """
create or replace function bench_notify() returns trigger language plpgsql as
$$ begin perform pg_notify('bench', coalesce(new.id::text, '')); return null; end $$;
create or replace trigger bench_notify after insert on event_outbox for each {each} execute function bench_notify()
"""
#: The trigger of each variant, beside the bell: none, or one that sends NOTIFY.
VARIANTS = {
    "iu-listen": "",
    "bound: no trigger": "",
    "NOTIFY for each row": NOTIFY.format(each="row"),
    "NOTIFY for each statement": NOTIFY.format(each="statement").replace("new.id::text", "null"),
}


async def _tables(bench: Bench, name: str) -> Outcome:
    """Writers of the outbox with one of the triggers."""
    database = await bench.clear(OURS)
    connection = await bench.connect(database)
    mode = "enable always" if name == "iu-listen" else "disable"
    await connection.execute(f"alter table event_outbox {mode} trigger zz_event_outbox_bell")
    if VARIANTS[name]:
        await connection.execute(VARIANTS[name])
    try:
        return await _write(bench, database, INSERT)
    finally:
        await connection.execute("drop trigger if exists bench_notify on event_outbox")
        await connection.execute("alter table event_outbox enable always trigger zz_event_outbox_bell")
        await connection.close()


async def _consuming(bench: Bench) -> Outcome:
    """Writers of the outbox while a consumer delivers their events; every event must have its attempt."""
    database = await bench.clear(OURS)
    connection, ear = await bench.connect(database), await bench.connect(database)
    heard: list[object] = []
    async with bench.worker(OURS, "throughput", record="first") as worker:
        await bench.ready(worker, connection, OURS)
        before = await connection.fetchval("select count(*) from event_outbox")
        await ear.add_listener("iu_event_outbox", lambda *said: heard.append(said))
        outcome = await _write(bench, database, INSERT)
        events = await connection.fetchval("select count(*) from event_outbox")
        while await connection.fetchval(OURS.unfinished, events):
            await asyncio.sleep(0.1)
    attempts = await connection.fetchval("select count(*) from iu_route_attempt")
    await connection.close()
    await ear.close()
    assert attempts == events, f"{events} events have {attempts} attempts"
    outcome.figures["NOTIFYs for 1 000 events"] = 1000 * len(heard) / (events - before)
    return outcome


async def _peer(bench: Bench, system: System) -> Outcome:
    database = await bench.clear(system)
    statement = re.sub(r"\$[12]::int", "1", system.enqueue)
    return await _write(bench, database, statement)


async def _write(bench: Bench, database: str, statement: str) -> Outcome:
    await bench.settle(database)
    script = bench.folder / "writer.sql"
    script.write_text(" ".join(statement.split()) + ";\n")
    figures = {}
    for clients in bench.sizes.clients:
        rate = await asyncio.to_thread(_pgbench, bench, database, script, clients)
        figures[f"{clients} clients"] = rate
    return Outcome(figures)


def _pgbench(bench: Bench, database: str, script: Path, clients: int) -> float:
    command = [bench.server.bin / "pgbench", "-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-T",
               str(bench.sizes.writers), "-f", script, bench.dsn(database)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (found := re.search(r"tps = ([\d.]+)", done.stdout)):
        raise RuntimeError(done.stderr[-400:])
    return float(found[1])


def _metrics(sizes: Sizes) -> tuple[Metric, ...]:
    rates = (Metric(f"{clients} clients", "tps", better="higher") for clients in sizes.clients)
    return (*rates, Metric("NOTIFYs for 1 000 events", ""))


def _subjects(bench: Bench) -> dict[str, Run]:
    runs: dict[str, Run] = {}
    if OURS in bench.systems:
        runs |= {name: (lambda name=name: _tables(bench, name)) for name in VARIANTS}
        runs["iu-listen, its consumer running"] = lambda: _consuming(bench)
    peers = [system for system in bench.systems if system.kind == "peer"]
    return runs | {f"{system.name}, enqueue": (lambda system=system: _peer(bench, system)) for system in peers}


WRITERS = Measurement(
    key="writers",
    title="Cost for producers",
    text="Transactions a second of pgbench, each of which writes one event, durably. No worker runs, except in one row. "
    "iu-listen's own trigger is the bell; three variants of the same table have no trigger, or one that sends NOTIFY. "
    "For the peers it is the statement of their own enqueue.",
    metrics=_metrics,
    subjects=_subjects,
)
