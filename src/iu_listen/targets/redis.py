"""A stream of Redis or Valkey as a target: ``redis://host:6379/0?stream=name``, ``rediss://`` and ``valkey(s)://``.

A stream does not detect repeated entries. So a script appends the entry and stores the idempotency key in a key beside
the stream, in one atomic step. A repeated delivery within the time of the option ``idempotent`` finds the key and
appends nothing.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any, Final

import anyio
from redis import exceptions as errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from iu_listen.model.delivery import Delivery, DeliveryError, Failed, Reject, Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secret, Secrets, read_ca
from iu_listen.targets.broker import (
    COMMON_OPTIONS,
    CONNECT_ERRORS,
    BrokerAddress,
    ErrorOutcome,
    Option,
    SharedConnection,
    close_quietly,
    guard_of,
    number,
    outcome_for,
    read_address,
    read_options,
    secret,
    text,
    tls_context,
)
from iu_listen.targets.cloudevents import attributes
from iu_listen.targets.guard import Guard, allowed

REDIS_OPTIONS: Final[Mapping[str, Option]] = {
    **COMMON_OPTIONS,
    "stream": text("the name of a stream"),
    "idempotent": number(0, 31_536_000, 86_400, "seconds"),
    "maxlen": number(0, 1e12, 0, "entries"),
    "max_bytes": number(1, 536_870_912, 536_870_912, "bytes"),
    "connections": number(1, 100, 8, "connections"),
}

#: The schemes with TLS.
TLS_SCHEMES: Final = frozenset({"rediss", "valkeys"})

# The script appends first, so that no key is stored if appending fails. With "~" the server trims the stream only when
# that is cheap.
APPEND_SCRIPT: Final = """
local seconds, maxlen = tonumber(ARGV[1]), tonumber(ARGV[2])
if seconds > 0 then
    local known = redis.call('GET', KEYS[2])
    if known then return known end
end
local entry = {'XADD', KEYS[1]}
if maxlen > 0 then
    table.insert(entry, 'MAXLEN')
    table.insert(entry, '~')
    table.insert(entry, ARGV[2])
end
table.insert(entry, '*')
for i = 3, #ARGV do table.insert(entry, ARGV[i]) end
local id = redis.call(unpack(entry))
if seconds > 0 then redis.call('SET', KEYS[2], id, 'EX', ARGV[1]) end
return id
"""

#: The outcomes of errors of the library, while connecting and later. The first row that fits counts.
REDIS_ERRORS: Final = (
    *CONNECT_ERRORS[:2],
    ErrorOutcome(
        (errors.AuthenticationError, errors.AuthenticationWrongNumberOfArgsError),
        Unavailable, "auth", "the server rejected the login",
    ),
    ErrorOutcome(errors.BusyLoadingError, Unavailable, "loading", "the server is loading its data"),
    ErrorOutcome(errors.ReadOnlyError, Unavailable, "read_only", "the server is a replica"),
    ErrorOutcome(errors.OutOfMemoryError, Unavailable, "out_of_memory", "the server has no memory left"),
    ErrorOutcome(errors.MasterDownError, Unavailable, "master_down", "the server has lost its master"),
    ErrorOutcome(
        (errors.NoPermissionError, errors.AuthorizationError),
        Failed, "not_authorized", "the user is not allowed to append to the stream",
    ),
    ErrorOutcome(errors.AskError, Failed, "cluster", "another server of the cluster has the stream"),
    ErrorOutcome(
        (errors.ConnectionError, errors.TimeoutError, OSError), Unavailable, "connect", "the server cannot be reached"
    ),
)  # fmt: skip

#: The outcomes of errors that have no class of their own, by a word in the answer of the server.
REDIS_ANSWERS: Final = (
    ("WRONGTYPE", Failed, "wrong_type", "the key of the stream has another type"),
    ("NOAUTH", Unavailable, "auth", "the server requires a user and a password"),
    ("WRONGPASS", Unavailable, "auth", "the server rejected the login"),
    ("NOPERM", Failed, "not_authorized", "the user is not allowed to append to the stream"),
    ("OOM", Unavailable, "out_of_memory", "the server has no memory left"),
    ("READONLY", Unavailable, "read_only", "the server is a replica"),
    ("MISCONF", Unavailable, "not_saving", "the server cannot save its data, and accepts no writes"),
    ("NOREPLICAS", Unavailable, "no_replicas", "the server has too few replicas, and accepts no writes"),
    ("CLUSTERDOWN", Unavailable, "cluster_down", "the cluster is down"),
    ("invalid bulk length", Reject, "too_large", "larger than the server accepts"),
    ("DB index is out of range", Unavailable, "no_database", "the database does not exist on the server"),
)


def open(address: str, options: Mapping[str, Any], secrets: Secrets) -> RedisTarget:
    """Create the target of an address, without a connection.

    Args:
        address: ``redis://host[:6379][/database][?stream=name]``, or ``rediss://`` for TLS; for Valkey ``valkey://``
            and ``valkeys://``.
        options: Values for options of REDIS_OPTIONS.
        secrets: The secrets that the options may name.

    Raises:
        ConfigurationError: The address or an option is invalid.
    """
    where = read_address(address, 6379, ["stream"])
    given = read_options("redis", options, REDIS_OPTIONS, password_alone=True)
    if len(where.servers) > 1:
        raise ConfigurationError("the address of a redis target must name one server")
    if not re.fullmatch(r"\d{0,5}", where.path, re.ASCII):
        raise ConfigurationError(
            "the path of a redis target must be the number of a database", "redis://host/0?stream=name"
        )
    if given["ca"] and where.scheme not in TLS_SCHEMES:
        raise ConfigurationError("option ca of a redis target requires rediss:// or valkeys://")
    named = {name for name in (where.query.get("stream"), given["stream"]) if name}
    if len(named) != 1:
        raise ConfigurationError(
            "a redis target requires the name of one stream", "In the address, ?stream=name, or as option stream."
        )
    return RedisTarget(where, named.pop(), given, secret(secrets, given["password"]), guard_of(where, secrets))


class RedisTarget:
    """A stream of a Redis or Valkey server. Implements flow.ports.Target.

    Args:
        where: The server.
        stream: The name of the stream.
        options: Values of all options of REDIS_OPTIONS.
        password: The password; None: no authentication.
        guard: The allowed hosts and networks.

    Raises:
        ConfigurationError: The file of CA certificates cannot be read.
    """

    def __init__(
        self, where: BrokerAddress, stream: str, options: Mapping[str, Any], password: Secret | None, guard: Guard
    ) -> None:
        self._where = where
        self._guard = guard
        self._stream = stream
        self._options = options
        self._password = password
        self._ttl, self._maxlen, self._max_bytes = (options[name] for name in ("idempotent", "maxlen", "max_bytes"))
        self._encrypted = where.scheme in TLS_SCHEMES
        if self._encrypted:
            # Detects an invalid file now; the library would read it only when it connects.
            tls_context(options["ca"])
            self._ca = read_ca(options["ca"])
        # A connection executes one command at a time. The waiting pool of the library can lose a connection when a
        # waiting task is cancelled, so tasks wait at this semaphore instead.
        self._free = anyio.Semaphore(options["connections"])
        self._link: SharedConnection[Redis] = SharedConnection(self._connect, Redis.aclose, options["connect_timeout"])

    def __repr__(self) -> str:
        return f"RedisTarget({self._where}, {self._stream})"

    async def deliver(self, delivery: Delivery, /) -> None:
        """Append the event, unless its idempotency key is stored already.

        Raises:
            DeliveryError: The event was not appended; REDIS_ERRORS and REDIS_ANSWERS have the outcomes.
        """
        fields = fields_of(delivery)
        size = sum(len(name) + len(value) for name, value in fields.items())
        if size > self._max_bytes:
            raise Reject(f"larger than option max_bytes allows ({self._max_bytes} bytes)", code="too_large")
        entry = [part for field in fields.items() for part in field]
        keys = self._stream, f"{self._stream}:{delivery.idempotency_key}"
        async with self._link.use() as redis, self._free:
            try:
                # The script is sent as text, because after a restart a server does not know the hash of the script.
                await redis.eval(APPEND_SCRIPT, 2, *keys, self._ttl, self._maxlen, *entry)
            except (errors.RedisError, OSError) as error:
                failed = self._judged(error)
                if isinstance(failed, Unavailable):
                    # The connection is dropped even if the server answered: after a failover the name may resolve to
                    # another server.
                    await self._link.drop(redis)
                raise failed from None

    async def aclose(self) -> None:
        """Close the connections in at most CLOSE_TIMEOUT seconds (broker.py)."""
        await self._link.aclose()

    async def _connect(self) -> Redis:
        ((host, port),) = self._where.servers
        tls: dict[str, Any] = {}
        if self._encrypted:
            tls = {"ssl": True, "ssl_ca_data": self._ca, "ssl_min_version": ssl.TLSVersion.TLSv1_2}
        redis = Redis(
            host=host,
            port=port,
            db=int(self._where.path or 0),
            username=self._options["user"],
            password=self._password.reveal() if self._password else None,
            # No retries in the library: the retry policy of the route decides.
            retry=Retry(NoBackoff(), 0),
            # No timeout in the library: the deadline of the delivery limits its duration.
            socket_timeout=None,
            socket_connect_timeout=self._options["connect_timeout"],
            client_name="iu-listen",
            **tls,
        )
        pool = redis.connection_pool
        pool.connection_class = _guarded(pool.connection_class, self._guard)
        try:
            await redis.ping()
        except BaseException as error:
            await close_quietly(Redis.aclose, redis)
            if not isinstance(error, Exception) or isinstance(error, DeliveryError):
                raise
            raise self._judged(error) from None
        return redis

    @staticmethod
    def _judged(error: Exception) -> DeliveryError:
        for word, outcome, code, reason in REDIS_ANSWERS:
            if isinstance(error, errors.RedisError) and word in str(error):
                return outcome(reason, code=code)
        return outcome_for(error, REDIS_ERRORS)


def _guarded(kind: Any, guard: Guard) -> Any:
    """A subclass of a connection class that connects to a checked address; the library would resolve the name again."""

    class Guarded(kind):  # type: ignore[misc]
        async def _connect(self) -> None:
            self._address = (await allowed(guard, self.host, self.port))[0]
            await super()._connect()

        def _connection_arguments(self) -> dict[str, Any]:
            found = {**super()._connection_arguments(), "host": self._address}
            return found | ({"server_hostname": self.host} if found.get("ssl") else {})

    return Guarded


def fields_of(delivery: Delivery) -> dict[str, bytes]:
    """The fields of a stream entry: idempotency key, attributes of the event, trace context, and payload."""
    event = attributes(delivery)
    fields = {"idempotency_key": delivery.idempotency_key} | {
        name: event[name] for name in ("id", "type", "source", "subject", "time") if name in event
    }
    fields["traceparent"] = delivery.traceparent
    return {name: value.encode() for name, value in (fields | {"data": delivery.event.payload}).items()}
