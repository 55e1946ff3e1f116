"""Events that cannot be passed to a target, and outcomes that cannot be recorded: one dead
letter each, and others go on."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from uuid import UUID, uuid4

import asyncpg
import pytest

from iu_listen import Settings
from iu_listen.model.delivery import Failed, Outcome, Result, TakeRequest
from iu_listen.model.observation import DeliveriesSettled
from iu_listen.postgres.delivery import DeliverySession
from postgres.delivery_helpers import (
    ROUTE,
    RecordingTarget,
    add_route,
    attempts,
    count_deliveries,
    delivering,
    open_route,
    wait_until_settled,
)
from support import connected, drain, insert_event

pytestmark = pytest.mark.asyncio

#: An event with this SQL expression as its payload.
INSERT = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, safe_payload)
    values ('iu', 'version_applied', 'update', 'immediate', {}) returning id
"""
#: Payloads with more than 16 MiB of text, most of which take little storage.
LARGE = {
    "characters": "jsonb_build_object('a', repeat('x', 17000000))",
    "escaped characters": "jsonb_build_object('a', repeat(E'\\x01', 3000000))",
    "digits": "(select jsonb_agg(1e131071::numeric) from generate_series(1, 200))",
    "one number in 2 kB": "(select jsonb_build_object('a', jsonb_agg(1e131071::numeric)) from generate_series(1, 130))",
}
#: The deliveries of a route ($1) with these ids ($2).
ROWS = """
    select d.*
      from iu_outbound_route r
     cross join fn_iu_delivery_rows(r, $2, 1000000, 1000) d
     where r.route_code = $1"""


async def letters(connection: asyncpg.Connection) -> dict[UUID, str]:
    return {r["event_ref"]: r["failure_code"] for r in await connection.fetch("select * from iu_route_dead_letter")}


@pytest.mark.parametrize("what", LARGE)
@pytest.mark.parametrize("how", ["taken", "handed over"])
async def test_a_too_large_payload_becomes_a_dead_letter(live, what, how):
    """An event with a payload that is too large becomes a dead letter and never reaches the consumer; other events do.

    Fails when: payloads are converted with the batch, or without a limit.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        if how == "taken":
            good = [await insert_event(connection)]
            large = await connection.fetchval(INSERT.format(LARGE[what]))
            good.append(await insert_event(connection))
            await drain(connection)
        async with delivering(live.dsn, recording.target()):
            if how == "handed over":
                async with connection.transaction():
                    good = [await insert_event(connection)]
                    large = await connection.fetchval(INSERT.format(LARGE[what]))
                    good.append(await insert_event(connection))
            await wait_until_settled(connection, 60)
        assert recording.delivered == dict.fromkeys(good, 1)
        assert await letters(connection) == {large: "payload_too_large"}
        assert await attempts(connection, large) == [(1, "failed", "dead_letter", "payload_too_large")]


@pytest.mark.slow
async def test_a_payload_that_the_server_cannot_build_becomes_a_dead_letter(live):
    """A payload with a text of more than 1 GB, which the server cannot make, becomes a dead letter like any other.

    Fails when: the conversion is not guarded, or a snapshot is made of it.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        large = await connection.fetchval(
            INSERT.format("(select jsonb_agg(1e131071::numeric) from generate_series(1, 9000))")
        )
        good = await insert_event(connection)
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection, 60)
        assert set(recording.delivered) == {good}
        assert await letters(connection) == {large: "payload_too_large"}


async def test_payloads_in_memory_are_limited_in_bytes(live):
    """The payloads in memory have no more bytes than the budget and one payload, however many deliveries fit otherwise.

    Fails when: payloads are limited only by their number.
    """
    held: list[int] = []
    most = 0

    async def behave(delivery):
        nonlocal most
        held.append(len(delivery.event.payload))
        await asyncio.sleep(0.02)
        most = max(most, sum(held))
        held.pop()

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=50)
        other = await add_route(connection, "other")
        for _ in range(30):
            await connection.execute(INSERT.format("jsonb_build_object('a', repeat('x', 100000))"))
        beside = RecordingTarget()
        async with delivering(live.dsn, recording.target(), beside.target(other), prefetch_bytes=250_000):
            await wait_until_settled(connection, 60)
        assert len(recording.delivered) == len(beside.delivered) == 30
        # The budget, and one payload for each route that has none.
        assert 100_000 <= most <= 250_000 + 2 * 101_000


async def test_a_take_reads_only_the_deliveries_that_it_returns(live):
    """A take reads only the deliveries that it returns, by their ids, however many others wait for the route.

    Fails when: PostgreSQL 16 plans one scan for all ids while the table is empty, and then reads all rows of the route.
    """
    async with connected(live.dsn) as connection, connection.transaction():
        for setting in ("enable_seqscan", "enable_bitmapscan", "enable_sort"):
            await connection.execute(f"set local {setting} = off")
        await connection.execute("set local plan_cache_mode = force_generic_plan")
        await connection.fetch(ROWS, ROUTE, [1])
        await connection.execute(
            "insert into iu_route_delivery (worker_name, route_code, event_ref, attempt_no, route_count)"
            " select 'iu_outbound_default', $1, gen_random_uuid(), 1, 1 from generate_series(1, 20000)",
            ROUTE,
        )
        ids = await connection.fetchval(
            "select array_agg(id order by id desc) filter (where id % 5000 = 0) from iu_route_delivery"
        )
        for _ in range(2):
            # The first execution also reads catalogs.
            (plan,) = json.loads(
                await connection.fetchval(f"explain (analyze, buffers, format json) {ROWS}", ROUTE, ids)
            )
        assert plan["Plan"]["Shared Hit Blocks"] < 100, plan
        assert [row["delivery_id"] for row in await connection.fetch(ROWS, ROUTE, ids)] == sorted(ids)


async def test_a_delivery_of_a_deleted_event_becomes_a_dead_letter(live):
    """A delivery becomes a dead letter if its event was deleted, and is not delivered without a payload.

    Fails when: a missing row counts as one without values.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        event = await insert_event(connection)
        await drain(connection)
        await connection.execute("delete from event_outbox")
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
        assert recording.calls == []
        assert await letters(connection) == {event: "event_missing"}


@pytest.mark.parametrize("how", ["taken", "handed over"])
@pytest.mark.parametrize("when", ["infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "12026-11-29 12:00:00+00"])
@pytest.mark.parametrize("column", ["occurred_at", "created_at"])
async def test_a_time_that_python_cannot_represent_becomes_a_dead_letter(live, when, how, column):
    """An event with a time that Python cannot represent becomes a dead letter, and other deliveries can be read.

    Fails when: the times are sent unchanged.
    """
    recording = RecordingTarget()
    odd = f"""insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, {column})
              values ('iu', 'version_applied', 'update', 'immediate', $1::text::timestamptz) returning id"""
    async with connected(live.dsn) as connection:
        await open_route(connection)
        if how == "taken":
            event = await connection.fetchval(odd, when)
            good = await insert_event(connection)
            await drain(connection)
        async with delivering(live.dsn, recording.target()):
            if how == "handed over":
                # Only a dispatcher that holds its lease and has no delivery in flight gets deliveries from a batch.
                await insert_event(connection)
                await wait_until_settled(connection)
                recording.delivered.clear()
                event = await connection.fetchval(odd, when)
                good = await insert_event(connection)
            await wait_until_settled(connection)
        assert set(recording.delivered) == {good}
        assert await letters(connection) == {event: "event_out_of_range"}


REFUSE = {
    "what arrived": "alter table iu_route_attempt add check (route_code <> 'odd' or status <> 'sent')",
    "what failed": "alter table iu_route_attempt add check (route_code <> 'odd' or failure_code is distinct from 'x')",
    "every attempt": "alter table iu_route_attempt add check (route_code <> 'odd')",
}


@pytest.mark.parametrize("refused", REFUSE)
async def test_a_refused_outcome_delays_no_other_delivery(live, refused):
    """If a CHECK of the application rejects attempts of one route, its events become dead
    letters; the other route delivers.

    Fails when: a set of outcomes is settled only as a whole.
    """

    async def behave(delivery):
        if refused == "what failed" and delivery.event.data["note"] == "bad":
            raise Failed("no", code="x")

    odd, recording = RecordingTarget(behave), RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=2, backoff=0.01)
        await add_route(connection, "odd", attempts=2, backoff=0.01)
        await connection.execute(REFUSE[refused])
        async with delivering(live.dsn, odd.target("odd"), recording.target()) as recorder:
            events = [await insert_event(connection, note="" if n % 7 else "bad") for n in range(20)]
            await wait_until_settled(connection, 40)
        named = {(d.route, d.code) for o in recorder.of(DeliveriesSettled) for d in o.dead_letters}
        assert named == {("odd", "outcome_refused")}
        assert recording.delivered == dict.fromkeys(events, 1)
        ended = events[::7] if refused == "what failed" else events
        assert await letters(connection) == dict.fromkeys(ended, "outcome_refused")
        assert await connection.fetchval("select count(*) from iu_route_attempt where route_code = $1", ROUTE) == 20


async def test_an_outcome_waits_for_earlier_deliveries_of_its_subject(live):
    """After a failover to a copy that is behind, the outcome of a delivery waits for earlier deliveries of its subject.

    The copy lacks the settlement of the earlier delivery, which is attempted again; so must be the later one.

    Fails when: outcomes of a lost session are settled without a check of their subject.
    """
    async with connected(live.dsn) as taker, connected(live.dsn) as settler:
        await open_route(taker, order="subject")
        events = [await insert_event(taker, subject=UUID(int=1)) for _ in range(2)]
        await drain(taker)
        session = DeliverySession(settler, taker, Settings(dsn=live.dsn, session_timeout=600), uuid4())
        assert (await session.take_lease()).held
        want = TakeRequest(route=ROUTE, capacity=10, position=0, deadline=1)
        (first,) = (await session.take([want], [], [])).taken
        assert first.delivery.event.id == events[0]
        later = replace(first.delivery.event, id=events[1])
        second = replace(first, delivery=replace(first.delivery, id=first.delivery.id + 1, event=later))
        done = [Outcome(taken, Result.SENT, 0.0, 0.0, "x") for taken in (second, first)]
        assert await session.settle(done[:1]) == 0
        assert await count_deliveries(taker) == 2
        # In the order of the subject both are settled.
        assert await session.settle(done[1:]) == 0
        assert await session.settle(done[:1]) == 0
        assert await count_deliveries(taker) == 0


async def test_an_outcome_of_another_event_settles_no_delivery(live):
    """A copy that is behind assigns the same delivery ids again; an outcome from before
    does not settle such a delivery.

    Fails when: deliveries are settled by their id alone.
    """
    async with connected(live.dsn) as taker, connected(live.dsn) as settler:
        await open_route(taker)
        session = DeliverySession(settler, taker, Settings(dsn=live.dsn, session_timeout=600), uuid4())
        assert (await session.take_lease()).held
        await insert_event(taker)
        await insert_event(taker)
        await drain(taker)
        want = TakeRequest(route=ROUTE, capacity=10, position=0, deadline=1)
        taken = list((await session.take([want], [], [])).taken)
        for delivery in taken:
            object.__setattr__(delivery.delivery.event, "id", uuid4())
        done = [Outcome(t, r, 0.0, 0.0, "x") for t, r in zip(taken, (Result.SENT, Result.REJECTED), strict=True)]
        assert await session.settle(done) == 0
        assert await count_deliveries(taker) == 2
        assert await taker.fetchval("select count(*) from iu_route_attempt") == 0
