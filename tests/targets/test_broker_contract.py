"""The behaviour that the targets for Kafka, NATS and Redis have in common; each test runs for each of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import pytest

from iu_listen.flow.ports import Target
from iu_listen.model.delivery import Result, Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secrets
from iu_listen.targets import Targets, kafka, nats, redis
from targets.brokers import CANARY, Callers, delivery, free_port, listening, words_of

SECRETS = Secrets({"PASSWORD": CANARY}, allow_private=("127.0.0.0/8", "::1", "localhost"))


class Broker(NamedTuple):
    """A kind of broker.

    Attributes:
        module: The module of its target.
        address: An address; SERVERS stands for the servers.
        servers: Number of servers that the address names.
        longest: Longest time of a delivery to a silent server with a connect timeout of 0.3 s, in seconds.
        options: Options for a login.
    """

    module: Any
    address: str
    servers: int
    longest: float
    options: dict[str, Any]

    def of(self, *servers: str) -> str:
        return self.address.replace("SERVERS", ",".join(servers))


LOGIN = {"user": "iu", "password": "env:PASSWORD"}
BROKERS = {
    "kafka": Broker(kafka, "kafka://SERVERS/events", 2, 2.0, LOGIN | {"mechanism": "PLAIN"}),
    "nats": Broker(nats, "nats://SERVERS/events.all", 1, 1.0, LOGIN),
    "redis": Broker(redis, "redis://SERVERS/0?stream=events", 1, 1.0, LOGIN),
}


@pytest.fixture(params=BROKERS)
def broker(request) -> Broker:
    return BROKERS[request.param]


@asynccontextmanager
async def target(broker: Broker, *servers: str, **options: Any) -> AsyncIterator[Target]:
    made = broker.module.open(broker.of(*servers), options, SECRETS)
    try:
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await made.aclose()


@pytest.mark.asyncio
async def test_without_a_server_all_deliveries_are_unavailable_at_once(broker, caplog):
    """If no server listens, 50 deliveries are Unavailable within a second; the password is shown nowhere.

    Fails when: each delivery connects separately, the library retries by itself, or its messages or arguments are shown.
    """
    servers = [f"127.0.0.1:{free_port()}" for _ in range(broker.servers)]
    async with target(broker, *servers, **broker.options) as made:
        callers = Callers(made)
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(callers.attempt, delivery(number))
        assert time.monotonic() - began < 1
        with pytest.raises(Unavailable) as raised:
            await made.deliver(delivery())

        assert callers.outcomes == {(Result.UNAVAILABLE, "connect"): 50}
        assert CANARY not in words_of(raised.value) + repr(made) + repr(vars(made)) + caplog.text


@pytest.mark.asyncio
async def test_an_unknown_host_has_a_code_of_its_own(broker):
    """A delivery to a host name that does not exist is Unavailable with the code ``dns``.

    Fails when: the host name is not resolved before the library connects.
    """
    async with target(broker, "nowhere.invalid") as made:
        with pytest.raises(Unavailable) as raised:
            await made.deliver(delivery())
    assert raised.value.code == "dns"


@pytest.mark.asyncio
async def test_a_silent_server_costs_one_connect_timeout(broker):
    """If the server accepts and does not answer, the connect timeout applies once, and later deliveries do not wait.

    Fails when: connecting is not bounded, or a failure is not remembered.
    """

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(silent) as port, target(broker, f"127.0.0.1:{port}", connect_timeout=0.3) as made:
        for longest in (broker.longest, 0.1):
            began = time.monotonic()
            with pytest.raises(Unavailable) as raised:
                await made.deliver(delivery())
            assert raised.value.code == "connect"
            assert time.monotonic() - began < longest


@pytest.mark.parametrize(
    ("servers", "options", "says"),
    [
        (f"iu:{CANARY}@host", {}, "must not contain a user or a password"),
        ("", {}, "expected scheme://host:port/path"),
        ("host,", {}, "expected scheme://host:port/path"),
        ("host:x", {}, "expected scheme://host:port/path"),
        ("host", {"tokn": "env:PASSWORD"}, "no option tokn"),
        ("host", {"user": "iu", "password": CANARY}, "invalid reference to a secret"),
        ("host", {"user": "iu", "password": "env:NOWHERE"}, "NOWHERE is not set"),
        ("host", {"user": "iu", "password": 7}, "option password of a .* target must be a reference"),
        ("host", {"user": "iu"}, "requires option password"),
        ("host", {"connect_timeout": 0}, "a number of seconds from 0.1 to 60"),
        ("host", {"connect_timeout": "5"}, "a number of seconds from 0.1 to 60"),
        ("host", {"connect_timeout": True}, "a number of seconds from 0.1 to 60"),
        ("host", {"connect_timeout": 61}, "a number of seconds from 0.1 to 60"),
    ],
)
def test_an_invalid_address_or_option_is_refused(broker, servers, options, says):
    """An invalid address or option is refused before connecting, with its name, permitted values and no secret.

    Fails when: a row of the table of common options, or the check of the address, is removed.
    """
    with pytest.raises(ConfigurationError, match=says) as raised:
        broker.module.open(broker.of(servers), options, SECRETS)

    assert CANARY not in words_of(raised.value) + raised.value.hint


def test_a_parameter_of_the_address_is_not_a_password(broker):
    """An address with a parameter that the target does not have is refused; the message does not show its value.

    Fails when: the check of the parameters is removed.
    """
    address = broker.of("host")
    with pytest.raises(ConfigurationError, match="a parameter that is not supported") as raised:
        broker.module.open(f"{address}{'&' if '?' in address else '?'}password={CANARY}", {}, SECRETS)

    assert CANARY not in words_of(raised.value) + raised.value.hint


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("kafka", kafka.KafkaTarget), ("nats", nats.NatsTarget), ("tls", nats.NatsTarget), ("redis", redis.RedisTarget),
        ("rediss", redis.RedisTarget), ("valkey", redis.RedisTarget), ("valkeys", redis.RedisTarget),
    ],
)  # fmt: skip
def test_a_route_finds_the_target_by_the_scheme(scheme, kind):
    """A route of the kind external_endpoint finds the target by the scheme of its address.

    Fails when: an entry point is missing.
    """
    path = "0?stream=x" if kind is redis.RedisTarget else "x"
    found = Targets(allow_private="127.0.0.0/8,::1").find("external_endpoint", f"{scheme}://host/{path}", {})
    assert isinstance(found, kind)
