"""The adapter: a process that produces and consumes events of its own type, and reports samples on stdout.

The harness starts it and sets its environment variables; README.md lists them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from samples import MANIFEST, Measured, Sampler, emit, timestamp

from iu_listen import Consumer, Delivery, Settings, __version__, target

#: The event type, its route, and its target.
NAME = "harness_job"
#: Writes so many events in one transaction; each has the time before the insert, and padding.
EMIT = """
select count(fn_iu_emit_event($1, 'job/' || n, gen_random_uuid(), 'harness',
                              jsonb_build_object('at', $3::float8, 'padding', $4::text)))
  from generate_series(1, $2::int) n
"""
#: Events that are committed and not settled: not routed, or not delivered; those in flight are included.
DEPTH = """
select (select coalesce(sum(backlog), 0) from v_iu_event_backlog)
     + (select coalesce(sum(pending), 0) from v_iu_delivery)
"""
#: How many events there are, and how many of them were delivered once, never, and more than once.
ACCOUNT = """
with attempt as (
    select event_ref, count(*) filter (where status = 'sent') as sent
      from v_iu_route_attempt where route_code = $1 group by event_ref)
select count(*) as events, count(*) filter (where a.sent = 1) as delivered,
       count(*) filter (where coalesce(a.sent, 0) = 0) as lost, count(*) filter (where a.sent > 1) as repeated,
       (select count(*) from v_iu_route_dead_letter_open) as dead_letters
  from event_outbox e left join attempt a on a.event_ref = e.id
 where e.event_type = $1
"""
#: Longest wait for the database, in seconds.
PATIENCE = 5
log = logging.getLogger("adapter")


@dataclass(frozen=True)
class Environment:
    """The environment variables of the harness; durations are in seconds."""

    dsn: str
    scenario: str
    instance: int
    mode: str
    pacing: str
    rate: float
    control_file: str
    batch_max: int
    batch_period: float
    target_depth: int
    workers: int
    payload_bytes: int
    work: float
    sample_every: int

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Environment:
        get = environ.get
        return cls(
            dsn=environ["DATABASE_URL"],
            scenario=get("SCENARIO", "long_horizon"),
            instance=int(get("BENCH_INSTANCE_ID", "0")),
            mode=get("PRODUCER_MODE", "fixed"),
            pacing=get("PRODUCER_PACING", "adapter"),
            rate=float(get("PRODUCER_RATE", "800")),
            control_file=get("PRODUCER_RATE_CONTROL_FILE", ""),
            batch_max=int(get("PRODUCER_BATCH_MAX", "128")),
            batch_period=int(get("PRODUCER_BATCH_MS", "10")) / 1000,
            target_depth=int(get("TARGET_DEPTH", "1000")),
            workers=int(get("WORKER_COUNT", "32")),
            payload_bytes=int(get("JOB_PAYLOAD_BYTES", "256")),
            work=float(get("JOB_WORK_MS", "1")) / 1000,
            sample_every=int(get("SAMPLE_EVERY_S", "5")),
        )

    def offered(self) -> float:
        """The events a second to offer now: a phase with a high load changes the control file."""
        try:
            return float(Path(self.control_file).read_text())
        except (OSError, ValueError):
            return self.rate


def iu_listen(dsn: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of iu-listen, as an operator does."""
    command = [sys.executable, "-m", "iu_listen", *arguments, "--dsn", dsn]
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done


def install(env: Environment) -> None:
    """Create the outbox, the event type and its live route, unless they are there, as for a replica that returns."""
    shown = iu_listen(env.dsn, "route", "show", NAME, "--json", check=False)
    if shown.returncode == 0 and not json.loads(shown.stdout)["dry_run"]:
        return
    iu_listen(env.dsn, "init")
    iu_listen(env.dsn, "event-type", "add", NAME)
    iu_listen(env.dsn, "route", "add", NAME, "--type", NAME, "--to", NAME)
    iu_listen(env.dsn, "route", "policy", NAME, f"concurrency={env.workers}")
    for gate in ("master", "worker", "delivery"):
        iu_listen(env.dsn, "gate", "open", gate)
    iu_listen(env.dsn, "route", "live", NAME, "--why", "benchmark", "--yes")


def consumer(env: Environment, measured: Measured) -> Consumer:
    """A consumer whose target does the work and measures its calls."""

    @target(NAME)
    async def work(delivery: Delivery) -> None:
        began = delivery.event.data["at"]
        measured.claim.add(1000 * (time.time() - began), time.monotonic())
        if env.work:
            await asyncio.sleep(env.work)
        measured.end_to_end.add(1000 * (time.time() - began), time.monotonic())
        measured.completed += 1

    return Consumer(Settings(dsn=env.dsn, grace_period=3), targets=[work])


async def batches(env: Environment, measured: Measured) -> AsyncIterator[int]:
    """The sizes of the batches to write now."""
    if env.mode == "depth-target":
        while True:
            missing = env.target_depth - measured.depth
            if missing > 0:
                yield min(missing, env.batch_max)
            await asyncio.sleep(0 if missing > 0 else 0.05)
    elif env.pacing == "harness":
        async for count in tokens():
            measured.offered = env.offered()
            yield count
    else:
        credit, last = 0.0, time.monotonic()
        while True:
            await asyncio.sleep(env.batch_period)
            measured.offered = env.offered()
            now = time.monotonic()
            credit, last = credit + measured.offered * (now - last), now
            if count := min(int(credit), env.batch_max):
                credit -= count
                yield count


async def tokens() -> AsyncIterator[int]:
    """The numbers of the lines `ENQUEUE n` that the harness writes to stdin, until it closes it."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        word, _, number = line.decode().partition(" ")
        if word == "ENQUEUE" and int(number) > 0:
            yield int(number)


async def produce(env: Environment, measured: Measured) -> None:
    """Write each batch in one transaction. A batch that fails is dropped, and a new session is opened."""
    padding = "x" * max(0, env.payload_bytes - 64)
    connection: asyncpg.Connection | None = None
    async for count in batches(env, measured):
        try:
            connection = connection or await asyncpg.connect(env.dsn, timeout=PATIENCE)
            await connection.fetchval(EMIT, NAME, count, time.time(), padding)
            measured.enqueued += count
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("a batch of %d events was not written: %s", count, error)
            if connection:
                connection.terminate()
            connection = None
            await asyncio.sleep(0.2)


async def observe_depth(env: Environment, measured: Measured) -> None:
    """Ask for the depth several times a second, in the replica 0."""
    connection: asyncpg.Connection | None = None
    while env.instance == 0 or env.mode == "depth-target":
        try:
            connection = connection or await asyncpg.connect(env.dsn, timeout=PATIENCE)
            measured.depth = int(await connection.fetchval(DEPTH))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            if connection:
                connection.terminate()
            connection = None
        await asyncio.sleep(0.2)


async def sample(env: Environment, sampler: Sampler) -> None:
    """Report samples at multiples of `sample_every` of the clock."""
    while True:
        await asyncio.sleep(env.sample_every - time.time() % env.sample_every)
        for record in sampler.samples():
            emit(record)


async def long_horizon(env: Environment) -> None:
    """Produce, consume and report until SIGTERM."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    measured = Measured()
    sampler = Sampler(measured, env.instance, env.sample_every)
    emit(
        {
            **{key: MANIFEST[key] for key in ("system", "event_tables", "event_indexes", "extensions")},
            "kind": "descriptor",
            "instance_id": env.instance,
            "version": __version__,
            "schema_version": await schema_version(env.dsn),
            "db_name": urlsplit(env.dsn).path.lstrip("/"),
            "started_at": timestamp(),
        }
    )
    async with consumer(env, measured):
        work = asyncio.gather(produce(env, measured), observe_depth(env, measured), sample(env, sampler))
        end = asyncio.create_task(stopped.wait())
        # A task that fails ends the process, so that the harness sees it.
        await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.is_set():
            await work
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
    for record in sampler.samples():
        emit(record)


async def schema_version(dsn: str) -> str:
    connection = await asyncpg.connect(dsn, timeout=PATIENCE)
    try:
        return await connection.fetchval(
            "select schema_version from iu_migration order by string_to_array(schema_version, '.')::int[] desc limit 1"
        )
    finally:
        await connection.close()


async def drain(env: Environment) -> None:
    """Consume all that is left, and report how many events were delivered."""
    async with consumer(env, Measured()) as running:
        await running.drained(120)
    connection = await asyncpg.connect(env.dsn, timeout=PATIENCE)
    emit({"kind": "account", **dict(await connection.fetchrow(ACCOUNT, NAME))})
    await connection.close()


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="[iu-listen] %(message)s")
    env = Environment.load(os.environ)
    install(env)
    if env.scenario == "long_horizon":
        asyncio.run(long_horizon(env))
    elif env.scenario == "drain":
        asyncio.run(drain(env))
    elif env.scenario != "migrate_only":
        raise SystemExit(f"unknown SCENARIO {env.scenario}; known: long_horizon, drain, migrate_only")


if __name__ == "__main__":
    main()
