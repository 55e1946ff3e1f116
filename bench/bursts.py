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
ASLEEP = (
    "select exists (select from pg_locks where locktype = 'advisory' and classid = 726001 and mode = 'ExclusiveLock')"
)


async def burst(writers: list[asyncpg.Connection], dice: random.Random) -> int:
    """Write some nearly simultaneous transactions; return the number of events."""

    async def write(connection: asyncpg.Connection, events: int, before: float, within: float) -> int:
        await asyncio.sleep(before)
        async with connection.transaction():
            await connection.execute(INSERT, events)
            await asyncio.sleep(within)
        return events

    chosen = dice.sample(writers, dice.randint(1, len(writers)))
    return sum(
        await asyncio.gather(
            *(
                write(
                    c,
                    dice.randint(1, 5),
                    dice.choice([0, 0, dice.uniform(0, 0.01)]),
                    dice.choice([0, 0, dice.uniform(0, 0.02)]),
                )
                for c in chosen
            )
        )
    )


async def storm(dsn: str, bursts: int, seed: int) -> tuple[list[float], int, dict[str, int]]:
    dice = random.Random(seed)
    looker, *writers = [await asyncpg.connect(dsn) for _ in range(6)]
    await listening(looker)
    written = asleep = 0
    for _ in range(bursts):
        # Mostly while the consumer is idle; sometimes while it is becoming idle.
        if dice.random() < 0.9:
            while not await looker.fetchval(ASLEEP):
                await asyncio.sleep(0.0005)
            asleep += 1
        written += await burst(writers, dice)
        # The next burst must not wake the consumer for a missed event, so wait for the event, but not for ever.
        for _ in range(400):
            if await looker.fetchval("select count(*) from v_iu_event_backlog where backlog > 0") == 0:
                break
            await asyncio.sleep(0.0025)
    waits = [row["ms"] for row in await looker.fetch(WAITS)]
    missing = written - len(waits)
    for connection in (looker, *writers):
        await connection.close()
    return waits, missing, {"events": written, "bursts": bursts, "at a sleeper": asleep}


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
        f"waited after the commit: p50 {statistics.median(waits):.2f} ms, p99 {percentile(waits, 0.99):.2f} ms, max {max(waits):.2f} ms"
    )
    late = sum(w > 100 for w in waits)
    print(f"longer than 100 ms: {late}; never decided: {missing}")
    raise SystemExit(bool(late or missing))


if __name__ == "__main__":
    main()
