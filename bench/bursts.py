"""Random bursts at an idle consumer without the catch-up poll: how long does any event wait after its commit?

Each burst comes while the consumer is idle: one to five concurrent transactions of one to five events, some with a
pause between insert and commit. The result is the longest wait of any event, by the server's own commit timestamps; an
event without a notification would wait until the next burst, or for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics

import asyncpg

from common import consumer, database, listening, percentile

INSERT = """
insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref)
select 'iu', 'version_applied', 'update', 'immediate', gen_random_uuid() from generate_series(1, $1::int)
"""
WAITS = """
select extract(epoch from pg_xact_commit_timestamp(a.xmin) - pg_xact_commit_timestamp(o.xmin))::float8 * 1000 as ms
  from event_outbox o join iu_route_attempt a on a.event_ref = o.id
"""
IS_IDLE = (
    "select exists (select from pg_locks where locktype = 'advisory' and classid = 726001 and mode = 'ExclusiveLock')"
)


async def burst(writers: list[asyncpg.Connection], rng: random.Random) -> int:
    """Write some nearly simultaneous transactions; return the number of events."""

    async def write(connection: asyncpg.Connection, events: int, before: float, within: float) -> int:
        await asyncio.sleep(before)
        async with connection.transaction():
            await connection.execute(INSERT, events)
            await asyncio.sleep(within)
        return events

    chosen = rng.sample(writers, rng.randint(1, len(writers)))
    return sum(
        await asyncio.gather(
            *(
                write(
                    c,
                    rng.randint(1, 5),
                    rng.choice([0, 0, rng.uniform(0, 0.01)]),
                    rng.choice([0, 0, rng.uniform(0, 0.02)]),
                )
                for c in chosen
            )
        )
    )


async def storm(dsn: str, bursts: int, seed: int) -> tuple[list[float], int, dict[str, int]]:
    rng = random.Random(seed)
    observer, *writers = [await asyncpg.connect(dsn) for _ in range(6)]
    await listening(observer)
    written = asleep = 0
    for _ in range(bursts):
        # Mostly while the consumer is idle; sometimes while it is becoming idle.
        if rng.random() < 0.9:
            while not await observer.fetchval(IS_IDLE):
                await asyncio.sleep(0.0005)
            asleep += 1
        written += await burst(writers, rng)
        # The next burst must not wake the consumer for a missed event, so wait for the event, but not for ever.
        for _ in range(400):
            if await observer.fetchval("select count(*) from v_iu_event_backlog where backlog > 0") == 0:
                break
            await asyncio.sleep(0.0025)
    waits = [row["ms"] for row in await observer.fetch(WAITS)]
    missing = written - len(waits)
    for connection in (observer, *writers):
        await connection.close()
    return waits, missing, {"events": written, "bursts": bursts, "bursts at an idle consumer": asleep}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bursts", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--major", type=int, default=18)
    options = parser.parse_args()
    with (
        database(options.major) as server,
        consumer(server.dsn("iu"), "--catch-up", "300", "--session-timeout", "1000"),
    ):
        waits, missing, counts = asyncio.run(storm(server.dsn("iu"), options.bursts, options.seed))
    print(f"PostgreSQL {options.major}, seed {options.seed}: {counts}")
    print(
        f"time from commit to attempt: p50 {statistics.median(waits):.2f} ms, p99 {percentile(waits, 0.99):.2f} ms, max {max(waits):.2f} ms"
    )
    late = sum(w > 100 for w in waits)
    print(f"events that waited longer than 100 ms: {late}; events without an attempt: {missing}")
    raise SystemExit(bool(late or missing))


if __name__ == "__main__":
    main()
