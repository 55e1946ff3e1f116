"""How fast a consumer catches up after a long absence, compared with a fresh backlog in the same run.

The events of the absence are from many transactions of many writers, with subjects, some committed late, and the
consumer had read events before. A fresh backlog is written by one transaction. The order by subject is checked at the
end.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import asyncpg

from common import EMIT, SPAN, consumer, database, spread

#: One transaction of a writer with many events, numbered within their subject; a subject belongs to one writer.
WRITE = """
insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref, safe_payload)
select 'iu', 'version_applied', 'update', 'immediate', md5($1 || ':' || n % 50)::uuid, jsonb_build_object('n', $2::int + n)
  from generate_series(1, $3::int) n
"""
DISORDER = """
select count(*) from (
    select (o.safe_payload ->> 'n')::int as n,
           lag((o.safe_payload ->> 'n')::int) over (partition by o.event_subject_ref order by a.id) as before
      from iu_route_attempt a join event_outbox o on o.id = a.event_ref) x
 where x.n < x.before
"""


async def clear(connection: asyncpg.Connection) -> None:
    await connection.execute("truncate event_outbox, iu_route_attempt, iu_consumer_heartbeat")
    await connection.execute("update iu_route_worker_cursor set total_seen = 0")


async def fresh(connection: asyncpg.Connection, events: int) -> None:
    """Write all events in one transaction."""
    await connection.fetchval(EMIT, events)


async def absence(dsn: str, events: int, writers: int = 16, size: int = 100) -> None:
    """Many transactions of many writers, each of a hundred events; every twentieth stays open for a while."""

    async def write(name: int) -> None:
        mine = await asyncpg.connect(dsn)
        for done in range(0, events // writers, size):
            transaction = mine.transaction()
            await transaction.start()
            await mine.execute(WRITE, str(name), done, size)
            if done // size % 20 == 0:
                await asyncio.sleep(0.02)
            await transaction.commit()
        await mine.close()

    await asyncio.gather(*(write(n) for n in range(writers)))


async def drained(dsn: str, connection: asyncpg.Connection) -> float:
    """Drain the backlog; return the events a second, by the times of the attempts."""
    events = await connection.fetchval("select count(*) from event_outbox")
    await connection.execute("vacuum analyze event_outbox")
    await connection.execute("checkpoint")
    with consumer(dsn):
        while await connection.fetchval("select total_seen from iu_route_worker_cursor") < events:
            await asyncio.sleep(0.05)
    span = await connection.fetchrow(SPAN)
    assert span["attempts"] == span["events"] == events, dict(span)
    return events / span["seconds"]


async def once(dsn: str, events: int) -> tuple[float, float, int]:
    connection = await asyncpg.connect(dsn)
    await clear(connection)
    await fresh(connection, events)
    bound = await drained(dsn, connection)
    await clear(connection)
    began = time.perf_counter()
    await absence(dsn, events)
    print(f"  wrote {events} events in {time.perf_counter() - began:.0f} s", flush=True)
    rate = await drained(dsn, connection)
    disorder = await connection.fetchval(DISORDER)
    await connection.close()
    return bound, rate, disorder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--major", type=int, default=18)
    options = parser.parse_args()
    with database(options.major) as server:

        async def rounds() -> list[tuple[float, float, int]]:
            return [await once(server.dsn("iu"), options.events) for _ in range(options.rounds)]

        found = asyncio.run(rounds())
    bound, rate, disorder = (list(column) for column in zip(*found, strict=True))
    print(f"a new backlog                 {spread(bound)} events/s")
    print(f"a backlog after an absence    {spread(rate)} events/s")
    print(
        f"ratio of medians: {statistics.median(rate) / statistics.median(bound):.2f}; events out of order: {sum(disorder)}"
    )


if __name__ == "__main__":
    main()
