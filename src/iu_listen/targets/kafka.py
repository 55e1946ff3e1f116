"""A topic of Kafka as a target: ``kafka://host:9092,host2:9092/topic``.

The Kafka producer is idempotent and waits for all replicas, so a record that it repeats by itself is stored once. A
repeated delivery (after a deadline or a shutdown) is a new record; a receiver recognizes it by the header
``idempotency_key``.
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
    CLOSE_TIMEOUT,
    COMMON_OPTIONS,
    CONNECT_ERRORS,
    BrokerAddress,
    ErrorOutcome,
    Option,
    SharedConnection,
    choice,
    close_quietly,
    guard_of,
    number,
    outcome_for,
    read_address,
    read_options,
    secret,
    tls_context,
)
from iu_listen.targets.cloudevents import attributes
from iu_listen.targets.guard import Guard, allowed

# The outcomes of deliveries contain the errors of the library; without a handler it would write them to stderr.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())

KAFKA_OPTIONS: Final[Mapping[str, Option]] = {
    **COMMON_OPTIONS,
    "tls": Option("true or false", lambda value: isinstance(value, bool), default=False),
    "mechanism": choice("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"),
    "max_bytes": number(1, 1_000_000_000, 1_048_576, "bytes"),
}

#: Time without an answer after which the target checks whether a broker is reachable, in seconds.
REACHABILITY_CHECK_AFTER: Final = 0.5
#: Largest batch of records of the Kafka producer, in bytes; a larger record is sent alone.
MAX_BATCH_BYTES: Final = 16_384

#: Errors before sending that concern one record or its partition. All other errors concern the Kafka producer.
RECORD_ERRORS: Final[tuple[type[Exception], ...]] = (errors.MessageSizeTooLargeError, errors.KafkaTimeoutError)

#: The outcomes of errors of the library, while connecting and later. The first row that fits counts.
KAFKA_ERRORS: Final = (
    *CONNECT_ERRORS[:2],
    ErrorOutcome(
        (errors.AuthenticationFailedError, errors.SaslAuthenticationFailed, errors.UnsupportedSaslMechanismError),
        Unavailable, "auth", "the server rejected the login",
    ),
    ErrorOutcome(
        (errors.MessageSizeTooLargeError, errors.RecordTooLargeError, errors.RecordListTooLargeError),
        Reject, "too_large", "larger than the topic accepts",
    ),
    ErrorOutcome(
        (errors.TopicAuthorizationFailedError, errors.ClusterAuthorizationFailedError),
        Failed, "not_authorized", "the user is not allowed to write to the topic",
    ),
    ErrorOutcome(
        (errors.UnknownTopicOrPartitionError, errors.InvalidTopicError), Failed, "no_topic", "the topic does not exist"
    ),
    ErrorOutcome(
        (errors.ProducerClosed, errors.ProducerFenced, errors.OutOfOrderSequenceNumber, errors.UnknownProducerId,
         errors.InvalidProducerEpoch, errors.InvalidProducerIdMapping),
        Unavailable, "producer", "the Kafka producer must be restarted",
    ),
    ErrorOutcome(errors.KafkaTimeoutError, Failed, "timeout", "the partition accepts nothing at present"),
    ErrorOutcome(
        (errors.KafkaConnectionError, errors.NodeNotReadyError, errors.RequestTimedOutError, errors.StaleMetadata,
         OSError),
        Unavailable, "connect", "the cluster cannot be reached",
    ),
)  # fmt: skip


def open(address: str, options: Mapping[str, Any], secrets: Secrets) -> KafkaTarget:
    """Create the target of an address, without a connection.

    Args:
        address: ``kafka://host[:9092][,host…]/topic``, with the bootstrap servers; they name the other brokers.
        options: Values for options of KAFKA_OPTIONS.
        secrets: The secrets that the options may name.

    Raises:
        ConfigurationError: The address or an option is invalid.
    """
    where = read_address(address, 9092)
    given = read_options("kafka", options, KAFKA_OPTIONS)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", where.path) or where.path in {".", ".."}:
        raise ConfigurationError(
            "the path of a kafka target must be a topic: letters, digits, dots, _ and -", "kafka://host:9092/topic"
        )
    return KafkaTarget(where, given, secret(secrets, given["password"]), guard_of(where, secrets))


class _GuardedClient(AIOKafkaClient):  # type: ignore[misc]
    """A client that checks the address of each broker before it connects: the cluster itself names its brokers."""

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
    """A topic of a Kafka cluster. Implements flow.ports.Target.

    Args:
        where: The bootstrap servers; its path is the topic.
        options: Values of all options of KAFKA_OPTIONS.
        password: The password of the user; None: no authentication.
        guard: The allowed hosts and networks.

    Raises:
        ConfigurationError: The file of CA certificates cannot be read.
    """

    def __init__(self, where: BrokerAddress, options: Mapping[str, Any], password: Secret | None, guard: Guard) -> None:
        self._where = where
        self._guard = guard
        self._options = options
        self._password = password
        self._tls = tls_context(options["ca"]) if options["tls"] or options["ca"] else None
        self._link: SharedConnection[AIOKafkaProducer] = SharedConnection(
            self._connect, _end, options["connect_timeout"] * (1 + len(where.servers))
        )

    def __repr__(self) -> str:
        return f"KafkaTarget({self._where})"

    async def deliver(self, delivery: Delivery, /) -> None:
        """Write a record, and wait until all replicas have stored it.

        Raises:
            DeliveryError: The record was not stored; KAFKA_ERRORS has the outcomes.
        """
        event = delivery.event
        key, value, headers = (event.subject or str(event.id)).encode(), event.payload.encode(), headers_of(delivery)
        size = len(key) + len(value) + sum(len(name) + len(content) for name, content in headers)
        async with self._link.use() as producer:
            try:
                sent = await producer.send(self._where.path, value=value, key=key, headers=headers)
            except RECORD_ERRORS as error:
                raise outcome_for(error, KAFKA_ERRORS) from None
            except (errors.KafkaError, OSError) as error:
                await self._link.drop(producer)
                raise outcome_for(error, KAFKA_ERRORS) from None
            await self._answered(producer, sent)
            if (refusal := sent.exception()) is None:
                return
            failed: DeliveryError = outcome_for(refusal, KAFKA_ERRORS)
            if isinstance(failed, Reject) and size < MAX_BATCH_BYTES:
                # The error may concern another record of the same batch. The next attempt is in another batch.
                failed = Failed("the broker refused the whole batch of records", code="batch_too_large")
            # The sequence numbers of the Kafka producer have a gap now, so the brokers would refuse all later records.
            await self._link.drop(producer)
            raise failed

    async def aclose(self) -> None:
        """Close the connections in at most CLOSE_TIMEOUT seconds."""
        await self._link.aclose()

    async def _answered(self, producer: AIOKafkaProducer, sent: Any) -> None:
        """Wait until a record has its answer. A cancellation of the wait does not cancel the record.

        Raises:
            Unavailable: No broker answers.
        """
        answer = anyio.Event()

        def answered(_: Any) -> None:
            # The exception is also retrieved after a cancelled wait: asyncio logs exceptions that nothing retrieves.
            sent.exception()
            answer.set()

        sent.add_done_callback(answered)
        while not answer.is_set():
            with anyio.move_on_after(REACHABILITY_CHECK_AFTER):
                await answer.wait()
                return
            # The library repeats without end, and does not report that no broker is reachable.
            if not await self._is_reachable(producer):
                await self._link.drop(producer)
                raise Unavailable("no broker answers", code="connect")

    async def _is_reachable(self, producer: AIOKafkaProducer) -> bool:
        task = producer.client._sync_task  # noqa: SLF001 only it updates the metadata, and its end is not reported
        if task is None or task.done():
            return False
        # The brokers are asked one after another; each one that does not answer takes the time of a connect.
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
            max_batch_size=MAX_BATCH_BYTES,
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
            # The metadata of the topic is read here, once for all deliveries, and within the time limit of connecting.
            await producer.partitions_for(self._where.path)
        except BaseException as error:
            await close_quietly(_end, producer)
            if not isinstance(error, Exception) or isinstance(error, DeliveryError):
                raise
            raise outcome_for(error, KAFKA_ERRORS, Unavailable) from None
        return producer


async def _end(producer: AIOKafkaProducer) -> None:
    """Close a Kafka producer without sending its remaining records: no delivery waits for them any more."""
    # stop() would send them first, and would never end without a reachable broker.
    with anyio.move_on_after(CLOSE_TIMEOUT / 2), suppress(Exception):
        await producer._sender.close()  # noqa: SLF001 there is no public way to close only the sender
    producer._closed = True  # noqa: SLF001 nor to mark the producer as closed
    await producer.client.close()


def headers_of(delivery: Delivery) -> list[tuple[str, bytes]]:
    """The headers of a record: idempotency key, trace context, and the attributes of CloudEvents (Kafka binding)."""
    found = {"idempotency_key": delivery.idempotency_key, "content-type": "application/json"}
    found["traceparent"] = delivery.traceparent
    # The attribute datacontenttype is the header content-type; all others have the prefix ce_.
    found |= {f"ce_{name}": value for name, value in attributes(delivery).items() if name != "datacontenttype"}
    return [(name, value.encode()) for name, value in found.items()]
