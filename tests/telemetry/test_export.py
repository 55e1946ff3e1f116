"""The export of traces: every attempt and every dead letter is at the receiver, whatever befalls the way to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import anyio
import asyncpg
import pytest
from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from iu_listen.app import PostgresSessions
from iu_listen.flow import export
from iu_listen.flow.export import Export
from iu_listen.model.observation import SpansExported, SpansHeld
from iu_listen.model.settings import Settings
from iu_listen.telemetry.collector import collector
from postgres.routes import poison
from support import Recorder, connected, drain, insert_event, run_batch, wait_until
from telemetry.receiver import GrpcReceiver, Receiver, hangs, says

pytestmark = pytest.mark.asyncio

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses and pages of tests."""
    monkeypatch.setattr(export, "PAGE", 50)
    monkeypatch.setattr(export, "IDLE_PAUSE", 0.02)
    monkeypatch.setattr(export, "RETRY_PAUSE", 0.2)


async def begin(dsn: str) -> None:
    """Begin the export now."""
    async with PostgresSessions(Settings.load({}, {"dsn": dsn})).tracer() as source:
        assert await source.take_lease() is None


@asynccontextmanager
async def exporting(dsn: str, receiver: Receiver, **environ: str) -> AsyncIterator[Recorder]:
    """An export in this process, for the length of a block."""
    recorder = Recorder()
    variables = {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "0.5",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc" if isinstance(receiver, GrpcReceiver) else "http/protobuf",
    }
    there = collector(variables | environ)
    assert there is not None
    exporter = Export(PostgresSessions(Settings.load({}, {"dsn": dsn})), there, recorder)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exporter.run)
        yield recorder
        tasks.cancel_scope.cancel()
    there.close()


async def rows(connection: asyncpg.Connection) -> set[str]:
    """Span ids of all attempts and all dead letters."""
    found = await connection.fetch("""select span_id from v_iu_route_attempt
                                      union all select fn_iu_span_id('dead_letter', id::text) from iu_route_dead_letter""")
    return {row["span_id"] for row in found}


async def all_there(connection: asyncpg.Connection, receiver: Receiver, timeout: float = 30) -> None:
    """Wait until the receiver has the spans of all rows, and of nothing else but events."""

    async def same() -> bool:
        return {key for key, span in receiver.spans.items() if not span.name.startswith("send ")} == await rows(
            connection
        )

    await wait_until(same, "every row is a span at the receiver", timeout)


async def burst(connection: asyncpg.Connection, events: int) -> None:
    """Events, one in twenty of them poisonous, and half of the dead letters replayed, of which half fail again."""
    async with connection.transaction():
        for number in range(events):
            await insert_event(connection, note="poison 22000" if number % 20 == 0 else "")
    await drain(connection, 100)
    letters = await connection.fetch("select id from iu_route_dead_letter where resolved_at is null order by id")
    for number, letter in enumerate(letters[::2]):
        if number == len(letters) // 4:
            await connection.execute("alter table iu_route_attempt disable trigger test_poison")
        await connection.fetchval("select fn_iu_route_dead_letter_replay($1)", letter["id"])
    await connection.execute("alter table iu_route_attempt enable trigger test_poison")


async def test_every_row_is_a_span(live, receiver):
    """Attempts, dead letters and replays are at the receiver, each once; what is older than the export is not.

    Fails when: one of the tables is not read, or the cursor is not kept.
    """
    async with connected(live.dsn) as connection:
        old = await insert_event(connection)
        await drain(connection)
        await begin(live.dsn)
        await poison(connection)
        await burst(connection, 200)
        async with exporting(live.dsn, receiver) as recorder:
            await wait_until(lambda: _idle(connection), "all is exported")
            await insert_event(connection)
            await drain(connection)
            await recorder.wait_for(SpansExported, lambda o: o.spans == 2)
        expected = await rows(connection) - {
            await connection.fetchval("select span_id from v_iu_route_attempt where event_ref = $1", old)
        }
        assert {k for k, s in receiver.spans.items() if not s.name.startswith("send ")} == expected
        assert (
            receiver.received
            == len(receiver.spans)
            == await connection.fetchval("select exported from iu_trace_cursor")
        )
        assert len(receiver.named("send ")) == 201
        assert len(receiver.named("dead_letter ")) == 10


async def _idle(connection: asyncpg.Connection) -> bool:
    return await connection.fetchval("select fn_iu_trace_tick('traces') ->> 'status'") == "idle"


@pytest.mark.parametrize("fault", ["503", "429", "404", "hangs", "gone"])
async def test_nothing_is_missing_after_a_fault_of_the_receiver(live, receiver, fault):
    """However long the receiver fails in the middle of a burst, in the end it has everything.

    Fails when: the cursor moves before a page was accepted, or spans are dropped after some tries.
    """
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await poison(connection)
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
            held = await recorder.wait_for(SpansHeld)
            await recorder.wait_for(SpansHeld, lambda o: o is not held)
            assert held.poison is None
            assert fault not in ("503", "429", "404") or fault in held.why
            if fault == "429":
                assert held.retry_in == 1
            if fault == "gone":
                receiver.start()
            receiver.behaviour = None
            await all_there(connection, receiver)


async def test_a_killed_export_goes_on_where_it_was_accepted(live, receiver):
    """An export that is ended at any moment is taken up by the next: nothing is missing, and little comes twice.

    Fails when: a tick is given up, or begun anew, when its reader is gone.
    """
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await poison(connection)
        await burst(connection, 400)
        for _ in range(8):
            async with exporting(live.dsn, receiver) as recorder:
                await recorder.wait_for(SpansExported)
        async with exporting(live.dsn, receiver):
            await all_there(connection, receiver)
        assert receiver.received <= len(receiver.spans) + 9 * 2 * export.PAGE


async def test_what_the_receiver_did_not_take_outlives_the_export(live, receiver):
    """An export that is ended while the receiver takes nothing leaves everything to the next one.

    Fails when: the cursor moves before a page was accepted.
    """
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        for _ in range(3):
            await insert_event(connection)
        await drain(connection)
        receiver.behaviour = says(503)
        async with exporting(live.dsn, receiver) as recorder:
            await recorder.wait_for(SpansHeld)
        receiver.behaviour = None
        async with exporting(live.dsn, receiver):
            await all_there(connection, receiver)


ATTEMPT = """insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key)
             select e.id, 'outbound', 'r', 'dry_run', 'outbound:r:' || e.id from gen_random_uuid() e(id)"""


async def test_a_tick_is_ended_before_the_next_one_begins(live):
    """What commits while a tick is half exported belongs to the next one, also when its transaction is an older one.

    Fails when: a tick that is open is taken anew: the position has passed the older transaction.
    """
    await begin(live.dsn)
    async with (
        connected(live.dsn) as connection,
        connected(live.dsn) as late,
        PostgresSessions(Settings.load({}, {"dsn": live.dsn})).tracer() as source,
    ):
        await late.execute("begin")
        await late.execute(ATTEMPT)
        for _ in range(3):
            await connection.execute(ATTEMPT)
        place = await source.tick()
        assert place is not None
        page = await source.page(place, 2)
        await source.accepted(page, 0)
        await late.execute("commit")
        found = [span.span_id for span in page.spans]
        while (place := await source.tick()) is not None:
            page = await source.page(place, 2)
            found += [span.span_id for span in page.spans]
            await source.accepted(page, 0)
        assert len(found) == 4
        assert set(found) == await rows(connection)


async def test_the_database_says_when_to_give_way(live):
    """While a worker is in the middle of a tick, whoever notes a page is told so; when it is through, or silent, not.

    Fails when: nobody looks at the worker's cursor.
    """
    await begin(live.dsn)
    async with (
        connected(live.dsn) as connection,
        PostgresSessions(Settings.load({}, {"dsn": live.dsn})).tracer() as source,
    ):

        async def told() -> bool:
            await connection.execute(ATTEMPT)
            place = await source.tick()
            assert place is not None
            return await source.accepted(await source.page(place, 100), 0)

        assert not await told()
        for _ in range(3):
            await insert_event(connection)
        await run_batch(connection, 2)
        assert await told()
        await connection.execute("update iu_route_worker_cursor set last_run_at = now() - interval '3 seconds'")
        assert not await told()
        await drain(connection)
        assert not await told()


async def test_a_position_never_goes_back(live):
    """A reader that was overtaken moves nothing: neither the position back, nor a tick that is not open any more.

    Fails when: whatever is accepted last is the position.
    """
    await begin(live.dsn)
    async with (
        connected(live.dsn) as connection,
        PostgresSessions(Settings.load({}, {"dsn": live.dsn})).tracer() as source,
    ):
        for _ in range(5):
            await connection.execute(ATTEMPT)
        place = await source.tick()
        assert place is not None
        first = await source.page(place, 1)
        second = await source.page(first.place, 2)
        await source.accepted(second, 0)
        position = await connection.fetchrow("select tick::text, attempt_xid, attempt_id from iu_trace_cursor")
        assert (str(position["attempt_xid"]), position["attempt_id"]) == second.place.attempt
        await source.accepted(first, 0)
        assert await connection.fetchrow("select tick::text, attempt_xid, attempt_id from iu_trace_cursor") == position
        last = await source.page(second.place, 10)
        assert last.last
        await source.accepted(last, 0)
        await source.accepted(second, 0)
        assert await source.tick() is None


async def test_late_commits_are_exported(live, receiver):
    """Attempts of a transaction that ends after younger ones were exported are exported when it does.

    Fails when: the reader goes by id or by xact_id alone.
    """
    async with connected(live.dsn) as connection, connected(live.dsn) as late:
        await begin(live.dsn)
        await late.execute("begin")
        await late.execute(ATTEMPT)
        async with exporting(live.dsn, receiver):
            for _ in range(3):
                await connection.execute(ATTEMPT)
                await all_there(connection, receiver)
            await late.execute(ATTEMPT)
            await late.execute("commit")
            await all_there(connection, receiver)
            assert len(receiver.spans) == 5


async def test_a_malformed_span_is_left_out_alone(live, receiver):
    """A span that the receiver calls malformed is found among its page, counted and told; all others arrive.

    Fails when: the page is dropped whole, or sent again for ever.
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
            told = await recorder.wait_for(SpansHeld)
            await wait_until(lambda: _idle(connection), "all is exported")
        assert told.poison == bad["span"]
        assert told.why == "the collector answered 400 Bad Request: bad span"
        assert await rows(connection) - receiver.spans.keys() == {bad["span"]}
        assert await connection.fetchval("select rejected from iu_trace_cursor") == 1


async def test_partial_success_is_counted_and_not_repeated(live, receiver):
    """What the receiver takes only in part is not sent again, as the protocol demands, and counted."""

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
            await wait_until(lambda: _idle(connection), "all is exported")
        assert receiver.received == 6
        assert tuple(await connection.fetchrow("select exported, rejected from iu_trace_cursor")) == (4, 2)


async def test_one_trace_from_the_request_to_the_replay(live, receiver):
    """Parents, links, kinds, status and times of one event's life, field by field."""
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await poison(connection)
        async with connection.transaction():
            await connection.execute(f"set local iu.traceparent = '{TRACEPARENT}'")
            event = await insert_event(connection, note="poison 22000")
        await run_batch(connection)
        await connection.execute("drop trigger test_poison on iu_route_attempt")
        letter = await connection.fetchval("select id from iu_route_dead_letter")
        await connection.fetchval("select fn_iu_route_dead_letter_replay($1)", letter)
        async with exporting(live.dsn, receiver):
            await all_there(connection, receiver)
        attempts = await connection.fetch("select * from v_iu_route_attempt order by attempt_no")
    first, second = (receiver.spans[a["span_id"]] for a in attempts)
    (sent,), (dead,) = receiver.named("send ").values(), receiver.named("dead_letter ").values()

    trace, parent = TRACEPARENT[3:35], TRACEPARENT[36:52]
    assert {s.trace_id.hex() for s in receiver.spans.values()} == {a["trace_id"] for a in attempts} == {trace}
    assert sent.parent_span_id.hex() == parent
    assert first.parent_span_id == sent.span_id
    assert dead.parent_span_id == first.span_id
    assert second.parent_span_id == dead.span_id
    assert [(s.name, s.kind) for s in (sent, first, dead, second)] == [
        ("send event_outbox", 4), ("process event_outbox", 5), ("dead_letter event_outbox", 3), ("process event_outbox", 5),
    ]  # fmt: skip
    assert [s.status.code for s in (sent, first, dead, second)] == [0, 2, 2, 0]
    assert "cannot swallow this" in first.status.message
    for span, before in ((first, sent), (dead, first), (second, dead)):
        assert before.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
    assert first.span_id in {link.span_id for link in second.links}
    assert sent.span_id in {link.span_id for link in first.links}
    attributes = {a.key: a.value.string_value or a.value.int_value for a in first.attributes}
    assert attributes["messaging.message.id"] == str(event)
    assert (attributes["iu.attempt.status"], attributes["iu.attempt.number"]) == ("failed", 1)
    assert attributes["error.type"] == "worker_process_error"


async def test_an_event_without_context_is_its_own_trace(live, receiver):
    """An event of plain SQL is found by its id; a malformed context is ignored and counted, and no writer's error."""
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        plain = await insert_event(connection)
        await connection.execute("set iu.traceparent = '00-nonsense'")
        odd = await insert_event(connection)
        await connection.execute(f"set iu.traceparent = '{TRACEPARENT * 2000}'")
        huge = await insert_event(connection)
        await drain(connection)
        async with exporting(live.dsn, receiver):
            await all_there(connection, receiver)
            await wait_until(lambda: _idle(connection), "all is noted")
        assert {s.trace_id.hex() for s in receiver.spans.values()} == {plain.hex, odd.hex, huge.hex}
        assert await connection.fetchval("select ignored from iu_trace_cursor") == 2


async def test_what_is_not_exported_yet_is_not_removed(live, receiver):
    """Retention leaves an event and its attempts alone until they were exported.

    Fails when: fn_iu_retention_released does not ask the cursor of the traces.
    """
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        event = await insert_event(connection)
        await drain(connection)
        assert await connection.fetchval("select fn_iu_retention_released($1)", event) is False
        async with exporting(live.dsn, receiver):
            await wait_until(lambda: _idle(connection), "all is exported")
        assert await connection.fetchval("select fn_iu_retention_released($1)", event) is True


async def test_strange_times_are_exported_too(live, receiver):
    """A creation in the far past, the far future, or at infinity makes spans like any other, of no negative length."""
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        strange: list[UUID] = [
            await connection.fetchval(
                """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at)
                   values ('iu', 'version_applied', 'update', 'immediate', $1::text::timestamptz) returning id""",
                created,
            )
            for created in ("infinity", "-infinity", "4000-01-01 BC", "20000-01-01", "1970-01-01")
        ]
        await drain(connection)
        async with exporting(live.dsn, receiver):
            await all_there(connection, receiver)
        assert len(receiver.spans) == 2 * len(strange)
        for span in receiver.spans.values():
            assert 0 <= span.start_time_unix_nano <= span.end_time_unix_nano


async def test_two_readers_share_nothing(live, receiver):
    """A second reader waits until the first is gone, then takes over.

    Fails when: the lease is not asked for.
    """
    settings = Settings.load({}, {"dsn": live.dsn})
    async with PostgresSessions(settings).tracer() as first, PostgresSessions(settings).tracer() as second:
        assert await first.take_lease() is None
        assert await second.take_lease() is not None
    async with PostgresSessions(settings).tracer() as third:

        async def taken() -> bool:
            return await third.take_lease() is None

        await wait_until(taken, "the lease is free, because its sessions are gone")


# -- gRPC ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def over_grpc() -> Iterator[GrpcReceiver]:
    found = GrpcReceiver()
    yield found
    found.stop()


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
@pytest.mark.parametrize("fault", [None, "UNAVAILABLE", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "gone"])
async def test_over_grpc_nothing_is_missing_either(live, over_grpc, fault):
    """The same spans arrive over gRPC, with the headers, compressed, and after any fault; RetryInfo is kept.

    Fails when: an error is taken for the end of a page, or what the receiver asks for is not read.
    """
    receiver = over_grpc
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await poison(connection)
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
                held = await recorder.wait_for(SpansHeld)
                assert fault == "gone" or held.why == f"the collector answered {fault}: not now"
                assert fault != "RESOURCE_EXHAUSTED" or held.retry_in == 1
            if fault == "gone":
                receiver.start()
            receiver.behaviour = None
            await all_there(connection, receiver)
        assert receiver.requests[0][1]["x-token"] == "a b"


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_over_grpc_a_malformed_span_is_left_out_alone(live, over_grpc):
    """INVALID_ARGUMENT isolates the span, as 400 does; a partial success is counted."""
    bad: list[str] = []

    def picky(request: Any) -> tuple[str, dict[str, Any], bytes]:
        spans = request.resource_spans[0].scope_spans[0].spans
        if any(span.span_id.hex() in bad for span in spans):
            return "INVALID_ARGUMENT", {}, b"bad span"
        over_grpc.keep(request)
        partial = ExportTracePartialSuccess(rejected_spans=1)
        return "OK", {}, ExportTraceServiceResponse(partial_success=partial).SerializeToString()

    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        for _ in range(3):
            await insert_event(connection)
        await drain(connection)
        bad.append(await connection.fetchval("select span_id from v_iu_route_attempt order by id offset 1 limit 1"))
        over_grpc.behaviour = picky
        async with exporting(live.dsn, over_grpc) as recorder:
            assert (await recorder.wait_for(SpansHeld)).poison == bad[0]
            await wait_until(lambda: _idle(connection), "all is exported")
        assert await rows(connection) - over_grpc.spans.keys() == set(bad)
        assert await connection.fetchval("select rejected from iu_trace_cursor") > 1
