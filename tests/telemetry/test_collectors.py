"""Misbehaving collectors: whatever they answer, no span is missing at the end, and no wait is without a limit."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from iu_listen.flow import trace_export
from iu_listen.model import spans
from iu_listen.model.observation import ExportDelayed, SpansExported
from iu_listen.model.spans import CollectorAnswer
from postgres.routes import add_poison_trigger
from support import connected, drain, insert_event, wait_until
from telemetry.exporting import all_there, begin, burst, exporting, idle, rows
from telemetry.receiver import Behaviour, GrpcReceiver, Receiver, hangs, says

pytestmark = pytest.mark.asyncio


def refuses(receiver: Receiver, bad: Collection[str]) -> Behaviour:
    """A behaviour that keeps requests without a bad span, and refuses others as malformed, by HTTP or gRPC."""
    over_grpc = isinstance(receiver, GrpcReceiver)

    def behave(request: Any) -> tuple[Any, dict[str, Any], bytes]:
        if any(span.span_id.hex() in bad for span in request.resource_spans[0].scope_spans[0].spans):
            return ("INVALID_ARGUMENT", {}, b"bad span") if over_grpc else (400, {}, b"bad span")
        receiver.keep(request)
        return "OK" if over_grpc else 200, {}, ExportTraceServiceResponse().SerializeToString()

    return behave


@pytest.mark.parametrize("fault", ["503", "429", "404", "hangs", "gone"])
async def test_nothing_is_missing_after_a_fault_of_the_receiver(live, receiver, fault):
    """However long the receiver fails during a burst, at the end it has every span.

    Fails when: the cursor moves before a page was accepted, or spans are dropped after some tries.
    """
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await add_poison_trigger(connection)
        async with exporting(live.dsn, receiver) as recorder:
            await burst(connection, 100)
            await recorder.wait_for(SpansExported)
            if fault == "gone":
                receiver.stop()
            else:
                receiver.behaviour = {
                    "503": says(503), "429": says(429, retry_after="1"), "404": says(404), "hangs": hangs(1)
                }[fault]  # fmt: skip
            await burst(connection, 100)
            held = await recorder.wait_for(ExportDelayed)
            await recorder.wait_for(ExportDelayed, lambda o: o is not held)
            assert held.poison is None
            assert fault not in ("503", "429", "404") or fault in held.why
            if fault == "429":
                assert held.retry_in == 1
            if fault == "gone":
                receiver.start()
            receiver.behaviour = None
            await all_there(connection, receiver)


async def test_a_collector_with_a_small_limit_and_changing_faults_gets_each_span_once(live, receiver):
    """Answers 413 above 20 KB, 429 with Retry-After, 404, then 200: each span arrives once, none is dropped.

    Fails when: a page that is too large is dropped instead of halved, or an accepted part is sent again.
    """
    answers: list[int] = []

    def behave(request: Any) -> tuple[int, dict[str, str], bytes]:
        turn = len(answers)
        status = 429 if 4 <= turn < 6 else 404 if 6 <= turn < 9 else 413 if request.ByteSize() > 20_000 else 200
        answers.append(status)
        if status == 200:
            receiver.keep(request)
        return status, {"retry-after": "1"} if status == 429 else {}, b""

    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await add_poison_trigger(connection)
        await burst(connection, 300)
        receiver.behaviour = behave
        async with exporting(live.dsn, receiver) as recorder:
            await all_there(connection, receiver)
            await wait_until(lambda: idle(connection), "all is exported")
        assert set(answers) == {200, 404, 413, 429}
        assert receiver.received == len(receiver.spans)
        assert await connection.fetchval("select rejected from iu_trace_cursor") == 0
        assert 1 in {held.retry_in for held in recorder.of(ExportDelayed)}


async def test_a_malformed_span_is_left_out_alone(live, receiver):
    """A malformed span is isolated from its page, counted and logged; all others arrive.

    Fails when: the page is dropped as a whole, or repeated for ever.
    """
    bad = {}

    def picky(request: Any) -> tuple[int, dict[str, str], bytes]:
        spans = request.resource_spans[0].scope_spans[0].spans
        if any(span.span_id.hex() == bad["span"] for span in spans):
            return 400, {"content-type": "text/plain"}, b"bad span"
        receiver.keep(request)
        return 200, {}, b""

    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        for _ in range(60):
            await insert_event(connection)
        await drain(connection)
        bad["span"] = await connection.fetchval("select span_id from v_iu_route_attempt order by id offset 33 limit 1")
        receiver.behaviour = picky
        async with exporting(live.dsn, receiver) as recorder:
            told = await recorder.wait_for(ExportDelayed, lambda o: o.poison)
            await wait_until(lambda: idle(connection), "all is exported")
        assert told.poison == bad["span"]
        assert told.why == "the collector answered 400 Bad Request: bad span"
        assert await rows(connection) - receiver.spans.keys() == {bad["span"]}
        assert await connection.fetchval("select rejected from iu_trace_cursor") == 1


async def test_partial_success_is_counted_and_not_repeated(live, receiver):
    """A partially accepted request is not repeated, as the protocol demands, and the rejected spans are counted."""

    def partly(request: Any) -> tuple[int, dict[str, str], bytes]:
        receiver.keep(request)
        partial = ExportTracePartialSuccess(rejected_spans=2, error_message="too old")
        return 200, {}, ExportTraceServiceResponse(partial_success=partial).SerializeToString()

    receiver.behaviour = partly
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        for _ in range(3):
            await insert_event(connection)
        await drain(connection)
        async with exporting(live.dsn, receiver) as recorder:
            assert (await recorder.wait_for(SpansExported)).rejected == 2
            await wait_until(lambda: idle(connection), "all is exported")
        assert receiver.received == 6
        assert tuple(await connection.fetchrow("select exported, rejected from iu_trace_cursor")) == (4, 2)


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
@pytest.mark.parametrize("fault", [None, "UNAVAILABLE", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "gone"])
async def test_over_grpc_nothing_is_missing_either(live, over_grpc, fault):
    """Over gRPC the same spans arrive, with the headers, compressed, after any fault; RetryInfo is obeyed.

    Fails when: an error ends a page, or the receiver's RetryInfo is not read.
    """
    receiver = over_grpc
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await add_poison_trigger(connection)
        headers = {"OTEL_EXPORTER_OTLP_HEADERS": "x-token=a%20b", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
        async with exporting(live.dsn, receiver, **headers) as recorder:
            await burst(connection, 60)
            await recorder.wait_for(SpansExported)
            if fault == "gone":
                receiver.stop()
            elif fault:
                status = Status(code=8, details=[Any_()])
                status.details[0].Pack(RetryInfo(retry_delay=Duration(seconds=1)))
                trailing = {"grpc-status-details-bin": status.SerializeToString()} if "EXHAUSTED" in fault else {}
                receiver.behaviour = lambda _: (fault, trailing, b"not now")
            await burst(connection, 60)
            if fault:
                held = await recorder.wait_for(ExportDelayed)
                assert fault == "gone" or held.why == f"the collector answered {fault}: not now"
                assert fault != "RESOURCE_EXHAUSTED" or held.retry_in == 1
            if fault == "gone":
                receiver.start()
            receiver.behaviour = None
            await all_there(connection, receiver)
        assert receiver.requests[0][1]["x-token"] == "a b"


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_over_grpc_a_malformed_span_is_left_out_alone(live, over_grpc):
    """INVALID_ARGUMENT isolates the span, as 400 does, once a later span arrives; a partial success is counted."""
    bad: list[str] = []
    partial = ExportTracePartialSuccess(rejected_spans=1)
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        for _ in range(3):
            await insert_event(connection)
        await drain(connection)
        bad.append(await connection.fetchval("select span_id from v_iu_route_attempt order by id offset 1 limit 1"))
        over_grpc.behaviour = refuses(over_grpc, bad)
        async with exporting(live.dsn, over_grpc) as recorder:
            await recorder.wait_for(ExportDelayed)
            await insert_event(connection)
            await drain(connection)
            assert (await recorder.wait_for(ExportDelayed, lambda o: o.poison)).poison == bad[0]
            await wait_until(lambda: idle(connection), "all is exported")
            assert await rows(connection) - over_grpc.spans.keys() == set(bad)
            over_grpc.behaviour = lambda _: (
                "OK", {}, ExportTraceServiceResponse(partial_success=partial).SerializeToString()
            )  # fmt: skip
            await insert_event(connection)
            await drain(connection)
            await wait_until(lambda: idle(connection), "all is exported")
        assert await connection.fetchval("select rejected from iu_trace_cursor") == 2


# -- collectors that refuse everything -------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
@pytest.mark.parametrize("answer", [400, 413, 422, "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"])
async def test_who_calls_everything_malformed_has_left_out_nothing(live, receiver, over_grpc, answer, monkeypatch):
    """A collector that refuses every request, as a port that needs TLS, gets every span after it is repaired.

    Fails when: a span is dropped although the collector accepts no other span either.
    """
    monkeypatch.setattr(trace_export, "MAX_REFUSALS", 2)
    there = over_grpc if isinstance(answer, str) else receiver
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await add_poison_trigger(connection)
        async with exporting(live.dsn, there) as recorder:
            await burst(connection, 40)
            await recorder.wait_for(SpansExported)
            there.behaviour = lambda _: (answer, {}, b"wrong port")
            await burst(connection, 40)
            held = [await recorder.wait_for(ExportDelayed, lambda o: str(answer) in o.why)]
            for _ in range(7):
                held.append(await recorder.wait_for(ExportDelayed, lambda o: o not in held))
            assert {(o.poison, o.why.rpartition(": ")[2]) for o in held} == {(None, "wrong port")}
            there.behaviour = None
            await all_there(connection, there)
            await wait_until(lambda: idle(connection), "all is exported")
        assert await connection.fetchval("select rejected from iu_trace_cursor") == 0


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_a_malformed_end_waits_for_something_else(live, receiver):
    """If all remaining spans are refused, none is dropped; the refused ones are dropped when a new span is accepted.

    Fails when: a span that was accepted long ago counts as proof, or spans after the page are not tried.
    """
    async with connected(live.dsn) as connection:
        await insert_event(connection)
        await drain(connection)
        await begin(live.dsn)
        event = await insert_event(connection)
        await drain(connection)
        bad = {spans.span_id("event", str(event)), await connection.fetchval(
            "select span_id from v_iu_route_attempt where event_ref = $1", event
        )}  # fmt: skip
        receiver.behaviour = refuses(receiver, bad)
        async with exporting(live.dsn, receiver) as recorder:

            async def refused_often() -> bool:
                return len(recorder.of(ExportDelayed)) > 2 * trace_export.MAX_REFUSALS

            await wait_until(refused_often, "it is held back for long")
            assert {o.poison for o in recorder.of(ExportDelayed)} == {None}
            assert await connection.fetchval("select rejected from iu_trace_cursor") == 0
            await insert_event(connection)
            await drain(connection)
            await wait_until(lambda: idle(connection), "all is exported")
        assert {o.poison for o in recorder.of(ExportDelayed)} == {None, *bad}
        assert await rows(connection) - receiver.spans.keys() >= bad & await rows(connection)
        assert len(receiver.spans) == 2
        assert await connection.fetchval("select rejected from iu_trace_cursor") == 2


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_many_malformed_spans_in_a_row_are_left_out(live, receiver, monkeypatch):
    """More than a page of refused spans is dropped if a later span is accepted, and nothing else is dropped.

    Fails when: a page of refused spans always counts as an outage.
    """
    monkeypatch.setattr(trace_export, "MAX_REFUSALS", 4)
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        for _ in range(80):
            await insert_event(connection)
        await drain(connection)
        bad = await rows(connection) | {
            row[0] for row in await connection.fetch("select fn_iu_span_id('event', id::text) from event_outbox")
        }
        for _ in range(30):
            await insert_event(connection)
        await drain(connection)
        receiver.behaviour = refuses(receiver, bad)
        async with exporting(live.dsn, receiver):
            await wait_until(lambda: idle(connection), "all is exported", 60)
        assert await rows(connection) - receiver.spans.keys() == bad & await rows(connection)
        assert await connection.fetchval("select rejected from iu_trace_cursor") == 160


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
@pytest.mark.parametrize("whim", ["half of all requests", "traces beyond a limit", "an end in the middle of a round"])
async def test_who_refuses_by_whim_loses_nothing(live, receiver, whim):
    """A collector with one bad replica, a limit, or a repair during the search loses no span.

    Fails when: a span is dropped after one refusal, because a known span is accepted, or during an outage.
    """
    chance, known, left = random.Random(1), set[bytes](), [10**6]

    def refuse(traces: set[bytes]) -> bool:
        if whim == "half of all requests":
            return chance.random() < 0.5
        if whim == "traces beyond a limit":
            return len(known | traces) > 30
        left[0] -= 1
        return left[0] >= 0

    def behave(request: Any) -> tuple[int, dict[str, Any], bytes]:
        traces = {span.trace_id for span in request.resource_spans[0].scope_spans[0].spans}
        if refuse(traces):
            return 400, {}, b"no"
        known.update(traces)
        receiver.keep(request)
        return 200, {}, b""

    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await add_poison_trigger(connection)
        receiver.behaviour = behave
        async with exporting(live.dsn, receiver) as recorder:
            await burst(connection, 90)

            async def held_for_long() -> bool:
                return len(recorder.of(ExportDelayed)) > 2 * trace_export.MAX_REFUSALS

            if whim == "traces beyond a limit":
                await wait_until(held_for_long, "it is held back for long", 60)
                receiver.behaviour = None
            elif whim == "an end in the middle of a round":
                await wait_until(held_for_long, "it is held back for long", 60)
                left[0] = 5
            await all_there(connection, receiver)
        assert await connection.fetchval("select rejected from iu_trace_cursor") == 0


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
@pytest.mark.parametrize(("said", "counted"), [(-(2**63), (2, 0)), (2**63 - 1, (0, 2)), (1, (1, 1))])
async def test_a_count_that_cannot_be_is_none(live, receiver, said, counted):
    """The number of rejected spans that a collector reports is limited to the range from 0 to the number that it got.

    Fails when: the reported number is used unchanged.
    """
    partial = ExportTracePartialSuccess(rejected_spans=said)
    receiver.behaviour = lambda _: (200, {}, ExportTraceServiceResponse(partial_success=partial).SerializeToString())
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await insert_event(connection)
        await drain(connection)
        async with exporting(live.dsn, receiver):
            await wait_until(lambda: idle(connection), "all is exported")
        assert tuple(await connection.fetchrow("select exported, rejected from iu_trace_cursor")) == counted


async def test_the_words_of_a_port_that_wants_tls(receiver):
    """An error text without a content type, or in an OTLP Status, is repeated; HTML is not."""
    from iu_listen.telemetry.otlp.http import HttpCollector

    for headers, body, said in (
        ({}, b"Client sent an HTTP request to an HTTPS server.\n", ": Client sent an HTTP request to an HTTPS server."),
        (
            {"content-type": "application/x-protobuf"},
            Status(message="bad\x1b[31m data").SerializeToString(),
            ": bad [31m data",
        ),
        ({"content-type": "text/html"}, b"<html>", ""),
    ):
        receiver.behaviour = lambda _, answer=(400, headers, body): answer
        there = HttpCollector({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint})
        verdict = there.post(b"")
        there.close()
        assert (verdict.answer, verdict.why) == (
            CollectorAnswer.MALFORMED,
            f"the collector answered 400 Bad Request{said}",
        )
