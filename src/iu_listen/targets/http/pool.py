"""A pool of connections to one origin. All its connections have the same origin, so a stack of free ones is enough.

The pool knows no HTTP client: http1.py and http2.py implement its connections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import anyio

from iu_listen.model.delivery import Failed

#: Longest wait for the rest of an answer after its status, in seconds; at most half of the time to the deadline.
BODY_TIMEOUT: Final = 5.0
#: Time after which an idle connection is closed, in seconds. Servers that use Node.js close theirs after 5 seconds.
IDLE_TIMEOUT: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request to the origin of a pool.

    Attributes:
        method: HTTP method.
        path: Path with query.
        headers: All headers, with Host and Content-Length, in ASCII.
        body: Body of the request.
        connect: Longest wait for a connection, and for its TLS handshake, in seconds.
        most: Largest number of bytes to read of the body of the answer. If the answer is longer, the connection is not
            used again.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connect: float
    most: int


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


class Disconnected(Failed):
    """The connection failed before a status arrived. The texts of HTTP clients are not used: they may have headers."""

    LOST: Final = "the connection was lost before the answer"
    NO_ANSWER: Final = "the receiver closed the connection before it answered, or its answer is not HTTP"

    def __init__(self, reason: str) -> None:
        super().__init__(reason, code="disconnect")


class NotAvailable(Exception):
    """The connection cannot carry this request, and nothing was sent."""


class HttpConnection(Protocol):
    """A connection, which its first request opens."""

    def is_available(self) -> bool:
        """Whether a request can be sent now; for the first request, whether it can be shared before it is open."""
        ...

    def is_closed(self) -> bool:
        """Whether the connection is closed, or could not be opened."""
        ...

    async def ask(self, request: HttpRequest) -> HttpAnswer:
        """Send a request, and read its answer. An error while reading the body is ignored: only the status counts.

        Raises:
            Unavailable: No connection could be opened.
            Disconnected: The connection failed before a status arrived.
            NotAvailable: Nothing was sent.
        """
        ...

    async def aclose(self) -> None:
        """Close the connection at once."""
        ...


def body_timeout() -> float:
    """Longest wait for the rest of an answer from now on, in seconds."""
    return min(BODY_TIMEOUT, (anyio.current_effective_deadline() - anyio.current_time()) / 2)


@dataclass(slots=True, eq=False)
class _PooledConnection:
    """A connection of the pool.

    Attributes:
        connection: The connection itself.
        users: Number of requests that use it.
        free: Whether it is among the connections that a request may take.
        left: Whether a request left it before the end of an answer, so that it must not be used again.
        used: Whether it has already carried an answer.
        expires: Time at which it has been idle for IDLE_TIMEOUT, by the clock of the event loop.
    """

    connection: HttpConnection
    users: int = 0
    free: bool = False
    left: bool = False
    used: bool = False
    expires: float = math.inf

    def has_expired(self) -> bool:
        return not self.users and self.expires < anyio.current_time()


class HttpPool:
    """Connections to one origin: one for each concurrent request, or one for all requests.

    Args:
        connection: Returns a new connection, which is not open yet.
        shared: Whether a connection carries several requests at once (HTTP/2).
    """

    def __init__(self, connection: Callable[[], HttpConnection], shared: bool) -> None:
        self._connection = connection
        self._shared = shared
        self._connections: set[_PooledConnection] = set()
        #: The connections that a request may take. The one that was used last is taken first, so the others can expire.
        self._free: list[_PooledConnection] = []

    async def ask(self, request: HttpRequest) -> HttpAnswer:
        """Send a request, and read its answer.

        Raises:
            Unavailable: No connection could be opened.
            Failed: The connection failed before a status arrived.
        """
        again = False
        while True:
            line = await self._take(fresh=again)
            line.users += 1
            try:
                answer = await line.connection.ask(request)
            except NotAvailable:
                continue
            except Disconnected:
                # The server may close an idle connection at the moment of its use. Such an error is not caused by the
                # event, so the request is repeated once, on a new connection.
                if again or not line.used:
                    raise
                again = True
            except anyio.get_cancelled_exc_class():
                line.left = True
                raise
            else:
                line.used = True
                line.left |= not answer.whole
                return answer
            finally:
                line.users -= 1
                await self._give(line)

    async def aclose(self) -> None:
        """Close all connections."""
        while self._connections:
            await self._connections.pop().connection.aclose()
        self._free.clear()

    async def _take(self, fresh: bool) -> _PooledConnection:
        """A free connection, or a new one if none is usable; with ``fresh`` only one that has carried no answer yet."""
        while self._free:
            line = self._free[-1]
            usable = line.connection.is_available() and not line.has_expired()
            if usable and not (fresh and line.used):
                if not self._shared:
                    self._withhold(line)
                return line
            if line.users:
                self._withhold(line)
            else:
                await self._drop(line)
        line = _PooledConnection(self._connection())
        self._connections.add(line)
        if self._shared:
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
        else:
            line.expires = anyio.current_time() + IDLE_TIMEOUT
            if not line.free and line.connection.is_available():
                self._offer(line)
        # The connection at the bottom of the stack has been idle for the longest time.
        if self._free and self._free[0].has_expired():
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
