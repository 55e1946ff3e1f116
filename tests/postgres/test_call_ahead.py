"""The call ahead: the target of a single new event is called before the batch that routes it has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from iu_listen import Delivery
from iu_listen.model.delivery import Reject, TakenDelivery, TakeRequest
from iu_listen.postgres.delivery import DeliverySession
from postgres.delivery_helpers import (
    ROUTE,
    RecordingTarget,
    attempts,
    count_deliveries,
    dead_letters,
    delivering,
    open_route,
    wait_until_settled,
)
from support import WORKER, connected, insert_event, run_batch, wait_until

pytestmark = pytest.mark.asyncio

PEEK = "select * from fn_iu_delivery_peek($1, $2)"
HAND_OVER = "select * from fn_iu_delivery_hand_over($1, $2, '{9}', '{0}')"


async def peek(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    """The first answer of several peeks that is not empty: while other sessions write WAL, an answer may be empty."""
    for _ in range(10):
        # The commit of this message flushes the WAL that an earlier peek wrote when it pruned a page.
        await connection.execute("select pg_logical_emit_message(true, 'flush', '')")
        if found := await connection.fetch(PEEK, WORKER, [ROUTE]):
            return found
    return []


@asynccontextmanager
async def blocked_batches(dsn: str) -> AsyncIterator[None]:
    """Every batch waits at the row of the cursor until the end of the block, before it reads the routes."""
    async with connected(dsn) as blocker, blocker.transaction():
        await blocker.execute("select from iu_route_worker_cursor for update")
        yield


@asynccontextmanager
async def called_ahead(dsn: str, connection: asyncpg.Connection, recording: RecordingTarget) -> AsyncIterator[UUID]:
    """An event after the call of its target; its batch waits until the end of the block.

    An event takes the normal path if another session writes WAL at that moment; then the next one is tried.
    """
    for _ in range(20):
        await idle(connection)
        async with blocked_batches(dsn):
            event = await insert_event(connection, note="ahead")
            with anyio.move_on_after(0.5):
                while not _called(recording, event):
                    await anyio.sleep(0.005)
            if _called(recording, event):
                yield event
                return
    raise AssertionError("no event was called ahead")


def _called(recording: RecordingTarget, event: UUID) -> bool:
    return any(call.event.id == event for call in recording.calls)


def _is_ahead(delivery: Delivery) -> bool:
    """Whether it is the call ahead of an event of called_ahead()."""
    return delivery.called_ahead and delivery.event.data == {"note": "ahead"}


async def idle(connection: asyncpg.Connection) -> None:
    """Wait until the consumer delivers, has nothing in flight, and has armed the bell."""
    event = await insert_event(connection)
    await wait_until(lambda: attempts(connection, event), "the first event was delivered")
    await wait_until_settled(connection)
    armed = """select exists (select from pg_locks l join pg_database d on d.oid = l.database and d.datname = current_database()
                               where l.classid = 726001 and l.mode = 'ExclusiveLock')"""
    await wait_until(lambda: connection.fetchval(armed), "the bell is armed")
    # The take query after the last settlement, and the batch after the bell was armed.
    await anyio.sleep(0.2)


# -- the peek ----------------------------------------------------------------------------------------------------


async def test_a_peek_returns_what_the_batch_hands_over(live):
    """The delivery of a peek is that of the hand-over, except its id.

    Fails when: an attribute of the event, the trace context or the hash of the subject is not that of the hand-over.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        await run_batch(connection)
        event = await insert_event(connection)
        context = "00-11111111111111111111111111111111-2222222222222222-01"
        await connection.execute("update event_outbox set traceparent = $2 where id = $1", event, context)
        (found,) = await peek(connection)
        assert (await run_batch(connection))["queued"] == 1
        (handed,) = await connection.fetch(HAND_OVER, WORKER, [ROUTE])
        assert found["delivery_id"] == 0
        assert [v for k, v in found.items() if k != "delivery_id"] == [
            v for k, v in handed.items() if k != "delivery_id"
        ]
        assert found["event_ref"] == event
        assert await peek(connection) == []


NOT_CERTAIN = {
    "two events": "insert into event_outbox (event_domain, event_type, event_stream, delivery_lane) "
    "values ('iu', 'version_applied', 'update', 'immediate')",
    "an event that may have been decided": "update iu_route_worker_cursor set hi_seq = 1000000000",
    "a tick that is partly consumed": "update iu_route_worker_cursor set tick = prev",
    "a failed batch": "update iu_route_worker_cursor set failures = 1",
    "another worker of the domain": "insert into iu_route_worker_cursor (worker_name, event_domain, lineage) "
    "select 'other', event_domain, lineage from iu_route_worker_cursor",
    "a cursor of another history": "update iu_route_worker_cursor set lineage = gen_random_uuid()",
    "the master gate": "update dot_config set value = 'false' where key = 'iu_core.routes_master_enabled'",
    "the worker gate": "update dot_config set value = 'false' where key = 'iu_core.route_worker_enabled'",
    "the delivery gate": "update dot_config set value = 'false' where key = 'iu_core.delivery_enabled'",
    "the list of live routes": "update dot_config set value = '' where key = 'iu_core.delivery_live_routes'",
    "a disabled route": "update iu_outbound_route set enabled = false",
    "an open breaker": "insert into iu_delivery_breaker (route_code, opened_at) "
    "select route_code, now() from iu_outbound_route",
    "a used budget": "insert into iu_delivery_breaker (route_code, stopped_at) "
    "select route_code, now() from iu_outbound_route",
    "a large payload": "update event_outbox set safe_payload = jsonb_build_object('note', "
    "(select string_agg(md5(n::text), '') from generate_series(1, 200) n))",
    "a time that Python cannot represent": "update event_outbox set occurred_at = 'infinity'",
}


@pytest.mark.parametrize("change", NOT_CERTAIN.values(), ids=NOT_CERTAIN)
async def test_a_peek_is_empty_unless_everything_is_certain(live, change):
    """Each condition of the call ahead keeps the target from being called.

    Fails when: the peek does not check this condition.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await run_batch(connection)
        await connection.execute("alter table event_outbox disable trigger user")
        await connection.execute("alter table event_outbox enable always trigger zz_event_outbox_stamp")
        await insert_event(connection)
        assert len(await peek(connection)) == 1
        await connection.execute(change)
        assert await peek(connection) == []


async def test_an_event_with_a_commit_that_may_be_lost_is_not_called_ahead(live):
    """An event that was committed with synchronous_commit = off is visible before it is durable.

    Fails when: the peek does not compare the WAL that was written with the WAL that was flushed.
    """
    lost = "select pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()"
    async with connected(live.dsn) as connection, connected(live.dsn) as writer:
        await open_route(connection)
        await run_batch(connection)
        await writer.execute("set synchronous_commit = off")
        for _ in range(50):
            await insert_event(writer)
            before, found = await connection.fetchval(lost), await connection.fetch(PEEK, WORKER, [ROUTE])
            if before and await connection.fetchval(lost):
                assert found == []
                return
            await run_batch(connection)
        pytest.skip("the server flushes its WAL at once")


async def test_an_earlier_event_of_a_long_transaction_is_not_overtaken(live):
    """If a transaction that began before the last batch has committed an event, a newer event is not called ahead.

    Fails when: the peek reads only the events of transactions that began after the last batch.
    """
    async with connected(live.dsn) as connection, connected(live.dsn) as slow:
        await open_route(connection, order="subject")
        subject, transaction = uuid4(), slow.transaction()
        await transaction.start()
        await insert_event(slow, subject)
        await insert_event(connection)
        await run_batch(connection)
        await transaction.commit()
        await insert_event(connection, subject)
        assert await peek(connection) == []


async def test_an_ordered_route_keeps_the_order_of_a_subject(live):
    """While a delivery of a subject is pending, its next event is not called ahead; that of another subject is.

    Fails when: the peek does not look for pending deliveries of the subject.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        subject = uuid4()
        await insert_event(connection, subject)
        await run_batch(connection)
        assert await count_deliveries(connection) == 1
        await insert_event(connection, subject)
        assert await peek(connection) == []
        await run_batch(connection)
        event = await insert_event(connection)
        assert [row["event_ref"] for row in await peek(connection)] == [event]


# -- the consumer ------------------------------------------------------------------------------------------------


async def test_the_target_is_called_before_the_batch_ends(live):
    """The call begins while the batch waits; it is the only call, and the audit is that of the normal path.

    Fails when: the call waits for the batch, the batch's delivery is called as well, or its outcome is not settled.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, recording.target()):
            async with called_ahead(live.dsn, connection, recording) as event:
                assert await count_deliveries(connection) == 0
                assert await attempts(connection, event) == []
            await wait_until_settled(connection)
            assert await attempts(connection, event) == [(1, "sent", "delivered", None)]
        (call,) = [call for call in recording.calls if call.event.id == event]
        assert (call.called_ahead, call.attempt, call.id < 0) == (True, 1, True)
        assert not recording.calls[0].called_ahead


async def test_the_attempt_has_the_times_and_the_trace_of_its_call(live):
    """The attempt of a call ahead begins before its batch has ended, and belongs to the trace of the event.

    Fails when: the times are those of the confirmation.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, recording.target()):
            async with called_ahead(live.dsn, connection, recording) as event:
                await anyio.sleep(0.3)
                released = await connection.fetchval("select clock_timestamp()")
            await wait_until_settled(connection)
        row = await connection.fetchrow("select * from iu_route_attempt where event_ref = $1", event)
        assert row["created_at"] <= row["finished_at"] < released
        (call,) = [call for call in recording.calls if call.event.id == event]
        assert call.traceparent.split("-")[1] == event.hex


@pytest.mark.parametrize("ended", [True, False], ids=["ended call", "running call"])
async def test_a_batch_that_makes_a_dead_letter_does_not_hide_the_delivery(live, ended):
    """If the batch makes the event a dead letter, the successful call is recorded as the next attempt and resolves it.

    Fails when: the outcome of the call is dropped, or waits forever for a delivery.
    """
    release = anyio.Event()

    async def wait(delivery: Delivery) -> None:
        if _is_ahead(delivery) and not ended:
            await release.wait()

    recording = RecordingTarget(wait)
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, recording.target()):
            async with called_ahead(live.dsn, connection, recording) as event:
                await connection.execute(
                    """create function refuse() returns trigger language plpgsql as $$ begin raise 'refused'; end $$;
                       create trigger refuse before insert on iu_route_delivery
                           for each row when (new.replayed_by is null) execute function refuse()"""
                )
            await wait_until(lambda: dead_letters(connection), "the event is a dead letter")
            release.set()
            await wait_until(lambda: _resolved(connection), "the dead letter is resolved")
            assert [a[:3] for a in await attempts(connection, event)] == [
                (1, "failed", "dead_letter"), (2, "sent", "delivered"),
            ]  # fmt: skip
        assert sum(call.event.id == event for call in recording.calls) == 1


async def _resolved(connection: asyncpg.Connection) -> bool:
    return all(resolved for _, _, resolved in await dead_letters(connection))


@pytest.mark.parametrize("sent", [True, False], ids=["sent", "rejected"])
async def test_a_batch_that_skips_the_event_does_not_hide_the_delivery(live, sent):
    """If the route was disabled in between, a successful call is the next attempt; a failed one delivered nothing.

    Fails when: the audit says "skipped" about an event that was delivered, or the failed call is attempted again.
    """

    async def behave(delivery: Delivery) -> None:
        if _is_ahead(delivery) and not sent:
            raise Reject("no")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, recording.target()):
            async with called_ahead(live.dsn, connection, recording) as event:
                await connection.execute("update iu_outbound_route set enabled = false")
            expected = [(1, "sent", "delivered")] if sent else []
            await wait_until(lambda: attempts(connection, event, "(none)"), "the event was skipped")
            await wait_until(lambda: _are(connection, event, expected), "the attempts are complete")
            await connection.execute("update iu_outbound_route set enabled = true")
            await idle(connection)
            assert await _are(connection, event, expected)
        assert await dead_letters(connection) == []


async def _are(connection: asyncpg.Connection, event: UUID, expected: list[Any]) -> bool:
    return [a[:3] for a in await attempts(connection, event)] == expected


async def test_a_failed_call_is_attempted_again(live):
    """A call ahead that fails is the first attempt of its delivery, and is followed by the second one."""

    async def behave(delivery: Delivery) -> None:
        if _is_ahead(delivery):
            raise ValueError("not this time")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, backoff=0.01)
        async with delivering(live.dsn, recording.target()):
            expected = [(1, "failed", "retry"), (2, "sent", "delivered")]
            async with called_ahead(live.dsn, connection, recording) as event:
                pass
            await wait_until(lambda: _are(connection, event, expected), "the second attempt succeeded")
        assert [c.called_ahead for c in recording.calls if c.event.id == event] == [True, False]


async def test_only_a_single_event_is_called_ahead(live):
    """While a delivery is in flight, events take the normal path.

    Fails when: an event is called ahead although something is in flight.
    """
    release = anyio.Event()

    async def wait(delivery: Delivery) -> None:
        if delivery.event.payload == '{"note": "slow"}':
            await release.wait()

    recording = RecordingTarget(wait)
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, recording.target()):
            await idle(connection)
            slow = await insert_event(connection, note="slow")
            while not _called(recording, slow):
                await anyio.sleep(0.01)
            await anyio.sleep(0.3)
            event = await insert_event(connection)
            await wait_until(lambda: attempts(connection, event), "the second event was delivered")
            release.set()
            await wait_until_settled(connection)
        (call,) = [call for call in recording.calls if call.event.id == event]
        assert not call.called_ahead


async def test_a_late_answer_of_a_peek_is_dropped(live, monkeypatch):
    """If the answer of a peek arrives after the batch that handed the event over, the event is not called again.

    Fails when: the answer is used although a batch has ended since the peek began.
    """
    recording, late, original = RecordingTarget(), [], DeliverySession.peek

    async def peek_late(session: DeliverySession, requests: Sequence[TakeRequest]) -> list[TakenDelivery]:
        found = await original(session, requests)
        await anyio.sleep(0.3)
        late.extend(taken.delivery.event.id for taken in found)
        return found

    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, recording.target()):
            await idle(connection)
            monkeypatch.setattr(DeliverySession, "peek", peek_late)
            for _ in range(20):
                event = await insert_event(connection)
                await anyio.sleep(0.5)
                if event in late:
                    break
        assert event in late
        assert [call.called_ahead for call in recording.calls if call.event.id == event] == [False]


async def test_the_call_ahead_can_be_switched_off(live):
    """With call_ahead = false, no call begins before its batch has ended."""
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, recording.target(), call_ahead=False):
            await idle(connection)
            event = await insert_event(connection)
            await wait_until(lambda: attempts(connection, event), "delivered")
        assert not any(call.called_ahead for call in recording.calls)


async def test_a_login_without_the_privilege_delivers_after_the_batch(live):
    """A login that may not execute the peek, as after an upgrade without roles.sql, delivers as before."""
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await connection.execute(
            """create or replace function fn_iu_delivery_peek(p_worker_name text, p_routes text[])
               returns setof iu_deliverable language plpgsql as
               $$ begin raise 'permission denied' using errcode = '42501'; end $$"""
        )
        async with delivering(live.dsn, recording.target()):
            await idle(connection)
            event = await insert_event(connection)
            await wait_until(lambda: attempts(connection, event), "delivered")
        assert not any(call.called_ahead for call in recording.calls)


@pytest.mark.parametrize("ended", [True, False], ids=["ended call", "running call"])
async def test_a_consumer_that_stops_gives_an_undecided_call_up(live, ended):
    """A consumer ends although the batch of a call ahead does not; the event is delivered later, under the same key.

    Fails when: the graceful shutdown waits for a decision that cannot come, or the event is lost.
    """

    async def behave(delivery: Delivery) -> None:
        if _is_ahead(delivery) and not ended:
            await anyio.sleep_forever()

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with AsyncExitStack() as stack:
            settings = {"batch_deadline": 1.0, "grace_period": 15.0}
            await stack.enter_async_context(delivering(live.dsn, recording.target(), **settings))
            async with called_ahead(live.dsn, connection, recording) as event:
                began = anyio.current_time()
                await stack.aclose()
                # A consumer that waits for a decision ends with its grace period.
                assert anyio.current_time() - began < 10
        async with delivering(live.dsn, recording.target()):
            await wait_until(lambda: attempts(connection, event), "delivered")
        assert [a[:3] for a in await attempts(connection, event)] == [(1, "sent", "delivered")]
        assert len({call.idempotency_key for call in recording.calls if call.event.id == event}) == 1
