"""An event that commits long after its insert, in a transaction older than the cursor: how late is its attempt?

Meanwhile other events commit every few milliseconds, and must not be delayed. Commit times are PostgreSQL's own.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import asyncpg

from common import consumer, database, listening, percentile

INSERT = """
insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref)
values ('iu', 'version_applied', 'update', 'immediate', gen_random_uuid()) returning id
"""
DELAYS = """
select 1000 * extract(epoch from pg_xact_commit_timestamp(a.xmin) - pg_xact_commit_timestamp(o.xmin))::float8
  from event_outbox o join iu_route_attempt a on a.event_ref = o.id
 where (o.id = $1) = $2
"""


async def measure(dsn: str, seconds: float) -> None:
    slow, quick = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    with consumer(dsn):
        await listening(quick)
        transaction = slow.transaction()
        await transaction.start()
        late = await slow.fetchval(INSERT)
        others, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            await quick.fetchval(INSERT)
            others += 1
            await asyncio.sleep(0.01)
        await transaction.commit()
        while await quick.fetchval("select count(*) from iu_route_attempt") < others + 1:
            await asyncio.sleep(0.01)
    (own,) = [row[0] for row in await quick.fetch(DELAYS, late, True)]
    theirs = [row[0] for row in await quick.fetch(DELAYS, late, False)]
    print(f"event that committed {seconds:g} s after its insert: attempt {own:.2f} ms after the commit")
    print(
        f"{others:,} other events meanwhile: time from commit to attempt p50 {percentile(theirs, 0.5):.2f}  p99 {percentile(theirs, 0.99):.2f}  max {max(theirs):.2f} ms"
    )
    await slow.close()
    await quick.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    with database() as server:
        asyncio.run(measure(server.dsn("iu"), options.seconds))


if __name__ == "__main__":
    main()
