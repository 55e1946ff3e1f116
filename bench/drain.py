"""A backlog drained by `iu-listen run`, with attempts counted, compared with its bound in the same run.

The bound is one INSERT ... SELECT of the same attempts: no cursor, no routing, no idempotency, one commit.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import asyncpg

from common import EMIT, consumer, database, spread

RAW = """
insert into iu_route_attempt (event_ref, route_kind, route_code, status, decision, delivered, idempotency_key, attempt_no)
select o.id, 'outbound', 'iu.version_applied.workflow', 'dry_run', 'dry_run', false,
       'outbound:iu.version_applied.workflow:' || o.id, 1
  from event_outbox o where o.event_domain = 'iu' order by o.event_seq
"""
SPAN = """
select count(*) as attempts, count(distinct event_ref) as events,
       extract(epoch from max(finished_at) - min(created_at))::float8 as seconds
  from iu_route_attempt
"""


async def once(dsn: str, events: int, chunk: int) -> tuple[float, float, float]:
    """Events a second: of the bound, of the drain, and of the drain with the start of the process included."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("truncate event_outbox, iu_route_attempt, iu_consumer_heartbeat")
    for done in range(0, events, chunk):
        await connection.fetchval(EMIT, min(chunk, events - done))
    await connection.execute("vacuum analyze event_outbox")
    await connection.execute("checkpoint")
    began = time.perf_counter()
    await connection.execute(RAW)
    bound = events / (time.perf_counter() - began)
    await connection.execute("truncate iu_route_attempt")
    await connection.execute("checkpoint")
    began = time.perf_counter()
    with consumer(dsn):
        while await connection.fetchval("select total_seen from iu_route_worker_cursor") < events:
            await asyncio.sleep(0.05)
        wall = events / (time.perf_counter() - began)
    span = await connection.fetchrow(SPAN)
    assert span["attempts"] == span["events"] == events, dict(span)
    await connection.execute("update iu_route_worker_cursor set total_seen = 0")
    await connection.close()
    return bound, events / span["seconds"], wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--chunk", type=int, default=200_000, help="number of events in a transaction of the producer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--dsn", help="a database with the package applied and the gate open; all its events are deleted"
    )
    options = parser.parse_args()

    async def rounds(dsn: str) -> list[tuple[float, float, float]]:
        return [await once(dsn, options.events, options.chunk) for _ in range(options.rounds)]

    if options.dsn:
        found = asyncio.run(rounds(options.dsn))
    else:
        with database() as server:
            found = asyncio.run(rounds(server.dsn("iu")))
    bound, drain, wall = (list(column) for column in zip(*found, strict=True))
    print(f"bound: one INSERT ... SELECT    {spread(bound)} events/s")
    print(f"iu-listen run                   {spread(drain)} events/s")
    print(f"  with the start of the process {spread(wall)} events/s")
    print(f"ratio of medians: {statistics.median(drain) / statistics.median(bound):.2f}")


if __name__ == "__main__":
    main()
