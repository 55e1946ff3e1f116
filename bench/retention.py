"""How fast routed events are removed, and how much that delays the routing.

The real consumer routes a backlog of old events; then `iu-listen retention run` removes them while single events are
written, and the time from the begin of each insert to its committed attempt is measured. For comparison: the same
inserts without a removal, and one DELETE of the same number of rows of the same shape.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time

import asyncpg

from common import consumer, database, listening, percentile

OLD = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, canonical_address, created_at)
    select 'iu', 'version_applied', 'update', 'immediate', 'bench/' || n, now() - interval '100 days'
      from generate_series(1, $1::int) n
"""
ONE = "select fn_iu_emit_event('version_applied', 'bench/one', gen_random_uuid(), 'bench', '{}')"
LATENCY = """
    select extract(epoch from pg_xact_commit_timestamp(a.xmin) - o.created_at)::float8 * 1000 as ms
      from iu_route_attempt a join event_outbox o on o.id = a.event_ref
     where o.canonical_address = 'bench/one' and o.created_at >= $1
"""


async def fill(connection: asyncpg.Connection, events: int) -> None:
    """Write old events, and wait until all are routed. No new event is among them, because old ones behind it stay."""
    await connection.execute("truncate event_outbox, iu_route_attempt")
    for done in range(0, events, 100_000):
        await connection.execute(OLD, min(100_000, events - done))
    seen = "select sum(total_seen) from iu_route_worker_cursor"
    begun = await connection.fetchval(seen)
    while await connection.fetchval(seen) < begun + events:
        await asyncio.sleep(0.05)
    await connection.execute("vacuum analyze event_outbox")
    await connection.execute("checkpoint")


async def latencies(connection: asyncpg.Connection, running: asyncio.Task[None]) -> list[float]:
    """Milliseconds from the begin of an insert to its attempt, one insert every 20 ms, until ``running`` is done."""
    since = await connection.fetchval("select clock_timestamp()")
    written = 0
    while not running.done():
        await connection.fetchval(ONE)
        written += 1
        await asyncio.sleep(0.02)
    while len(found := await connection.fetch(LATENCY, since)) < written:
        await asyncio.sleep(0.05)
    return [row["ms"] for row in found]


async def retention(dsn: str, pause: float) -> None:
    """Run the command, as a timer starts it."""
    arguments = [
        "-m",
        "iu_listen",
        "retention",
        "run",
        "--what",
        "events",
        "--keep",
        "90d",
        "--pause",
        str(pause),
        "--yes",
    ]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, "--dsn", dsn, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    print("   ", out.decode().splitlines()[0])


async def measure(dsn: str, events: int, pauses: list[float]) -> None:
    connection = await asyncpg.connect(dsn)
    with consumer(dsn):
        await listening(connection)

        async def report(what: str, running: asyncio.Task[None]) -> None:
            began = time.perf_counter()
            found = await latencies(connection, running)
            seconds = time.perf_counter() - began
            print(f"{what:34} p50 {percentile(found, 0.5):5.2f} ms  p99 {percentile(found, 0.99):6.2f} ms  "
                  f"max {max(found):6.1f} ms  in {seconds:.1f} s")  # fmt: skip

        await report("nothing is removed", asyncio.create_task(asyncio.sleep(20)))
        for pause in pauses:
            await fill(connection, events)
            await report(f"retention run, pause {pause:g} s", asyncio.create_task(retention(dsn, pause)))
            assert (
                await connection.fetchval(
                    "select count(*) from event_outbox where created_at < now() - interval '1 day'"
                )
                == 0
            )
        await fill(connection, events)
        began = time.perf_counter()
        await connection.execute("delete from event_outbox where created_at < now() - interval '90 days'")
        print(f"bound: one DELETE {'':16} {events / (time.perf_counter() - began):,.0f} rows/s")
    await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--pause", type=float, nargs="*", default=[0.1, 0.0])
    options = parser.parse_args()
    with database() as server:
        asyncio.run(measure(server.dsn("iu"), options.events, options.pause))


if __name__ == "__main__":
    main()
