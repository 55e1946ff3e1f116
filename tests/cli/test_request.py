"""A request to a traced application and all that follows from it, as an independent tracing backend shows it."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from opentelemetry import propagate
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Tracer

from cli.command import POISON, REMEDY, execute, on_one_server, rows, run, running, seen
from iu_listen import trace_context
from postgres.listener_helpers import NO_CATCH_UP, wait_until_armed
from support import connected
from telemetry.agent import Agent, agent

pytestmark = on_one_server

#: Settings under which only the bell wakes the consumer.
TIMER_OUT_OF_REACH = {f"IU_LISTEN_{name.upper()}": str(value) for name, value in NO_CATCH_UP.items()}
INSERT = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, canonical_address, correlation_id)
    values ('iu', 'version_applied', 'update', 'immediate', $1, 'order 7') returning id
"""


async def write(dsn: str, address: str) -> UUID:
    """The database transaction of a request."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await trace_context(connection)
            event: UUID = await connection.fetchval(INSERT, address)
            return event
    finally:
        connection.terminate()


@contextmanager
def application(dsn: str, tracer: Tracer) -> Iterator[str]:
    """An application whose HTTP requests are traced; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            context = propagate.extract({name.lower(): value for name, value in self.headers.items()})
            with tracer.start_as_current_span("POST /units", context, kind=SpanKind.SERVER):
                event = asyncio.run(write(dsn, self.rfile.read(int(self.headers["content-length"])).decode()))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(str(event).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/units"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def asleep(dsn: str) -> None:
    """Wait until a consumer is idle: only then does a producer send NOTIFY."""
    async with connected(dsn) as watching:
        await wait_until_armed(watching)


@pytest.fixture
def backend() -> Iterator[Agent]:
    with agent() as found:
        yield found


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def until(backend: Agent, count: int, trace: bytes) -> list[Any]:
    """Wait until the backend has that many spans of a trace; return all spans."""
    deadline = time.monotonic() + 30
    while True:
        found = backend.spans()
        if len({s.span_id for s in found if s.trace_id == trace}) >= count:
            return found
        assert time.monotonic() < deadline, [(s.name, s.trace_id.hex()) for s in found]
        time.sleep(0.1)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_request_and_all_that_follows_is_one_trace(live, backend, protocol):
    """Request, event, failed attempt, dead letter and replay are one trace with right parents, links, kinds and times.

    Fails when: the context of the request does not reach the row, or a span is made from another row.
    """
    exporter = GrpcExporter(endpoint=backend.grpc, insecure=True) if protocol == "grpc" else HttpExporter(
        endpoint=f"{backend.http}/v1/traces"
    )  # fmt: skip
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("shop")
    execute(live.dsn, POISON)
    began = time.time_ns()
    with (
        running("run", dsn=live.dsn, env=backend.environment(protocol) | TIMER_OUT_OF_REACH) as consumer,
        application(live.dsn, tracer) as url,
    ):
        consumer.until_it_says("listening")
        seen(live.dsn, "select count(*) = 1 from iu_trace_cursor")
        asyncio.run(asleep(live.dsn))
        with tracer.start_as_current_span("POST", kind=SpanKind.CLIENT) as client:
            headers: dict[str, str] = {}
            propagate.inject(headers)
            with urllib.request.urlopen(urllib.request.Request(url, b"poison", headers)) as answer:
                event = UUID(answer.read().decode())
        seen(live.dsn, "select count(*) = 1 from iu_route_dead_letter")
        execute(live.dsn, REMEDY)
        letter = rows(live.dsn, "select id from iu_route_dead_letter")[0][0]
        assert run("dead-letter", "replay", str(letter), "--without-delivery", dsn=live.dsn).code == 0
        trace = client.get_span_context().trace_id.to_bytes(16, "big")
        spans = until(backend, 6, trace)
        assert consumer.end() == 0
    provider.shutdown()
    ended = time.time_ns()

    mine = {s.span_id: s for s in spans if s.trace_id == trace}
    chain = [next(s for s in mine.values() if not s.parent_span_id)]
    while below := [s for s in mine.values() if s.parent_span_id == chain[-1].span_id]:
        (child,) = below
        chain.append(child)
    sent, first, dead, again = chain[2:]

    kinds = Span.SpanKind
    assert [(s.name, s.kind) for s in chain] == [
        ("POST", kinds.SPAN_KIND_CLIENT),
        ("POST /units", kinds.SPAN_KIND_SERVER),
        ("send event_outbox", kinds.SPAN_KIND_PRODUCER),
        ("process event_outbox", kinds.SPAN_KIND_CONSUMER),
        ("dead_letter event_outbox", kinds.SPAN_KIND_CLIENT),
        ("process event_outbox", kinds.SPAN_KIND_CONSUMER),
    ]
    error, unset = Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET
    assert [s.status.code for s in chain] == [unset, unset, unset, error, error, unset]
    assert "poisoned" in first.status.message
    assert first.status.message == dead.status.message

    # Times: no span begins before its parent, no duration is negative, and all times are of this minute.
    for parent, child in pairwise(chain):
        assert parent.start_time_unix_nano <= child.start_time_unix_nano
    for span in chain:
        assert began <= span.start_time_unix_nano <= span.end_time_unix_nano <= ended
    assert sent.end_time_unix_nano <= first.start_time_unix_nano
    assert dead.start_time_unix_nano == dead.end_time_unix_nano == first.end_time_unix_nano

    # Links: the attempt links to the event and to its batch, whose parent span names the reason of the wake-up; the
    # replay links to the event and to the attempt that it repeats.
    (batch,) = [
        s for s in spans if "messaging.batch.message_count" in attributes(s) and s.kind == kinds.SPAN_KIND_CONSUMER
    ]
    (wake,) = [s for s in spans if s.span_id == batch.parent_span_id]
    assert [(k.trace_id, k.span_id) for k in first.links] == [(trace, sent.span_id), (batch.trace_id, batch.span_id)]
    assert [(k.trace_id, k.span_id) for k in again.links] == [(trace, sent.span_id), (trace, first.span_id)]
    assert (wake.name, attributes(wake)["iu.wake"]) == ("receive event_outbox", "notify")
    assert wake.start_time_unix_nano <= batch.start_time_unix_nano <= first.start_time_unix_nano
    assert first.end_time_unix_nano <= batch.end_time_unix_nano <= wake.end_time_unix_nano

    # Attributes.
    common = {
        "messaging.system": "postgresql", "messaging.destination.name": "event_outbox",
        "messaging.message.id": str(event), "messaging.message.conversation_id": "order 7",
        "iu.event.domain": "iu", "iu.event.type": "version_applied", "iu.event.subject": "poison",
    }  # fmt: skip
    key = f"outbound:iu.version_applied.workflow:{event}"
    routed = common | {
        "iu.route.code": "iu.version_applied.workflow", "iu.route.kind": "outbound", "iu.idempotency_key": key
    }  # fmt: skip
    process = {
        "messaging.operation.name": "process", "messaging.operation.type": "process",
        "messaging.consumer.group.name": "iu_outbound_default",
    }  # fmt: skip
    assert attributes(sent) == common | {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    assert attributes(first) == routed | process | {
        "iu.attempt.status": "failed", "iu.attempt.decision": "dead_letter", "iu.attempt.number": 1,
        "error.type": "worker_process_error",
    }  # fmt: skip
    assert attributes(dead) == routed | {
        "messaging.operation.name": "dead_letter", "messaging.operation.type": "settle",
        "messaging.consumer.group.name": "iu_outbound_default", "error.type": "worker_process_error",
        "iu.dead_letter.id": str(letter),
    }  # fmt: skip
    assert attributes(again) == routed | process | {
        "iu.attempt.status": "dry_run", "iu.attempt.decision": "dry_run", "iu.attempt.number": 2
    }  # fmt: skip

    # The rows of the database have the same ids.
    known = rows(live.dsn, "select trace_id, span_id from v_iu_route_attempt order by id")
    assert [tuple(row) for row in known] == [(trace.hex(), first.span_id.hex()), (trace.hex(), again.span_id.hex())]


def test_an_event_of_plain_sql_is_found_by_its_id(live, backend):
    """Without a context, the trace id is the event's UUID, and every span of the event has the UUID as its message id.

    Fails when: an event without a context gets a random trace.
    """
    with running("run", dsn=live.dsn, env=backend.environment("http/protobuf")) as consumer:
        consumer.until_it_says("listening")
        seen(live.dsn, "select count(*) = 1 from iu_trace_cursor")
        event = rows(live.dsn, INSERT, "kb/1")[0][0]
        spans = [s for s in until(backend, 2, event.bytes) if s.trace_id == event.bytes]
        assert consumer.end() == 0
    assert sorted(s.name for s in spans) == ["process event_outbox", "send event_outbox"]
    assert all(attributes(s)["messaging.message.id"] == str(event) for s in spans)
