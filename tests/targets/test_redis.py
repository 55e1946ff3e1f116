"""Deliveries to streams of Valkey, tested with a real server that is killed."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from redis.asyncio import Redis

from iu_listen.model.delivery import Failed, Result, Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secrets
from iu_listen.targets.redis import RedisTarget
from iu_listen.targets.redis import open as open_target
from proxy import Proxy
from targets.brokers import (
    CANARY,
    Callers,
    Certificates,
    Server,
    cut_short,
    delivery,
    free_port,
    listening,
    storm,
    until,
    valkey,
    words_of,
)

SECRETS = Secrets({"PASSWORD": CANARY, "ADMIN": "admin"}, allow_private=("127.0.0.0/8", "::1", "localhost"))


@pytest.fixture
def running(tmp_path) -> Iterator[Server]:
    yield from valkey(tmp_path).running()


@asynccontextmanager
async def target(port: int, **options: Any) -> AsyncIterator[RedisTarget]:
    made = open_target(f"redis://127.0.0.1:{port}/0?stream=events", options, SECRETS)
    try:
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await made.aclose()


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Redis]:
    async with Redis(port=port, decode_responses=True) as made:
        yield made


async def stored(port: int) -> list[dict[str, str]]:
    async with client(port) as redis:
        return [fields for _, fields in await redis.xrange("events")]


# -- delivered messages ----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_an_entry_is_the_payload_with_the_event_in_its_fields(running):
    """The fields of an entry are the key, the event, the trace and the unchanged payload.

    Fails when: a field is missing, or text is changed.
    """
    one = delivery(subject="Straße 1\r\nXADD", payload='{"name": "Zoë"}')
    async with target(running.port) as made:
        await made.deliver(one)
    (fields,) = await stored(running.port)

    assert json.loads(fields.pop("data")) == {"name": "Zoë"}
    assert fields.pop("time") == one.event.occurred_at.isoformat()
    assert fields == {
        "idempotency_key": one.idempotency_key,
        "id": str(one.event.id),
        "type": "version.applied",
        "source": "crm",
        "subject": "Straße 1\r\nXADD",
        "traceparent": one.traceparent,
    }


@pytest.mark.asyncio
@pytest.mark.parametrize(("idempotent", "entries"), [(60, 1), (0, 3)])
async def test_a_repetition_is_appended_once_where_keys_are_remembered(running, idempotent, entries):
    """A repeated delivery is not appended again within the time of the option idempotent; with 0 it is appended again.

    Fails when: the key is not remembered, or not for the time of the option.
    """
    one = delivery()
    async with target(running.port, idempotent=idempotent) as made:
        for _ in range(3):
            await made.deliver(one)
    async with client(running.port) as redis:
        left = await redis.ttl(f"events:{one.idempotency_key}")

    assert len(await stored(running.port)) == entries
    assert left in ({59, 60} if idempotent else {-2})


@pytest.mark.asyncio
async def test_what_failed_is_not_remembered(running):
    """A delivery that could not be appended is appended at the next attempt.

    Fails when: the key is remembered before the entry is appended.
    """
    one = delivery()
    async with target(running.port) as made, client(running.port) as redis:
        await redis.set("events", "no stream")
        with pytest.raises(Failed) as raised:
            await made.deliver(one)
        await redis.delete("events")
        await made.deliver(one)

    assert raised.value.code == "wrong_type"
    assert len(await stored(running.port)) == 1


@pytest.mark.asyncio
async def test_a_stream_is_trimmed_by_option_maxlen(running):
    """With the option maxlen the length of the stream stays near that limit; without it all entries stay.

    Fails when: the option does not reach the server.
    """
    async with target(running.port, maxlen=100) as made:
        for number in range(500):
            await made.deliver(delivery(number))

    assert 100 <= len(await stored(running.port)) <= 250


@pytest.mark.asyncio
async def test_nothing_is_lost_or_doubled_while_the_server_is_killed(running):
    """2 000 deliveries by 50 callers, the server killed twice: each is stored once, and none waits while it is down.

    Fails when: the key is not remembered.
    """
    deliveries = [delivery(number) for number in range(2000)]
    async with target(running.port) as made:
        callers = Callers(made)
        await storm(callers, deliveries, running.kill, running.start)

    keys = [fields["idempotency_key"] for fields in await stored(running.port)]
    assert sorted(keys) == sorted(one.idempotency_key for one in deliveries)
    assert {code for result, code in callers.outcomes if result is Result.UNAVAILABLE} <= {"connect", "loading"}
    assert callers.count(Result.FAILED) == 0
    assert callers.slowest < 2


@pytest.mark.asyncio
async def test_cancelled_deliveries_are_nobody_elses_trouble(running):
    """Hundreds of cancelled deliveries use up no connection, and all others arrive.

    Fails when: a cancelled delivery keeps its connection, or leaves its answer on it for another delivery.
    """
    short = [delivery(number) for number in range(600)]
    others = [delivery(number) for number in range(300)]
    async with target(running.port, connections=4) as made, client(running.port) as redis:
        callers = Callers(made, 10)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(callers.deliver, others)
            cut = await cut_short(made, short)
        ours = [one for one in await redis.client_list() if one["name"] == "iu-listen"]

        assert cut > 50
        assert callers.outcomes == {(Result.SENT, ""): 300}
        assert len(ours) <= 4
        assert made._free.value == 4
    assert {one.idempotency_key for one in others} <= {f["idempotency_key"] for f in await stored(running.port)}


# -- refused deliveries ----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_what_is_too_large_is_rejected_alone(running):
    """An event that is larger than the option max_bytes is rejected, and the others are delivered.

    Fails when: the option is not applied.
    """
    async with target(running.port, max_bytes=1000) as made:
        callers = Callers(made, 10)
        await callers.deliver([delivery(number, payload="7" * 1000 if number == 20 else "{}") for number in range(40)])

    assert callers.outcomes == {(Result.SENT, ""): 39, (Result.REJECTED, "too_large"): 1}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("config", "error", "code"),
    [
        (["maxmemory", "1mb"], Unavailable, "out_of_memory"),
        (["min-replicas-to-write", "1"], Unavailable, "no_replicas"),
    ],
)
async def test_what_a_server_refuses(running, config, error, code):
    """A refusal by the server is an outage or failed, depending on the first word of the answer.

    Fails when: the table of answers is not used.
    """
    async with target(running.port) as made, client(running.port) as redis:
        await made.deliver(delivery())
        await redis.config_set(*config)
        with pytest.raises(error) as raised:
            await made.deliver(delivery())

        assert raised.value.code == code


@pytest.mark.asyncio
async def test_a_stream_that_is_not_ours_fails(running):
    """A user without the permission to append fails, and a replica is an outage.

    Fails when: the answers of access lists and replicas are classified as other errors.
    """
    async with client(running.port) as redis:
        await redis.execute_command("ACL", "SETUSER", "iu", "on", f">{CANARY}", "+@all", "~other")
        async with target(running.port, user="iu", password="env:PASSWORD") as made:
            with pytest.raises(Failed) as raised:
                await made.deliver(delivery())
        assert raised.value.code == "not_authorized"
        await redis.replicaof("127.0.0.1", free_port())
        async with target(running.port) as made:
            with pytest.raises(Unavailable) as outage:
                await made.deliver(delivery())
        assert outage.value.code in {"read_only", "master_down"}


@pytest.mark.asyncio
@pytest.mark.parametrize("options", [{"password": "env:PASSWORD"}, {}], ids=["wrong", "none"])
async def test_a_wrong_password_is_an_outage_and_not_shown(tmp_path, caplog, options):
    """If the server refuses the login, the error is Unavailable; the password is in no error, no repr and no log line.

    Fails when: the text of the library, or the target's own repr, shows it.
    """
    for running in valkey(tmp_path, "--requirepass", "something-else").running():
        async with target(running.port, **options) as made:
            with pytest.raises(Unavailable) as raised:
                await made.deliver(delivery())

            assert raised.value.code == "auth"
            assert CANARY not in words_of(raised.value) + repr(made) + repr(vars(made)) + caplog.text


@pytest.mark.asyncio
async def test_a_password_lets_us_in(tmp_path, caplog):
    """With the right password a delivery arrives, and neither the target nor its attributes show the password.

    Fails when: the password does not reach the server.
    """
    for running in valkey(tmp_path, "--requirepass", CANARY).running():
        async with target(running.port, password="env:PASSWORD") as made:
            await made.deliver(delivery())

            assert made._link._connection is not None
            assert CANARY not in repr(made._link._connection) + repr(vars(made)) + caplog.text


# -- connections -----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_whoever_waits_is_told_when_a_connection_is_cut(running):
    """Deliveries that wait for an answer are Unavailable at once when connections are cut, and the next one arrives.

    Fails when: deliveries that wait for a free connection, or on another connection, are not notified.
    """
    proxy = Proxy(f"redis://127.0.0.1:{running.port}")
    async with proxy.running(), target(urlsplit(proxy.dsn).port, connections=2) as made:
        await made.deliver(delivery())
        proxy.stalled = True
        callers = Callers(made)
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(callers.attempt, delivery(number))
            await until(lambda: made._free.value == 0)
            proxy.stalled = False
            began = time.monotonic()
            proxy.reset()
        assert callers.outcomes == {(Result.UNAVAILABLE, "connect"): 50}
        assert time.monotonic() - began < 1
        await Callers(made).deliver([delivery()])


@pytest.mark.asyncio
async def test_the_privileges_of_the_page_are_enough(running):
    """A user with the access list of docs/how-to/brokers.md can deliver, and can do little else.

    Fails when: the target needs another command or key.
    """
    page = (Path(__file__).parents[2] / "docs/how-to/brokers.md").read_text()
    (rules,) = re.findall(r"ACL SETUSER iu on >secret ([^`]*)`", page)
    async with client(running.port) as redis:
        await redis.execute_command("ACL", "SETUSER", "iu", "on", f">{CANARY}", *rules.split())
        async with target(running.port, user="iu", password="env:PASSWORD") as made:
            await made.deliver(delivery())
            await made.deliver(delivery())

    assert len(await stored(running.port)) == 2


@pytest.mark.asyncio
async def test_after_an_outage_the_name_is_asked_again(running):
    """The connection to a server that has become a replica is closed, and the next delivery resolves the address again.

    Fails when: a connection to a server that accepts no writes is kept.
    """
    proxy = Proxy(f"redis://127.0.0.1:{running.port}")
    async with proxy.running(), target(urlsplit(proxy.dsn).port) as made, client(running.port) as redis:
        await made.deliver(delivery())
        await redis.replicaof("127.0.0.1", free_port())
        accepted = proxy.accepted
        with pytest.raises(Unavailable):
            await made.deliver(delivery())
        await redis.replicaof("NO", "ONE")
        await made.deliver(delivery())

        assert proxy.accepted == accepted + 1


@pytest.mark.asyncio
@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
async def test_tls_is_verified_by_the_ca_of_the_route(tmp_path, running, scheme):
    """With the CA of the server a delivery arrives over TLS; with another CA it is Unavailable.

    Fails when: the certificate is not verified, or the CA is not taken from the options.
    """
    right, wrong = Certificates(tmp_path), Certificates(tmp_path, "other")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(right.chain, right.key)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, on = await asyncio.open_connection("127.0.0.1", running.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.transport.abort()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(reader, on))
            tasks.create_task(pump(back, writer))

    async with listening(forward, ssl=context) as port:
        address = f"{scheme}://127.0.0.1:{port}/0?stream=events"
        made = open_target(address, {"ca": str(right.ca)}, SECRETS)
        await made.deliver(delivery())
        await made.aclose()
        stranger = open_target(address, {"ca": str(wrong.ca)}, SECRETS)
        with pytest.raises(Unavailable) as raised:
            await stranger.deliver(delivery())

    assert raised.value.code == "tls"
    assert len(await stored(running.port)) == 1


# -- invalid routes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "options", "says"),
    [
        ("redis://host/0?stream=x#y", {}, "a parameter that is not supported"),
        ("redis://one,two/0?stream=x", {}, "must name one server"),
        ("redis://host/x?stream=x", {}, "the number of a database"),
        ("redis://host/0", {}, "the name of one stream"),
        ("redis://host/0?stream=x", {"stream": "y"}, "the name of one stream"),
        ("redis://host/0?stream=x", {"max_len": 1}, "no option max_len"),
        ("redis://host/0?stream=x", {"maxlen": -1}, "option maxlen .* a whole number of entries from 0 to"),
        ("redis://host/0?stream=x", {"maxlen": 1.5}, "a whole number of entries"),
        ("redis://host/0?stream=x", {"idempotent": True}, "a whole number of seconds from 0 to 31536000"),
        ("redis://host/0?stream=x", {"idempotent": "24h"}, "a whole number of seconds from 0 to 31536000"),
        ("redis://host/0?stream=x", {"connections": 0}, "a whole number of connections from 1 to 100"),
        ("redis://host/0?stream=x", {"max_bytes": 0}, "a whole number of bytes from 1 to 536870912"),
        ("redis://host/0?stream=x", {"password": CANARY}, "invalid reference to a secret"),
        ("rediss://host/0?stream=x", {"ca": "/nowhere.pem"}, "option ca cannot be read"),
        ("redis://host/0?stream=x", {"ca": "/any.pem"}, "option ca of a redis target requires rediss://"),
    ],
)
def test_a_route_that_cannot_work_says_what_may_be(address, options, says):
    """An invalid address or option is refused before connecting, with its name, permitted values and no secret.

    Fails when: a row of the table of options, or the check of the address, is removed.
    """
    with pytest.raises(ConfigurationError, match=says) as raised:
        open_target(address, options, SECRETS)

    assert CANARY not in words_of(raised.value) + raised.value.hint
