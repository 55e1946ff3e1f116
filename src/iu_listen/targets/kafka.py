"""A topic of Kafka as a target: ``kafka://host:9092,host2:9092/topic``.

The producer is idempotent and waits for all replicas: what it repeats by itself is stored once. A delivery that is
made again (the deadline, a stop) is a new record; a consumer knows it by its header ``idempotency_key``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import anyio
from aiokafka import AIOKafkaProducer, errors
from aiokafka.client import AIOKafkaClient

from iu_listen.model.delivery import Delivery, DeliveryError, Failed, Reject, Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secret, Secrets
from iu_listen.targets.broker import (
    COMMON,
    CONNECTING,
    GOODBYE,
    Address,
    Link,
    Meaning,
    Option,
    choice,
    goodbye,
    guard_of,
    judged,
    number,
    read_address,
    read_options,
    secret,
    tls_context,
)
from iu_listen.targets.cloudevents import attributes
from iu_listen.targets.guard import Guard, allowed

# What it has to say is in the outcome of deliveries; without a handler it would write to stderr.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())

OPTIONS: Final[Mapping[str, Option]] = {
    **COMMON,
    "tls": Option("true or false", lambda value: isinstance(value, bool), default=False),
    "mechanism": choice("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"),
    "max_bytes": number(1, 1_000_000_000, 1_048_576, "bytes"),
}

#: How long no answer is no reason to ask whether anybody is there, in seconds.
PATIENCE: Final = 0.5
#: A batch takes records up to so many bytes, or a single larger one.
BATCH: Final = 16_384

#: What is wrong with one record, or its partition, before it is sent. Anything else is wrong with the producer.
ALONE: Final = (errors.MessageSizeTooLargeError, errors.KafkaTimeoutError)

#: What an error of the library means, while connecting and later. The first that fits counts.
MEANINGS: Final = (
    *CONNECTING[:2],
    Meaning(
        (errors.AuthenticationFailedError, errors.SaslAuthenticationFailed, errors.UnsupportedSaslMechanismError),
        Unavailable, "auth", "the server does not let us in",
    ),
    Meaning(
        (errors.MessageSizeTooLargeError, errors.RecordTooLargeError, errors.RecordListTooLargeError),
        Reject, "too_large", "larger than the topic takes",
    ),
    Meaning(
        (errors.TopicAuthorizationFailedError, errors.ClusterAuthorizationFailedError),
        Failed, "not_authorized", "the user may not write there",
    ),
    Meaning((errors.UnknownTopicOrPartitionError, errors.InvalidTopicError), Failed, "no_topic", "no such topic"),
    Meaning(
        (errors.ProducerClosed, errors.ProducerFenced, errors.OutOfOrderSequenceNumber, errors.UnknownProducerId,
         errors.InvalidProducerEpoch, errors.InvalidProducerIdMapping),
        Unavailable, "producer", "the producer has to begin anew",
    ),
    Meaning(errors.KafkaTimeoutError, Failed, "timeout", "the partition takes nothing now"),
    Meaning(
        (errors.KafkaConnectionError, errors.NodeNotReadyError, errors.RequestTimedOutError, errors.StaleMetadata,
         OSError),
        Unavailable, "connect", "the cluster cannot be reached",
    ),
)  # fmt: skip


def open(address: str, options: Mapping[str, Any], secrets: Secrets) -> KafkaTarget:
    """The target of an address.

    Args:
        address: ``kafka://host[:9092][,host…]/topic``: the servers to begin with; they name the others.
        options: Those of OPTIONS.
        secrets: Where they are looked up.

    Raises:
        ConfigurationError: the address or an option cannot work.
    """
    where = read_address(address, 9092)
    given = read_options("kafka", options, OPTIONS)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", where.path) or where.path in {".", ".."}:
        raise ConfigurationError(
            "the path of a kafka target is a topic: letters, digits, dots, _ and -", "kafka://host:9092/topic"
        )
    return KafkaTarget(where, given, secret(secrets, given["password"]), guard_of(where, secrets))


class _GuardedClient(AIOKafkaClient):  # type: ignore[misc]
    """A client that connects to no broker whose address is not allowed: a cluster says itself where its brokers are."""

    guard: Guard

    async def _get_conn(self, node_id: Any, **how: Any) -> Any:
        broker = self.cluster.broker_metadata(node_id)
        if broker is not None:
            try:
                await allowed(self.guard, broker.host, broker.port)
            except Unavailable as refused:
                raise errors.KafkaConnectionError(refused.reason) from refused
        return await super()._get_conn(node_id, **how)


class KafkaTarget:
    """A topic of a Kafka cluster. Satisfies flow.ports.Target.

    Args:
        where: The servers to begin with; its path is the topic.
        options: All of OPTIONS.
        password: Ours; None: we have none.
        guard: Which addresses may be connected to.

    Raises:
        ConfigurationError: the file of CAs cannot be read.
    """

    def __init__(self, where: Address, options: Mapping[str, Any], password: Secret | None, guard: Guard) -> None:
        self._where = where
        self._guard = guard
        self._options = options
        self._password = password
        self._tls = tls_context(options["ca"]) if options["tls"] or options["ca"] else None
        self._link: Link[AIOKafkaProducer] = Link(
            self._connect, _end, options["connect_timeout"] * (1 + len(where.servers))
        )

    def __repr__(self) -> str:
        return f"KafkaTarget({self._where})"

    async def deliver(self, delivery: Delivery, /) -> None:
        """Write a record, and wait until all replicas have it.

        Raises:
            DeliveryError: as MEANINGS says.
        """
        event = delivery.event
        key, value, headers = (event.subject or str(event.id)).encode(), event.payload.encode(), headers_of(delivery)
        size = len(key) + len(value) + sum(len(name) + len(content) for name, content in headers)
        async with self._link.use() as producer:
            try:
                sent = await producer.send(self._where.path, value=value, key=key, headers=headers)
            except ALONE as error:
                raise judged(error, MEANINGS) from None
            except (errors.KafkaError, OSError) as error:
                await self._link.drop(producer)
                raise judged(error, MEANINGS) from None
            await self._answered(producer, sent)
            if (refusal := sent.exception()) is None:
                return
            failed: DeliveryError = judged(refusal, MEANINGS)
            if isinstance(failed, Reject) and size < BATCH:
                # It may be another record of its batch that is meant. Tried again, it will have other company.
                failed = Failed("refused with a whole batch", code="batch_too_large")
            # The numbers of what was sent have a gap now, and the brokers would refuse all that follows.
            await self._link.drop(producer)
            raise failed

    async def aclose(self) -> None:
        """End the connections, in two seconds at most."""
        await self._link.aclose()

    async def _answered(self, producer: AIOKafkaProducer, sent: Any) -> None:
        """Wait until a record has its answer. Cancelling leaves the record alone."""
        answer = anyio.Event()

        def answered(_: Any) -> None:
            # Asked for also where nobody waits any more: what nobody asks for is complained about.
            sent.exception()
            answer.set()

        sent.add_done_callback(answered)
        while not answer.is_set():
            with anyio.move_on_after(PATIENCE):
                await answer.wait()
                return
            # The library repeats for ever, and tells nobody that nobody is there.
            if not await self._somebody(producer):
                await self._link.drop(producer)
                raise Unavailable("no broker answers", code="connect")

    async def _somebody(self, producer: AIOKafkaProducer) -> bool:
        task = producer.client._sync_task  # noqa: SLF001 only it asks, and what ends it tells nobody
        if task is None or task.done():
            return False
        # Each is asked in its turn, and those that are silent cost the time of a connect.
        with anyio.move_on_after(self._options["connect_timeout"] * (1 + len(producer.client.cluster.brokers()))):
            return bool(await producer.client.force_metadata_update())
        return False

    async def _connect(self) -> AIOKafkaProducer:
        user = self._options["user"]
        producer = AIOKafkaProducer(
            bootstrap_servers=self._where.hosts,
            client_id="iu-listen",
            enable_idempotence=True,
            acks="all",
            max_batch_size=BATCH,
            max_request_size=self._options["max_bytes"],
            request_timeout_ms=round(self._options["connect_timeout"] * 1000),
            security_protocol=("SASL_" if user else "") + ("SSL" if self._tls else "PLAINTEXT"),
            ssl_context=self._tls,
            sasl_mechanism=self._options["mechanism"],
            sasl_plain_username=user,
            sasl_plain_password=self._password.reveal() if self._password else None,
        )
        producer.client.__class__ = _GuardedClient
        producer.client.guard = self._guard
        try:
            for host, port in self._where.servers:
                await allowed(self._guard, host, port)
            await producer.start()
            # Asked for here, so that one asks for all, and no longer than this may take.
            await producer.partitions_for(self._where.path)
        except BaseException as error:
            await goodbye(_end, producer)
            if not isinstance(error, Exception) or isinstance(error, DeliveryError):
                raise
            raise judged(error, MEANINGS, Unavailable) from None
        return producer


async def _end(producer: AIOKafkaProducer) -> None:
    """End a producer without waiting for what it has not sent: nobody waits for that any more."""
    # stop() would send all first, and try so for ever where nobody is there.
    with anyio.move_on_after(GOODBYE / 2), suppress(Exception):
        await producer._sender.close()  # noqa: SLF001 there is no other way to end it alone
    producer._closed = True  # noqa: SLF001 nor to say that we did
    await producer.client.close()


def headers_of(delivery: Delivery) -> list[tuple[str, bytes]]:
    """The headers of a record: idempotency key, trace, and CloudEvents as its binding for Kafka says."""
    found = {"idempotency_key": delivery.idempotency_key, "content-type": "application/json"}
    found["traceparent"] = delivery.traceparent
    # Of all attributes, the type of the content alone has its own header.
    found |= {f"ce_{name}": value for name, value in attributes(delivery).items() if name != "datacontenttype"}
    return [(name, value.encode()) for name, value in found.items()]
