"""Deliveries to NATS JetStream, tested with a real server that is killed."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import nats
import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from iu_listen.model.delivery import Failed, Reject, Result, Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secrets
from iu_listen.model.spans import starting_context
from iu_listen.targets.nats import NatsTarget
from iu_listen.targets.nats import open as open_target
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
    words_of,
)

BINARY = shutil.which("nats-server")
needs_server = pytest.mark.skipif(BINARY is None, reason="there is no nats-server on PATH")
SECRETS = Secrets({"PASSWORD": CANARY, "OTHER": "another"}, allow_private=("127.0.0.0/8", "::1", "localhost"))
ACCOUNTS = """
authorization {{ users: [
    {{ user: iu, password: {canary}, permissions: {{ publish: {{ deny: ["events.secret"] }} }} }}
    {{ user: admin, password: admin }}
] }}
"""


def server(folder: Path, extra: str = "") -> Server:
    port = free_port()
    config = folder / "nats.conf"
    config.write_text(f"listen: 127.0.0.1:{port}\njetstream {{ store_dir: {folder / 'data'} }}\n{extra}\n")
    return Server([BINARY or "", "-c", config], port)


@pytest.fixture
def running(tmp_path) -> Iterator[Server]:
    yield from server(tmp_path).running()


@asynccontextmanager
async def target(port: int, subject: str = "events.all", **options: Any) -> AsyncIterator[NatsTarget]:
    made = open_target(f"nats://127.0.0.1:{port}/{subject}", options, SECRETS)
    try:
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await made.aclose()


@asynccontextmanager
async def stream(port: int, **config: Any) -> AsyncIterator[Any]:
    """A client of the test, and a stream of all events."""
    client = await nats.connect(f"nats://127.0.0.1:{port}", **config.pop("who", {}))
    try:
        jetstream = client.jetstream()
        await jetstream.add_stream(name="events", subjects=["events.>"], **config)
        yield jetstream
    finally:
        await client.close()


async def stored(port: int) -> list[Any]:
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    try:
        found: list[Any] = []
        jetstream = client.jetstream()
        count = (await jetstream.stream_info("events")).state.messages
        reader = await jetstream.pull_subscribe(
            "events.>", stream="events", config=ConsumerConfig(ack_policy=AckPolicy.NONE)
        )
        while len(found) < count:
            found += await reader.fetch(min(500, count - len(found)), timeout=10)
        return found
    finally:
        await client.close()


# -- delivered messages ----------------------------------------------------------------------------------------------


@needs_server
@pytest.mark.asyncio
async def test_a_message_is_the_payload_with_the_event_in_its_headers(running):
    """A message holds the unchanged payload; its headers are the key, the trace and CloudEvents, percent-encoded.

    Fails when: a header is missing, or text that is invalid in a header is sent unencoded.
    """
    one = delivery(subject="Straße 1\r\nEvil: yes", payload='{"name": "Zoë"}')
    async with stream(running.port), target(running.port, "events.{domain}.{type}") as made:
        await made.deliver(one)
        (message,) = await stored(running.port)

    assert message.subject == "events.iu.version_applied"
    assert json.loads(message.data) == {"name": "Zoë"}
    assert {name: value for name, value in message.header.items() if name != "ce-time"} == {
        "Nats-Msg-Id": one.idempotency_key,
        "Content-Type": "application/json",
        "traceparent": one.traceparent,
        "ce-traceparent": starting_context(one.event.id, one.event.traceparent),
        "ce-specversion": "1.0",
        "ce-id": str(one.event.id),
        "ce-source": "crm",
        "ce-type": "version.applied",
        "ce-subject": "Stra%C3%9Fe%201%0D%0AEvil:%20yes",
        "ce-datacontenttype": "application/json",
        "ce-domain": "iu",
        "ce-stream": "update",
    }


@needs_server
@pytest.mark.asyncio
async def test_a_repetition_is_stored_once(running):
    """A repeated delivery is acknowledged, and stored once.

    Fails when: the header with the idempotency key is not sent.
    """
    one = delivery()
    async with stream(running.port), target(running.port) as made:
        for _ in range(3):
            await made.deliver(one)

        assert len(await stored(running.port)) == 1


@needs_server
@pytest.mark.asyncio
async def test_nothing_is_lost_or_doubled_while_the_server_is_killed(running):
    """2 000 deliveries by 50 callers, the server killed twice: each is stored once, and none waits while it is down.

    Fails when: a lost connection is kept, or the key is not sent.
    """
    deliveries = [delivery(number) for number in range(2000)]
    async with stream(running.port):
        pass
    async with target(running.port) as made:
        callers = Callers(made)
        await storm(callers, deliveries, running.kill, running.start)

    keys = [message.header["Nats-Msg-Id"] for message in await stored(running.port)]
    assert sorted(keys) == sorted(one.idempotency_key for one in deliveries)
    assert {code for result, code in callers.outcomes if result is Result.UNAVAILABLE} == {"connect"}
    assert {code for result, code in callers.outcomes if result is Result.FAILED} <= {"no_stream"}
    assert callers.slowest < 2


@needs_server
@pytest.mark.asyncio
async def test_cancelled_deliveries_are_nobody_elses_trouble(running):
    """Hundreds of cancelled deliveries do not affect the connection, and all others arrive.

    Fails when: a cancelled delivery ends the connection.
    """
    short = [delivery(number) for number in range(600)]
    others = [delivery(number) for number in range(300)]
    async with stream(running.port), target(running.port) as made:
        await made.deliver(delivery())
        connection = made._link._connection
        callers = Callers(made, 10)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(callers.deliver, others)
            cut = await cut_short(made, short)

        assert cut > 50
        assert callers.outcomes == {(Result.SENT, ""): 300}
        assert made._link._connection is connection
        assert {one.idempotency_key for one in others} <= {m.header["Nats-Msg-Id"] for m in await stored(running.port)}


@needs_server
@pytest.mark.asyncio
async def test_whoever_connects_may_be_cancelled(running):
    """If the delivery that connects is cancelled, a delivery that waits for the connection connects instead.

    Fails when: a cancelled attempt to connect counts as a failure.
    """
    async with stream(running.port), target(running.port) as made:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.deliver, delivery(1))
            await asyncio.sleep(0)
            tasks.cancel_scope.cancel()
        await made.deliver(delivery(2))

        assert len(await stored(running.port)) == 1


# -- refused deliveries ----------------------------------------------------------------------------------------------


@needs_server
@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("poison", "code"),
    [
        ({"payload": "7" * 2000}, "too_large"),
        ({"payload": "7" * 1000}, "too_large"),
        ({"type": "x" * 3000, "payload": ""}, "bad_subject"),
    ],
    ids=["payload", "payload and headers", "subject"],
)
async def test_what_is_too_large_is_rejected_alone(tmp_path, poison, code):
    """An event that exceeds the limit of the server, headers included, is rejected; the others are delivered.

    Fails when: headers or subject are not measured, so that the server closes the shared connection.
    """
    one = server(tmp_path, "max_payload: 1024")
    for running in one.running():
        async with stream(running.port), target(running.port, "events.{type}") as made:
            callers = Callers(made, 10)
            await callers.deliver([delivery(number, **(poison if number == 20 else {})) for number in range(40)])

            assert callers.outcomes == {(Result.SENT, ""): 39, (Result.REJECTED, code): 1}


@needs_server
@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("config", "error", "code"),
    [
        ({"max_msg_size": 100}, Reject, "too_large"),
        ({"max_msgs": 1, "discard": "new"}, Unavailable, "stream_full"),
        ({"subjects": ["other"]}, Failed, "no_stream"),
    ],
)
async def test_what_a_stream_refuses(running, config, error, code):
    """A refusal by a stream is rejected, failed or an outage, depending on the code of the answer.

    Fails when: the table of codes is not used.
    """
    async with stream(running.port) as jetstream, target(running.port) as made:
        await made.deliver(delivery())
        await jetstream.update_stream(name="events", **{"subjects": ["events.>"]} | config)
        with pytest.raises(error) as raised:
            await made.deliver(delivery(payload='"' + "7" * 200 + '"'))

        assert raised.value.code == code


@needs_server
@pytest.mark.asyncio
async def test_a_subject_that_is_not_ours_fails_at_once(tmp_path):
    """A subject that the user may not publish fails at once, although the server sends no answer; other subjects work.

    Fails when: the asynchronous error of the server is not read.
    """
    for running in server(tmp_path, ACCOUNTS.format(canary=CANARY)).running():
        async with (
            stream(running.port, who={"user": "admin", "password": "admin"}),
            target(running.port, "events.{type}", user="iu", password="env:PASSWORD") as made,
        ):
            with anyio.fail_after(5), pytest.raises(Failed) as raised:
                await made.deliver(delivery(type="secret"))
            await made.deliver(delivery())

            assert raised.value.code == "not_authorized"


@needs_server
@pytest.mark.asyncio
async def test_a_wrong_password_is_an_outage_and_not_shown(tmp_path, caplog):
    """If the server refuses the login, the error is Unavailable; the password is in no error, no repr and no log line.

    Fails when: the text of the library, or the target's own repr, shows it.
    """
    config = ACCOUNTS.format(canary="something-else")
    for running in server(tmp_path, config).running():
        async with target(running.port, user="iu", password="env:PASSWORD") as made:
            with pytest.raises(Unavailable) as raised:
                await made.deliver(delivery())

            assert raised.value.code == "auth"
            assert CANARY not in words_of(raised.value) + repr(made) + repr(vars(made)) + caplog.text


# -- connections -----------------------------------------------------------------------------------------------------


@needs_server
@pytest.mark.asyncio
async def test_another_server_is_asked_where_one_says_nothing(running):
    """If one of two servers does not answer, the other one gets the delivery, whichever is tried first.

    Fails when: all servers together have the timeout of one.
    """

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with stream(running.port), listening(silent) as port:
        for _ in range(4):
            address = f"nats://127.0.0.1:{port},127.0.0.1:{running.port}/events.all"
            made = open_target(address, {"connect_timeout": 0.3}, SECRETS)
            await made.deliver(delivery())
            await made.aclose()


@needs_server
@pytest.mark.asyncio
@pytest.mark.parametrize("left", [False, True], ids=["nothing left", "something left to send"])
async def test_whoever_waits_is_told_when_the_connection_is_cut(running, left):
    """Deliveries that wait for an answer are Unavailable at once when the connection is cut, and the next one arrives.

    Fails when: they are notified by the library's callback, or the library may reconnect by itself, after which a lost
    answer never comes.
    """
    proxy = Proxy(f"nats://127.0.0.1:{running.port}")
    async with stream(running.port), proxy.running(), target(urlsplit(proxy.dsn).port) as made:
        await made.deliver(delivery())
        proxy.stalled = True
        callers = Callers(made)
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(callers.attempt, delivery(number))
            await until(lambda: len(made._publishing) == 50)
            proxy.stalled = False
            if left:
                assert made._link._connection is not None
                made._link._connection._pending_data_size = 1
            began = time.monotonic()
            proxy.reset()
        assert callers.outcomes == {(Result.UNAVAILABLE, "connect"): 50}
        assert time.monotonic() - began < 1
        await Callers(made).deliver([delivery()])


@needs_server
@pytest.mark.asyncio
async def test_a_connection_that_was_closed_unseen_is_made_anew(running):
    """A connection that is closed without a notification costs one attempt of one delivery, and no more.

    Fails when: a closed connection is kept.
    """
    async with stream(running.port), target(running.port) as made:
        await made.deliver(delivery())
        assert made._link._connection is not None
        made._link._connection.ended = lambda: None
        await made._link._connection.close()
        with pytest.raises(Unavailable):
            await made.deliver(delivery())
        await made.deliver(delivery())


@needs_server
@pytest.mark.asyncio
async def test_tls_is_verified_by_the_ca_of_the_route(tmp_path):
    """With the CA of the server a delivery arrives over TLS; with another CA it is Unavailable.

    Fails when: the certificate is not verified, or the CA is not taken from the options.
    """
    right, wrong = Certificates(tmp_path), Certificates(tmp_path, "other")
    tls = f"tls {{ cert_file: {right.chain}, key_file: {right.key} }}"
    for running in server(tmp_path, tls).running():
        who = {"tls": ssl.create_default_context(cafile=str(right.ca))}
        address = f"tls://127.0.0.1:{running.port}/events.all"
        async with stream(running.port, who=who) as jetstream:
            made = open_target(address, {"ca": str(right.ca)}, SECRETS)
            await made.deliver(delivery())
            await made.aclose()
            stranger = open_target(address, {"ca": str(wrong.ca)}, SECRETS)
            with pytest.raises(Unavailable) as raised:
                await stranger.deliver(delivery())

            assert raised.value.code == "tls"
            assert (await jetstream.stream_info("events")).state.messages == 1


@pytest.mark.asyncio
async def test_a_tls_address_says_nothing_in_the_clear():
    """A server without TLS at a tls:// address receives no password, and nothing else.

    Fails when: the library may continue without TLS.
    """
    heard = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.9.0","max_payload":1048576,"headers":true}\r\n')
        heard.append(await reader.read(4096))

    async with listening(plain) as port:
        made = open_target(f"tls://127.0.0.1:{port}/x", {"user": "iu", "password": "env:PASSWORD"}, SECRETS)
        with pytest.raises(Unavailable) as raised:
            await made.deliver(delivery())

    assert raised.value.code == "tls"
    assert b"".join(heard) == b""


# -- invalid routes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "options", "says"),
    [
        ("nats://host", {}, "tokens between dots"),
        ("nats://host/a..b", {}, "tokens between dots"),
        ("nats://host/a.*", {}, "tokens between dots"),
        ("nats://host/a.>", {}, "tokens between dots"),
        ("nats://host/$JS.API", {}, "tokens between dots"),
        ("nats://host/a.{payload}", {}, "tokens between dots"),
        ("nats://host/a%0d%0aPUB", {}, "tokens between dots"),
        ("nats://host/x", {"password": "env:PASSWORD"}, "requires option user"),
        ("nats://host/x", {"user": "iu", "password": "env:PASSWORD", "token": "env:OTHER"}, "exclude each other"),
        ("nats://host/x", {"ca": "/nowhere.pem"}, "option ca cannot be read"),
    ],
)
def test_a_route_that_cannot_work_says_what_may_be(address, options, says):
    """An invalid address or option is refused before connecting, with its name, permitted values and no secret.

    Fails when: a row of the table of options, or the check of the address, is removed.
    """
    with pytest.raises(ConfigurationError, match=says) as raised:
        open_target(address, options, SECRETS)

    assert CANARY not in words_of(raised.value) + raised.value.hint


@pytest.mark.parametrize(
    ("type", "subject"),
    [("version.applied", "version_applied"), ("a b>*\r\n", "a_b____"), ("", "_"), ("Grüße", "Gr__e")],
)
def test_a_placeholder_is_one_token(type, subject):
    """Any event type is exactly one token of the subject.

    Fails when: a dot, a wildcard or white space of an event gets into the subject.
    """
    made = open_target("nats://host/x.{type}.y", {}, SECRETS)

    assert made._subject(delivery(type=type).event) == f"x.{subject}.y"
