"""Connections of HTTP/1.1: a protocol of asyncio, with the parser of httptools, which is that of Node.js (llhttp).

A general HTTP client takes most of the processor time of a delivery (docs/why/choices.md, Libraries). Of such a client
only this much is needed: one request at a time, whose headers are known, and an answer that is read within limits.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import Final, cast

import anyio
import httptools

from iu_listen.targets.guard import HttpOrigin
from iu_listen.targets.http.backend import GuardedBackend, tls_failure
from iu_listen.targets.http.pool import Disconnected, HttpAnswer, HttpRequest, body_timeout

#: Largest number of bytes before the end of the headers of an answer, rounded up to a whole read.
MAX_HEAD: Final = 100 * 1024

_log: Final = logging.getLogger(__name__)


class Http1Connection(asyncio.Protocol):
    """A connection for one request at a time. Implements HttpConnection.

    Args:
        address: The URL with the origin.
        tls: The TLS context with the trusted CA certificates.
        backend: Chooses the address to connect to.
    """

    def __init__(self, address: HttpOrigin, tls: ssl.SSLContext, backend: GuardedBackend) -> None:
        self._address = address
        self._tls = tls if address.scheme == "https" else None
        tls.set_alpn_protocols(["http/1.1"])
        self._backend = backend
        self._transport: asyncio.Transport | None = None
        #: The answer that is being read; None: the connection is idle.
        self._answer: _Answer | None = None

    def is_available(self) -> bool:
        """Whether a request can be sent now."""
        return self._answer is None and not self.is_closed()

    def is_closed(self) -> bool:
        """Whether the connection is closed, or could not be opened."""
        return self._transport is None or self._transport.is_closing()

    async def ask(self, request: HttpRequest) -> HttpAnswer:
        """Send a request, and read its answer, as HttpConnection specifies."""
        data = _encoded(request)
        if self._transport is None:
            await self._open(request.connect)
        transport = self._transport
        if transport is None or transport.is_closing():
            raise Disconnected(Disconnected.LOST)
        self._answer = answer = _Answer(request.most)
        try:
            transport.write(data)
            await answer.head
            if not answer.end.done():
                with anyio.move_on_after(body_timeout()):
                    await answer.end
        finally:
            self._answer = None
            answer.close()
            if not answer.keep:
                transport.abort()
        return HttpAnswer(answer.status, answer.headers, bytes(answer.body[: request.most]), answer.whole)

    async def aclose(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def _open(self, timeout: float) -> None:
        """Connect, and perform the TLS handshake, each within ``timeout`` seconds.

        Raises:
            Unavailable: No address is allowed or answers, or the handshake failed.
        """
        host, port, tls = self._address.host, self._address.port, self._tls
        connected = await self._backend.first(host, port, timeout, self._connect)
        loop = asyncio.get_running_loop()
        try:
            if tls is None:
                await loop.create_connection(lambda: self, sock=connected)
            else:
                await loop.create_connection(
                    lambda: self, sock=connected, ssl=tls, server_hostname=host, ssl_handshake_timeout=timeout
                )
        except OSError as error:
            # asyncio reports a handshake that takes too long as a ConnectionAbortedError.
            raise tls_failure(host, error) from None
        _log.debug("connected to %s, port %d", host, port)

    async def _connect(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        # asyncio sets TCP_NODELAY only if the protocol is given.
        connected = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            connected.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connected, (address, self._address.port))
        except BaseException:
            connected.close()
            raise
        return connected

    # -- called by the event loop --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # A transport of uvloop is no instance of this class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse a part of the answer."""
        # Bytes without a request must not be taken for the answer to the next request.
        if self._answer is None or not self._answer.feed(data):
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """End the answer."""
        if self._answer is not None:
            self._answer.connection_lost(error)


class _Answer:
    """An answer that is being read; the parser calls the methods ``on_…``.

    Args:
        most: Largest number of bytes to keep of the body.

    Attributes:
        head: Done when the status and the headers have arrived; fails if they cannot arrive.
        end: Done when no more of the body is needed, or can arrive.
        status: Status code; 0: it has not arrived. An interim answer (1xx) does not count.
        headers: Headers by name, in lower case.
        body: Body, at most one byte longer than ``most``.
        whole: Whether the body is complete.
        keep: Whether the connection can carry another request.
    """

    def __init__(self, most: int) -> None:
        loop = asyncio.get_running_loop()
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._most = most
        self._received = 0
        self.head: asyncio.Future[None] = loop.create_future()
        self.end: asyncio.Future[None] = loop.create_future()
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = bytearray()
        self.whole = self.keep = False

    def feed(self, data: bytes) -> bool:
        """Parse received bytes; False: they end the connection, because they are not a part of an answer."""
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail(Disconnected.NO_ANSWER)
            return False
        self._received += len(data)
        if not self.status and self._received > MAX_HEAD:
            self.fail(Disconnected.NO_ANSWER)
            return False
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.fail(Disconnected.LOST)
            return
        # Without a length, the end of the connection is the end of the body (RFC 9112, 6.3).
        self.whole |= not {b"content-length", b"transfer-encoding"} & self.headers.keys()
        self.fail(Disconnected.NO_ANSWER)

    def fail(self, reason: str) -> None:
        """End the answer because of an error, which counts only before the status has arrived."""
        self.keep = False
        if not self.head.done():
            self.head.set_exception(Disconnected(reason))
        self._finish()

    def close(self) -> None:
        """Drop the parser, which refers to this object, so that neither waits for the garbage collector."""
        self._parser = None

    def on_message_begin(self) -> None:
        # Only one answer is expected.
        self.keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        # The fields of a trailer, after the body, do not count.
        if not self.status:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 200:
            self.headers.clear()
        elif not self.head.done():
            self.status = status
            self.head.set_result(None)

    def on_body(self, data: bytes) -> None:
        if not self.end.done():
            self.body += data[: self._most + 1 - len(self.body)]
            if len(self.body) > self._most:
                self._finish()

    def on_message_complete(self) -> None:
        if self.status and not self.end.done():
            assert self._parser is not None
            self.whole, self.keep = True, self._parser.should_keep_alive()
            self._finish()

    def _finish(self) -> None:
        if not self.end.done():
            self.end.set_result(None)


def _encoded(request: HttpRequest) -> bytes:
    """The bytes of a request.

    Raises:
        Disconnected: A header has a line end or another character that could begin a header or a request of its own.
            The target percent-encodes such characters, so this is the second of two checks.
    """
    texts = "".join((request.path, *request.headers, *request.headers.values()))
    if not (texts.isascii() and texts.isprintable()):
        raise Disconnected("the request has a character that a header must not have")
    lines = "".join([f"{name}: {value}\r\n" for name, value in request.headers.items()])
    return f"{request.method} {request.path} HTTP/1.1\r\n{lines}\r\n".encode() + request.body
