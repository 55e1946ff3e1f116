"""Attempts deleted by hand among a million, found and repaired by `iu-listen completeness --repair`, timed as for an operator.

The bound is one anti-join over all events in one statement, which is neither limited nor resumable, and counts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time

import asyncpg

from common import consumer, database, listening

WRITE = """
insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref)
select 'iu', 'version_applied', 'update', 'immediate', gen_random_uuid() from generate_series(1, $1::int)
"""
DELETE_ATTEMPTS = """
delete from iu_route_attempt where id in (select id from iu_route_attempt order by random() limit $1::int) returning event_ref
"""
BOUND = """
select count(*) from event_outbox o
 where o.event_domain = 'iu' and not exists (select from iu_route_attempt a where a.event_ref = o.id)
"""


def run_check(dsn: str, *options: str) -> tuple[float, dict]:
    """Run the command; return its duration in seconds, and its answer."""
    began = time.perf_counter()
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "IU_LISTEN_"))}
    done = subprocess.run(
        [sys.executable, "-m", "iu_listen", "completeness", "--json", "--dsn", dsn, *options],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    return time.perf_counter() - began, json.loads(done.stdout)


async def measure(dsn: str, events: int, lost: int) -> None:
    connection = await asyncpg.connect(dsn)
    for done in range(0, events, 100_000):
        await connection.execute(WRITE, min(100_000, events - done))
    with consumer(dsn):
        await listening(connection)
        while await connection.fetchval("select total_seen from iu_route_worker_cursor") < events:
            await asyncio.sleep(0.1)
        await connection.execute("vacuum analyze event_outbox, iu_route_attempt")
        began = time.perf_counter()
        assert await connection.fetchval(BOUND) == 0
        bound = time.perf_counter() - began
        whole, answer = run_check(dsn)
        assert (answer["checked"], answer["missing"]) == (events, 0), answer
        gone = {str(row["event_ref"]) for row in await connection.fetch(DELETE_ATTEMPTS, lost)}
        found, answer = run_check(dsn)
        assert {e["event"] for e in answer["events"]} == gone, answer
        repaired, answer = run_check(dsn, "--repair", "--yes")
        assert (answer["repair"]["restamped"], answer["complete"]) == (lost, True), answer
        assert await connection.fetchval(BOUND) == 0
        assert await connection.fetchval("select count(*) from iu_route_attempt") == events
    await connection.close()
    print(f"{events:,} events, {lost} attempts deleted".replace(",", " "))
    print(f"bound: one anti-join in one statement     {bound:6.2f} s")
    print(f"check of a complete audit                 {whole:6.2f} s   {events / whole:10,.0f} events/s")
    print(f"check that finds the {lost} events           {found:6.2f} s")
    print(f"check with --repair, all decided again    {repaired:6.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--lost", type=int, default=25)
    options = parser.parse_args()
    with database() as server:
        asyncio.run(measure(server.dsn("iu"), options.events, options.lost))


if __name__ == "__main__":
    main()
