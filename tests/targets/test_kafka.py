"""Deliveries to Kafka, with the mock cluster of librdkafka: real ports, the real protocol, unavailable brokers."""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord

from iu_listen.model.delivery import Failed, Reject, Result, Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secrets
from iu_listen.model.spans import starting_context
from iu_listen.targets import Targets
from iu_listen.targets.kafka import MAX_BATCH_BYTES, KafkaTarget
from iu_listen.targets.kafka import open as open_target
from targets.brokers import (
    CANARY,
    Callers,
    Certificates,
    cut_short,
    delivery,
    listening,
    storm,
    words_of,
)
from targets.mockkafka import (
    MESSAGE_TOO_LARGE,
    NOT_ENOUGH_REPLICAS,
    OUT_OF_ORDER,
    PRODUCE,
    TOPIC_AUTHORIZATION,
    UNKNOWN_TOPIC,
    Cluster,
    cluster,
)

SECRETS = Secrets({"PASSWORD": CANARY}, allow_private=("127.0.0.0/8", "::1", "localhost"))


@pytest.fixture
def running() -> Iterator[Cluster]:
    with cluster() as made:
        # So many partitions that each broker leads some: the mock chooses leaders at random.
        made.topic("events", 32)
        yield made


@asynccontextmanager
async def target(servers: str, topic: str = "events", **options: Any) -> AsyncIterator[KafkaTarget]:
    made = open_target(f"kafka://{servers}/{topic}", options, SECRETS)
    try:
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await made.aclose()


async def stored(running: Cluster) -> list[ConsumerRecord[Any, Any]]:
    """All records up to the present ends of the partitions."""
    async with AIOKafkaConsumer("events", bootstrap_servers=running.servers, auto_offset_reset="earliest") as consumer:
        ends = await consumer.end_offsets(list(consumer.assignment()))
        found: list[ConsumerRecord[Any, Any]] = []
        with anyio.fail_after(30):
            while len(found) < sum(ends.values()):
                found += [one for page in (await consumer.getmany(timeout_ms=100)).values() for one in page]
        return found


def key_of(record: ConsumerRecord[Any, Any]) -> str:
    return str(dict(record.headers)["idempotency_key"].decode())


# -- delivered messages ----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_record_is_the_payload_with_the_event_in_its_headers(running):
    """A record holds the unchanged payload under the subject; its headers are the key, the trace and CloudEvents.

    Fails when: a header is missing, or the record has another key.
    """
    one = delivery(subject="Straße 1", payload='{"name": "Zoë"}')
    async with target(running.servers) as made:
        await made.deliver(one)
    (record,) = await stored(running)

    assert json.loads(record.value) == {"name": "Zoë"}
    assert record.key == "Straße 1".encode()
    assert {name: value.decode() for name, value in record.headers if name != "ce_time"} == {
        "idempotency_key": one.idempotency_key,
        "content-type": "application/json",
        "traceparent": one.traceparent,
        "ce_traceparent": starting_context(one.event.id, one.event.traceparent),
        "ce_specversion": "1.0",
        "ce_id": str(one.event.id),
        "ce_source": "crm",
        "ce_type": "version.applied",
        "ce_subject": "Straße 1",
        "ce_domain": "iu",
        "ce_stream": "update",
    }


@pytest.mark.asyncio
async def test_a_subject_is_one_partition(running):
    """Records of a subject are in one partition, in order; a record without a subject has the event id as key.

    Fails when: records have no key, or another one.
    """
    sent = [delivery(number, subject=f"doc/{number % 8}") for number in range(80)]
    alone = delivery(subject=None)
    async with target(running.servers) as made:
        for one in [*sent, alone]:
            await made.deliver(one)
    records = await stored(running)

    for subject in {one.event.subject for one in sent}:
        mine = [r for r in records if r.key == subject.encode()]
        assert len({r.partition for r in mine}) == 1
        assert [key_of(r) for r in sorted(mine, key=lambda r: r.offset)] == [
            one.idempotency_key for one in sent if one.event.subject == subject
        ]
    assert len({r.partition for r in records}) > 1
    assert str(alone.event.id).encode() in {r.key for r in records}


@pytest.mark.asyncio
async def test_nothing_is_lost_while_the_cluster_is_cut_off(running):
    """2 000 deliveries by 50 callers, with two outages of all brokers: each is stored, and none waits during an outage.

    Fails when: the target does not check whether a broker is connected, so a delivery waits for its deadline.
    """
    deliveries = [delivery(number) for number in range(2000)]
    async with target(running.servers) as made:
        callers = Callers(made)
        await storm(callers, deliveries, running.down, running.up)
    records = await stored(running)

    assert {key_of(r) for r in records} == {one.idempotency_key for one in deliveries}
    assert {code for result, code in callers.outcomes if result is Result.UNAVAILABLE} <= {"connect", "producer"}
    assert callers.count(Result.FAILED) == 0
    assert callers.slowest < 3


@pytest.mark.asyncio
async def test_what_nobody_waits_for_any_more_is_not_sent_later(running):
    """A delivery that was given up when the cluster was lost is not sent later, when the cluster is available again.

    Fails when: a producer that was given up keeps trying.
    """
    async with target(running.servers) as made:
        await made.deliver(delivery())
        running.down()
        callers = Callers(made)
        for number in range(5):
            await callers.attempt(delivery(number))
        running.up()
        await Callers(made).deliver([delivery(9)])
        # The old producer would send its records before the new one is used three times.
        for number in range(3):
            await made.deliver(delivery(number))

    assert callers.outcomes == {(Result.UNAVAILABLE, "connect"): 5}
    assert len(await stored(running)) == 5


@pytest.mark.asyncio
async def test_a_missing_broker_is_waited_for(running):
    """An outage of one broker of three makes no delivery fail, whichever broker leads the partition.

    Fails when: a cluster is considered lost although some of its brokers answer.
    """
    async with target(running.servers) as made:
        await made.deliver(delivery())
        running.down(1)
        callers = Callers(made)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(callers.deliver, [delivery(number) for number in range(200)])
            await anyio.sleep(1.2)
            running.up()

        assert callers.outcomes == {(Result.SENT, ""): 200}


@pytest.mark.asyncio
@pytest.mark.parametrize("silent", [False, True], ids=["gone", "silent"])
async def test_a_partition_without_a_broker_is_not_the_trouble_of_others(running, silent):
    """While one broker is missing, deliveries to its partitions time out; all others arrive, and the producer is kept.

    Fails when: a full partition, or one silent broker, is taken for a lost cluster.
    """
    async with target(running.servers, connect_timeout=0.5) as made:
        await made.deliver(delivery())
        producer = made._link._connection
        if silent:
            running.slow(60_000, 1)
        else:
            running.down(1)
        callers = Callers(made)
        async with anyio.create_task_group() as tasks:
            for number in range(120):
                one = delivery(number, payload="7" * 10_000)
                tasks.start_soon(callers.attempt, replace(one, deadline=2.0))

        assert set(callers.outcomes) == {(Result.SENT, ""), (Result.FAILED, "timeout")}
        assert made._link._connection is producer


@pytest.mark.asyncio
async def test_the_end_is_bounded(running):
    """Closing takes two seconds at most, also if the brokers do not answer.

    Fails when: closing waits until the producer has sent its records or completed its requests.
    """
    async with target(running.servers) as made:
        await made.deliver(delivery())
        running.slow(60_000)
        with anyio.move_on_after(0.1) as scope:
            await made.deliver(delivery())
        assert scope.cancelled_caught
        began = time.monotonic()
        await made.aclose()
        assert time.monotonic() - began < 2.5


@pytest.mark.asyncio
async def test_cancelled_deliveries_are_nobody_elses_trouble(running):
    """Hundreds of cancelled deliveries do not affect the producer, and all others arrive.

    Fails when: a cancelled delivery ends the producer.
    """
    short = [delivery(number) for number in range(600)]
    others = [delivery(number) for number in range(300)]
    async with target(running.servers) as made:
        await made.deliver(delivery())
        producer = made._link._connection
        running.slow(5)
        callers = Callers(made, 10)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(callers.deliver, others)
            cut = await cut_short(made, short)

        assert cut > 50
        assert callers.outcomes == {(Result.SENT, ""): 300}
        assert made._link._connection is producer
    assert {one.idempotency_key for one in others} <= {key_of(r) for r in await stored(running)}


# -- refused deliveries ----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_what_is_too_large_is_rejected_alone(running):
    """An event that is larger than the option max_bytes is rejected, and the others are delivered.

    Fails when: the option does not reach the producer.
    """
    async with target(running.servers, max_bytes=1000) as made:
        callers = Callers(made, 10)
        await callers.deliver([delivery(number, payload="7" * 1000 if number == 20 else "{}") for number in range(40)])

    assert callers.outcomes == {(Result.SENT, ""): 39, (Result.REJECTED, "too_large"): 1}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "size", "error", "code"),
    [
        (MESSAGE_TOO_LARGE, MAX_BATCH_BYTES, Reject, "too_large"),
        (MESSAGE_TOO_LARGE, 10, Failed, "batch_too_large"),
        (TOPIC_AUTHORIZATION, 10, Failed, "not_authorized"),
        (OUT_OF_ORDER, 10, Unavailable, "producer"),
    ],
)
async def test_what_a_broker_refuses(running, answer, size, error, code):
    """A refusal by a broker is rejected, failed or an outage, depending on its code, and the next delivery arrives.

    Fails when: a producer with a gap in its sequence numbers is kept, or the table of codes is not used.
    """
    async with target(running.servers) as made:
        await made.deliver(delivery())
        producer = made._link._connection
        running.refuse(PRODUCE, answer)
        with pytest.raises(error) as raised:
            await made.deliver(delivery(payload="7" * size))
        assert raised.value.code == code
        assert made._link._connection is not producer
        await made.deliver(delivery())

    assert len(await stored(running)) == 2


@pytest.mark.asyncio
async def test_what_passes_is_waited_out(running):
    """The producer repeats a request after a temporary error, such as missing replicas, and the record is stored once.

    Fails when: the producer is configured not to repeat.
    """
    async with target(running.servers) as made:
        running.refuse(PRODUCE, NOT_ENOUGH_REPLICAS, NOT_ENOUGH_REPLICAS)
        await made.deliver(delivery())

    assert len(await stored(running)) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(("answer", "code"), [(UNKNOWN_TOPIC, "no_topic"), (TOPIC_AUTHORIZATION, "not_authorized")])
async def test_a_topic_that_is_not_there_fails(running, answer, code):
    """A missing or forbidden topic fails within the connect timeout, and is used as soon as it exists.

    Fails when: the library waits for the topic without a limit, or the table of codes does not contain the error.
    """
    running.refuse_topic("events", answer)
    async with target(running.servers, connect_timeout=1) as made:
        with anyio.fail_after(3), pytest.raises(Failed) as raised:
            await made.deliver(delivery())
        running.refuse_topic("events", 0)
        await Callers(made).deliver([delivery()])

    assert raised.value.code == code


# -- connections -----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_another_server_is_asked_where_one_says_nothing(running):
    """If the first two bootstrap servers do not answer, the third one gets the delivery.

    Fails when: all servers together have the timeout of one.
    """

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with (
        listening(silent) as port,
        target(f"127.0.0.1:{port},localhost:{port},{running.servers}", connect_timeout=0.4) as made,
    ):
        await made.deliver(delivery())


@pytest.mark.asyncio
async def test_tls_is_verified_by_the_ca_of_the_route(tmp_path):
    """A server whose certificate is of the CA in the options gets requests over TLS; one of another CA gets nothing.

    Fails when: the certificate is not verified, or the CA is not taken from the options.
    """
    right, wrong = Certificates(tmp_path), Certificates(tmp_path, "other")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(right.chain, right.key)
    heard: list[bytes] = []

    async def answer_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(4096))

    async with listening(answer_nothing, ssl=context) as port:
        for certificates, words in ((right, 1), (wrong, 0)):
            heard.clear()
            async with target(f"127.0.0.1:{port}", ca=str(certificates.ca), connect_timeout=1) as made:
                with pytest.raises(Unavailable):
                    await made.deliver(delivery())
            assert len([one for one in heard if one]) == words


@pytest.mark.asyncio
async def test_user_and_password_reach_the_server_and_are_not_shown(caplog):
    """A broker gets user and password of the options; if it refuses them, the error is Unavailable and shows neither.

    Fails when: they are not passed on, or the text of the library, or the target's own repr, shows them.
    """
    # The mock does not check passwords, so this is a minimal broker that does.
    versions, handshake, authenticate, refused = 18, 17, 36, 58
    asked: list[bytes] = []

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                request = await reader.readexactly(int.from_bytes(await reader.readexactly(4)))
            except asyncio.IncompleteReadError:
                return
            kind, _, number = struct.unpack_from(">hhi", request)
            if kind == versions:
                known = [(versions, 0, 0), (handshake, 1, 1), (authenticate, 0, 0), (3, 0, 1)]
                body = struct.pack(">hi", 0, len(known)) + b"".join(struct.pack(">hhh", *one) for one in known)
            elif kind == handshake:
                body = struct.pack(">hih5s", 0, 1, 5, b"PLAIN")
            else:
                asked.append(request)
                body = struct.pack(">hh2si", refused, 2, b"no", 0)
            writer.write(struct.pack(">ii", len(body) + 4, number) + body)

    options = {"user": "iu", "password": "env:PASSWORD", "mechanism": "PLAIN"}
    async with listening(broker) as port, target(f"127.0.0.1:{port}", **options) as made:
        with pytest.raises(Unavailable) as raised:
            await made.deliver(delivery())

    (request,) = asked
    assert request.endswith(f"\0iu\0{CANARY}".encode())
    assert CANARY not in words_of(raised.value) + repr(made) + repr(vars(made)) + caplog.text


# -- invalid routes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "options", "says"),
    [
        ("kafka://host", {}, "must be a topic"),
        ("kafka://host/a/b", {}, "must be a topic"),
        ("kafka://host/..", {}, "must be a topic"),
        ("kafka://host/x", {"acks": 0}, "no option acks"),
        ("kafka://host/x", {"tls": "yes"}, "option tls of a kafka target must be true or false"),
        ("kafka://host/x", {"mechanism": "GSSAPI"}, "must be SCRAM-SHA-512 or SCRAM-SHA-256 or PLAIN"),
        ("kafka://host/x", {"max_bytes": "1M"}, "a whole number of bytes from 1 to 1000000000"),
        ("kafka://host/x", {"password": "env:PASSWORD"}, "requires option user"),
        ("kafka://host/x", {"ca": "/nowhere.pem"}, "option ca cannot be read"),
    ],
)
def test_a_route_that_cannot_work_says_what_may_be(address, options, says):
    """An invalid address or option is refused before connecting, with its name, permitted values and no secret.

    Fails when: a row of the table of options, or the check of the address, is removed.
    """
    with pytest.raises(ConfigurationError, match=says) as raised:
        open_target(address, options, SECRETS)

    assert CANARY not in words_of(raised.value) + raised.value.hint


def test_the_scheme_is_known():
    """A route of the kind external_endpoint finds the target by the scheme of its address, with all its servers.

    Fails when: the entry point is missing.
    """
    made = Targets(allow_private="127.0.0.0/8,::1").find("external_endpoint", "kafka://one,two:1,[::1]:2/x", {})

    assert repr(made) == "KafkaTarget(kafka://one:9092,two:1,[::1]:2/x)"


@pytest.mark.asyncio
async def test_a_producer_that_nobody_tells_where_the_brokers_are_is_replaced(running):
    """If the library's task that requests metadata has ended, the producer is replaced after one or two deadlines.

    Fails when: each caller that requests metadata waits beyond its deadline, again and again. With uvloop, a write to a
    closed connection ends that task.
    """
    first, second = delivery(1), replace(delivery(2), deadline=3)
    async with target(running.servers) as made:
        await made.deliver(first)
        producer = made._link._connection
        producer.client._sync_task.cancel()
        running.down()
        assert await Callers(made).attempt(second) is Result.UNAVAILABLE
        running.up()
        with anyio.fail_after(15):
            await Callers(made).deliver([second])
        assert made._link._connection is not producer
    assert {key_of(record) for record in await stored(running)} == {one.idempotency_key for one in (first, second)}
