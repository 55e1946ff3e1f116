"""Workers of two domains: time from commit to decision beside one worker alone, in turns; and the cost for producers.

The processor time of an INSERT is compared with that without the bell, in turns that change places, for a domain without
a worker and for one with a worker.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import asyncpg

from common import consumer, database, percentile

ADD_DOMAIN = """
insert into event_type_registry (event_domain, event_type, event_stream, delivery_lane)
values ('crm', 'alert', 'alert', 'immediate'), ('none', 'alert', 'alert', 'immediate'), ('iu', 'alert', 'alert', 'immediate');
insert into iu_route_worker_cursor (worker_name, event_domain, lineage) select 'crm', 'crm', lineage from iu_outbox_anchor;
insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled, dry_run)
values ('crm', 'crm', 'alert', 'alert', 'workflow', 'x', true, true), ('iu', 'iu', 'alert', 'alert', 'workflow', 'x', true, true)
"""
INSERT = """
insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
values ($1, 'alert', 'alert', 'immediate') returning id
"""
BURST = """
insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
select $1, 'alert', 'alert', 'immediate' from generate_series(1, $2) returning id
"""
WAITS = """
select 1000 * extract(epoch from pg_xact_commit_timestamp(a.xmin) - pg_xact_commit_timestamp(o.xmin))::float8
  from event_outbox o join iu_route_attempt a on a.event_ref = o.id
 where o.id = any ($1) and o.event_domain = $2
"""
WORKERS = {"iu": "iu_outbound_default", "crm": "crm"}
IDLE = "select count(*) from iu_consumer_heartbeat where listening and state = 'idle'"
#: The time without events after which the consumers of the bursts become idle, in seconds.
LINGER = 0.005
LOST = "select coalesce(sum((wakes ->> 'lost')::int), 0) from iu_consumer_heartbeat"


async def waits(dsn: str, domains: tuple[str, ...], count: int, pause: float) -> dict[str, list[float]]:
    """Milliseconds from commit to decision by domain; one consumer for each domain."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("truncate iu_consumer_heartbeat")
    with ExitStack() as stack:
        for domain in domains:
            stack.enter_context(consumer(dsn, "--worker", WORKERS[domain]))
        while await connection.fetchval(IDLE) < len(domains):
            await asyncio.sleep(0.05)
        ids = []
        for number in range(count):
            ids.append(await connection.fetchval(INSERT, domains[number % len(domains)]))
            await asyncio.sleep(pause)
        await asyncio.sleep(0.5)
    found = {d: [r[0] for r in await connection.fetch(WAITS, ids, d)] for d in domains}
    lost = await connection.fetchval(LOST)
    assert not lost, f"{lost} notifications were missed"
    await connection.close()
    return found


async def bursts(dsn: str, count: int) -> None:
    """Write bursts of events of two domains with random pauses, and print the longest wait and the missed notifications.

    The pauses lie around the time after which a consumer becomes idle, so that many bursts meet a consumer that is
    about to be armed.
    """
    connection = await asyncpg.connect(dsn)
    await connection.execute("truncate iu_consumer_heartbeat")
    rng = random.Random(1)

    async def write(domain: str) -> list[UUID]:
        writer = await asyncpg.connect(dsn)
        ids = []
        for _ in range(count):
            ids += [row[0] for row in await writer.fetch(BURST, domain, rng.randint(1, 5))]
            await asyncio.sleep(rng.choice((0, rng.uniform(0, 3 * LINGER))))
        await writer.close()
        return ids

    with ExitStack() as stack:
        for worker in WORKERS.values():
            stack.enter_context(consumer(dsn, "--worker", worker, environ={"IU_LISTEN_LINGER": str(LINGER)}))
        while await connection.fetchval(IDLE) < len(WORKERS):
            await asyncio.sleep(0.05)
        ids = [id_ for found in await asyncio.gather(*map(write, WORKERS)) for id_ in found]
        await asyncio.sleep(1)
        routed = await connection.fetchval(
            "select count(distinct event_ref) from iu_route_attempt where event_ref = any ($1)", ids
        )
        wakes = await connection.fetch("select worker_name, wakes::text from iu_consumer_heartbeat order by 1")
    found = [row[0] for domain in WORKERS for row in await connection.fetch(WAITS, ids, domain)]
    print(f"{count} bursts for each of two domains, {len(ids)} events, {routed} routed; commit to decision p50 "
          f"{percentile(found, 0.5):.2f}, p99 {percentile(found, 0.99):.1f}, longest {max(found):.0f} ms; missed "
          f"notifications {await connection.fetchval(LOST)}; wakes {[tuple(row) for row in wakes]}", flush=True)  # fmt: skip
    await connection.close()


async def processor_time(dsn: str, domain: str, pairs: int, count: int = 1000) -> dict[bool, list[float]]:
    """Microseconds of processor time in the server for one INSERT, by whether the bell exists.

    Rates of producers differ by more between two turns than by the bell, because of the disk and of other work.
    """
    connection = await asyncpg.connect(dsn)
    await connection.execute("set synchronous_commit = off")
    clock = Path(f"/proc/{connection.get_server_pid()}/schedstat")
    statement = INSERT.replace("$1", f"'{domain}'").replace(" returning id", "")
    found: dict[bool, list[float]] = {True: [], False: []}
    for number in range(pairs):
        for bell in (bool(number % 2), not number % 2):
            mode = "enable always" if bell else "disable"
            await connection.execute(f"alter table event_outbox {mode} trigger zz_event_outbox_bell")
            prepared = await connection.prepare(statement)
            for _ in range(100):
                await prepared.fetch()
            began = int(clock.read_text().split()[0])
            for _ in range(count):
                await prepared.fetch()
            found[bell].append((int(clock.read_text().split()[0]) - began) / count / 1000)
    await connection.close()
    return found


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(statement)
    await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=300, help="number of events of a round")
    parser.add_argument("--pause", type=float, default=0.02, help="pause between two events, in seconds")
    parser.add_argument(
        "--bursts", type=int, default=0, help="number of bursts for each of two domains; then only these"
    )
    parser.add_argument("--pairs", type=int, default=20, help="number of turns of the producers")
    options = parser.parse_args()
    with database() as server:
        dsn = server.dsn("iu")
        asyncio.run(_execute(dsn, ADD_DOMAIN))
        if options.bursts:
            asyncio.run(bursts(dsn, options.bursts))
            return
        ratios = []
        for _ in range(options.rounds):
            (alone,) = asyncio.run(waits(dsn, ("iu",), options.count, options.pause)).values()
            both = asyncio.run(waits(dsn, ("iu", "crm"), options.count, options.pause))
            p50 = {domain: percentile(found, 0.5) for domain, found in both.items()}
            single = percentile(alone, 0.5)
            ratios.append(max(p50.values()) / single)
            words = ", ".join(f"{domain} {value:.2f}" for domain, value in p50.items())
            print(f"one worker p50 {single:.2f} ms; two workers p50 {words} ms; ratio {ratios[-1]:.2f}", flush=True)
        print(f"slower of two workers beside one alone: {statistics.median(ratios):.2f}", flush=True)
        for domain, worker in (("none", "without"), ("iu", "with")):
            found = asyncio.run(processor_time(dsn, domain, options.pairs))
            bell, none = (statistics.median(found[key]) for key in (True, False))
            print(f"INSERT of a domain {worker} a worker: {bell:.1f} us of processor time with the bell, {none:.1f} without, "
                  f"ratio {bell / none:.3f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
