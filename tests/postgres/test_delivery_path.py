"""The path of a delivery: queued by the batch, called by the consumer, settled in sets.

The SQL is in functions/delivery_take and delivery_settle.
"""

from __future__ import annotations

import asyncio

import anyio
import pytest

from postgres.delivery_helpers import (
    ROUTE,
    RecordingTarget,
    attempts,
    count_deliveries,
    delivering,
    open_route,
    wait_until_settled,
)
from support import connected, insert_event, run_batch, wait_until

pytestmark = pytest.mark.asyncio


async def test_an_event_is_delivered_to_its_coroutine_and_settled(live):
    """The coroutine receives the event with its idempotency key, and the attempt is recorded as sent.

    The attempt has the start and the end of the call, and the delivery is removed.

    Fails when: the batch does not queue the delivery, the dispatcher does not take it, or its outcome is not settled.
    """
    recording = RecordingTarget(lambda _: anyio.sleep(0.05))
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, recording.target()):
            event = await insert_event(connection, note="hello")
            await wait_until_settled(connection)
        (call,) = recording.calls
        assert (call.event.id, call.route, call.attempt) == (event, ROUTE, 1)
        assert call.idempotency_key == f"outbound:{ROUTE}:{event}"
        assert call.event.data == {"note": "hello"}
        assert call.event.type == "version_applied"
        row = await connection.fetchrow(
            """select status, decision, delivered, attempt_no, extract(epoch from finished_at - created_at)::float8 as took,
                      span_id, call_span_id, trace_id, target from v_iu_route_attempt"""
        )
        assert tuple(row)[:4] == ("sent", "delivered", True, 1)
        assert 0.04 < row["took"] < 5
        assert call.traceparent == f"00-{row['trace_id']}-{row['span_id']}-01"
        assert row["call_span_id"] is None
        assert row["target"] == "workflow event_outbox"


async def test_a_second_reading_delivers_no_event_again(live):
    """A cursor that was set back reads its events again and queues neither pending deliveries nor delivered events.

    Fails when: the batch looks only in the attempts, or only in the deliveries.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        events = [await insert_event(connection) for _ in range(5)]
        assert (await run_batch(connection))["queued"] == 5
        for _ in range(2):
            await connection.execute(
                "update iu_route_worker_cursor set prev = '3:3:', tick = null, pos_seq = null, pos_id = null"
            )
            assert (await run_batch(connection))["queued"] == 0
            async with delivering(live.dsn, recording.target()):
                await wait_until_settled(connection)
        assert recording.delivered == dict.fromkeys(events, 1)


@pytest.mark.parametrize("how", ["made anew", "beside it"])
async def test_an_event_that_another_cursor_routed_is_not_delivered_again(live, how):
    """A cursor queues no event that another cursor of the same domain has routed.

    The other cursor either was deleted and is replaced by this one, or exists beside it.

    Fails when: the batch treats each event after the last position of its own cursor as unread by all cursors.
    """
    new = """insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
             select $1, 'iu', lineage from iu_outbox_anchor"""
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await insert_event(connection)
        assert (await run_batch(connection))["seen"] == 1
        if how == "beside it":
            await connection.execute(new, "another")
            assert (await run_batch(connection, worker="another"))["seen"] == 1
        await open_route(connection)
        await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 1
        async with delivering(live.dsn, recording.target()):
            await wait_until(lambda: asyncio.sleep(0, recording.delivered), "the delivery")
        await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 1
        if how == "made anew":
            await connection.execute("delete from iu_route_worker_cursor")
            await connection.execute(new, "another")
        again = await run_batch(connection, worker="another")
        assert (again["seen"], again["queued"]) == (3 if how == "made anew" else 2, 0)
        assert await count_deliveries(connection) == 1
        assert await connection.fetchval("select count(*) from iu_route_attempt") == 2


async def test_an_attempt_number_in_use_is_skipped(live):
    """If an attempt number is already used, by hand or by a restore, the attempt of the consumer gets the next number.

    Fails when: the attempt of the consumer is not recorded, or its settlement fails for ever.
    """
    recording = RecordingTarget()
    by_hand = """insert into iu_route_attempt (event_ref, route_kind, route_code, status, decision, idempotency_key, attempt_no)
                 select event_ref, route_kind, route_code, 'failed', 'by hand', 'outbound:' || route_code || ':' || event_ref, 1
                   from iu_route_delivery where event_ref = $1"""
    async with connected(live.dsn) as connection:
        await open_route(connection)
        one, two = await insert_event(connection), await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 2
        await connection.execute(by_hand, one)
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
        assert await attempts(connection, one) == [(1, "failed", "by hand", None), (2, "sent", "delivered", None)]
        assert await attempts(connection, two) == [(1, "sent", "delivered", None)]
        assert recording.delivered == {one: 1, two: 1}


async def test_simultaneous_calls_are_limited_by_the_concurrency_of_the_route(live):
    """The number of calls at one time reaches the `concurrency` of the route and never
    exceeds it, and all events arrive.

    Fails when: the dispatcher ignores `concurrency`.
    """
    recording = RecordingTarget(lambda _: anyio.sleep(0.01))
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=7)
        for _ in range(100):
            await insert_event(connection)
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
    assert recording.max_running == 7
    assert len(recording.delivered) == 100
