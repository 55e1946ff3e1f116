"""From the begin of an insert to the commit of its attempt, at several paces, beside a bound, in turns.

The bound is NOTIFY, then one durable INSERT of an attempt. iu-listen is measured without deliveries, where the attempt is
written by the batch, and with a live route, where it is written after the call. Commit times are PostgreSQL's own, and
producer and server use one clock.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from common import consumer, database, go_live, listening, percentile

WORKERS = Path(__file__).parent / "suite" / "workers"
INSERT = """
insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref, safe_payload)
values ('iu', 'version_applied', 'update', 'immediate', gen_random_uuid(), jsonb_build_object('n', $1::int))
"""
ATTEMPTS = """
select (o.safe_payload ->> 'n')::int as n, extract(epoch from pg_xact_commit_timestamp(a.xmin))::float8 as at
  from event_outbox o join iu_route_attempt a on a.event_ref = o.id
"""
BOUND_SCHEMA = """
create table event (n int not null, id bigint generated always as identity primary key);
create table attempt (n int not null, id bigint generated always as identity primary key,
                      called_at timestamptz not null default clock_timestamp())
"""
BOUND_INSERT = (
    "with written as (insert into event (n) values ($1) returning n) select pg_notify('event', n::text) from written"
)
BOUND_ATTEMPTS = "select n, extract(epoch from pg_xact_commit_timestamp(xmin))::float8 as at from attempt"


@contextmanager
def _bound_worker(dsn: str) -> Iterator[None]:
    environ = os.environ | {"CALLS": os.devnull, "RECORD": "first"}
    process = subprocess.Popen([sys.executable, WORKERS / "run_bound.py", "run", dsn, "latency"], env=environ)
    try:
        time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait(20)


async def _times(connection: asyncpg.Connection, insert: str, attempts: str, count: int, pace: float) -> list[float]:
    """Milliseconds from the begin of each insert to the commit of its attempt."""
    statement, began = await connection.prepare(insert), {}
    for number in range(count):
        began[number] = time.time()
        await statement.fetch(number)
        await asyncio.sleep(pace)
    while len(rows := await connection.fetch(attempts)) < count:
        await asyncio.sleep(0.05)
    return [1000 * (row["at"] - began[row["n"]]) for row in rows]


async def _ours(dsn: str, count: int, pace: float) -> list[float]:
    connection = await asyncpg.connect(dsn)
    await connection.execute("truncate event_outbox, iu_route_attempt, iu_route_delivery, iu_consumer_heartbeat")
    environ = {"CALLS": os.devnull, "RECORD": "first", "PYTHONPATH": str(WORKERS)}
    with consumer(dsn, "--app", "bench_target", environ=environ):
        await listening(connection)
        await asyncio.sleep(1)
        times = await _times(connection, INSERT, ATTEMPTS, count, pace)
    await connection.close()
    return times


async def _bound(dsn: str, count: int, pace: float) -> list[float]:
    connection = await asyncpg.connect(dsn)
    await connection.execute("drop table if exists event, attempt")
    await connection.execute(BOUND_SCHEMA)
    with _bound_worker(dsn):
        times = await _times(connection, BOUND_INSERT, BOUND_ATTEMPTS, count, pace)
    await connection.close()
    return times


async def measure(dsn: str, rounds: int, count: int) -> None:
    for pace in (0.005, 0.02, 0.1):
        found: dict[str, list[float]] = {}
        for live in (False, True):
            await _set_live(dsn, live)
            for _ in range(rounds):
                runs = {"bound": _bound, "live" if live else "dry run": _ours}
                for name, run in runs.items():
                    times = await run(dsn, count, pace)
                    found.setdefault(name, []).append(percentile(times, 0.5))
        bound = statistics.median(found["bound"])
        for name, medians in found.items():
            p50 = statistics.median(medians)
            print(f"{1000 * pace:3.0f} ms apart  {name:8} p50 {p50:.2f} ms  {p50 / bound:.2f} x bound", flush=True)


async def _set_live(dsn: str, live: bool) -> None:
    connection = await asyncpg.connect(dsn)
    if live:
        await go_live(connection)
    else:
        await connection.execute("update iu_outbound_route set dry_run = true")
    await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    with database(tcp=True) as server:
        asyncio.run(measure(server.tcp_dsn("iu"), options.rounds, options.count))


if __name__ == "__main__":
    main()
