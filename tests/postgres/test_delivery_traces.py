"""Spans of attempts, dead letters and replays of deliveries."""

from __future__ import annotations

import pytest

from iu_listen.model.delivery import Failed
from iu_listen.model.spans import attempt_span, attempt_spans, batch_link, call_span, event_span, letter_span
from postgres.delivery_helpers import ROUTE, RecordingTarget, add_route, delivering, open_route, wait_until_settled
from support import connected, insert_event, run_batch, wait_until

pytestmark = pytest.mark.asyncio


async def test_attempts_dead_letter_and_replay_form_one_trace(live):
    """Each attempt is a child of its event and links to the attempt before it.

    The dead letter is a child of the last attempt, and the replay is a child of the dead letter.

    Fails when: a repeated attempt is treated as a replay, or a dead letter as a child of the first attempt.
    """
    bad = True

    async def behave(_):
        if bad:
            raise Failed("no")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=3, backoff=0.01)
        event = await insert_event(connection)
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
            bad = False
            await connection.fetchval("select fn_iu_route_dead_letter_replay(id, 'ann') from iu_route_dead_letter")
            await wait_until_settled(connection)
        rows = await connection.fetch("select * from v_iu_trace_attempt order by attempt_no")
        one, two, three, replay = (attempt_span(row, "") for row in rows)
        sent = event_span(rows[0])
        letter = letter_span(await connection.fetchrow("select * from v_iu_trace_dead_letter"))
        spans = [sent, one, two, three, letter, replay]
        assert {span.trace_id for span in spans} == {event.hex}
        assert [span.parent_id for span in spans] == [
            "", sent.span_id, sent.span_id, sent.span_id, three.span_id, letter.span_id,
        ]  # fmt: skip
        assert [span.links[1].span_id for span in (two, three, replay)] == [one.span_id, two.span_id, three.span_id]
        begins = {span.span_id: span.start for span in spans}
        assert all(span.start >= begins[span.parent_id] for span in spans[1:])
        assert all(span.end >= span.start for span in spans)
        tried = (one, two, three, replay)
        assert [call.traceparent[36:52] for call in recording.calls] == [span.span_id for span in tried]
        assert [span.attributes["iu.target"] for span in tried] == ["workflow event_outbox"] * 4
        assert [call_span(row, span) for row, span in zip(rows, tried, strict=True)] == [None] * 4


async def test_the_span_of_an_event_ends_before_its_attempts_begin(live):
    """No attempt begins before the span of its event has ended, whichever of two routes is exported first.

    Fails when: the span of the event ends where the first exported attempt began.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await add_route(connection, "second")

        async def one_is_settled() -> bool:
            async with connected(live.dsn) as other:
                return bool(await other.fetchval("select count(*) from iu_route_attempt where status = 'sent'"))

        slow = RecordingTarget(lambda _: wait_until(one_is_settled, "the delivery of the other route is settled"))
        async with delivering(live.dsn, RecordingTarget().target(), slow.target("second")):
            await insert_event(connection)
            await wait_until_settled(connection)
        found = await connection.fetch("select * from v_iu_trace_attempt order by created_at")
        assert len({row["created_at"] for row in found}) == 2
        unknown = [dict(row) | {"commit_at": None} for row in found]
        for order in (found, found[::-1], unknown, unknown[::-1]):
            sent, *tried = attempt_spans(order, "")
            assert sent.name.startswith("send")
            assert all(span.start >= sent.end for span in tried)


async def test_a_delivery_links_to_the_batch_that_queued_it(live):
    """A first attempt, settled or cancelled, links to the transaction that queued it; a
    settled attempt names its target.

    Fails when: it links to the transaction that wrote the attempt, or to none.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await insert_event(connection)
        await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 2
        batch = await connection.fetchval("select distinct batch_xact_id from iu_route_delivery")
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
        await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 1
        later = await connection.fetchval("select batch_xact_id from iu_route_delivery")
        await connection.fetchval("select fn_iu_route_live($1, false, 'a test', 'tester')", ROUTE)
        await connection.fetchval("select fn_iu_delivery_cancel($1, null, 'a test')", ROUTE)
        rows = await connection.fetch("select * from v_iu_trace_attempt order by id")
    assert [(row["batch_xact_id"], row["target"]) for row in rows] == [
        (batch, "workflow event_outbox"), (batch, "workflow event_outbox"), (later, None),
    ]  # fmt: skip
    for row in rows:
        assert attempt_span(row, "a history").links[1] == batch_link("a history", row["batch_xact_id"])
        assert row["xact_id"] != row["batch_xact_id"]
    assert len(list(attempt_spans(rows, ""))) == 3 * 2


@pytest.mark.parametrize(
    ("address", "target"),
    [(None, "workflow event_outbox"), ("https://h.example:8/s3cret?k=s3cret", "https://h.example:8")],
)
async def test_a_call_that_ended_its_process_becomes_a_span(live, address, target):
    """A call during which the process ended becomes a span that names the server, so spans of the target have a parent.

    Fails when: the attempt that the interruption spent does not name its target, or shows parts of
    the address that may be secret.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, address=address, attempts=1)
        await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 1
        await connection.execute(
            "select fn_iu_delivery_interrupted(array[route_code], array[id]) from iu_route_delivery"
        )
        (row,) = await connection.fetch("select * from v_iu_trace_attempt")
    assert row["target"] == target
    sent, attempt, *calls = attempt_spans([row], "")
    assert [(call.parent_id, call.name) for call in calls] == ([(attempt.span_id, "HTTP")] if address else [])
    assert [*calls, attempt][0].attributes["iu.target"] == target
    assert "s3cret" not in str((sent, attempt, calls))


async def test_an_attempt_links_to_the_last_attempt_that_was_written(live):
    """If there is no attempt with the preceding number, an attempt links to the last one before it, or to none.

    Fails when: the link assumes that an attempt exists for each number.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 1
        await connection.execute("update iu_route_delivery set attempt_no = 3")
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
        (row,) = await connection.fetch("select * from v_iu_trace_attempt")
    assert [link.span_id for link in attempt_span(row, "").links] == [event_span(row).span_id]
