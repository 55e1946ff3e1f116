"""The limits of requests to a collector: time, size, connections, and the length of a page."""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceResponse,
)

from iu_listen.app import PostgresSessions
from iu_listen.flow import trace_export
from iu_listen.flow.trace_export import TraceExport
from iu_listen.model.observation import ExportDelayed, SessionFailed, SpansExported
from iu_listen.model.settings import Settings
from iu_listen.telemetry.otlp import base
from iu_listen.telemetry.otlp.factory import create_collector
from postgres.routes import add_poison_trigger
from support import Recorder, connected, drain, insert_event, wait_until
from telemetry.exporting import all_there, begin, burst, exporting, idle, rows
from telemetry.receiver import Behaviour, Dripping, GrpcReceiver, Receiver, says

pytestmark = pytest.mark.asyncio


# -- answers without an end ------------------------------------------------------------------------------------------


async def hanging(there: Dripping, many: int) -> bool:
    return there.open == many


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
@pytest.mark.parametrize(
    ("beginning", "then"),
    [
        (b"HTTP/1.1 200 OK\r\nx: ", b"x"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
async def test_who_drips_is_hung_up_on(live, quick, beginning, then):
    """A collector that answers one byte at a time costs one timeout for each try; no thread and no connection remains.

    Fails when: the connection is not closed at the end of the timeout.
    """
    there = Dripping(beginning, then, 0.05)
    try:
        async with connected(live.dsn) as connection:
            await begin(live.dsn)
            await insert_event(connection)
            await drain(connection)
            async with exporting(live.dsn, there) as recorder:

                async def tried() -> bool:
                    return len(recorder.of(ExportDelayed)) >= 4

                await wait_until(tried, "it is tried four times")
                assert {o.why for o in recorder.of(ExportDelayed)} == {
                    "no answer within 0.5 s (OTEL_EXPORTER_OTLP_TIMEOUT)"
                }
                assert there.open <= 2
                for many in (0, 1):
                    await wait_until(lambda n=many: hanging(there, n), "it is tried once more")
                assert sum(t.name == "iu-listen collector" for t in threading.enumerate()) <= 3

            await wait_until(lambda: hanging(there, 0), "an export that is ended hangs up", 5)
    finally:
        there.stop()


async def test_a_request_that_is_cancelled_is_hung_up_on():
    """A request that is cancelled, as after the loss of the session, holds neither its connection nor its thread."""
    there = Dripping(b"HTTP/1.1 200 OK\r\nx: ", b"x", 0.05)
    client = create_collector(
        {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": there.endpoint,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60000",
        }
    )
    assert client is not None
    with anyio.move_on_after(0.5):
        await client.send([])
    await wait_until(lambda: hanging(there, 0), "the connection is cut", 5)
    client.close()
    there.stop()


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_one_connection_serves_all(live, receiver):
    """Successive requests use one connection.

    Fails when: an answer is not read to its end.
    """
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        for _ in range(200):
            await insert_event(connection)
        await drain(connection)
        async with exporting(live.dsn, receiver):
            await all_there(connection, receiver)
        assert len(receiver.requests) >= 4
        assert len({headers[":port"] for _, headers in receiver.requests}) == 1


# -- limits of size --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_a_page_that_is_too_large_goes_in_parts(live, quick):
    """Over gRPC a page above the receiver's limit is halved until its parts fit; no span is dropped.

    Fails when: RESOURCE_EXHAUSTED only causes a wait.
    """
    there = GrpcReceiver(most=6000)
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await add_poison_trigger(connection)
        await burst(connection, 60)
        # The gRPC server of the library closes the connection after such an answer.
        async with exporting(live.dsn, there, OTEL_EXPORTER_OTLP_TIMEOUT="5000"):
            await all_there(connection, there)
        assert await connection.fetchval("select rejected from iu_trace_cursor") == 0
    there.stop()


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_no_request_is_larger_than_what_everybody_takes(live, receiver, monkeypatch):
    """A page of long texts is sent in requests that every collector accepts, and long texts are truncated.

    Fails when: the size of a request is not checked.
    """
    monkeypatch.setattr(base, "MAX_REQUEST_BYTES", 40_000)
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await connection.execute(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, canonical_address)
               select 'iu', 'version_applied', 'update', 'immediate', n || repeat(' long', 2000)
                 from generate_series(10, 40) n"""
        )
        await drain(connection)
        async with exporting(live.dsn, receiver):
            await all_there(connection, receiver)
    assert len(receiver.requests) > 3
    assert max(int(headers["content-length"]) for _, headers in receiver.requests) <= 40_000
    (subject,) = {
        len(a.value.string_value)
        for span in receiver.named("process ").values() for a in span.attributes if a.key == "iu.event.subject"
    }  # fmt: skip
    assert subject == 4096


# -- long pages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_a_page_that_waits_long_keeps_its_session(live, receiver, monkeypatch):
    """While the collector is busy for longer than the session timeout, the session is kept, and nothing is repeated.

    Fails when: the session is not used meanwhile.
    """
    monkeypatch.setattr(trace_export, "KEEPALIVE_INTERVAL", 1.0)
    monkeypatch.setattr(trace_export, "MAX_EXPORT_BACKOFF", 10.0)
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await insert_event(connection)
        await drain(connection)
        receiver.behaviour = says(429, retry_after="7")
        async with exporting(live.dsn, receiver, session_timeout=1) as recorder:
            await recorder.wait_for(ExportDelayed)
            receiver.behaviour = None
            await all_there(connection, receiver)
            await wait_until(lambda: idle(connection), "all is exported")
            assert recorder.of(SessionFailed) == []
        assert receiver.received == 2


def slowly(receiver: Receiver) -> Behaviour:
    """A behaviour that keeps everything, after 0.3 s."""

    def behave(request: Any) -> tuple[Any, dict[str, Any], bytes]:
        time.sleep(0.3)
        receiver.keep(request)
        return 200, {}, ExportTraceServiceResponse().SerializeToString()

    return behave


async def exported(seen: Recorder, pages: int) -> bool:
    return len(seen.of(SpansExported)) >= pages


@pytest.mark.parametrize("again", [False, True])
async def test_a_command_goes_on_after_the_loss_of_its_session(live, receiver, again):
    """After the loss of its session, a single export opens another session and continues at its position.

    Fails when: a lost session ends the command, or the export starts again.
    """
    async with connected(live.dsn) as connection:
        begun = await connection.fetchval("select now()")
        await begin(live.dsn)
        for _ in range(300):
            await insert_event(connection)
        await drain(connection)
        receiver.behaviour = slowly(receiver)
        seen = Recorder()
        there = create_collector({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint})
        assert there is not None
        once = TraceExport(PostgresSessions(Settings.load({}, {"dsn": live.dsn})), there, seen)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(once.once, begun if again else None)
            for pages in (3, 6):
                await wait_until(lambda known=pages: exported(seen, known), "some pages are sent")
                await connection.fetch(
                    """select pg_terminate_backend(pid) from pg_stat_activity
                        where application_name like 'iu-listen traces%'"""
                )
        there.close()
        assert {key for key, span in receiver.spans.items() if not span.name.startswith("send ")} == await rows(
            connection
        )
        assert receiver.received <= 600 + 2 * 2 * trace_export.PAGE_ROWS
        assert seen.of(SessionFailed)
