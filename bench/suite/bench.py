"""The place of the measurements: one durable embedded server, a database for each system, and the workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import asyncpg
import psutil

from common import ROUTE, go_live, prepare
from iu_listen import embedded
from suite.sizes import Sizes
from suite.systems import NODE, WORKERS, System

#: Settings of the server, the same for all systems. Commits are durable.
SERVER = {"max_connections": "200", "max_wal_size": "4GB"}


@dataclass
class Worker:
    """A running worker.

    Attributes:
        process: Its process.
        file: The record of its calls.
        log: Its output.
        peak_mb: Largest memory of its processes so far, in MB; 0 if its purpose is ``latency``.
    """

    process: psutil.Popen
    file: Path
    log: Path
    peak_mb: float = 0.0

    def calls(self) -> dict[int, float]:
        """Time of the first call for each event, by its number."""
        found: dict[int, float] = {}
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            number, at = line.split()
            found.setdefault(int(number), float(at))
        return found

    def check(self) -> None:
        """Raise RuntimeError if it has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the worker ended: {self.log.read_text()[-600:]}")

    async def called(self, count: int, seconds: float) -> dict[int, float]:
        """Wait until so many events with a positive number were called; raise TimeoutError after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            found = {number: at for number, at in self.calls().items() if number > 0}
            if len(found) >= count:
                return found
            self.check()
            if time.monotonic() > end:
                raise TimeoutError(f"{len(found)} of {count} events were called in {seconds:g} s")
            await asyncio.sleep(0.05)

    def family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def memory(self) -> float:
        """Memory of its processes, in MB."""
        return sum(process.memory_info().rss for process in self.family()) / 1e6


@dataclass
class Bench:
    """The server, the systems, and the sizes of a run."""

    server: embedded.Server
    folder: Path
    systems: tuple[System, ...]
    sizes: Sizes
    _prepared: set[str] = field(default_factory=set)

    def dsn(self, database: str) -> str:
        """All systems connect through TCP."""
        return self.server.tcp_dsn(database)

    async def connect(self, database: str) -> asyncpg.Connection:
        return await asyncpg.connect(self.dsn(database))

    async def prepare(self, system: System, database: str = "", *, live: bool = True) -> str:
        """Create and install the database of a system, once; return its name.

        Args:
            system: The system.
            database: Another name of the database than that of the system.
            live: False: the route of iu-listen stays in dry run.
        """
        name = database or system.database
        if name not in self._prepared:
            await self._create(name)
            if system.kind == "ours":
                await self._prepare_ours(self.dsn(name), live=live)
            else:
                command = system.worker("install", self.dsn(name), "latency")
                subprocess.run(command, env=self._environ(Path(os.devnull), "every"), check=True, capture_output=True)
            self._prepared.add(name)
        return name

    async def _create(self, name: str) -> None:
        connection = await self.connect("postgres")
        await connection.execute(f"drop database if exists {name} with (force)")
        await connection.execute(f"create database {name}")
        await connection.close()

    async def _prepare_ours(self, dsn: str, *, live: bool) -> None:
        await prepare(dsn, "iu_core")
        connection = await asyncpg.connect(dsn)
        await connection.execute(
            "update iu_outbound_route set delivery_policy = $1::jsonb where route_code = $2",
            json.dumps({"concurrency": 100}),
            ROUTE,
        )
        if live:
            await go_live(connection)
        await connection.close()

    async def clear(self, system: System, database: str = "", *, live: bool = True) -> str:
        """Prepare the database of a system, delete all events and their history, and return its name."""
        name = database or system.database
        if not system.clear:
            self._prepared.discard(name)
        name = await self.prepare(system, database, live=live)
        connection = await self.connect(name)
        for statement in system.clear.split(";") if system.clear else ():
            await connection.execute(statement)
        await connection.close()
        return name

    async def settle(self, database: str) -> None:
        """Let the server finish its own work, so that it does not disturb what is measured next."""
        connection = await self.connect(database)
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")
        await connection.close()

    def _environ(self, file: Path, record: str) -> dict[str, str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "IU_LISTEN_", "OTEL_"))}
        return own | {
            "CALLS": str(file),
            "RECORD": record,
            "PYTHONPATH": str(WORKERS),
            "NODE_PATH": str(NODE / "node_modules"),
        }

    @asynccontextmanager
    async def worker(
        self,
        system: System,
        purpose: str,
        *,
        database: str = "",
        record: str = "every",
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> AsyncIterator[Worker]:
        """Run the worker of a system for the length of a block; ``environ`` is added to its environment."""
        file, log = self.folder / f"calls-{time.time_ns()}", self.folder / "worker.log"
        command = system.worker("run", self.dsn(database or system.database), purpose)
        with log.open("w") as said:
            process = psutil.Popen(command, env=self._environ(file, record) | environ, stdout=said, stderr=said)
        worker = Worker(process, file, log)
        # The search for child processes takes milliseconds, which would show in a latency.
        sampler = asyncio.create_task(_sample(worker)) if purpose == "throughput" else None
        try:
            yield worker
        finally:
            if sampler:
                sampler.cancel()
            family = worker.family() if process.poll() is None else []
            process.terminate()
            _, left = psutil.wait_procs(family, timeout=10)
            for one in left:
                one.kill()
            process.wait()
            file.unlink(missing_ok=True)

    async def ready(self, worker: Worker, connection: asyncpg.Connection, system: System) -> None:
        """Wait until the worker has called a first event, let it handle some more, and let it become idle."""
        end = time.monotonic() + 30
        number = 0
        while not worker.calls():
            worker.check()
            if time.monotonic() > end:
                raise TimeoutError(f"the worker of {system.name} called nothing: {worker.log.read_text()[-600:]}")
            # Again and again, because a worker of the bound misses the events from before its LISTEN.
            number -= 1
            await connection.fetch(system.enqueue, number, number)
            await asyncio.sleep(0.3)
        for _ in range(20):
            number -= 1
            await connection.fetch(system.enqueue, number, number)
            await asyncio.sleep(0.02)
        await asyncio.sleep(1)


async def _sample(worker: Worker) -> None:
    """Record the largest memory of a worker."""
    with contextlib.suppress(psutil.Error):
        while True:
            worker.peak_mb = max(worker.peak_mb, worker.memory())
            await asyncio.sleep(0.25)


@contextmanager
def opened(systems: tuple[System, ...], sizes: Sizes) -> Iterator[Bench]:
    """Start the server; it is deleted afterwards."""
    with TemporaryDirectory(prefix="iu-listen-bench-") as root:
        Path(root).chmod(0o755)
        (folder := Path(root, "records")).mkdir()
        with embedded.running(Path(root, "server"), tcp=True, options=SERVER) as server:
            yield Bench(server, folder, systems, sizes)
