"""Processor time of the consumer for one delivery to a webhook, by this version and by an earlier one, in turns.

Each version has its own database and consumer, on one server; both send signed requests over connections that are kept
open to one receiver in another process. The versions take turns for each number of concurrent deliveries, and change
places in each round. The time is that of the whole process of the consumer, in user and system mode: routing, taking
deliveries, calling the target, and settling. The environment needs the HTTP clients of both versions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import psutil

from beside import HERE, PREPARE, checkout
from common import EMIT, ROUTE, consumer, go_live, listening
from iu_listen import embedded

ANSWER = (
    b"HTTP/1.1 200 OK\r\nDate: Mon, 30 Nov 2026 12:00:00 GMT\r\nServer: bench\r\n"
    b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
)
#: The environment of the consumers: the host that they may reach, and a key for signatures.
ENVIRON = {
    "IU_LISTEN_ALLOW_PRIVATE": "localhost",
    "IU_SECRET_BENCH": "whsec_YSBrZXkgZm9yIHRoZSBiZW5jaG1hcms=",
}
DONE = """
select total_seen >= $1 and not exists (select from iu_route_delivery)
  from iu_route_worker_cursor
"""


class Receiver(asyncio.Protocol):
    """Answers each request with 200, and keeps nothing."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while True:
            head, end, rest = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            if len(rest) < length:
                return
            self._received = rest[length:]
            self._transport.write(ANSWER)


def receive(pipe: Connection) -> None:
    """Run the receiver; send its port."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


@dataclass
class Version:
    """One of the two versions: its name in the output, the directory of its files, and its database."""

    name: str
    tree: Path
    dsn: str

    @property
    def environ(self) -> dict[str, str]:
        return {"PYTHONPATH": f"{self.tree}/src"} | ENVIRON

    async def prepare(self, port: int) -> None:
        """Prepare its database, and a live route to the receiver."""
        prepare = [sys.executable, "-c", PREPARE, str(self.tree), self.dsn]
        subprocess.run(prepare, check=True, env=os.environ | self.environ)
        connection = await asyncpg.connect(self.dsn)
        await connection.execute(
            "update iu_outbound_route set target_kind = 'external_endpoint', target_ref = $2 where route_code = $1",
            ROUTE,
            f"http://localhost:{port}/hook",
        )
        await go_live(connection)
        await connection.close()


async def cost(connection: asyncpg.Connection, process: psutil.Process, concurrency: int, events: int) -> float:
    """Microseconds of processor time of the consumer for each of so many deliveries."""
    await connection.execute(
        "update iu_outbound_route set delivery_policy = $2::jsonb where route_code = $1",
        ROUTE,
        json.dumps({"concurrency": concurrency, "target": {"secrets": ["env:IU_SECRET_BENCH"]}}),
    )
    # The first deliveries open the target and its connections.
    await delivered(connection, 2 * concurrency)
    before = process.cpu_times()
    await delivered(connection, events)
    after = process.cpu_times()
    return 1e6 * (after.user - before.user + after.system - before.system) / events


async def delivered(connection: asyncpg.Connection, events: int) -> None:
    """Emit so many events, and wait until they are delivered."""
    before = await connection.fetchval("select total_seen from iu_route_worker_cursor")
    await connection.fetchval(EMIT, events)
    while not await connection.fetchval(DONE, before + events):
        await asyncio.sleep(0.1)


async def check(connection: asyncpg.Connection) -> None:
    """Ensure that each event was delivered at the first attempt."""
    wrong = await connection.fetchval("select count(*) from iu_route_attempt where status <> 'sent' or attempt_no > 1")
    assert not wrong, f"{wrong} attempts failed"


async def in_turns(versions: list[Version], port: int, concurrencies: list[int], rounds: int, events: int) -> None:
    for version in versions:
        await version.prepare(port)
    with ExitStack() as running:
        found: dict[int, dict[str, list[float]]] = {n: {v.name: [] for v in versions} for n in concurrencies}
        each = []
        for version in versions:
            process = running.enter_context(consumer(version.dsn, environ=version.environ))
            connection = await asyncpg.connect(version.dsn)
            await listening(connection)
            each.append((version, connection, psutil.Process(process.pid)))
        for turn in range(rounds):
            for concurrency in concurrencies:
                for version, connection, observed in each[:: 1 if turn % 2 else -1]:
                    micros = await cost(connection, observed, concurrency, events)
                    found[concurrency][version.name].append(micros)
        for _, connection, _ in each:
            await check(connection)
            await connection.close()
    for concurrency, costs in found.items():
        texts = [f"{name} {statistics.median(c):.0f} µs ({min(c):.0f} to {max(c):.0f})" for name, c in costs.items()]
        medians = [statistics.median(c) for c in costs.values()]
        print(f"{concurrency:3} at once: {', '.join(texts)}; ratio of medians {medians[1] / medians[0]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="git revision of the earlier version")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 10, 50], help="deliveries at once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--events", type=int, default=2000, help="number of deliveries of a version in a round")
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    receiver = multiprocessing.Process(target=receive, args=(there,), daemon=True)
    receiver.start()
    with TemporaryDirectory(prefix="iu-listen-bench-") as top, checkout(options.revision, Path(top) / "tree") as tree:
        Path(top).chmod(0o755)
        with embedded.running(Path(top) / "server", tcp=True) as server:
            # Two databases that exist on every embedded server.
            versions = [Version("earlier", tree, server.dsn("iu")), Version("now", HERE, server.dsn("postgres"))]
            asyncio.run(in_turns(versions, here.recv(), options.concurrency, options.rounds, options.events))


if __name__ == "__main__":
    main()
