"""Time from the begin of an INSERT to the committed attempt, for paced single versions, with its bound in the same run.

The bound is the same insert followed at once by the same batch in the writer's session, without any wake-up. Commit
times are PostgreSQL's own (track_commit_timestamp), so that no query disturbs the measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from uuid import UUID

import asyncpg

from common import consumer, database, listening, percentile

INSERT = "insert into unit_version (unit_id, version_seq, actor_ref) values ($1, $2, 'bench')"
COMMITTED = """
select (o.safe_payload ->> 'version_seq')::int as number,
       extract(epoch from pg_xact_commit_timestamp(a.xmin))::float8 as committed
  from event_outbox o join iu_route_attempt a on a.event_ref = o.id
 where o.event_subject_ref = $1
"""


async def unit(connection: asyncpg.Connection, address: str) -> UUID:
    return await connection.fetchval(
        "insert into information_unit (canonical_address, title) values ($1, $1) returning id", address
    )


async def paced(connection: asyncpg.Connection, count: int, pause: float, *, batch: bool) -> list[float]:
    """Milliseconds from the begin of each insert to the commit of its attempt."""
    subject = await unit(connection, f"bench/{time.time()}")
    insert = await connection.prepare(INSERT)
    run = await connection.prepare("select fn_iu_route_worker_run('iu_outbound_default', 5000)")
    jitter = random.Random(1)
    began: dict[int, float] = {}
    for number in range(2, count + 2):
        began[number] = time.time()
        await insert.fetch(subject, number)
        if batch:
            await run.fetch()
        await asyncio.sleep(pause * jitter.uniform(0.5, 1.5))
    await asyncio.sleep(0.5)
    rows = await connection.fetch(COMMITTED, subject)
    assert len(rows) == count, f"{len(rows)} of {count} were routed"
    return [1000 * (row["committed"] - began[row["number"]]) for row in rows]


async def measure(dsn: str, count: int, pause: float) -> tuple[list[float], list[float]]:
    connection = await asyncpg.connect(dsn)
    bound = await paced(connection, count, pause, batch=True)
    with consumer(dsn):
        await listening(connection)
        await paced(connection, 50, pause, batch=False)
        woken = await paced(connection, count, pause, batch=False)
    await connection.close()
    return bound, woken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument(
        "--pause",
        type=float,
        nargs="+",
        default=[0.005, 0.02],
        help="mean pause between inserts, in seconds; may have several values",
    )
    parser.add_argument("--dsn", help="a database with the package applied and the gate open; default: an embedded one")
    options = parser.parse_args()
    if options.dsn:
        report(options.dsn, options.count, options.pause)
    else:
        with database() as server:
            report(server.dsn("iu"), options.count, options.pause)


def report(dsn: str, count: int, pauses: list[float]) -> None:
    """Measure and print each pace separately, because a processor that was idle for a while wakes up slowly."""
    for pause in pauses:
        bound, woken = asyncio.run(measure(dsn, count, pause))
        print(f"{count:,} inserts, {1000 * pause:g} ms apart on average")
        for name, values in (("bound: producer runs the batch", bound), ("consumer that is woken", woken)):
            figures = "  ".join(f"p{round(100 * p)} {percentile(values, p):6.2f}" for p in (0.5, 0.9, 0.99))
            print(f"  {name:32} {figures}  max {max(values):6.2f} ms")
        print(f"  ratio of medians: {percentile(woken, 0.5) / percentile(bound, 0.5):.2f}")


if __name__ == "__main__":
    main()
