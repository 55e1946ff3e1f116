"""Parked deliveries: they cost nothing while they wait for an earlier delivery of their subject, and none is forgotten.

The SQL is in functions/delivery_sweep and delivery_take.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from iu_listen import Settings
from iu_listen.flow import sweep
from iu_listen.flow.route import LOWEST_SUBJECT_KEY
from iu_listen.model.delivery import Failed, RouteState, Search, SearchResult, TakeRequest, TakeResult
from iu_listen.model.observation import RoutePaused
from iu_listen.postgres.delivery import DeliverySession
from postgres.delivery_helpers import ROUTE, RecordingTarget, delivering, open_route, wait_until_settled
from support import MANY, WORKER, connected, insert_event, rows_read, run_batch, wait_until

pytestmark = pytest.mark.asyncio

DELIVERIES = "^iu_route_delivery$"
#: Queues deliveries of a number of subjects in turn, as if a batch had queued them; their events do not exist. With
#: `$5`, the first delivery of each subject has failed and is due again in an hour.
PARK = """
    insert into iu_route_delivery
        (worker_name, route_code, event_ref, subject_key, attempt_no, tries, due_at, failed_at)
    select $1, $2, gen_random_uuid(), hashtextextended('parked ' || n % $4, 0), 1 + f.failed, f.failed,
           case f.failed when 1 then now() + interval '1 hour' end, case f.failed when 1 then now() end
      from generate_series(0, $3::int - 1) n
     cross join lateral (select ($5 and n < $4)::int as failed) f
     order by n
"""


async def park(connection: asyncpg.Connection, count: int, subjects: int = 1, *, wait: bool = True) -> int:
    """Queue `count` deliveries, parked if `wait`; return the last id."""
    await connection.execute(PARK, WORKER, ROUTE, count, subjects, wait)
    last: int = await connection.fetchval(
        "update iu_route_worker_cursor set queued_id = (select max(id) from iu_route_delivery) returning queued_id"
    )
    return last


async def take(
    connection: asyncpg.Connection, after: int = 0, unblocked: Sequence[tuple[str, int]] = ()
) -> tuple[TakeResult, RouteState, int]:
    """Take after this position; return the supply, the state of the route and the number of rows read."""
    session = DeliverySession(connection, connection, Settings(), uuid4())
    before = await rows_read(connection, DELIVERIES)
    supply = await session.take([TakeRequest(route=ROUTE, capacity=50, position=after, deadline=1)], [], unblocked)
    return supply, supply.routes[0], await rows_read(connection, DELIVERIES) - before


async def search(
    connection: asyncpg.Connection, key: int | None, after: int, behind: int | None = None
) -> tuple[SearchResult, int]:
    """Run the next part of a sweep; return its answer and the number of rows read."""
    session = DeliverySession(connection, connection, Settings(), uuid4())
    before = await rows_read(connection, DELIVERIES)
    (found,) = await session.sweep([Search(route=ROUTE, from_key=key, after_id=behind, position=after)])
    return found, await rows_read(connection, DELIVERIES) - before


async def search_all(connection: asyncpg.Connection, after: int) -> list[tuple[list[int], int]]:
    """Run a whole sweep; return for each part the keys that it finds and the number of rows read."""
    key: int | None = LOWEST_SUBJECT_KEY
    parts = []
    while key is not None:
        found, read = await search(connection, key, after)
        parts.append((list(found.keys), read))
        key = found.next_key
    return parts


# -- parked deliveries are not read ------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_other_subjects_are_delivered_beside_200_000_parked_deliveries(live, monkeypatch):
    """Events of other subjects are delivered although 200 000 parked deliveries of one subject precede them.

    The consumer reads each parked delivery at most once, in search of deliveries without a subject, although it sweeps
    without a pause.

    Fails when: the position goes through all parked deliveries, or begins at the first id again and again.
    """
    monkeypatch.setattr(sweep, "SWEEP_INTERVAL", 0)
    recording, events = RecordingTarget(), list[UUID]()
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        await park(connection, 200_000)
        before = await rows_read(connection, DELIVERIES)
        async with delivering(live.dsn, recording.target()):
            for _ in range(20):
                events.append(await insert_event(connection))
                await wait_until(lambda: asyncio.sleep(0, recording.delivered[events[-1]]), "the delivery", 30)
        assert recording.delivered == dict.fromkeys(events, 1)
        assert await rows_read(connection, DELIVERIES) - before < 250_000


@pytest.mark.slow
async def test_a_take_passes_parked_deliveries_once(live):
    """One take passes 200 000 parked deliveries, the next take reads none of them, and a sweep reads one.

    Fails when: the position passes only the rows that were read, or a sweep reads the deliveries
    behind the first of a subject.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        last = await park(connection, 200_000)
        supply, state, read = await take(connection)
        assert (supply.taken, state.position, state.skipped_after) == ([], last, last - 200_000 + 200)
        assert read < 1000
        _, state, read = await take(connection, state.position)
        assert (state.position, state.skipped_after) == (last, None)
        assert read < 10
        parts = await search_all(connection, last)
        assert [keys for keys, _ in parts if keys] == []
        assert sum(read for _, read in parts) < 20


@pytest.mark.parametrize("order", ["subject", "none"])
async def test_retries_that_are_not_due_are_not_read(live, order):
    """A take does not read thousands of deliveries that are not yet due again, also on a route without order.

    Fails when: their due time is compared with a volatile function, which rules out an index search.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, order=order)
        await park(connection, 3000, subjects=3000)
        _, state, _ = await take(connection)
        supply, state, read = await take(connection, state.position)
        assert supply.taken == []
        assert 3500 < state.due_in <= 3600
        assert read < 20


@pytest.mark.parametrize("planned", ["while it is empty", "when it was analyzed"])
async def test_the_first_delivery_of_a_subject_is_found_by_one_row(live, planned):
    """The check whether a delivery is the first of its subject reads one row, with any statistics of the planner.

    Fails when: another index can answer the query for the first delivery, or the query is a join.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        if planned == "while it is empty":
            await take(connection)
        await park(connection, 3000)
        if planned == "when it was analyzed":
            await connection.execute("analyze iu_route_delivery")
        subject = uuid4()
        for _ in range(2):
            await insert_event(connection, subject)
        await run_batch(connection)
        id, key = await connection.fetchrow("select id, subject_key from iu_route_delivery order by id desc limit 1")
        first = id - 1

        async def gives_the_first(after: int, unblocked: Sequence[tuple[str, int]] = ()) -> None:
            supply, _, read = await take(connection, after, unblocked)
            assert [t.delivery.id for t in supply.taken] == [first]
            assert read < 50

        await gives_the_first(first - 1)
        await gives_the_first(id, [(ROUTE, key)])
        before = await rows_read(connection, DELIVERIES)
        handed_over = "select array_agg(delivery_id) from fn_iu_delivery_hand_over($1, $2, '{9}', $3)"
        assert await connection.fetchval(handed_over, WORKER, [ROUTE], [first - 1]) == [first]
        assert await rows_read(connection, DELIVERIES) - before < 50
        probe = "insert into iu_delivery_breaker (route_code, opened_at, trial_at) values ($1, now(), now())"
        await connection.execute(probe, ROUTE)
        await gives_the_first(first - 1)
        await connection.execute("delete from iu_delivery_breaker")
        await connection.execute("update iu_route_delivery set due_at = now() where id = $1", first)
        await gives_the_first(id)
        due = "update iu_route_delivery set due_at = now() + interval '1 minute' where id = $1"
        await connection.execute(due, first)
        supply, state, read = await take(connection, id)
        assert (supply.taken, 50 < state.due_in <= 60, read < 50) == ([], True, True)


async def test_a_sweep_of_many_subjects_is_split_into_parts(live):
    """A part of a sweep looks at 500 subjects, however many deliveries each has, and the parts omit no subject.

    Fails when: a part has no bound, or the next part does not begin where the last one ended.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        last = await park(connection, 6000, subjects=1200, wait=False)
        parts = await search_all(connection, last)
        assert all(len(keys) <= 500 and read < 600 for keys, read in parts)
        expected = "select array_agg(distinct subject_key order by subject_key) from iu_route_delivery"
        assert [key for keys, _ in parts for key in keys] == await connection.fetchval(expected)


@pytest.mark.slow
async def test_a_part_of_a_sweep_is_bounded_while_vacuum_is_delayed(live):
    """The parts of a sweep, by subject and by id, also bound the number of deleted rows that VACUUM cannot remove yet.

    Fails when: a part is bounded only by a number of deliveries, which does not count deleted rows.
    """
    async with connected(live.dsn) as connection, connected(live.dsn) as reader:
        await open_route(connection, order="subject")
        async with reader.transaction(isolation="repeatable_read"):
            await reader.fetchval("select count(*) from iu_route_delivery")
            last = await park(connection, 300_000, subjects=300_000)
            await connection.execute("delete from iu_route_delivery")
            found, read = await search(connection, LOWEST_SUBJECT_KEY, last)
            assert found.next_key is not None
            assert 200 < read < 200_000
            found, read = await search(connection, None, last, 0)
            assert found.after_id is not None
            assert 9000 < read < 200_000


# -- nothing is forgotten ----------------------------------------------------------------------------------------------


async def test_deliveries_behind_the_position_are_found(live, monkeypatch):
    """Deliveries of other subjects, and without a subject, that lie between thousands of
    parked deliveries are delivered.

    Fails when: no sweep follows after the position has passed deliveries without reading
    them, or it searches only subjects.
    """
    monkeypatch.setattr(sweep, "SWEEP_INTERVAL", math.inf)
    recording, subject = RecordingTarget(), uuid4()
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        await park(connection, 15_000)
        mine = [await insert_event(connection, subject) for _ in range(2)]
        await connection.execute(MANY, 3)
        assert (await run_batch(connection))["queued"] == 5
        await park(connection, 15_000)
        async with delivering(live.dsn, recording.target()):
            await wait_until(lambda: asyncio.sleep(0, len(recording.delivered) == 5), "the deliveries")
        assert [c.event.id for c in recording.calls if c.event.subject == str(subject)] == mine


@pytest.mark.parametrize("how", ["deleted", "of another worker"])
async def test_a_subject_unblocked_by_another_session_continues(live, monkeypatch, how):
    """A parked delivery goes on when the delivery before it is deleted by hand or ended by another worker.

    Fails when: only settlements free a subject.
    """
    monkeypatch.setattr(sweep, "SWEEP_INTERVAL", 0.2)

    async def behave(delivery):
        if delivery.event.id == first:
            raise Failed("not yet")

    recording, subject = RecordingTarget(behave), uuid4()
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject", backoff=3600, backoff_max=3600)
        await park(connection, 2000, subjects=1000)
        first, second = [await insert_event(connection, subject) for _ in range(2)]
        assert (await run_batch(connection))["queued"] == 2
        if how == "of another worker":
            await connection.execute("update iu_route_delivery set worker_name = 'x' where event_ref = $1", first)
        async with delivering(live.dsn, recording.target()):
            other = await insert_event(connection)
            await wait_until(lambda: asyncio.sleep(0, recording.delivered[other]), "a delivery")
            await wait_until(lambda: asyncio.sleep(0, how != "deleted" or len(recording.calls) > 1), "a failure")
            await anyio.sleep(0.5)
            assert second not in recording.delivered
            await connection.execute("delete from iu_route_delivery where event_ref = $1", first)
            await wait_until(lambda: asyncio.sleep(0, recording.delivered[second]), "the one that waited")


async def test_a_subject_continues_when_its_next_delivery_fits(live, monkeypatch):
    """If the next delivery of a subject exceeds `prefetch_bytes`, it is taken when other deliveries have ended.

    Fails when: a unblocked subject is requested only once, regardless of the answer.
    """
    monkeypatch.setattr(sweep, "SWEEP_INTERVAL", math.inf)
    ended = anyio.Event()

    async def behave(delivery):
        if delivery.event.id == large:
            await ended.wait()

    recording, subject = RecordingTarget(behave), uuid4()
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        first = await insert_event(connection, subject)
        large = await insert_event(connection, note="x" * 1500)
        second = await insert_event(connection, subject)
        assert (await run_batch(connection))["queued"] == 3
        async with delivering(live.dsn, recording.target(), prefetch_bytes=2000):
            await wait_until(lambda: asyncio.sleep(0, recording.delivered[first]), "the first one")
            await anyio.sleep(0.5)
            assert second not in recording.delivered
            ended.set()
            await wait_until_settled(connection)
        assert list(recording.delivered) == [first, large, second]


async def test_returned_deliveries_are_taken_again_after_a_pause(live, monkeypatch):
    """Deliveries that were given back unstarted when their route was paused are taken again
    after the pause, without a sweep.

    Fails when: a delivery is given back and its subject is not requested again.
    """

    async def nothing(self: DeliverySession, searches: Sequence[Search]) -> list[SearchResult]:
        return []

    monkeypatch.setattr(DeliverySession, "sweep", nothing)
    free = anyio.Event()
    recording = RecordingTarget(lambda _: free.wait())
    gate = "update dot_config set value = $1 where key = 'iu_core.delivery_enabled'"
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject", concurrency=1)
        events = [await insert_event(connection) for _ in range(8)]
        assert (await run_batch(connection))["queued"] == 8
        async with delivering(live.dsn, recording.target()) as recorder:
            await wait_until(lambda: asyncio.sleep(0, recording.calls), "a call")
            await connection.execute(gate, "false")
            await recorder.wait_for(RoutePaused)
            free.set()
            await connection.execute(gate, "true")
            await wait_until_settled(connection)
        assert recording.delivered == dict.fromkeys(events, 1)


async def test_the_delivery_behind_a_cancelled_one_continues(live, monkeypatch):
    """If a delivery is cancelled while its route is paused, the parked delivery behind it goes on when the pause ends.

    Fails when: no sweep follows the end of a pause.
    """
    subject = uuid4()

    async def behave(delivery):
        if delivery.event.id == first:
            raise Failed("not yet")

    recording = RecordingTarget(behave)
    gate = "update dot_config set value = $1 where key = 'iu_core.delivery_enabled'"
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject", backoff=3600, backoff_max=3600)
        first, second = [await insert_event(connection, subject) for _ in range(2)]
        async with delivering(live.dsn, recording.target()) as recorder:
            await wait_until(lambda: connection.fetchval("select max(tries) from iu_route_delivery"), "a failure")
            monkeypatch.setattr(sweep, "SWEEP_INTERVAL", math.inf)
            await connection.execute(gate, "false")
            await recorder.wait_for(RoutePaused)
            await connection.execute("select fn_iu_delivery_cancel($1, $2, 'a test')", ROUTE, first)
            await connection.execute(gate, "true")
            await wait_until_settled(connection)
        assert list(recording.delivered) == [second]


async def test_the_position_does_not_pass_an_uncommitted_batch(live):
    """The position stays before the delivery of a batch that has not committed, although a replay with a higher id has.

    Fails when: the position passes all deliveries up to the last id, regardless of the transaction that queued them.
    """
    replay = """insert into iu_route_delivery (worker_name, route_code, event_ref, due_at, replayed_by)
                values ($1, $2, gen_random_uuid(), now() + interval '1 hour', 'ann') returning id"""
    async with connected(live.dsn) as connection, connected(live.dsn) as batch:
        await open_route(connection, order="subject")
        last = await park(connection, 1000)
        await connection.execute(MANY, 1)
        async with batch.transaction():
            assert (await run_batch(batch))["queued"] == 1
            late = await batch.fetchval("select max(id) from iu_route_delivery")
            assert last < late < await connection.fetchval(replay, WORKER, ROUTE)
            _, state, _ = await take(connection)
            assert (state.position, state.skipped_after is None) == (last, False)
        supply, state, _ = await take(connection, state.position)
        assert ([t.delivery.id for t in supply.taken], state.position) == ([late], late)


async def test_deliveries_of_a_deleted_cursor_are_delivered(live):
    """Deliveries that a worker queued before its cursor was deleted and made anew are delivered.

    Fails when: only deliveries up to the last id that the cursor records are looked for; the new cursor records none.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        event = await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 1
        await connection.execute("delete from iu_route_worker_cursor")
        await connection.execute(
            """insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
               select $1, 'iu', lineage from iu_outbox_anchor""",
            WORKER,
        )
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
        assert recording.delivered == {event: 1}


async def test_lower_ids_hide_no_delivery(live):
    """If new deliveries get lower ids than pending ones, a new session finds both.

    This happens in a database that was moved without its sequences.

    Fails when: the last id of the last batch is taken for the highest id that is queued.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await connection.execute("alter table iu_route_delivery alter id restart with 1000")
        events = [await insert_event(connection) for _ in range(3)]
        assert (await run_batch(connection))["queued"] == 3
        await connection.execute("alter table iu_route_delivery alter id restart with 10")
        events.append(await insert_event(connection))
        assert (await run_batch(connection))["queued"] == 1
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
        assert recording.delivered == dict.fromkeys(events, 1)


async def test_a_sweep_ignores_deliveries_after_the_position(live):
    """A sweep does not find subjects whose first delivery lies after the position or is not yet due.

    It does find a replay at any position, because the take in the order of ids does not look for replays.

    Fails when: a sweep finds deliveries that are taken in the order of ids or are not due, or finds no replay.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        await park(connection, 10)
        await insert_event(connection)
        await run_batch(connection)
        id, key = await connection.fetchrow("select id, subject_key from iu_route_delivery order by id desc limit 1")

        async def found(after: int) -> list[int]:
            return [key for keys, _ in await search_all(connection, after) for key in keys]

        assert (await found(id - 1), await found(id)) == ([], [key])
        await connection.execute("update iu_route_delivery set due_at = 'infinity' where id = $1", id)
        assert await found(id - 1) == [key]


async def test_trial_deliveries_alternate_between_new_and_failed_ones(live):
    """Trial deliveries alternate between new deliveries and one that has failed, also if subjects were unblocked.

    Fails when: a unblocked subject comes first in every turn.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        for _ in range(2):
            await insert_event(connection)
        await run_batch(connection)
        failed, new = [r["id"] for r in await connection.fetch("select id from iu_route_delivery order by id")]
        key = await connection.fetchval("select subject_key from iu_route_delivery where id = $1", new)
        await connection.execute("update iu_route_delivery set due_at = now(), failed_at = now() where id = $1", failed)
        session = DeliverySession(connection, connection, Settings(), uuid4())
        want = TakeRequest(route=ROUTE, capacity=9, position=new, deadline=1)
        await connection.execute("insert into iu_delivery_breaker (route_code) values ($1)", ROUTE)
        for probes, probe in ((0, new), (1, new), (2, failed), (3, new)):
            await connection.execute(
                "update iu_delivery_breaker set opened_at = now(), trial_at = now(), trials = $1", probes
            )
            assert [t.delivery.id for t in (await session.take([want], [], [(ROUTE, key)])).taken] == [probe]


# -- replays -----------------------------------------------------------------------------------------------------------


async def test_replays_of_one_subject_are_parked_unread(live):
    """Of many replayed dead letters of one subject one is due; the others are parked and are not read.

    They are delivered one after another, also those that were replayed singly.

    Fails when: all of them are due at once.
    """
    recording, subject = RecordingTarget(), uuid4()
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        events = [await insert_event(connection, subject) for _ in range(300)]
        assert (await run_batch(connection))["queued"] == 300
        await connection.execute("select fn_iu_route_live($1, false, 'a test')", ROUTE)
        await connection.execute("select fn_iu_delivery_cancel($1, null, 'a test')", ROUTE)
        await open_route(connection, order="subject")
        replay = "select fn_iu_dead_letters_replay($1, null, null, null, null, 'ann', null, null, null)"
        await connection.execute(replay, ROUTE)
        ids = [r["event_ref"] for r in await connection.fetch("select event_ref from iu_route_delivery order by id")]
        assert set(ids) == set(events)
        await connection.execute("delete from iu_route_delivery where event_ref = $1", ids[-1])
        alone = "select fn_iu_route_dead_letter_replay(id, 'ann') ->> 'status' from iu_route_dead_letter where event_ref = $1"
        assert await connection.fetchval(alone, ids[-1]) == "queued"
        assert await connection.fetchval("select count(*) from iu_route_delivery where due_at < 'infinity'") == 1
        _, state, _ = await take(connection)
        supply, _, read = await take(connection, state.position)
        assert [t.delivery.event.id for t in supply.taken] == [ids[0]]
        assert read < 20
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
        assert list(recording.delivered) == ids
        assert recording.overlapping == set()
