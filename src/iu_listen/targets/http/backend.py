"""Opens connections for HTTP, only to addresses that were checked."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import anyio
import httpcore2

from iu_listen.model.delivery import Unavailable
from iu_listen.targets.guard import Guard, Resolve, allowed, resolve

#: What a connection to an address results in.
Connected = TypeVar("Connected")


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections only to addresses that were checked: a name is resolved once for each connection.

    An error before a request is sent becomes Unavailable, with the code ``dns``, ``address_refused``, ``connect`` or
    ``tls``. Such an error does not depend on the event, so it must not make the event a dead letter.

    Args:
        guard: The allowed hosts and networks.
        resolve: Resolves host names.
    """

    def __init__(self, guard: Guard, resolve: Resolve = resolve) -> None:
        self._guard = guard
        self._resolve = resolve
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to a host within ``timeout`` seconds; its addresses are tried one after another.

        Raises:
            Unavailable: The host has no address or none that is allowed, or none of them answers.
        """
        stream = await self.first(
            host,
            port,
            timeout,
            lambda address: self._inner.connect_tcp(address, port, None, local_address, socket_options),
        )
        return _Stream(stream, host)

    async def first(
        self, host: str, port: int, timeout: float | None, connect: Callable[[str], Awaitable[Connected]]
    ) -> Connected:
        """The result of ``connect`` for the first allowed address of a host that answers, within ``timeout`` seconds.

        Raises:
            Unavailable: The host has no address or none that is allowed, or none of them answers.
        """
        with anyio.move_on_after(timeout) as scope:
            addresses = await allowed(self._guard, host, port, self._resolve)
            kind = ""
            for left in range(len(addresses), 0, -1):
                # An address that does not answer must not use up the time of the others.
                share = (scope.deadline - anyio.current_time()) / left
                try:
                    with anyio.fail_after(share):
                        return await connect(addresses[-left])
                except (OSError, httpcore2.ConnectError) as error:
                    kind = type(_root(error)).__name__
            raise Unavailable(f"no connection to {host}, port {port}: {kind}", code="connect")
        raise Unavailable(f"no connection to {host}, port {port}, within {timeout:g} s", code="connect")


class _Stream(httpcore2.AsyncNetworkStream):
    """A connection that distinguishes errors of TLS from errors of the network."""

    def __init__(self, inner: httpcore2.AsyncNetworkStream, host: str) -> None:
        self._inner = inner
        self._host = host

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return await self._inner.start_tls(ssl_context, server_hostname, timeout)
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
            raise tls_failure(self._host, _root(error)) from None
        except BaseException:
            # After a cancellation httpcore2 would leave the connection to the garbage collector.
            with anyio.CancelScope(shield=True):
                await self._inner.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def tls_failure(host: str, error: BaseException) -> Unavailable:
    """The outcome of a TLS handshake that failed with this error."""
    # The text comes from OpenSSL and concerns the certificate or the protocol; it contains no secrets.
    why = getattr(error, "verify_message", "") or getattr(error, "reason", "") or type(error).__name__
    return Unavailable(f"TLS with {host} failed: {why}", code="tls")


def _root(error: BaseException) -> BaseException:
    """The first error in the chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
