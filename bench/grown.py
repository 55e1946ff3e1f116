"""Cost of each everyday command and of each statement that runs by itself, on databases of several sizes.

The rows are written without the package: events of one domain over thirty days, an attempt for each, every tenth of them
failed, with an open dead letter. The package must answer from a bounded number of rows, so the ratio of the last two
databases should be 1. A time is the shortest of several, because other programs share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg

from common import _prepare, database
from iu_listen import embedded
from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.postgres.session import session
from iu_listen.postgres.sqlfiles import query

WORKER = "iu_outbound_default"
#: Number of rows that one transaction writes.
CHUNK = 20_000

ROUTES = """
insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled)
select 'r' || n, 'iu', case when n < 12 then 'version_applied' else 'rare' end, 'update', 'workflow', 'x', n < 12
  from generate_series(1, 12) n
"""
# The ids grow with time, as those of UUID version 7 do.
EVENTS = """
insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane, event_subject_ref, safe_payload,
                          created_at, event_seq)
select lpad(to_hex(n), 32, '0')::uuid, 'iu', 'version_applied', 'update', 'immediate',
       lpad(to_hex(n % 5000), 32, '0')::uuid, jsonb_build_object('text', repeat('x', 60)),
       now() - interval '30 days' * (1 - n / $3::float8), n
  from generate_series($1::int, $2::int) n
"""
ATTEMPTS = """
insert into iu_route_attempt (event_ref, route_kind, route_code, status, decision, delivered, failure_code,
                              idempotency_key, created_at, finished_at, route_count)
select lpad(to_hex(n), 32, '0')::uuid, 'outbound', 'r' || n % 11 + 1, case n % 10 when 0 then 'failed' else 'dry_run' end,
       case n % 10 when 0 then 'dead_letter' else 'dry_run' end, false, case n % 10 when 0 then 'http_' || n % 7 end,
       'outbound:r' || n % 11 + 1 || ':' || lpad(to_hex(n), 32, '0')::uuid, t.at, t.at, 1
  from generate_series($1::int, $2::int) n
 cross join lateral (select now() - interval '30 days' * (1 - n / $3::float8) + interval '10 ms' as at) t
"""
DEAD_LETTERS = """
insert into iu_route_dead_letter (worker_name, event_ref, route_code, idempotency_key, event_snapshot, failure_code,
                                  failure_detail, created_at)
select 'iu_outbound_default', o.id, 'r' || o.event_seq % 11 + 1,
       'outbound:r' || o.event_seq % 11 + 1 || ':' || o.id, to_jsonb(o), 'http_' || o.event_seq % 7,
       'the receiver answered with an error', o.created_at
  from event_outbox o
 where o.event_domain = 'iu' and o.event_seq between $1::int and $2::int and o.event_seq % 10 = 0 and $3::int > 0
"""

ALWAYS = "select tgname as name from pg_trigger where tgrelid = 'event_outbox'::regclass and tgenabled = 'A'"

#: The commands, each with its arguments; {event} and {letter} are an event and a dead letter of the beginning.
COMMANDS = (
    "health",
    "status",
    "doctor",
    "cursor show",
    "worker list",
    "attempts",
    "attempts --event {event}",
    "attempts --status failed",
    "attempts --route r3",
    "attempts --route r12",
    "attempts --route r12 --status failed",
    "dead-letter list",
    "dead-letter list --route r3",
    "dead-letter list --failure never",
    "dead-letter list --resolved --route r12",
    "dead-letter list --event {event}",
    "dead-letter list --subject 00000000-0000-0000-0000-000000001388",
    "dead-letter show {letter}",
    "delivery list",
    "trace {event}",
    "retention show",
    "retention plan --keep 20d",
    "route list",
    "route backtest r3 --since 30d",
)
#: Statements that run without an operator, each with its arguments.
STATEMENTS: dict[str, tuple[object, ...]] = {
    "worker_health": (WORKER,),
    "host_beats": ("host", WORKER),
    "metrics": (WORKER,),
    "decision_latency": (WORKER, None, 200),
    "decision_latency, later": (WORKER, "last attempt", 200),
    "blockers": (),
    "delivery/anything": (WORKER,),
    "is_drained": (WORKER,),
    "completeness/due": (WORKER, 3600.0),
    "trace/exports": (),
    "run_batch": (WORKER, 1000),
}
#: The indexes that serve the bounded reads, each with a statement that writes n rows into its table.
INDEXES = {
    "iu_route_attempt_failed_idx": {
        "attempts that did not fail": ATTEMPTS.replace(
            "case n % 10 when 0 then 'failed' else 'dry_run' end", "'dry_run'"
        ),
        "failed attempts": ATTEMPTS.replace("case n % 10 when 0 then 'failed' else 'dry_run' end", "'failed'"),
    },
    "iu_route_dead_letter_worker_idx": {"dead letters": DEAD_LETTERS.replace("% 10 = 0", "> 0")},
}
#: Those that are also measured while nothing is read.
UNREAD_TOO = {"worker_health", "metrics", "is_drained", "delivery/anything", "health", "status"}
# As a batch leaves it that has read everything; the second form is that of a worker that has read nothing.
READ = "update iu_route_worker_cursor set prev = pg_current_snapshot(), tick = null, last_run_at = clock_timestamp()"
UNREAD = "update iu_route_worker_cursor set prev = '3:3:', tick = null"


async def fill(dsn: str, rows: int) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(ROUTES)
    always = await connection.fetch(ALWAYS)
    for trigger in always:
        await connection.execute(f"alter table event_outbox disable trigger {trigger['name']}")
    for first in range(1, rows + 1, CHUNK):
        last = min(rows, first + CHUNK - 1)
        async with connection.transaction():
            for statement in (EVENTS, ATTEMPTS, DEAD_LETTERS):
                await connection.execute(statement, first, last, rows)
    for trigger in always:
        await connection.execute(f"alter table event_outbox enable always trigger {trigger['name']}")
    await connection.execute(f"select setval('event_outbox_event_seq', {rows})")
    await connection.execute(READ)
    await connection.execute("vacuum (analyze, freeze) event_outbox, iu_route_attempt, iu_route_dead_letter")
    await connection.execute("checkpoint")
    await connection.close()


class Measurement:
    """Times on one database, in milliseconds by name: of the statements, and of the commands in the server."""

    def __init__(self, dsn: str, rows: int) -> None:
        self.dsn = dsn
        self.rows = rows
        self.times: dict[str, float] = {}

    async def statements(self, only: Callable[[str], bool], suffix: str = "") -> None:
        connection = await asyncpg.connect(self.dsn)
        last = await connection.fetchval("select max(id) - 100 from iu_route_attempt")
        for name, args in STATEMENTS.items():
            if only(name):
                text = query(name.partition(",")[0])
                values = [last if a == "last attempt" else a for a in args]
                times = []
                while len(times) < 5 and sum(times) < 20:
                    began = time.perf_counter()
                    async with connection.transaction():
                        await connection.fetch(text, *values)
                    times.append(time.perf_counter() - began)
                self.times[name + suffix] = 1000 * min(times)
        await connection.close()

    async def commands(self, only: Callable[[str], bool], suffix: str = "") -> None:
        connection = await asyncpg.connect(self.dsn)
        known = {
            "event": await connection.fetchval(
                "select id from event_outbox where event_domain = 'iu' order by event_seq limit 1"
            ),
            "letter": await connection.fetchval("select id from iu_route_dead_letter order by created_at limit 1"),
        }
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "IU_LISTEN_"))}
        for name in COMMANDS:
            if not only(name):
                continue
            times = []
            while len(times) < 3 and sum(times) < 20:
                before = await self.active(connection)
                done = subprocess.run(
                    [sys.executable, "-m", "iu_listen", *name.format_map(known).split(), "--dsn", self.dsn],
                    capture_output=True, text=True, env=environ, check=False,
                )  # fmt: skip
                if done.returncode > 1:
                    print(name, done.stderr, file=sys.stderr)
                times.append(await self.active(connection) - before)
            self.times[name + suffix] = 1000 * min(times)
        await connection.close()

    async def active(self, connection: asyncpg.Connection) -> float:
        """The seconds that all sessions of the database spent on statements; a session that ended is counted."""
        await connection.execute("select pg_stat_force_next_flush()")
        await asyncio.sleep(0.05)
        return 0.001 * float(
            await connection.fetchval("select active_time from pg_stat_database where datname = current_database()")
        )


async def measure(dsn: str, rows: int, only: Callable[[str], bool]) -> dict[str, float]:
    connection = await asyncpg.connect(dsn)
    measurement = Measurement(dsn, rows)
    await connection.execute(READ)
    await measurement.statements(only)
    await measurement.commands(only)
    # Nothing is read: the whole outbox is backlog.
    await connection.execute(UNREAD)

    def waits(name: str) -> bool:
        return only(name) and name in UNREAD_TOO

    await measurement.statements(waits, ", all unread")
    await measurement.commands(waits, ", all unread")
    await connection.execute(READ)
    await connection.close()
    return measurement.times


async def index_costs(dsn: str, rows: int) -> None:
    """Print the WAL and the time of inserts with each index, as ratios of those without it."""
    await fill(dsn, rows)
    connection = await asyncpg.connect(dsn)
    for index, statements in INDEXES.items():
        table = index.removesuffix("_failed_idx").removesuffix("_worker_idx")
        definition = await connection.fetchval("select pg_get_indexdef($1::regclass)", index)
        for what, statement in statements.items():
            costs: dict[bool, list[tuple[int, float]]] = {False: [], True: []}
            for turn in range(6):
                await connection.execute(f"truncate {table}; drop index if exists {index}; checkpoint")
                if turn % 2:
                    await connection.execute(definition)
                before = await connection.fetchval("select pg_current_wal_insert_lsn()")
                began = time.perf_counter()
                await connection.execute(statement, 1, rows, rows)
                seconds = time.perf_counter() - began
                wal = await connection.fetchval("select (pg_current_wal_insert_lsn() - $1::pg_lsn)::bigint", before)
                costs[bool(turn % 2)].append((wal, seconds))
            (wal, seconds), (plain_wal, plain_seconds) = (
                [min(column) for column in zip(*costs[present], strict=True)] for present in (True, False)
            )
            print(f"{index:34}{what:28} WAL {wal / plain_wal:5.3f}, time {seconds / plain_seconds:5.2f}")
    await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000],
        help="number of events and attempts of each database",
    )  # fmt: skip
    parser.add_argument("--only", default="", help="measure only statements and commands that contain this text")
    parser.add_argument("--keep", type=Path, help="directory in which the databases are kept for the next call")
    parser.add_argument("--pg", type=int, default=embedded.DEFAULT_MAJOR)
    parser.add_argument("--indexes", type=int, help="measure only what the indexes cost a writer of so many rows")
    options = parser.parse_args()
    if options.indexes:
        with database() as server:
            asyncio.run(index_costs(server.dsn("iu"), options.indexes))
        return
    found: dict[int, dict[str, float]] = {}
    with TemporaryDirectory(prefix="iu-listen-bench-") as scratch:
        root = options.keep or Path(scratch)
        root.mkdir(exist_ok=True)
        root.chmod(0o755)
        settings = {"shared_buffers": "2GB", "max_wal_size": "8GB", "max_parallel_workers_per_gather": "0"}
        with embedded.running(root, options.pg, durable=False, options=settings) as server:
            for rows in options.rows:
                dsn = server.dsn(f"iu{rows}")
                began = time.perf_counter()
                if asyncio.run(created(server, rows)):
                    asyncio.run(_prepare(dsn, "iu_core"))
                    asyncio.run(fill(dsn, rows))
                    print(f"{rows} rows written in {time.perf_counter() - began:.0f} s", file=sys.stderr)
                elif asyncio.run(upgrade(dsn)):
                    print(f"{rows} rows upgraded in {time.perf_counter() - began:.0f} s", file=sys.stderr)
                found[rows] = asyncio.run(measure(dsn, rows, lambda name: options.only in name))
    # The bounds are reached by the second database, so from there on nothing may grow.
    print(f"{'milliseconds in the server':58}" + "".join(f"{rows:>12}" for rows in options.rows) + f"{'ratio':>8}")
    for name in found[options.rows[-1]]:
        times = [found[rows][name] for rows in options.rows]
        print(f"{name:58}" + "".join(f"{t:12.1f}" for t in times) + f"{times[-1] / times[-2]:8.1f}")


async def upgrade(dsn: str) -> bool:
    """Apply the files that this version has and the database lacks; return whether there were any."""
    async with session(dsn, name="bench") as connection:
        pending = (await package_state(connection)).pending
        await migrate.apply_files(connection, pending, {}, lambda _: None)
    return bool(pending)


async def created(server: embedded.Server, rows: int) -> bool:
    """Create the database if no earlier call has; return whether it was created."""
    connection = await asyncpg.connect(server.dsn("postgres"))
    exists = await connection.fetchval("select exists (select from pg_database where datname = $1)", f"iu{rows}")
    if not exists:
        await connection.execute(f"create database iu{rows}")
    await connection.close()
    return not exists


if __name__ == "__main__":
    main()
