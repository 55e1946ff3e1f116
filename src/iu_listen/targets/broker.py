"""What the targets share that keep a connection to a broker: address, options, the connection, and what errors mean.

A route says where; who we are there is said by its options, and secrets only by their place:

    {"target": {"user": "iu", "password": "env:BROKER_PASSWORD", "ca": "/etc/ssl/own.pem"}}

No error of a library is shown: its text may hold what was being worked on.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio

from iu_listen.model.delivery import DeliveryError, Failed, Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secret, Secrets, read_ca
from iu_listen.targets.guard import Guard, check_host

T = TypeVar("T")

#: Longest goodbye of a connection, in seconds.
GOODBYE: Final = 2.0
#: How long nobody tries again to connect after a failure, in seconds: until then deliveries fail at once.
KNOWN_DOWN: Final = 0.5


# -- the address -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """Where a target is.

    Attributes:
        scheme: As in the address, lower case.
        servers: Host and port of each server.
        path: What follows the servers, without its first slash, decoded.
        query: What follows the question mark, decoded.
    """

    scheme: str
    servers: tuple[tuple[str, int], ...]
    path: str
    query: Mapping[str, str]

    @property
    def hosts(self) -> list[str]:
        """``host:port`` of each server."""
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.servers]

    def __str__(self) -> str:
        return f"{self.scheme}://{','.join(self.hosts)}/{self.path}"


def read_address(address: str, port: int, query: Iterable[str] = ()) -> Address:
    """Take an address apart.

    Args:
        address: ``scheme://host[:port][,host[:port]…]/path[?name=value]``.
        port: Of a server that names none.
        query: What may follow the question mark.

    Raises:
        ConfigurationError: it is no such address, or holds a user or a password. The text never shows the address.
    """
    if "@" in address:
        raise ConfigurationError(
            "an address must not hold a user or a password: routes are read by many",
            'Give them as options: "user": "name", "password": "env:NAME". An @ that is meant is written %40.',
        )
    try:
        parts = urlsplit(address)
        servers = [(one.hostname or "", one.port or port) for one in map(urlsplit, _each(parts.netloc))]
        found = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
    except ValueError:
        servers = [("", 0)]
    if not all(host for host, _ in servers):
        raise ConfigurationError("the address is none: scheme://host:port/path", "Several hosts: host:1,host:2")
    if parts.fragment or not set(found) <= set(query):
        known = ", ".join(query) or "nothing"
        raise ConfigurationError(f"the address holds more than it may (after the question mark: {known})")
    return Address(parts.scheme, tuple(servers), unquote(parts.path.removeprefix("/")), found)


def _each(netloc: str) -> list[str]:
    return [f"//{server}" for server in netloc.split(",")]


# -- the options -----------------------------------------------------------------------------------------------------


class Option(NamedTuple):
    """An option of a target.

    Attributes:
        allowed: What it may be, for a person.
        fits: Whether a value is that.
        default: Its value where the route does not give it.
    """

    allowed: str
    fits: Callable[[Any], bool]
    default: Any = None


def text(allowed: str = "text that is not empty") -> Option:
    """An option that is text."""
    return Option(allowed, lambda value: isinstance(value, str) and value != "")


def number(low: float, high: float, default: float, unit: str, kind: type = int) -> Option:
    """An option that is a number, whole if ``kind`` is int."""
    kinds = (int,) if kind is int else (int, float)
    return Option(
        f"{'a whole number' if kind is int else 'a number'} of {unit} from {low:g} to {high:.12g}",
        lambda value: isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high,
        default,
    )


def choice(*values: str) -> Option:
    """An option that is one of a few words; the first is the default."""
    return Option(" or ".join(values), lambda value: value in values, values[0])


#: What every broker needs.
COMMON: Final[Mapping[str, Option]] = {
    "user": text(),
    "password": text("the place of a secret: env:NAME or file:/path"),
    "ca": text("the path of a file of CA certificates"),
    "connect_timeout": number(0.1, 60, 5.0, "seconds", float),
}


def read_options(
    target: str, options: Mapping[str, Any], table: Mapping[str, Option], *, password_alone: bool = False
) -> dict[str, Any]:
    """The options of a route, with the defaults.

    Args:
        target: What the target is called.
        options: As the route gives them.
        table: What there is.
        password_alone: Whether a password may do without a user.

    Raises:
        ConfigurationError: there is no such option, or it may not be that. The text never shows the value.
    """
    for name in options:
        if name not in table:
            raise ConfigurationError(f"a {target} target has no option {name}", f"Options: {', '.join(sorted(table))}")
    for name, value in options.items():
        if not table[name].fits(value):
            raise ConfigurationError(f"option {name} of a {target} target must be {table[name].allowed}")
    if "user" in options and "password" not in options:
        raise ConfigurationError(f"option user of a {target} target needs option password: env:NAME or file:/path")
    if "password" in options and "user" not in options and not password_alone:
        raise ConfigurationError(f"option password of a {target} target needs option user")
    return {name: options.get(name, option.default) for name, option in table.items()}


def secret(secrets: Secrets, place: str | None) -> Secret | None:
    """The secret of an option; None: the route gives none. Raises as Secrets.get() does."""
    return secrets.get(place) if place else None


def tls_context(ca: str | None) -> ssl.SSLContext:
    """What a server is verified by: the CAs of a file, else those of the system.

    Raises:
        ConfigurationError: the file cannot be read, or holds none.
    """
    try:
        return ssl.create_default_context(cadata=read_ca(ca))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the file of option ca cannot be read: {type(error).__name__}") from None


def guard_of(where: Address, secrets: Secrets) -> Guard:
    """Which servers may be connected to.

    Raises:
        ConfigurationError: one of the address is written as an address that is not allowed.
    """
    guard = Guard.allowing(secrets.allow_private)
    for host, _ in where.servers:
        check_host(guard, host)
    return guard


# -- what errors mean ------------------------------------------------------------------------------------------------


class Meaning(NamedTuple):
    """What an error of a library means for a delivery.

    Attributes:
        error: The error, or what it was raised from.
        outcome: What comes of the delivery.
        code: The same for a machine.
        reason: The same for a person.
    """

    error: type[BaseException] | tuple[type[BaseException], ...]
    outcome: type[DeliveryError]
    code: str
    reason: str


#: Of a connection that does not come about. TimeoutError is an OSError.
CONNECTING: Final = (
    Meaning(ssl.SSLError, Unavailable, "tls", "no TLS with the server: its certificate or its protocol"),
    Meaning(socket.gaierror, Unavailable, "dns", "the name of the server does not resolve"),
    Meaning(OSError, Unavailable, "connect", "the server cannot be reached"),
)


def judged(error: BaseException, table: Iterable[Meaning], otherwise: type[DeliveryError] = Failed) -> DeliveryError:
    """What an error means: by the first line of the table that fits it, or what it was raised from."""
    chain = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    for part in chain:
        # Ours, from inside of the library: an address that may not be connected to.
        if isinstance(part, DeliveryError):
            return type(part)(part.reason, code=part.code)
    for kind, outcome, code, reason in table:
        if any(isinstance(part, kind) for part in chain):
            return outcome(reason, code=code)
    code = "connect" if otherwise is Unavailable else "target_error"
    return otherwise(f"the client failed: {type(error).__name__}", code=code)


# -- the connection --------------------------------------------------------------------------------------------------


class Link(Generic[T]):
    """The connection that all deliveries of a target share: made when one needs it, made anew when it was lost.

    While it is down nobody waits: one delivery tries, the others wait for what comes of that, and for a moment after a
    failure nobody tries. When it is lost all that use it fail at once.

    Args:
        connect: Makes the connection, or raises a DeliveryError; it leaves nothing open that it did not return.
        close: Ends it.
        timeout: How long connecting may take, in seconds.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[T]],
        close: Callable[[T], Awaitable[object]],
        timeout: float,
    ) -> None:
        self._connect = connect
        self._close = close
        self._timeout = timeout
        self._lock = anyio.Lock()
        self._connection: T | None = None
        self._users: set[anyio.CancelScope] = set()
        self._failure: DeliveryError | None = None
        self._until = 0.0

    @asynccontextmanager
    async def use(self) -> AsyncIterator[T]:
        """The connection, for one delivery.

        Raises:
            DeliveryError: it cannot be had, as ``connect`` says; Unavailable: it was lost meanwhile.
        """
        connection = await self._get()
        with anyio.CancelScope() as scope:
            self._users.add(scope)
            try:
                yield connection
            finally:
                self._users.discard(scope)
        if scope.cancelled_caught:
            raise Unavailable("the connection was lost", code="connect")

    def lost(self, connection: T) -> None:
        """The connection is of no use any more: whoever uses it fails. Nothing happens if it is not ours any more."""
        if connection is self._connection:
            self._connection = None
            for scope in self._users:
                scope.cancel()
            self._users.clear()

    async def drop(self, connection: T) -> None:
        """As lost(), and end it."""
        self.lost(connection)
        await goodbye(self._close, connection)

    async def aclose(self) -> None:
        """End the connection, in GOODBYE seconds at most."""
        if self._connection is not None:
            await self.drop(self._connection)

    async def _get(self) -> T:
        if self._connection is not None:
            return self._connection
        async with self._lock:
            if self._connection is not None:
                return self._connection
            if self._failure is not None and time.monotonic() < self._until:
                # Not the same one: what is raised twice collects the traces of both.
                raise type(self._failure)(self._failure.reason, code=self._failure.code)
            try:
                with anyio.fail_after(self._timeout):
                    self._connection = await self._connect()
            except TimeoutError:
                self._failure = Unavailable(f"no connection within {self._timeout:g} s", code="connect")
            except DeliveryError as error:
                self._failure = error
            else:
                self._failure = None
                return self._connection
            self._until = time.monotonic() + KNOWN_DOWN
            raise self._failure from None


async def goodbye(close: Callable[[T], Awaitable[object]], connection: T) -> None:
    """End something, in GOODBYE seconds at most, whatever happens to whoever asks for it."""
    with anyio.move_on_after(GOODBYE, shield=True), suppress(Exception):
        await close(connection)
