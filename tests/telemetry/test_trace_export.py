"""The trace export: every attempt and every dead letter arrives at the receiver, after any failure."""

from __future__ import annotations

import time
from uuid import UUID

import pytest

from iu_listen.app import PostgresSessions
from iu_listen.flow import trace_export
from iu_listen.model.observation import ExportDelayed, SpansExported
from iu_listen.model.settings import Settings
from postgres.routes import add_poison_trigger
from support import connected, drain, insert_event, run_batch, wait_until
from telemetry.exporting import all_there, begin, burst, exporting, idle, rows
from telemetry.receiver import says

pytestmark = pytest.mark.asyncio

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_every_row_is_a_span(live, receiver):
    """Attempts, dead letters and replays arrive once each; rows that are older than the export do not.

    Fails when: one of the tables is not read, or the cursor is not stored.
    """
    async with connected(live.dsn) as connection:
        old = await insert_event(connection)
        await drain(connection)
        await begin(live.dsn)
        await add_poison_trigger(connection)
        await burst(connection, 200)
        async with exporting(live.dsn, receiver) as recorder:
            await wait_until(lambda: idle(connection), "all is exported")
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


async def test_a_killed_export_goes_on_where_it_was_accepted(live, receiver):
    """If an export is ended at any time, the next one continues: no span is missing, and few are repeated.

    Fails when: a tick is abandoned, or started again, when its reader has gone.
    """
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await add_poison_trigger(connection)
        await burst(connection, 400)
        for _ in range(8):
            async with exporting(live.dsn, receiver) as recorder:
                await recorder.wait_for(SpansExported)
        async with exporting(live.dsn, receiver):
            await all_there(connection, receiver)
        assert receiver.received <= len(receiver.spans) + 9 * 2 * trace_export.PAGE_ROWS


async def test_what_the_receiver_did_not_take_outlives_the_export(live, receiver):
    """If an export ends while the receiver accepts nothing, the next export sends everything.

    Fails when: the cursor moves before a page was accepted.
    """
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        for _ in range(3):
            await insert_event(connection)
        await drain(connection)
        receiver.behaviour = says(503)
        async with exporting(live.dsn, receiver) as recorder:
            await recorder.wait_for(ExportDelayed)
        receiver.behaviour = None
        async with exporting(live.dsn, receiver):
            await all_there(connection, receiver)


ATTEMPT = """insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key)
             select e.id, 'outbound', 'r', 'dry_run', 'outbound:r:' || e.id from gen_random_uuid() e(id)"""


async def test_a_tick_is_ended_before_the_next_one_begins(live):
    """A row that commits while a tick is half exported belongs to the next tick, even if its transaction is older.

    Fails when: an open tick is taken again, because the position has passed the older transaction.
    """
    await begin(live.dsn)
    async with (
        connected(live.dsn) as connection,
        connected(live.dsn) as late,
        PostgresSessions(Settings.load({}, {"dsn": live.dsn})).trace_source() as source,
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
    """When a reader stores its position, it is told to pause if a worker that is not silent is within a tick.

    Fails when: the worker's cursor is not checked.
    """
    await begin(live.dsn)
    async with (
        connected(live.dsn) as connection,
        PostgresSessions(Settings.load({}, {"dsn": live.dsn})).trace_source() as source,
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
    """A reader that was overtaken changes nothing: neither the position nor a tick that is no longer open.

    Fails when: the latest accepted page always sets the position.
    """
    await begin(live.dsn)
    async with (
        connected(live.dsn) as connection,
        PostgresSessions(Settings.load({}, {"dsn": live.dsn})).trace_source() as source,
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
        await connection.execute(ATTEMPT)
        assert await source.tick() is not None
        await source.accepted(last, 0)
        assert await connection.fetchval("select tick is not null from iu_trace_cursor")


async def test_late_commits_are_exported(live, receiver):
    """Attempts of a transaction that commits after younger ones were exported are exported after its commit.

    Fails when: the reader orders by id or by xact_id alone.
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


async def test_one_trace_from_the_request_to_the_replay(live, receiver):
    """Parents, links, kinds, status and times of all spans of one event, field by field."""
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        await add_poison_trigger(connection)
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
    """An event of plain SQL is found by its id; a malformed context is ignored and counted, and not an error."""
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
            await wait_until(lambda: idle(connection), "all is noted")
        assert {s.trace_id.hex() for s in receiver.spans.values()} == {plain.hex, odd.hex, huge.hex}
        assert await connection.fetchval("select ignored from iu_trace_cursor") == 2


async def test_what_is_not_exported_yet_is_not_removed(live, receiver):
    """Retention keeps an event and its attempts until they were exported.

    Fails when: fn_iu_retention_releasable does not check the trace cursor.
    """
    async with connected(live.dsn) as connection:
        await begin(live.dsn)
        event = await insert_event(connection)
        await drain(connection)
        assert await connection.fetchval("select fn_iu_retention_releasable($1)", event) is False
        async with exporting(live.dsn, receiver):
            await wait_until(lambda: idle(connection), "all is exported")
        assert await connection.fetchval("select fn_iu_retention_releasable($1)", event) is True


async def test_strange_times_are_exported_too(live, receiver):
    """A creation time in the far past, the far future or at infinity makes ordinary spans; no duration is negative."""
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
        for created, finished in (("-infinity", "now"), ("now", "-infinity"), ("infinity", "infinity")):
            await connection.execute(ATTEMPT)
            await connection.execute(
                """update iu_route_attempt set created_at = $1::text::timestamptz, finished_at = $2::text::timestamptz
                    where id = (select max(id) from iu_route_attempt)""", created, finished
            )  # fmt: skip
        async with exporting(live.dsn, receiver):
            await all_there(connection, receiver)
        assert len(receiver.spans) == 2 * len(strange) + 3
        for span in receiver.spans.values():
            assert 0 <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()


async def test_two_readers_share_nothing(live, receiver):
    """A second reader waits until the first has ended, and then takes over.

    Fails when: the lease is not checked.
    """
    settings = Settings.load({}, {"dsn": live.dsn})
    async with PostgresSessions(settings).trace_source() as first, PostgresSessions(settings).trace_source() as second:
        assert await first.take_lease() is None
        assert await second.take_lease() is not None
    async with PostgresSessions(settings).trace_source() as third:

        async def taken() -> bool:
            return await third.take_lease() is None

        await wait_until(taken, "the lease is free, because its sessions are gone")
