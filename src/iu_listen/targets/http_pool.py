"""Connections to one origin, and what is read of an answer.

The pool of httpcore looks at every connection for every request, twice, and at all of them for each: with 50 of them
that is most of the work. Here all go to one place, so a stack will do.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import httpcore

from iu_listen.model.delivery import Unavailable
from iu_listen.targets.guard import Address

#: Longest wait for the rest of an answer whose status is known, in seconds; half of what is left where that is less.
REST: Final = 5.0
#: How long a connection is kept that nobody uses, in seconds. Servers of Node close theirs after 5.
KEPT: Final = 4.0

# At its level DEBUG it writes down every header, a token among them.
logging.getLogger("hpack").setLevel(logging.INFO)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, as far as it was read.

    Attributes:
        status: Status code.
        headers: By their names in lower case.
        body: At most as many bytes as were asked for.
        whole: Nothing of the body is missing.
    """

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes
    whole: bool

    def header(self, name: str) -> str:
        """A header; empty: there is none."""
        return self.headers.get(name.encode(), b"").decode("latin-1")


@dataclass(slots=True, eq=False)
class _Line:
    """A connection.

    Attributes:
        users: How many requests are on it.
        free: The next request may find it.
        left: Somebody left it in the middle of an answer.
        used: An answer came by it.
        opened: It is known whether it can be had.
        failure: Why it cannot.
    """

    connection: httpcore.AsyncHTTPConnection
    users: int = 0
    free: bool = False
    left: bool = False
    used: bool = False
    opened: anyio.Event = field(default_factory=anyio.Event)
    failure: Unavailable | None = None


class Pool:
    """Connections to one origin: as many as there are requests at once, or one for all of them with HTTP/2.

    Args:
        address: Whose origin it is.
        tls: Whom to trust.
        http2: Whether HTTP/2 is offered to the other side.
        backend: How to connect.
    """

    def __init__(
        self, address: Address, tls: ssl.SSLContext, http2: bool, backend: httpcore.AsyncNetworkBackend
    ) -> None:
        self._origin = httpcore.Origin(address.scheme.encode(), address.host.encode(), address.port)
        self._tls = tls
        self._http2 = http2
        self._backend = backend
        self._lines: set[_Line] = set()
        #: Those that a request may take; the one that was used last is taken first, so that the others can go.
        self._free: list[_Line] = []

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, *, connect: float, most: int
    ) -> Answer:
        """Send a request, and read at most ``most`` bytes of the body of its answer.

        Args:
            method: Of HTTP.
            path: What is asked for, query included.
            headers: All of them, Host and Content-Length included; in ASCII.
            body: What is sent.
            connect: Longest wait for a connection, and for its TLS, in seconds.
            most: Most bytes that are read. Of a longer answer the rest is left, and the connection with it.

        Raises:
            Unavailable: there is no connection.
            httpcore.NetworkError, httpcore.ProtocolError: no status came.
        """
        url = httpcore.URL(
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
            except httpcore.ConnectionNotAvailable:
                # Hoped to be one of HTTP/2, it is one of HTTP/1.1, and somebody else was faster; or it was just closed.
                continue
            except (httpcore.NetworkError, httpcore.ProtocolError):
                # The other side closes what was idle just when we use it. That is no fault of this event.
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
        while self._lines:
            await self._lines.pop().connection.aclose()
        self._free.clear()

    async def _opening(self, line: _Line) -> dict[str, Any]:
        """How the first on a connection of HTTP/2 tells the others that they may come; they wait for it.

        Else each of them, one after the other, would wait in vain for a connection that cannot be had.
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

    async def _take(self, fresh: bool) -> _Line:
        """A connection that was used, else, or where it must be ``fresh``, a new one."""
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
        line = _Line(
            httpcore.AsyncHTTPConnection(
                self._origin, self._tls, KEPT, http2=self._http2, network_backend=self._backend
            )
        )
        self._lines.add(line)
        if self._http2:
            self._offer(line)
        return line

    async def _give(self, line: _Line) -> None:
        """A request is done with a connection.

        An answer over HTTP/2 that nobody reads to its end uses up what the other side may send to all that share the
        connection. So nothing new goes to such a connection, and it is closed when what is on it has ended.
        """
        if line.left or line.connection.is_closed():
            self._withhold(line)
            if not line.users:
                await self._drop(line)
        elif not line.free and line.connection.is_available():
            self._offer(line)
        # The one at the bottom was not needed for the longest time.
        if self._free and self._free[0].connection.has_expired():
            await self._drop(self._free[0])

    def _offer(self, line: _Line) -> None:
        line.free = True
        self._free.append(line)

    def _withhold(self, line: _Line) -> None:
        if line.free:
            line.free = False
            self._free.remove(line)

    async def _drop(self, line: _Line) -> None:
        self._withhold(line)
        self._lines.discard(line)
        with anyio.CancelScope(shield=True):
            await line.connection.aclose()


async def _read(response: httpcore.Response, most: int) -> Answer:
    """What is read of an answer. Its status counts, whatever becomes of its body, which is for people only."""
    got, whole = bytearray(), False
    left = anyio.current_effective_deadline() - anyio.current_time()
    # To be cancelled is how reading ends cleanly in the middle.
    with anyio.move_on_after(min(REST, left / 2)) as reading:
        try:
            async for chunk in response.aiter_stream():
                got += chunk[: most + 1 - len(got)]
                if len(got) > most:
                    reading.cancel()
            whole = len(got) <= most
        except (httpcore.NetworkError, httpcore.ProtocolError):
            pass
    headers = {name.lower(): value for name, value in response.headers}
    return Answer(response.status, headers, bytes(got[:most]), whole)
