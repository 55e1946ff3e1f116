"""The common part of targets with a connection to a broker: address, options, connection, and meaning of errors.

The address of a route names the servers. The options of the route contain the user, and only the places of secrets:

    {"target": {"user": "iu", "password": "env:BROKER_PASSWORD", "ca": "/etc/ssl/own.pem"}}

The text of a library's error is never shown, because it may contain a part of an event.
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

from iu_listen.model.called import split_address
from iu_listen.model.delivery import DeliveryError, Failed, Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secret, Secrets, read_ca
from iu_listen.targets.guard import Guard, check_host

T = TypeVar("T")

#: Longest time for closing a connection, in seconds.
CLOSE_TIMEOUT: Final = 2.0
#: Time after a failed connect in which no further connect is tried, in seconds. Deliveries fail at once meanwhile.
RECONNECT_PAUSE: Final = 0.5


# -- the address -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """The parts of the address of a target.

    Attributes:
        scheme: Scheme in lower case.
        servers: Host and port of each server.
        path: Path without its first slash, decoded.
        query: Parameters after the question mark, decoded.
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


def read_address(address: str, port: int, query: Iterable[str] = ()) -> BrokerAddress:
    """Parse an address.

    Args:
        address: ``scheme://host[:port][,host[:port]…]/path[?name=value]``.
        port: Default port of a server.
        query: Names of the parameters that are allowed after the question mark.

    Raises:
        ConfigurationError: The address is invalid, or contains a user or a password. The text never shows the address.
    """
    if "@" in address:
        raise ConfigurationError(
            "an address must not contain a user or a password: many roles can read routes",
            'Use the options "user": "name" and "password": "env:NAME". Write any other @ as %40.',
        )
    try:
        parts = split_address(address)
        servers = [(one.hostname or "", one.port or port) for one in map(urlsplit, _each(parts.netloc))]
        found = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
    except ValueError:
        servers = [("", 0)]
    if not all(host for host, _ in servers):
        raise ConfigurationError("invalid address; expected scheme://host:port/path", "Several hosts: host:1,host:2")
    if parts.fragment or not set(found) <= set(query):
        known = ", ".join(query) or "nothing"
        raise ConfigurationError(
            f"the address contains a parameter that is not supported (supported after the question mark: {known})"
        )
    return BrokerAddress(parts.scheme, tuple(servers), unquote(parts.path.removeprefix("/")), found)


def _each(netloc: str) -> list[str]:
    return [f"//{server}" for server in netloc.split(",")]


# -- the options -----------------------------------------------------------------------------------------------------


class Option(NamedTuple):
    """An option of a target.

    Attributes:
        allowed: Description of the allowed values, for error messages.
        fits: Whether a value is allowed.
        default: The value if the route does not set the option.
    """

    allowed: str
    fits: Callable[[Any], bool]
    default: Any = None


def text(allowed: str = "a text that is not empty") -> Option:
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
    """An option that has one of these values; the first value is the default."""
    return Option(" or ".join(values), lambda value: value in values, values[0])


#: The options that all brokers have.
COMMON_OPTIONS: Final[Mapping[str, Option]] = {
    "user": text(),
    "password": text("a reference to a secret: env:NAME or file:/path"),
    "ca": text("the path of a file of CA certificates"),
    "connect_timeout": number(0.1, 60, 5.0, "seconds", float),
}


def read_options(
    target: str, options: Mapping[str, Any], table: Mapping[str, Option], *, password_alone: bool = False
) -> dict[str, Any]:
    """The options of a route, completed with the defaults.

    Args:
        target: The kind of target, for error messages.
        options: The options that the route sets.
        table: The options that the target has.
        password_alone: Whether a password is allowed without a user.

    Raises:
        ConfigurationError: An option is unknown, or its value is not allowed. The text never shows the value.
    """
    for name in options:
        if name not in table:
            raise ConfigurationError(f"a {target} target has no option {name}", f"Options: {', '.join(sorted(table))}")
    for name, value in options.items():
        if not table[name].fits(value):
            raise ConfigurationError(f"option {name} of a {target} target must be {table[name].allowed}")
    if "user" in options and "password" not in options:
        raise ConfigurationError(f"option user of a {target} target requires option password: env:NAME or file:/path")
    if "password" in options and "user" not in options and not password_alone:
        raise ConfigurationError(f"option password of a {target} target requires option user")
    return {name: options.get(name, option.default) for name, option in table.items()}


def secret(secrets: Secrets, place: str | None) -> Secret | None:
    """The secret at a place; None: the route names no place. It raises the errors of Secrets.get()."""
    return secrets.get(place) if place else None


def tls_context(ca: str | None) -> ssl.SSLContext:
    """A TLS context that verifies servers with the CA certificates of a file, or with those of the system.

    Raises:
        ConfigurationError: The file cannot be read, or contains no certificates.
    """
    try:
        return ssl.create_default_context(cadata=read_ca(ca))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the file of option ca cannot be read: {type(error).__name__}") from None


def guard_of(where: BrokerAddress, secrets: Secrets) -> Guard:
    """The guard for the connections of a target.

    Raises:
        ConfigurationError: A server is written as an IP address that is not allowed.
    """
    guard = Guard.allowing(secrets.allow_private)
    for host, _ in where.servers:
        check_host(guard, host)
    return guard


# -- outcomes of errors ----------------------------------------------------------------------------------------------


class ErrorOutcome(NamedTuple):
    """The outcome of a delivery after an error of a library.

    Attributes:
        error: Class of the error, or of an error that is its cause.
        outcome: The exception that stands for the outcome.
        code: The reason as a code, for programs.
        reason: The reason as a text, for people.
    """

    error: type[BaseException] | tuple[type[BaseException], ...]
    outcome: type[DeliveryError]
    code: str
    reason: str


#: The outcomes of errors while connecting. TimeoutError is a subclass of OSError.
CONNECT_ERRORS: Final = (
    ErrorOutcome(ssl.SSLError, Unavailable, "tls", "TLS with the server failed: certificate or protocol"),
    ErrorOutcome(socket.gaierror, Unavailable, "dns", "the name of the server cannot be resolved"),
    ErrorOutcome(OSError, Unavailable, "connect", "the server cannot be reached"),
)


def outcome_for(
    error: BaseException, table: Iterable[ErrorOutcome], otherwise: type[DeliveryError] = Failed
) -> DeliveryError:
    """The outcome for an error: from the first row of the table that fits the error or one of its causes.

    Args:
        error: The error of the library.
        table: The rows, in the order in which they are tried.
        otherwise: The outcome if no row fits.
    """
    chain = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    for part in chain:
        # A DeliveryError that was raised inside the library, for example because an address is not allowed.
        if isinstance(part, DeliveryError):
            return type(part)(part.reason, code=part.code)
    for kind, outcome, code, reason in table:
        if any(isinstance(part, kind) for part in chain):
            return outcome(reason, code=code)
    code = "connect" if otherwise is Unavailable else "target_error"
    return otherwise(f"the client library failed: {type(error).__name__}", code=code)


# -- the connection --------------------------------------------------------------------------------------------------


class SharedConnection(Generic[T]):
    """The connection that all deliveries of a target share. It is opened on demand, and again after it was lost.

    While there is no connection, one delivery tries to connect, and the others wait for the result. For RECONNECT_PAUSE
    seconds after a failure no delivery tries. When the connection is lost, all deliveries that use it fail at once.

    Args:
        connect: Opens the connection, or raises a DeliveryError. After an error it leaves nothing open.
        close: Closes the connection.
        timeout: Longest time for connecting, in seconds.
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
            DeliveryError: The connection could not be opened; it is the error of ``connect``.
            Unavailable: The connection was lost during its use, or connecting took too long.
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
        """Give up the connection: all deliveries that use it fail. Ignore a connection that is not the current one."""
        if connection is self._connection:
            self._connection = None
            for scope in self._users:
                scope.cancel()
            self._users.clear()

    async def drop(self, connection: T) -> None:
        """Give up the connection as lost() does, and close it."""
        self.lost(connection)
        await close_quietly(self._close, connection)

    async def aclose(self) -> None:
        """Close the connection in at most CLOSE_TIMEOUT seconds."""
        if self._connection is not None:
            await self.drop(self._connection)

    async def _get(self) -> T:
        if self._connection is not None:
            return self._connection
        async with self._lock:
            if self._connection is not None:
                return self._connection
            if self._failure is not None and time.monotonic() < self._until:
                # A new exception, because an exception that is raised twice accumulates both tracebacks.
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
            self._until = time.monotonic() + RECONNECT_PAUSE
            raise self._failure from None


async def close_quietly(close: Callable[[T], Awaitable[object]], connection: T) -> None:
    """Close a connection in at most CLOSE_TIMEOUT seconds, also if the caller is cancelled meanwhile."""
    with anyio.move_on_after(CLOSE_TIMEOUT, shield=True), suppress(Exception):
        await close(connection)
