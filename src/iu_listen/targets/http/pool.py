"""A pool of connections to one origin, and the limited reading of answers.

The pool of httpcore2 examines all its connections for each request, which is most of the work with 50 connections. Here
all connections have the same origin, so a stack of free connections is enough.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import httpcore2

from iu_listen.model.delivery import Unavailable
from iu_listen.targets.guard import HttpOrigin

#: Longest wait for the rest of an answer after its status, in seconds; at most half of the time to the deadline.
BODY_TIMEOUT: Final = 5.0
#: Time after which an idle connection is closed, in seconds. Servers that use Node.js close theirs after 5 seconds.
IDLE_TIMEOUT: Final = 4.0

# At level DEBUG hpack logs all headers, which may contain a token.
logging.getLogger("hpack").setLevel(logging.INFO)


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer, as far as it was read.

    Attributes:
        status: Status code.
        headers: Headers by name, in lower case.
        body: Body, cut at the limit of the request.
        whole: Whether the body is complete.
    """

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes
    whole: bool

    def header(self, name: str) -> str:
        """The value of a header; empty: the answer does not have it."""
        return self.headers.get(name.encode(), b"").decode("latin-1")


@dataclass(slots=True, eq=False)
class _PooledConnection:
    """A connection of the pool.

    Attributes:
        connection: The connection of httpcore2.
        users: Number of requests that use it.
        free: Whether it is among the connections that a request may take.
        left: Whether a request left it before the end of an answer, so that it must not be used again.
        used: Whether it has already carried an answer.
        opened: Set when connecting has succeeded or failed.
        failure: The reason why connecting failed; None: it did not fail.
    """

    connection: httpcore2.AsyncHTTPConnection
    users: int = 0
    free: bool = False
    left: bool = False
    used: bool = False
    opened: anyio.Event = field(default_factory=anyio.Event)
    failure: Unavailable | None = None


class HttpPool:
    """Connections to one origin: one for each concurrent request, or with HTTP/2 one for all requests.

    Args:
        address: The URL with the origin.
        tls: The TLS context with the trusted CA certificates.
        http2: Whether HTTP/2 is offered to the server.
        backend: Opens the connections.
    """

    def __init__(
        self, address: HttpOrigin, tls: ssl.SSLContext, http2: bool, backend: httpcore2.AsyncNetworkBackend
    ) -> None:
        self._origin = httpcore2.Origin(address.scheme.encode(), address.host.encode(), address.port)
        self._tls = tls
        self._http2 = http2
        self._backend = backend
        self._connections: set[_PooledConnection] = set()
        #: The connections that a request may take. The one that was used last is taken first, so the others can expire.
        self._free: list[_PooledConnection] = []

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, *, connect: float, most: int
    ) -> HttpAnswer:
        """Send a request, and read at most ``most`` bytes of the body of its answer.

        Args:
            method: HTTP method.
            path: Path with query.
            headers: All headers, with Host and Content-Length, in ASCII.
            body: Body of the request.
            connect: Longest wait for a connection, and for its TLS handshake, in seconds.
            most: Largest number of bytes to read. If the answer is longer, the connection is not used again.

        Raises:
            Unavailable: No connection could be opened.
            httpcore2.NetworkError, httpcore2.ProtocolError: The connection failed before a status arrived.
        """
        url = httpcore2.URL(
            scheme=self._origin.scheme, host=self._origin.host, port=self._origin.port, target=path.encode()
        )
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        again = False
        while True:
            line = await self._take(fresh=again)
            line.users += 1
            try:
                extensions = {"timeout": {"connect": connect}} | await self._opening(line)
                async with line.connection.stream(
                    method, url, headers=fields, content=body, extensions=extensions
                ) as response:
                    answer = await _read(response, most)
            except httpcore2.ConnectionNotAvailable:
                # The connection uses HTTP/1.1 instead of HTTP/2 and another request took it, or it was just closed.
                continue
            except (httpcore2.NetworkError, httpcore2.ProtocolError):
                # The server may close an idle connection at the moment of its use. Such an error is not caused by the
                # event, so the request is repeated once, on a new connection.
                if again or not line.used:
                    raise
                again = True
            except Unavailable as error:
                line.failure = error
                raise
            except anyio.get_cancelled_exc_class():
                line.left = True
                raise
            else:
                line.used = True
                line.left |= not answer.whole
                return answer
            finally:
                line.opened.set()
                line.users -= 1
                await self._give(line)

    async def aclose(self) -> None:
        """Close all connections."""
        while self._connections:
            await self._connections.pop().connection.aclose()
        self._free.clear()

    async def _opening(self, line: _PooledConnection) -> dict[str, Any]:
        """Let the first request on a new HTTP/2 connection open it, while the others wait for the result.

        Without this, each of them in turn would wait for a connection that cannot be opened.

        Returns:
            The extensions for the request.
        """
        if not self._http2 or line.opened.is_set():
            return {}
        if line.users > 1:
            await line.opened.wait()
            if line.failure is not None:
                raise Unavailable(line.failure.reason, code=line.failure.code)
            return {}

        async def happens(event: str, _: object) -> None:
            if event == "connection.start_tls.complete":
                line.opened.set()

        return {"trace": happens}

    async def _take(self, fresh: bool) -> _PooledConnection:
        """A free connection, or a new one if none is usable; with ``fresh`` only one that has carried no answer yet."""
        while self._free:
            line = self._free[-1]
            usable = line.connection.is_available() and not line.connection.has_expired()
            if usable and not (fresh and line.used):
                if not self._http2:
                    self._withhold(line)
                return line
            if line.users:
                self._withhold(line)
            else:
                await self._drop(line)
        line = _PooledConnection(
            httpcore2.AsyncHTTPConnection(
                self._origin, self._tls, IDLE_TIMEOUT, http2=self._http2, network_backend=self._backend
            )
        )
        self._connections.add(line)
        if self._http2:
            self._offer(line)
        return line

    async def _give(self, line: _PooledConnection) -> None:
        """Return a connection to the pool, or close it.

        An HTTP/2 answer that is not read to its end keeps a part of the flow-control window of the connection, which
        all its requests share. So such a connection gets no new requests, and is closed after its last request.
        """
        if line.left or line.connection.is_closed():
            self._withhold(line)
            if not line.users:
                await self._drop(line)
        elif not line.free and line.connection.is_available():
            self._offer(line)
        # The connection at the bottom of the stack has been idle for the longest time.
        if self._free and self._free[0].connection.has_expired():
            await self._drop(self._free[0])

    def _offer(self, line: _PooledConnection) -> None:
        line.free = True
        self._free.append(line)

    def _withhold(self, line: _PooledConnection) -> None:
        if line.free:
            line.free = False
            self._free.remove(line)

    async def _drop(self, line: _PooledConnection) -> None:
        self._withhold(line)
        self._connections.discard(line)
        with anyio.CancelScope(shield=True):
            await line.connection.aclose()


async def _read(response: httpcore2.Response, most: int) -> HttpAnswer:
    """Read an answer. An error while reading the body is ignored: the outcome depends on the status only."""
    got, whole = bytearray(), False
    left = anyio.current_effective_deadline() - anyio.current_time()
    # A cancellation ends reading before the end of the body and leaves the connection in a clean state.
    with anyio.move_on_after(min(BODY_TIMEOUT, left / 2)) as reading:
        try:
            async for chunk in response.aiter_stream():
                got += chunk[: most + 1 - len(got)]
                if len(got) > most:
                    reading.cancel()
            whole = len(got) <= most
        except (httpcore2.NetworkError, httpcore2.ProtocolError):
            pass
    headers = {name.lower(): value for name, value in response.headers}
    return HttpAnswer(response.status, headers, bytes(got[:most]), whole)
