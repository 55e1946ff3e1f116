"""Writers of an adopted outbox table beside writers of the same table before, in turns that change places.

The table is that of Debezium's outbox. pgbench writes, with durable commits, transactions of an application, which insert
an order and its event, and bare ones, which insert the event alone.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile

import asyncpg

from common import database
from iu_listen import embedded

TABLE = """
create table public.outbox (
    id uuid primary key default gen_random_uuid(), aggregatetype varchar(255) not null, aggregateid varchar(255) not null,
    type varchar(255) not null, payload jsonb)
"""
ORDERS = """
create table public.orders (
    id bigint generated always as identity primary key, customer bigint not null, total bigint not null,
    placed_at timestamptz not null default now(), note text)
"""
#: A transaction of an application: it changes its data and writes an event.
BUSINESS = """\\set subject random(1, 1000)
begin;
insert into orders (customer, total, note) values (:subject, 12345, 'as usual');
insert into outbox (aggregatetype, aggregateid, type, payload)
values ('Order', :subject, 'OrderCreated', '{"total": 12345, "currency": "EUR", "lines": [1, 2, 3, 4, 5]}');
commit;
"""
BARE = """\\set subject random(1, 1000)
insert into outbox (aggregatetype, aggregateid, type, payload)
values ('Order', :subject, 'OrderCreated', '{"total": 12345, "currency": "EUR", "lines": [1, 2, 3, 4, 5]}');
"""


async def execute(dsn: str, *statements: str) -> None:
    """Execute statements."""
    connection = await asyncpg.connect(dsn)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


def rate(server: embedded.Server, script: str, clients: int, seconds: int) -> float:
    """Transactions a second."""
    command = [server.bin / "pgbench", "-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-T", str(seconds), "-f",
               script, server.dsn("iu")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    assert found, done.stdout
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    with database(base="neutral") as server:
        dsn = server.dsn("iu")
        asyncio.run(execute(dsn, TABLE, ORDERS))
        command = [Path(".venv/bin/iu-listen"), "adopt", "--table", "outbox", "--yes", "--dsn", dsn]
        subprocess.run(command, check=True, capture_output=True)
        for name, text in (("order and event", BUSINESS), ("event alone", BARE)):
            with NamedTemporaryFile("w", suffix=".sql") as script:
                script.write(text)
                script.flush()
                compare(server, name, script.name, options)


def compare(server: embedded.Server, name: str, script: str, options: argparse.Namespace) -> None:
    """Print the rate of adopted and of other writers, and their ratio."""
    pairs = []
    for number in range(options.pairs):
        found = {}
        for adopted in (bool(number % 2), not number % 2):
            mode = "enable" if adopted else "disable"
            reset = (
                f"alter table outbox {mode} trigger zz_iu_listen_adopted",
                "truncate outbox, orders, event_outbox",
                "checkpoint",
            )
            asyncio.run(execute(server.dsn("iu"), *reset))
            found[adopted] = rate(server, script, options.clients, options.seconds)
        pairs.append((found[True], found[False]))
    adopted, before = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(f"{name}: adopted {adopted:,.0f} tps, before {before:,.0f}, ratio of medians {adopted / before:.3f}; median of the "
          f"pairs {statistics.median(ratios):.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
