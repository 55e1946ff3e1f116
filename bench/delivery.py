"""Throughput to a coroutine that does nothing, one durable attempt each, compared with pgqueuer and graphile-worker.

Then single events: the time from the insert to the call of the coroutine. The two peers are not dependencies of the
project: give the Python of an environment that has pgqueuer (--pgqueuer), and a directory with graphile-worker in its
node_modules (--graphile). Each has its own database on the same server, and the settings that were fastest here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg

from common import EMIT, consumer, database, listening, percentile, spread

ROUTE = "iu.version_applied.workflow"
TARGET = """
import os, time
from iu_listen import Delivery, target

@target("event_outbox")
async def nothing(delivery: Delivery) -> None:
    if LATE is not None:
        os.write(LATE, f"{time.time()}\\n".encode())

LATE = os.open(os.environ["LATE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if os.environ.get("LATE") else None
"""
PGQUEUER = """
import asyncio, asyncpg, sys
from datetime import timedelta
try:
    import uvloop
    uvloop.install()
except ImportError:
    pass
from pgqueuer import AsyncpgPoolDriver, PgQueuer, Queries
from pgqueuer.types import QueueExecutionMode

async def main(dsn, jobs, concurrency):
    pool = await asyncpg.create_pool(dsn, min_size=4, max_size=10)
    driver = AsyncpgPoolDriver(pool)
    queries = Queries(driver)
    if not await queries.schema_is_installed():
        await queries.install()
    await queries.clear_queue()
    for _ in range(0, jobs, 1000):
        await queries.enqueue(["noop"] * 1000, [b"{}"] * 1000, [0] * 1000)
    await pool.execute("vacuum analyze")
    await pool.execute("checkpoint")
    pgq = PgQueuer(driver)

    @pgq.entrypoint("noop")
    async def noop(job):
        pass

    await pgq.run(batch_size=concurrency, max_concurrent_tasks=2 * concurrency, mode=QueueExecutionMode.drain)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""
#: Jobs a second, from the first pick to the last completed job, by the log of pgqueuer.
PGQUEUER_RATE = """
select count(*) filter (where status = 'successful')
       / extract(epoch from max(created) - min(created) filter (where status = 'picked')) from pgqueuer_log
"""
GRAPHILE = """
const { run, makeWorkerUtils } = require("graphile-worker");
(async () => {
  const [connectionString, jobs, concurrency] = [process.argv[1], Number(process.argv[2]), Number(process.argv[3])];
  const utils = await makeWorkerUtils({ connectionString });
  await utils.migrate();
  for (let n = 0; n < jobs; n += 1000)
    await utils.addJobs(Array.from({ length: 1000 }, () => ({ identifier: "noop", payload: {} })));
  await utils.withPgClient((c) => c.query("vacuum analyze"));
  await utils.withPgClient((c) => c.query("checkpoint"));
  let done = 0, began = 0;
  const left = async () => (await utils.withPgClient((c) =>
    c.query("select exists (select from graphile_worker._private_jobs) as any"))).rows[0].any;
  began = process.hrtime.bigint();
  const runner = await run({
    connectionString, noHandleSignals: true, logger: new (require("graphile-worker").Logger)(() => () => {}),
    taskList: { noop: async () => { done++; } },
    preset: { worker: { concurrentJobs: concurrency, maxPoolSize: 10, completeJobBatchDelay: 0, failJobBatchDelay: 0,
                        localQueue: { size: 5 * concurrency } } },
  });
  while (done < jobs || await left()) await new Promise((r) => setTimeout(r, 5));
  console.log(JSON.stringify({ rate: jobs / (Number(process.hrtime.bigint() - began) / 1e9) }));
  await runner.stop();
  await utils.release();
})();
"""


DONE = """
select total_seen >= $1 and not exists (select from iu_route_delivery)
  from iu_route_worker_cursor
"""


async def prepare(dsn: str, concurrency: int) -> None:
    """Set the concurrency of the route, and create databases for the peers."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("create database pgq")
    await connection.execute("create database gw")
    await connection.execute(
        "update iu_outbound_route set delivery_policy = $1::jsonb where route_code = $2",
        json.dumps({"concurrency": concurrency}),
        ROUTE,
    )
    await go_live(connection)
    await connection.close()


async def go_live(connection: asyncpg.Connection) -> None:
    """Make the route live, and allow deliveries."""
    await connection.execute("update dot_config set value = 'true' where key = 'iu_core.delivery_enabled'")
    await connection.fetchval("select fn_iu_route_live($1, true, 'bench', 'bench')", ROUTE)


async def ours(dsn: str, events: int) -> float:
    """Events a second, from the first call to the last attempt, routing included."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("truncate event_outbox, iu_route_attempt, iu_route_delivery, iu_consumer_heartbeat")
    await connection.fetchval(EMIT, events)
    await connection.execute("vacuum analyze")
    await connection.execute("checkpoint")
    before = await connection.fetchval("select total_seen from iu_route_worker_cursor")
    with consumer(dsn, "--app", "bench_target"):
        while not await connection.fetchval(DONE, before + events):
            await asyncio.sleep(0.05)
    rate = await connection.fetchval(
        "select count(*) / extract(epoch from max(finished_at) - min(created_at)) from iu_route_attempt"
    )
    await connection.close()
    return float(rate)


async def singly(dsn: str, times: int, late: Path) -> tuple[list[float], list[float]]:
    """Milliseconds to the call, from the begin of each insert and from its committed answer; one insert every 20 ms."""
    began, committed = [], []
    connection = await asyncpg.connect(dsn)
    await connection.execute("truncate event_outbox, iu_route_attempt, iu_route_delivery, iu_consumer_heartbeat")
    os.environ["LATE"] = str(late)
    with consumer(dsn, "--app", "bench_target"):
        await listening(connection)
        await asyncio.sleep(1)
        for _ in range(times):
            began.append(time.time())
            await connection.fetchval(EMIT, 1)
            committed.append(time.time())
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
    del os.environ["LATE"]
    await connection.close()
    called = sorted(float(line) for line in late.read_text().split())
    since_begin = [1000 * (call - at) for call, at in zip(called, began, strict=True)]
    return since_begin, [1000 * (call - at) for call, at in zip(called, committed, strict=True)]


def pgqueuer(python: str, dsn: str, jobs: int, concurrency: int) -> float:
    """Jobs a second of pgqueuer."""
    subprocess.run([python, "-c", PGQUEUER, dsn, str(jobs), str(concurrency)], check=True, capture_output=True)

    async def rate() -> float:
        connection = await asyncpg.connect(dsn)
        found = float(await connection.fetchval(PGQUEUER_RATE))
        await connection.execute("truncate pgqueuer_log, pgqueuer")
        await connection.close()
        return found

    return asyncio.run(rate())


def graphile(folder: str, dsn: str, jobs: int, concurrency: int) -> float:
    """Jobs a second of graphile-worker, from the call of run() to the last job that is gone."""
    done = subprocess.run(
        ["node", "-e", GRAPHILE, "--", dsn, str(jobs), str(concurrency)],
        check=True, capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    return float(json.loads(done.stdout.strip().splitlines()[-1])["rate"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=500, help="number of single events")
    parser.add_argument("--pgqueuer", metavar="PYTHON", help="path of a Python interpreter that has pgqueuer")
    parser.add_argument("--graphile", metavar="DIR", help="directory with node_modules/graphile-worker")
    options = parser.parse_args()
    rates: dict[str, list[float]] = {}
    with TemporaryDirectory(prefix="iu-listen-bench-") as folder, database(tcp=True) as server:
        (Path(folder) / "bench_target.py").write_text(TARGET)
        os.environ["PYTHONPATH"] = folder
        dsn = server.dsn("iu")
        asyncio.run(prepare(dsn, options.concurrency))
        for _ in range(options.rounds):
            rates.setdefault("iu-listen", []).append(asyncio.run(ours(dsn, options.events)))
            if options.pgqueuer:
                found = pgqueuer(options.pgqueuer, server.tcp_dsn("pgq"), options.events, options.concurrency)
                rates.setdefault("pgqueuer", []).append(found)
            if options.graphile:
                found = graphile(options.graphile, server.tcp_dsn("gw"), options.events, options.concurrency)
                rates.setdefault("graphile-worker", []).append(found)
        waits = asyncio.run(singly(dsn, options.times, Path(folder) / "late"))
    for name, found in rates.items():
        # The ratio is taken in each round, because the speed of the machine differs between rounds.
        ratio = statistics.median(own / peer for own, peer in zip(rates["iu-listen"], found, strict=True))
        print(f"{name:16} {spread(found)} deliveries/s; iu-listen is {ratio:.2f} times as fast")
    for since, found in zip(("insert begins", "commit answers"), waits, strict=True):
        p50, p99 = percentile(found, 0.5), percentile(found, 0.99)
        print(f"single events, from when their {since}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, {len(found)} calls")


if __name__ == "__main__":
    main()
