"""The cost of a worker that has nothing to do."""

from __future__ import annotations

import asyncio
import contextlib
import time

import asyncpg
import psutil

from suite.bench import Bench, Worker
from suite.measurements.measurement import Measurement, Metric, Outcome, of_each_system
from suite.systems import System

SESSIONS = """
select pid from pg_stat_activity
 where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""
#: The WAL is that of the sessions alone; the server writes more by itself.
COUNTS = """
select (select xact_commit + xact_rollback from pg_stat_database where datname = $1) as transactions,
       (select coalesce(sum((pg_stat_get_backend_wal(pid)).wal_bytes), 0)
          from pg_stat_activity where datname = $1 and backend_type = 'client backend') as wal
"""


def _processor(processes: list[psutil.Process]) -> float:
    """Processor seconds so far."""
    seconds = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


async def _idle(bench: Bench, system: System) -> Outcome:
    database = await bench.clear(system)
    await bench.settle(database)
    # The observer is in another database, so that its own statements are not counted.
    connection, observer = await bench.connect(database), await bench.connect("postgres")
    async with bench.worker(system, "latency") as worker:
        await bench.ready(worker, connection, system)
        # An idle session reports its statistics of the events before up to ten seconds late.
        await asyncio.sleep(11)
        sessions = [psutil.Process(row["pid"]) for row in await connection.fetch(SESSIONS)]
        await connection.close()
        await asyncio.sleep(1)
        return await _observed(observer, worker, sessions, database, bench.sizes.idle)


async def _observed(
    observer: asyncpg.Connection, worker: Worker, sessions: list[psutil.Process], database: str, seconds: float
) -> Outcome:
    before, began = await observer.fetchrow(COUNTS, database), time.monotonic()
    own, theirs = _processor(worker.family()), _processor(sessions)
    await asyncio.sleep(seconds)
    own, theirs = _processor(worker.family()) - own, _processor(sessions) - theirs
    # The server's counters are up to a second behind; both readings are behind alike.
    after, passed = await observer.fetchrow(COUNTS, database), time.monotonic() - began
    memory = worker.memory()
    await observer.close()
    return Outcome(
        {
            "processor": 100 * (own + theirs) / passed,
            "of it in the server": 100 * max(0.0, theirs) / passed,
            "transactions": (after["transactions"] - before["transactions"]) / passed,
            "sessions": float(len(sessions)),
            # The figures of a session that ended meanwhile are missing in the second reading.
            "WAL": max(0.0, float(after["wal"] - before["wal"])) / 1024 / passed * 60,
            "memory": memory,
        }
    )


IDLE = Measurement(
    key="idle",
    title="Cost of an idle worker",
    text="Processor time of the worker and its sessions in percent of one core, transactions a second in its database, "
    "sessions, WAL that is written in a minute, and memory of the worker, while no events come.",
    metrics=lambda _: (
        Metric("processor", "%"),
        Metric("of it in the server", "%"),
        Metric("transactions", "/s"),
        Metric("sessions", ""),
        Metric("WAL", "KB/min"),
        Metric("memory", "MB"),
    ),
    subjects=of_each_system(_idle),
    quick=False,
)
