"""Helpers for the tests of the HTTP target: certificates, well-behaved and misbehaving receivers, deliveries."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import trustme

from iu_listen.model.delivery import Delivery, Event
from iu_listen.model.secrets import Secrets
from iu_listen.targets import http
from iu_listen.targets.http.target import HttpTarget

#: Signing keys, each the base64 of 24 bytes, and a token with special characters.
KEYS = {"NEW": "whsec_bmV3IGtleSwgbmV3IGtleSwgbmV3IGtl", "OLD": "whsec_b2xkIGtleSwgb2xkIGtleSwgb2xkIGtl",
        "TOKEN": "canary-7f3a/9 +\"'"}  # fmt: skip
SECRETS = Secrets(KEYS, allow_private=("localhost",))


def delivery(key: str | None = None, *, deadline: float = 20.0, **event: Any) -> Delivery:
    """A delivery of an ordinary event, except for the given values."""
    given = {
        "domain": "iu",
        "type": "iu.version_applied",
        "stream": "iu",
        "occurred_at": datetime(2026, 11, 25, 17, tzinfo=UTC),
    }
    made = Event(**({"id": uuid4()} | given | event))
    return Delivery(
        id=1, route="hook", idempotency_key=key or f"outbound:hook:{made.id}", attempt=1, event=made, deadline=deadline
    )


class Certificates:
    """A certificate authority that the tests trust, good certificates of it, and certificates that must be refused.

    Args:
        folder: Directory of the files.
    """

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.folder = folder
        yesterday = datetime.now(UTC) - timedelta(days=1)
        self.good = self._context(self.authority.issue_cert("localhost", "127.0.0.1", "hook.example"))
        self.expired = self._context(
            self.authority.issue_cert("localhost", not_before=yesterday - timedelta(days=9), not_after=yesterday)
        )
        self.other_host = self._context(self.authority.issue_cert("other.example"))
        self.strange = self._context(trustme.CA().issue_cert("localhost"))
        alone = trustme.CA()
        self.self_signed = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with alone.private_key_pem.tempfile() as key, alone.cert_pem.tempfile() as certificate:
            self.self_signed.load_cert_chain(certificate, key)

    def _context(self, leaf: trustme.LeafCert) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        return context

    def files(self) -> tuple[Path, Path]:
        """Certificate and key for localhost, for a server in another process."""
        leaf = self.authority.issue_cert("localhost", "127.0.0.1")
        chain, key = self.folder / "chain.pem", self.folder / "key.pem"
        chain.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(key)
        return chain, key


@dataclass
class Receiver:
    """The address at which receiver.py listens."""

    port: int
    ca: Path

    def target(self, path: str = "/hook", **options: Any) -> HttpTarget:
        """A target for this receiver."""
        given = {"ca": str(self.ca)}
        return http.open(f"https://localhost:{self.port}{path}", given | options, SECRETS)

    async def ask(self, path: str) -> Any:
        """The answer to a GET of this path, parsed as JSON."""
        context = ssl.create_default_context(cafile=self.ca)

        def get() -> Any:
            with urllib.request.urlopen(f"https://localhost:{self.port}{path}", context=context, timeout=20) as answer:
                return json.load(answer)

        return await asyncio.to_thread(get)


@contextmanager
def granian(certificates: Certificates) -> Iterator[Receiver]:
    """Run receiver.py over TLS, with HTTP/1.1 and HTTP/2."""
    chain, key = certificates.files()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port),
               "--ssl-certificate", chain, "--ssl-keyfile", key, "--no-ws", "--loop", "asyncio", "--no-log",
               "receiver:app"]  # fmt: skip
    server = subprocess.Popen(command, cwd=Path(__file__).parent)
    try:
        deadline = time.monotonic() + 30
        while server.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield Receiver(port, certificates.ca)
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            # The receiver waits for requests that a failed test has put on hold.
            server.kill()
            server.wait(10)


#: The action of a raw receiver when a request has arrived. The connection stays open if it returns true.
Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]]


@dataclass
class Raw:
    """A server that sends given bytes, and the requests that it received."""

    host: str
    port: int
    scheme: str
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    open: int = 0

    def target(self, path: str = "/", host: str = "localhost", **options: Any) -> HttpTarget:
        """A target for this server."""
        return http.open(f"{self.scheme}://{host}:{self.port}{path}", options, SECRETS)

    async def left(self) -> None:
        """Return when no connection is open any more; fail after ten seconds."""
        deadline = time.monotonic() + 10
        while self.open:
            assert time.monotonic() < deadline, "a connection is still there"
            await asyncio.sleep(0.01)


@asynccontextmanager
async def raw(
    answer: bytes | Behaviour, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Raw]:
    """A server that answers every request with these bytes, or by this behaviour."""
    tasks: set[asyncio.Task] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        server.open += 1
        tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                server.requests.append(head + await reader.readexactly(length))
                if callable(answer):
                    if not await answer(reader, writer):
                        return
                else:
                    writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            # TLS would wait for a closing message of the other side, which sends none.
            (writer.transport.abort if tls else writer.close)()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            server.open -= 1

    listening = await asyncio.start_server(serve, host, port, ssl=tls)
    server = Raw(host, listening.sockets[0].getsockname()[1], "https" if tls else "http")
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def response(status: int, body: bytes = b"", **headers: str) -> bytes:
    """An HTTP answer as bytes; ``_`` in the name of a header becomes ``-``."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in ({"content_length": len(body)} | headers).items()]
    return "\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode("latin-1") + body
