"""Deliveries of ordered routes: each subject keeps its order."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import anyio
import pytest

from iu_listen.model.delivery import Failed, Reject
from iu_listen.postgres.sqlfiles import query
from postgres.delivery_helpers import ROUTE, RecordingTarget, delivering, open_route, wait_until_settled
from support import connected, insert_event, rows_read, run_batch, wait_until

pytestmark = pytest.mark.asyncio


async def test_an_ordered_route_keeps_the_order_of_each_subject(live):
    """In an ordered route, a subject waits for its failed event while other subjects go on, and a
    view shows the parked deliveries.

    Two deliveries of one subject never run at the same time.

    Fails when: only the first take respects subjects.
    """
    slow = uuid4()
    blocked = True

    async def behave(delivery):
        if delivery.event.subject == str(slow) and blocked:
            raise Failed("not yet")
        await anyio.sleep(0.002)

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=1000, backoff=0.02, backoff_max=0.05, order="subject", concurrency=20)
        subjects = [uuid4() for _ in range(10)]
        mine, others = [], {s: [] for s in subjects}
        for n in range(200):
            others[subjects[n % 10]].append(await insert_event(connection, subject=subjects[n % 10]))
            if n % 20 == 0:
                mine.append(await insert_event(connection, subject=slow))
        async with delivering(live.dsn, recording.target()):
            await wait_until(lambda: asyncio.sleep(0, len(recording.delivered) == 200), "the others")
            parked = await connection.fetchrow(
                "select depth, waits_for, tries > 0 as tried, since from v_iu_delivery_parked"
            )
            assert tuple(parked)[:3] == (9, mine[0], True)
            assert {c.event.id for c in recording.calls if c.event.subject == str(slow)} == {mine[0]}
            blocked = False
            await wait_until_settled(connection)
        for subject, events in {**others, slow: mine}.items():
            assert list(dict.fromkeys(c.event.id for c in recording.calls if c.event.subject == str(subject))) == events
        assert recording.overlapping == set()
        assert recording.max_running > 5


async def test_a_batch_hands_over_the_first_untried_delivery_of_each_subject(live):
    """A batch hands over the first delivery of each subject among the untried deliveries, up to the given number.

    It hands over only deliveries after the given position, and does so even if the event was deleted.

    Fails when: the hand-over ignores subjects or the circuit breaker, or omits a delivery
    because its event was deleted.
    """
    hand_over = "select array_agg(event_ref) from fn_iu_delivery_hand_over('iu_outbound_default', $1, $2, $3)"
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        one, other = uuid4(), uuid4()
        events = [await insert_event(connection, subject=subject) for subject in (one, one, other)]
        first, second, third = events
        await run_batch(connection)
        ids = [r["id"] for r in await connection.fetch("select id from iu_route_delivery order by id")]

        async def given(room: int = 9, after: int = 0) -> list[UUID] | None:
            return await connection.fetchval(hand_over, [ROUTE], [room], [after])

        assert await given() == await given(room=2) == [first, third]
        assert await given(room=1) == [first]
        assert await given(after=ids[0]) == [third]
        await connection.execute("delete from event_outbox where id = $1", first)
        assert await given() == [first, third]
        for held in ("opened_at", "stopped_at"):
            await connection.execute(f"insert into iu_delivery_breaker (route_code, {held}) values ($1, now())", ROUTE)
            assert await given() is None
            await connection.execute("delete from iu_delivery_breaker")
        await connection.execute("update iu_route_delivery set due_at = now() where id = $1", ids[2])
        assert await given() == [first]
        await open_route(connection, order="none")
        assert await given() == [first, second]
        await connection.execute(
            "update iu_outbound_route set target_kind = 'sql_function' where route_code = $1", ROUTE
        )
        assert await given() is None


async def test_a_batch_that_queues_nothing_reads_no_deliveries(live):
    """A batch that queues nothing does not read the table of deliveries, because a busy
    consumer polls every few milliseconds.

    Fails when: the hand-over reads deliveries although nothing was queued, so that each poll costs time in
    proportion to the parked deliveries.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        batch = await connection.prepare(query("run_batch_and_take"))
        await insert_event(connection)
        for queued in (1, 0):
            before = await rows_read(connection, "^iu_route_delivery$")
            answer, *_ = await batch.fetch("iu_outbound_default", 9, [ROUTE], [100], [0])
            assert (answer["event_ref"] is not None) == queued
            assert (await rows_read(connection, "^iu_route_delivery$") > before) == queued


@pytest.mark.slow
async def test_a_replay_waits_for_queued_deliveries_of_its_subject(live):
    """A replayed dead letter is delivered after the events of its subject that were queued before the replay.

    Fails when: a due delivery is taken before an earlier delivery of its subject.
    """
    subject = uuid4()
    bad, blocked = True, True

    async def behave(delivery):
        if delivery.event.data["note"] == "dead" and bad:
            raise Reject("no")
        if delivery.event.data["note"] == "slow" and blocked:
            raise Failed("not yet")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject", attempts=1000, backoff=0.05, backoff_max=0.05)
        dead = await insert_event(connection, subject=subject, note="dead")
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
            slow = await insert_event(connection, subject=subject, note="slow")
            await wait_until(lambda: asyncio.sleep(0, len(recording.calls) > 2), "a second event that is tried again")
            bad = False
            await connection.fetchval("select fn_iu_route_dead_letter_replay(id, 'ann') from iu_route_dead_letter")
            # As if the replay had not seen that delivery, because the batch that queued it had not committed.
            due = "update iu_route_delivery set due_at = now(), failed_at = now() where due_at = 'infinity' returning true"
            assert await connection.fetchval(due)
            seen = len(recording.calls)
            await wait_until(lambda: asyncio.sleep(0, len(recording.calls) > seen + 5), "more tries")
            assert {c.event.id for c in recording.calls[1:]} == {slow}
            blocked = False
            await wait_until_settled(connection)
        assert list(recording.delivered) == [slow, dead]
        assert recording.overlapping == set()
