"""Sixteen writers at full speed while the consumer runs: nothing lost, almost no NOTIFY, and the cost for writers.

The same writers run without the bell, and with a plain NOTIFY instead of it, in the same run, to get the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
from contextlib import nullcontext
from pathlib import Path
from tempfile import NamedTemporaryFile

import asyncpg

from common import consumer, database, listening
from iu_listen import embedded

SCRIPT = """
insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref)
values ('iu', 'version_applied', 'update', 'immediate', gen_random_uuid());
"""
PLAIN = """
create or replace function bench_notify() returns trigger language plpgsql as
$$ begin perform pg_notify('iu_event_outbox', ''); return null; end $$;
create trigger bench_plain after insert on event_outbox for each statement execute function bench_notify();
"""


def pgbench(server: embedded.Server, clients: int, seconds: int) -> float:
    """Transactions a second of so many writers; each transaction inserts one event."""
    with NamedTemporaryFile("w", suffix=".sql", delete=False) as script:
        script.write(SCRIPT)
    command = [server.bin / "pgbench", "-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-T", str(seconds),
               "-f", script.name, server.dsn("iu")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    Path(script.name).unlink()
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    assert found, done.stdout
    return float(found[1])


async def run(server: embedded.Server, clients: int, seconds: int, *, bell: str, consuming: bool) -> dict[str, float]:
    """Run the writers for so many seconds; return events, attempts, notifications and transactions a second."""
    connection, ear = await asyncpg.connect(server.dsn("iu")), await asyncpg.connect(server.dsn("iu"))
    await connection.execute("truncate event_outbox, iu_route_attempt, iu_consumer_heartbeat")
    await connection.execute(
        "update iu_route_worker_cursor set prev = fn_iu_outbox_tick(), tick = null, tick_floor = null, pos_seq = null, pos_id = null"
    )
    mode = "enable always" if bell == "bell" else "disable"
    await connection.execute(f"alter table event_outbox {mode} trigger zz_event_outbox_bell")
    if bell == "plain":
        await connection.execute(PLAIN)
    heard = 0

    def count(*_: object) -> None:
        nonlocal heard
        heard += 1

    with consumer(server.dsn("iu")) if consuming else nullcontext():
        if consuming:
            await listening(connection)
        await ear.add_listener("iu_event_outbox", count)
        tps = await asyncio.to_thread(pgbench, server, clients, seconds)
        events = await connection.fetchval("select count(*) from event_outbox where event_domain = 'iu'")
        while consuming and await connection.fetchval("select count(*) from iu_route_attempt") < events:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
    attempts = await connection.fetchval("select count(*) from iu_route_attempt")
    if bell == "plain":
        await connection.execute("drop trigger bench_plain on event_outbox")
    await connection.close()
    await ear.close()
    return {"events": events, "attempts": attempts, "notifications": heard, "tps": tps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    with database() as server:
        found = {}
        for name, bell, consuming in (
            ("no bell, no consumer", "none", False),
            ("bell, no consumer", "bell", False),
            ("plain NOTIFY, no consumer", "plain", False),
            ("bell, iu-listen run", "bell", True),
        ):
            found[name] = result = asyncio.run(
                run(server, options.clients, options.seconds, bell=bell, consuming=consuming)
            )
            share = result["notifications"] / result["events"]
            print(
                f"{name:32} {result['tps']:8,.0f} tps  {result['events']:9,.0f} events  {result['attempts']:9,.0f} attempts  "
                f"{result['notifications']:7,.0f} NOTIFYs ({share:.3%})"
            )
    base = found["no bell, no consumer"]["tps"]
    for name, result in found.items():
        print(f"  {name:32} {result['tps'] / base:.2f} of no bell")
    live = found["bell, iu-listen run"]
    assert live["events"] == live["attempts"], "an event has no attempt"


if __name__ == "__main__":
    main()
