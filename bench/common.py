"""Helpers of the benchmarks: a durable embedded server with the package, and the real command of the consumer."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import asyncpg

from iu_listen import embedded
from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.postgres.session import session
from iu_listen.postgres.sqlfiles import Base

#: Emits so many events in one statement.
EMIT = """
select count(fn_iu_emit_event('version_applied', 'bench/' || n, gen_random_uuid(), 'bench', '{}'))
  from generate_series(1, $1::int) n
"""

#: The route of the events of EMIT.
ROUTE = "iu.version_applied.workflow"
#: Attempts, events, and seconds from the first attempt to the last.
SPAN = """
select count(*) as attempts, count(distinct event_ref) as events,
       extract(epoch from max(finished_at) - min(created_at))::float8 as seconds
  from iu_route_attempt
"""


@contextmanager
def database(
    major: int = embedded.DEFAULT_MAJOR, *, tcp: bool = False, base: Base = "iu_core"
) -> Iterator[embedded.Server]:
    """A server that flushes to disk, with the package applied and the worker gate open."""
    with TemporaryDirectory(prefix="iu-listen-bench-") as root:
        Path(root).chmod(0o755)
        with embedded.running(Path(root), major, tcp=tcp, options={"track_commit_timestamp": "on"}) as server:
            asyncio.run(prepare(server.dsn("iu"), base))
            yield server


async def prepare(dsn: str, base: Base = "iu_core") -> None:
    """Apply the package to a database, and open the worker gate."""
    async with session(dsn, name="bench") as connection:
        await migrate.apply_base(connection, base)
        await migrate.apply_files(connection, (await package_state(connection)).pending, {}, lambda _: None)
        await connection.execute(
            "update public.dot_config set value = 'true' where key = 'iu_core.route_worker_enabled'"
        )


async def go_live(connection: asyncpg.Connection) -> None:
    """Make the route live, and allow deliveries."""
    await connection.execute("update dot_config set value = 'true' where key = 'iu_core.delivery_enabled'")
    await connection.fetchval("select fn_iu_route_live($1, true, 'bench', 'bench')", ROUTE)


def consumer(
    dsn: str, *options: str, environ: Mapping[str, str] = MappingProxyType({})
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Run `iu-listen run`, as an operator starts it."""
    return command("run", dsn, *options, environ=environ)


@contextmanager
def command(
    name: str, dsn: str, *options: str, environ: Mapping[str, str] = MappingProxyType({})
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of iu-listen for the length of a block; ``environ`` is added to its environment."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "IU_LISTEN_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "iu_listen", name, "--dsn", dsn, *options],
        stderr=subprocess.DEVNULL,
        env={**own, **environ},
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


async def listening(connection: asyncpg.Connection) -> None:
    """Wait until the consumer is idle and listens."""
    while not await connection.fetchval("select bool_or(listening and state = 'idle') from iu_consumer_heartbeat"):
        await asyncio.sleep(0.02)


def percentile(values: list[float], part: float) -> float:
    """The value below which this part of the values lies; ``part`` is from 0 to 1."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"median {statistics.median(values):,.0f} (from {min(values):,.0f} to {max(values):,.0f})"
