"""One trace of five spans from a request to the receiver of its event, for each kind of target; no link dangles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import nats
import pytest
from aiokafka import AIOKafkaConsumer
from opentelemetry import propagate
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Tracer, get_current_span

from iu_listen import Consumer, Delivery, Settings, trace_context
from iu_listen.model.delivery import Failed
from iu_listen.targets.python import PythonTarget
from iu_listen.telemetry.live_spans import GivenIds, SpanObserver
from postgres.delivery_helpers import ROUTE, add_route, open_route, wait_until_settled
from support import connected, insert_event, wait_until
from targets.http_receivers import raw, response
from targets.mockkafka import cluster
from targets.test_nats import needs_server, server
from telemetry.exporting import begin, exporting
from telemetry.receiver import Receiver

pytestmark = pytest.mark.asyncio


class Traced:
    """A program with the SDK of OpenTelemetry that sends its spans to the same receiver as the consumer."""

    def __init__(self, receiver: Receiver) -> None:
        self._exporter = OTLPSpanExporter(endpoint=f"{receiver.endpoint}/v1/traces")
        self.tracer: Tracer = self.provider().get_tracer("program")

    def provider(self, **options: Any) -> TracerProvider:
        made = TracerProvider(shutdown_on_exit=False, **options)
        made.add_span_processor(SimpleSpanProcessor(self._exporter))
        return made

    def observer(self) -> SpanObserver:
        """The observer of the live spans of the consumer."""
        ids = GivenIds()
        return SpanObserver(self.provider(id_generator=ids), ids)

    def receives(self, headers: dict[str, str], kind: SpanKind) -> None:
        """Record the span that a traced receiver makes from the headers of a request or a message."""
        with self.tracer.start_as_current_span("receiver", propagate.extract(headers), kind=kind):
            pass


async def ask(port: int, headers: dict[str, str]) -> None:
    """Send a request, as an HTTP client does."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    stream = await anyio.connect_tcp("127.0.0.1", port)
    async with stream:
        await stream.send(f"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{lines}\r\n".encode())
        await stream.receive()


def headers_of(request: bytes) -> dict[str, str]:
    lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


@asynccontextmanager
async def web(traced: Traced) -> AsyncIterator[int]:
    """A traced HTTP receiver; yields its port."""

    async def behave(_: Any, writer: asyncio.StreamWriter) -> bool:
        traced.receives(headers_of(made.requests[-1]), SpanKind.SERVER)
        writer.write(response(204))
        await writer.drain()
        return True

    async with raw(behave) as made:
        yield made.port


#: The target of the route: address, options and coroutines; entered before the event is written, left after it arrived.
Way = Callable[[Traced, Path], AbstractAsyncContextManager[tuple[str | None, dict[str, Any], list[PythonTarget]]]]


@asynccontextmanager
async def coroutine(traced: Traced, _: Path) -> AsyncIterator[Any]:
    """A coroutine with an instrumented HTTP client, which makes a client span below the current span."""
    async with web(traced) as port:

        async def work(delivery: Delivery) -> None:
            assert get_current_span().get_span_context().span_id == int(delivery.traceparent[36:52], 16)
            with traced.tracer.start_as_current_span("POST", kind=SpanKind.CLIENT):
                headers: dict[str, str] = {}
                propagate.inject(headers)
                await ask(port, headers)

        yield None, {}, [PythonTarget("event_outbox", work)]


@asynccontextmanager
async def webhook(traced: Traced, _: Path) -> AsyncIterator[Any]:
    async with web(traced) as port:
        yield f"http://127.0.0.1:{port}/hook/s3cret?key=s3cret", {}, []


@asynccontextmanager
async def through_nats(traced: Traced, folder: Path) -> AsyncIterator[Any]:
    for running in server(folder).running():
        client = await nats.connect(f"nats://127.0.0.1:{running.port}")
        await client.jetstream().add_stream(name="events", subjects=["events.>"])

        async def receive(message: Any) -> None:
            traced.receives(dict(message.headers), SpanKind.CONSUMER)

        await client.subscribe("events.>", cb=receive)
        yield f"nats://127.0.0.1:{running.port}/events.{{type}}", {}, []
        await client.close()


@asynccontextmanager
async def through_kafka(traced: Traced, _: Path) -> AsyncIterator[Any]:
    with cluster() as running:
        running.topic("events", 3)
        yield f"kafka://{running.servers}/events", {}, []
        async with AIOKafkaConsumer(
            "events", bootstrap_servers=running.servers, auto_offset_reset="earliest"
        ) as reader:
            with anyio.fail_after(30):
                record = await reader.getone()
            traced.receives({name: value.decode() for name, value in record.headers}, SpanKind.CONSUMER)


async def request(connection: asyncpg.Connection, traced: Traced) -> None:
    """The database transaction of a traced request."""
    with traced.tracer.start_as_current_span("request", kind=SpanKind.SERVER):
        async with connection.transaction():
            await trace_context(connection)
            await insert_event(connection)


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def dangling(receiver: Receiver) -> list[str]:
    """Spans with a parent or a link to a span that the receiver does not have in that trace."""
    there = {(span.trace_id, span.span_id) for span in receiver.spans.values()}
    return [
        span.name
        for span in receiver.spans.values()
        for trace, other in [
            *([(span.trace_id, span.parent_span_id)] if span.parent_span_id else []),
            *((link.trace_id, link.span_id) for link in span.links),
        ]
        if (trace, other) not in there
    ]


SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5
#: The first three spans of each trace: name, kind and parent.
BEGINNING = [
    ("request", SERVER, None),
    ("send event_outbox", PRODUCER, "request"),
    ("process event_outbox", CONSUMER, "send event_outbox"),
]


@pytest.mark.parametrize(
    ("way", "end"),
    [
        # The client span is that of the HTTP client in the coroutine.
        (coroutine, [("POST", CLIENT, "process event_outbox"), ("receiver", SERVER, "POST")]),
        # The client or producer span is made by the consumer.
        (webhook, [("POST", CLIENT, "process event_outbox"), ("receiver", SERVER, "POST")]),
        pytest.param(
            through_nats,
            [("send events.{type}", PRODUCER, "process event_outbox"), ("receiver", CONSUMER, "send events.{type}")],
            marks=needs_server,
        ),
        (through_kafka, [("send events", PRODUCER, "process event_outbox"), ("receiver", CONSUMER, "send events")]),
    ],
    ids=["coroutine", "webhook", "nats", "kafka"],
)
async def test_a_request_reaches_the_receiver_in_one_trace(live, receiver, tmp_path, way: Way, end):
    """Request, event, attempt, client, receiver: five spans, each the child of the one before, and no other in the
    trace; every link leads to an existing span.

    Fails when: no context is current in a coroutine, the target gets another span than the one that is exported, a
    coroutine has a span besides its attempt, or a delivery links to the transaction that settled it.
    """
    traced = Traced(receiver)
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(connected(live.dsn))
        await begin(live.dsn)
        async with way(traced, tmp_path) as (address, options, targets):
            await open_route(connection, address=address, target=options)
            async with Consumer(
                Settings(dsn=live.dsn, allow_private="127.0.0.1"), targets=targets, observers=[traced.observer()]
            ):
                await request(connection, traced)
                await wait_until_settled(connection)
        async with exporting(live.dsn, receiver):
            await wait_until(lambda: asyncio.sleep(0, receiver.named("receiver")), "the receiver's span")
            (last,) = receiver.named("receiver").values()

            async def whole() -> bool:
                return not dangling(receiver)

            await wait_until(whole, "every parent and every link")

    chain = [last]
    while chain[0].parent_span_id:
        chain.insert(0, receiver.spans[chain[0].parent_span_id.hex()])
    parents = [None, *(span.name for span in chain[:-1])]
    assert [(span.name, span.kind, parent) for span, parent in zip(chain, parents, strict=True)] == [*BEGINNING, *end]
    assert sorted(s.name for s in receiver.spans.values() if s.trace_id == last.trace_id) == sorted(
        s.name for s in chain
    )
    sent, attempt, client = chain[1:4]
    assert sent.end_time_unix_nano <= attempt.start_time_unix_nano
    assert len(attempt.links) == 2
    assert attributes(attempt)["messaging.consumer.group.name"] == "iu_outbound_default"
    # All calls of a target are found by one attribute, which one span of each trace has.
    ours = attempt if way is coroutine else client
    assert [span for span in chain if "iu.target" in attributes(span)] == [ours]
    # The times of later spans are not compared: their clocks differ from the database's.
    for parent, child in pairwise(chain[: chain.index(ours) + 1]):
        assert parent.start_time_unix_nano <= child.start_time_unix_nano
    assert attributes(ours)["iu.route.code"] == ROUTE
    assert "s3cret" not in str(client)


async def test_the_attempt_is_the_time_and_the_failure_of_a_coroutine(live, receiver):
    """The span of the attempt is the parent of the coroutine's spans, lasts as long as the call, and has its error.

    Fails when: the attempt has the time of the batch or of the settlement, or does not have the error.
    """
    traced = Traced(receiver)

    async def work(_: Delivery) -> None:
        with traced.tracer.start_as_current_span("inside"):
            await anyio.sleep(0.3)
        raise Failed("no room", code="no_room")

    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await open_route(connection, attempts=1)
        async with Consumer(Settings(dsn=live.dsn), targets=[PythonTarget("event_outbox", work)], observers=()):
            await request(connection, traced)
            await wait_until_settled(connection)
        async with exporting(live.dsn, receiver):
            await wait_until(lambda: asyncio.sleep(0, receiver.named("dead_letter")), "the last span")
    (inside,) = receiver.named("inside").values()
    attempt = receiver.spans[inside.parent_span_id.hex()]
    assert (attempt.name, attempt.status.message) == ("process event_outbox", "no room")
    assert attributes(attempt)["error.type"] == "no_room"
    lengths = [span.end_time_unix_nano - span.start_time_unix_nano for span in (inside, attempt)]
    assert lengths == sorted(lengths)


async def test_attempts_that_fail_and_those_of_two_routes_link_to_what_is_there(live, receiver):
    """Two routes of one event; one fails, is retried, becomes a dead letter and is replayed: no link dangles.

    Fails when: a delivery links to its own transaction, or the event's span ends with the attempt that was exported
    first.
    """
    traced = Traced(receiver)
    failing = True

    async def work(_: Delivery) -> None:
        if failing:
            raise Failed("no", code="http_503")

    async def slow(_: Delivery) -> None:
        await anyio.sleep(0.05)

    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await open_route(connection, attempts=2, backoff=0.01)
        await add_route(connection, "second")
        targets = [PythonTarget("event_outbox", work), PythonTarget("second", slow)]
        async with Consumer(
            Settings(dsn=live.dsn, allow_private="127.0.0.1"), targets=targets, observers=[traced.observer()]
        ):
            await request(connection, traced)
            await wait_until_settled(connection)
            failing = False
            await connection.fetchval("select fn_iu_route_dead_letter_replay(id, 'ann') from iu_route_dead_letter")
            await wait_until_settled(connection)
        async with exporting(live.dsn, receiver):
            expected = await connection.fetchval("select count(*) from iu_route_attempt") + 1

            async def whole() -> bool:
                ours = [s for s in receiver.spans.values() if s.name.startswith(("process", "dead_letter"))]
                tried = [s for s in ours if "messaging.batch.message_count" not in attributes(s)]
                return len(tried) == expected and not dangling(receiver)

            await wait_until(whole, "every parent and every link")
    (sent,) = (s for s in receiver.named("send ").values())
    tried = [s for s in receiver.named("process ").values() if "iu.attempt.number" in attributes(s)]
    assert len(tried) == 4
    assert all(sent.end_time_unix_nano <= span.start_time_unix_nano for span in tried)
    errors = [attributes(s).get("error.type") for s in tried]
    assert sorted(errors, key=str) == [None, None, "http_503", "http_503"]
