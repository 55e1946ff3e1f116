"""The delivery lease: in-flight deliveries when a session or the lease is lost, and answers that arrive late."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields
from uuid import uuid4

import anyio
import asyncpg
import pytest

from iu_listen import Consumer, Settings
from iu_listen.flow import dispatcher, intake, sweep
from iu_listen.flow.dispatcher import Dispatcher
from iu_listen.model.delivery import Event
from iu_listen.model.observation import DeliveriesSettled, RoutePaused
from iu_listen.model.routing import BatchAnswer
from iu_listen.postgres.delivery import DeliverySession
from iu_listen.postgres.worker import WorkerSession
from postgres.delivery_helpers import (
    RecordingTarget,
    attempts,
    count_deliveries,
    delivering,
    open_route,
    wait_until_settled,
)
from support import MANY, connected, insert_event, run_batch, wait_until

pytestmark = pytest.mark.asyncio


async def test_in_flight_deliveries_are_settled_by_the_next_session(live):
    """If the database ends the session during a call, a new session settles its outcome, and the call is not repeated.

    Fails when: the consumer forgets its in-flight deliveries when it loses a session.
    """
    recording = RecordingTarget(lambda _: anyio.sleep(1.0))
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, recording.target()):
            event = await insert_event(connection)
            await wait_until(lambda: asyncio.sleep(0, recording.calls), "the call")
            ended = await connection.fetchval(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like 'iu-listen %' and datname = current_database()"
            )
            assert ended >= 2
            await wait_until_settled(connection)
        assert [c.event.id for c in recording.calls] == [event]
        assert await attempts(connection, event) == [(1, "sent", "delivered", None)]


async def test_a_consumer_without_the_lease_settles_nothing(live):
    """A consumer that has lost its lease drops its in-flight deliveries; the next lease holder
    delivers and settles them once.

    Fails when: the settlement does not check the lease.
    """
    gate = anyio.Event()
    recording = RecordingTarget(lambda _: gate.wait())
    async with connected(live.dsn) as connection:
        await open_route(connection)
        event = await insert_event(connection)
        async with delivering(live.dsn, recording.target(), session_timeout=60) as recorder:
            await wait_until(lambda: asyncio.sleep(0, recording.calls), "the call")
            thief = uuid4()
            await connection.execute(
                "update iu_delivery_lease set owner = $1, backend = null, renewed_at = clock_timestamp()", thief
            )
            # The next renewal, after at most 1 s, finds the loss: long before the lease of 60 s would have expired.
            await wait_until(lambda: asyncio.sleep(0, not recording.running.total()), "it to be given up", timeout=10)
            gate.set()
            await asyncio.sleep(0.3)
            assert recorder.of(DeliveriesSettled) == []
            assert await count_deliveries(connection) == 1
            await connection.execute("select fn_iu_delivery_release('iu_outbound_default', $1)", thief)
            await wait_until_settled(connection)
        assert await attempts(connection, event) == [(1, "sent", "delivered", None)]


@pytest.mark.parametrize("lost", ["both", "the one that has the lease"])
async def test_a_lost_session_cancels_calls_of_ordered_routes(live, monkeypatch, lost):
    """A consumer that loses its session cancels the call of an ordered route, because another consumer may begin it.

    Its next session makes the call again.

    Fails when: the call of an ordered route outlives the session, or the consumer notices
    the loss only at its next query.
    """
    monkeypatch.setattr(dispatcher, "DISPATCH_INTERVAL", 60)
    recording = RecordingTarget(lambda delivery: anyio.sleep(0 if len(recording.calls) > 1 else 600))
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject", deadline=900)
        async with delivering(live.dsn, recording.target(), session_timeout=60):
            event = await insert_event(connection, subject=uuid4())
            await wait_until(lambda: asyncio.sleep(0, recording.calls), "the call")
            await connection.execute(
                """select pg_terminate_backend(a.pid) from pg_stat_activity a
                    where a.application_name like 'iu-listen delivery %' and a.datname = current_database()
                      and ($1 or a.pid = (select backend from iu_delivery_lease))""",
                lost == "both",
            )
            await wait_until_settled(connection)
        assert [c.event.id for c in recording.calls] == [event, event]
        assert recording.overlapping == set()
        assert await attempts(connection, event) == [(1, "sent", "delivered", None)]


async def test_deliveries_of_an_old_answer_do_not_begin(live, monkeypatch):
    """A consumer that was suspended until its lease expired begins none of the deliveries that it had taken.

    Another consumer may hold the lease by then.

    Fails when: the age of an answer is measured from the moment at which it is read, for example by a frozen consumer
    that goes on.
    """
    recording, take, settle = RecordingTarget(), DeliverySession.take, DeliverySession.settle
    asleep, awake = anyio.Event(), anyio.Event()

    async def late(self, *args):
        answer = await take(self, *args)
        if answer.taken and not asleep.is_set():
            asleep.set()
            await awake.wait()
        return answer

    async def later(self, *args):
        if asleep.is_set():
            await awake.wait()
        return await settle(self, *args)

    monkeypatch.setattr(DeliverySession, "take", late)
    monkeypatch.setattr(DeliverySession, "settle", later)
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        events = [await insert_event(connection, subject=uuid4()) for _ in range(5)]
        # A take answers them, because they were queued before: a batch would hand them over.
        assert (await run_batch(connection))["queued"] == 5
        async with delivering(live.dsn, recording.target(), session_timeout=2):
            with anyio.fail_after(20):
                await asleep.wait()
            await anyio.sleep(2)
            before, thief = len(recording.calls), uuid4()
            lease = "select fn_iu_delivery_lease('iu_outbound_default', $1, 60, true, null) ->> 'held'"
            assert await connection.fetchval(lease, thief) == "true"
            awake.set()
            await anyio.sleep(1)
            assert len(recording.calls) == before == 0
            await connection.execute("select fn_iu_delivery_release('iu_outbound_default', $1)", thief)
            await wait_until_settled(connection)
        assert set(recording.delivered) == set(events)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["none", "subject"])
@pytest.mark.parametrize("late", ["the taker", "the batch", "nobody"])
async def test_a_delivery_that_is_taken_twice_is_made_once(live, monkeypatch, late, order):
    """If a delivery is both handed over by a batch and taken, and one of the two answers
    comes late, it is delivered once.

    Fails when: an answer, of a batch or of a take, is not compared with the deliveries that were
    settled since it was asked for.
    """
    monkeypatch.setattr(sweep, "SWEEP_INTERVAL", -1)
    recording, take, run_batch = RecordingTarget(), DeliverySession.take, WorkerSession.run_batch

    async def slow_take(self, *args):
        answer = await take(self, *args)
        if answer.taken and late == "the taker":
            # A later answer would be too old to prove that the switches are open.
            await anyio.sleep(intake.MAX_ANSWER_AGE - 0.1)
        return answer

    async def slow_batch(self, limit, requests):
        answer = await run_batch(self, limit, requests)
        if answer.deliveries:
            handed.append(answer)
            consumer._dispatcher.work()
            await anyio.sleep({"the taker": 0.1, "the batch": 0.5, "nobody": 0}[late])
        return answer

    handed: list[BatchAnswer] = []
    monkeypatch.setattr(DeliverySession, "take", slow_take)
    monkeypatch.setattr(WorkerSession, "run_batch", slow_batch)
    async with connected(live.dsn) as connection:
        await open_route(connection, order=order)
        async with Consumer(Settings(dsn=live.dsn), targets=[recording.target()]) as consumer:
            # Wait until the consumer knows the route and is idle.
            events = [await insert_event(connection)]
            await wait_until_settled(connection)
            for _ in range(5):
                await wait_until(lambda: asyncio.sleep(0, not consumer._dispatcher._ledger), "rest")
                events.append(await insert_event(connection))
                await wait_until(lambda: asyncio.sleep(0, len(handed) >= len(events) - 1), "a hand-over")
                await wait_until_settled(connection)
            await anyio.sleep(0.6)
        assert recording.delivered == dict.fromkeys(events, 1)


async def test_a_late_hand_over_does_not_begin_behind_a_closed_switch(live, monkeypatch):
    """A hand-over that arrives after a switch was closed does not begin.

    The batch reads the switches before its commit, and the commit may take long.

    Fails when: the dispatcher does not compare a hand-over with its own state of the route.
    """
    recording, run_batch, handed = RecordingTarget(), WorkerSession.run_batch, list[int]()

    async def slow_batch(self, limit, requests):
        answer = await run_batch(self, limit, requests)
        if answer.deliveries:
            async with connected(live.dsn) as closer:
                await closer.execute(gate, "false")
                await recorder.wait_for(RoutePaused)
        return answer

    def observed_hand_over(self, *args):
        hand_over(self, *args)
        tasks.start_soon(count_and_open, len(recording.calls))

    async def count_and_open(before: int) -> None:
        await anyio.sleep(0.1)
        handed.append(len(recording.calls) - before)
        async with connected(live.dsn) as opener:
            await opener.execute(gate, "true")

    hand_over = Dispatcher.hand_over
    gate = "update dot_config set value = $1 where key = 'iu_core.delivery_enabled'"
    async with connected(live.dsn) as connection, anyio.create_task_group() as tasks:
        await open_route(connection)
        async with delivering(live.dsn, recording.target()) as recorder:
            events = [await insert_event(connection)]
            await wait_until_settled(connection)
            monkeypatch.setattr(WorkerSession, "run_batch", slow_batch)
            monkeypatch.setattr(Dispatcher, "hand_over", observed_hand_over)
            while not handed:
                events.append(await insert_event(connection))
                await wait_until_settled(connection)
        assert handed == [0]
        assert recording.delivered == dict.fromkeys(events, 1)


#: Attributes of `Event` that have another name in the database.
COLUMNS = {
    "id": "event_ref", "domain": "event_domain", "type": "event_type", "stream": "event_stream",
    "source": "source_system", "actor": "actor_ref",
}  # fmt: skip


async def test_take_and_hand_over_return_the_same_columns(live):
    """The functions of the take and of the hand-over return the same type, with the attributes of `Event` in its order.

    Fails when: a column is added to one of them or to `Event`, or is moved.
    """
    result = "select pg_get_function_result($1::text::regproc)"
    async with connected(live.dsn) as connection:
        taken = await connection.fetchval(result, "fn_iu_delivery_take")
        handed_over = await connection.fetchval(result, "fn_iu_delivery_hand_over")
        attributes = [
            row[0]
            for row in await connection.fetch(
                "select attname from pg_attribute where attrelid = 'iu_deliverable'::regclass order by attnum"
            )
        ]
    assert taken == handed_over == "SETOF iu_deliverable"
    assert attributes[attributes.index("event_ref") :] == [COLUMNS.get(f.name, f.name) for f in fields(Event)]


@pytest.mark.slow
async def test_deliveries_in_a_long_settlement_are_not_taken_again(live, monkeypatch):
    """If a settlement lasts longer than the lease, it succeeds in the end, and each of its deliveries is called once.

    Calls of one subject do not overlap.

    Fails when: deliveries are taken while the consumer is not sure of its lease: rows that are being settled are still
    in the table, for example while a commit waits for a synchronous standby.
    """
    monkeypatch.setattr(dispatcher, "DISPATCH_INTERVAL", 0.05)
    recording, subject = RecordingTarget(lambda _: anyio.sleep(0.05)), uuid4()
    async with connected(live.dsn) as connection, connected(live.dsn) as other:
        await open_route(connection, order="subject")
        async with delivering(live.dsn, recording.target(), session_timeout=4):
            await insert_event(connection)
            await wait_until_settled(connection)
            async with other.transaction():
                await other.execute("lock table iu_route_attempt in share row exclusive mode")
                events = [await insert_event(connection, subject=subject) for _ in range(3)]
                await wait_until(lambda: asyncio.sleep(0, len(recording.calls) == 2), "the call")
                await anyio.sleep(4.5)
            await wait_until_settled(connection)
        assert recording.overlapping == set()
        assert [c.event.id for c in recording.calls[1:]] == events


async def test_returned_deliveries_are_taken_again_despite_a_late_answer(live, monkeypatch):
    """An answer that was requested before the consumer gave its deliveries back does not mark them as taken.

    Fails when: the position in an answer counts regardless of the age of the request.
    """
    take, asked = DeliverySession.take, anyio.Event()
    recording = RecordingTarget(lambda _: anyio.sleep(0.01))

    async def slow_take(self, requests, *args):
        answer = await take(self, requests, *args)
        if answer.taken and requests and requests[0].position and not asked.is_set():
            asked.set()
            await anyio.sleep(0.2)
        return answer

    monkeypatch.setattr(DeliverySession, "take", slow_take)
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=1)
        async with Consumer(Settings(dsn=live.dsn), targets=[recording.target()]) as consumer:
            await connection.execute(MANY, 50)
            with anyio.fail_after(20):
                await asked.wait()
            consumer._dispatcher._taken.give_up()
            await wait_until_settled(connection)
        assert len(recording.delivered) == 50


async def test_the_delivery_lease_ends_with_its_session_or_its_time(live):
    """The delivery lease ends with the session of its holder or with its time, and not before.

    While the session lives and the lease is renewed, no other consumer gets it. After the session is gone, another
    consumer gets it with its second request.

    Fails when: the session is not checked, the holder has no time to notice its loss, or a clock that was set back
    extends the lease.
    """
    one, two = uuid4(), uuid4()
    ask = "select fn_iu_delivery_lease('iu_outbound_default', $1, 60, false, $2)"
    take = "select fn_iu_delivery_lease('iu_outbound_default', $1, 60, false, null) ->> 'held' = 'true'"
    async with connected(live.dsn) as connection:
        holder = await asyncpg.connect(live.dsn)
        assert await holder.fetchval(take, one)
        assert not await connection.fetchval(take, two)
        for moved in ("- interval '61 seconds'", "+ interval '1 hour'"):
            await connection.execute(f"update iu_delivery_lease set renewed_at = clock_timestamp() {moved}")
            assert await connection.fetchval(take, two)
            await connection.execute("select fn_iu_delivery_release('iu_outbound_default', $1)", two)
            assert await holder.fetchval(take, one)
        holder.terminate()

        async def gone() -> bool:
            return json.loads(await connection.fetchval(ask, two, None))["holder_gone"]

        await wait_until(gone, "the session to be gone", timeout=10)
        assert not json.loads(await connection.fetchval(ask, two, uuid4()))["held"]
        assert json.loads(await connection.fetchval(ask, two, one))["held"]
