"""Connections of HTTP/2, by httpcore2; a server that does not offer HTTP/2 gets HTTP/1.1.

httpcore2 is the lower layer of httpx2. The features that httpx2 adds must not take effect here: redirects to other
hosts, proxies of the environment, cookies, and decompression of answers. Also, only the interface of httpcore2 lets a
program choose the checked address of a connection (guard.py).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from typing import Any, Final

import anyio
import httpcore2

from iu_listen.model.delivery import Failed, Unavailable
from iu_listen.targets.guard import HttpOrigin
from iu_listen.targets.http.pool import Disconnected, HttpAnswer, HttpRequest, NotAvailable, body_timeout

# At level DEBUG hpack logs all headers, which may contain a token.
logging.getLogger("hpack").setLevel(logging.INFO)

#: Texts for errors during a request; the first class that fits counts.
_ERRORS: Final[Mapping[type[Exception], str]] = {
    httpcore2.NetworkError: Disconnected.LOST,
    httpcore2.RemoteProtocolError: Disconnected.NO_ANSWER,
    httpcore2.ProtocolError: "the connection is not usable any more",
}


class Http2Connection:
    """A connection for several requests at once. Implements HttpConnection.

    Args:
        address: The URL with the origin.
        tls: The TLS context with the trusted CA certificates.
        backend: Opens the connection.
    """

    def __init__(self, address: HttpOrigin, tls: ssl.SSLContext, backend: httpcore2.AsyncNetworkBackend) -> None:
        self._origin = httpcore2.Origin(address.scheme.encode(), address.host.encode(), address.port)
        self._connection = httpcore2.AsyncHTTPConnection(self._origin, tls, http2=True, network_backend=backend)
        #: Whether a request has begun to open the connection.
        self._opening = False
        #: Set when opening has succeeded or failed.
        self._opened = anyio.Event()
        #: The reason why opening failed; None: it did not fail.
        self._failure: Unavailable | None = None

    def is_available(self) -> bool:
        """Whether a request can be sent now, or can wait until the connection is open."""
        return self._connection.is_available() and not self._connection.has_expired()

    def is_closed(self) -> bool:
        """Whether the connection is closed, or could not be opened."""
        return self._connection.is_closed()

    async def aclose(self) -> None:
        """Close the connection at once."""
        await self._connection.aclose()

    async def ask(self, request: HttpRequest) -> HttpAnswer:
        """Send a request, and read its answer, as HttpConnection specifies."""
        origin = self._origin
        url = httpcore2.URL(scheme=origin.scheme, host=origin.host, port=origin.port, target=request.path.encode())
        fields = [(name.encode(), value.encode()) for name, value in request.headers.items()]
        try:
            extensions = {"timeout": {"connect": request.connect}} | await self._traced()
            async with self._connection.stream(
                request.method, url, headers=fields, content=request.body, extensions=extensions
            ) as response:
                return await _read(response, request.most)
        except httpcore2.ConnectionNotAvailable:
            # The connection uses HTTP/1.1 instead of HTTP/2 and another request took it, or it was just closed.
            raise NotAvailable from None
        except httpcore2.TimeoutException:
            raise Failed("no answer in time", code="timeout") from None
        except tuple(_ERRORS) as error:
            raise Disconnected(next(text for kind, text in _ERRORS.items() if isinstance(error, kind))) from None
        except Unavailable as error:
            self._failure = error
            raise
        finally:
            self._opened.set()

    async def _traced(self) -> dict[str, Any]:
        """Let the first request open the connection, while the others wait for the result.

        Without this, each of them in turn would wait for a connection that cannot be opened.

        Returns:
            The extensions for the request.
        """
        if self._opening:
            await self._opened.wait()
            if self._failure is not None:
                raise Unavailable(self._failure.reason, code=self._failure.code)
            return {}
        self._opening = True

        async def happens(event: str, _: object) -> None:
            if event == "connection.start_tls.complete":
                self._opened.set()

        return {"trace": happens}


async def _read(response: httpcore2.Response, most: int) -> HttpAnswer:
    got, whole = bytearray(), False
    # A cancellation ends reading before the end of the body and leaves the connection in a clean state.
    with anyio.move_on_after(body_timeout()) as reading:
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
