"""The budget of dead letters: the cases that stop a route, and those that end the stop.

The SQL is in functions/circuit_breaker; the reasons are in docs/why/delivery.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg
import pytest

from iu_listen import Settings
from iu_listen.model.delivery import Delivery, Event, Outcome, Reject, Result, TakenDelivery, TakeRequest
from iu_listen.model.observation import RoutePaused, RouteResumed
from iu_listen.postgres.delivery import DeliverySession
from postgres.delivery_helpers import (
    ROUTE,
    RecordingTarget,
    count_deliveries,
    delivering,
    open_route,
    wait_until_settled,
)
from support import MANY, WORKER, connected, drain, insert_event, wait_until

pytestmark = pytest.mark.asyncio

BUDGET = 3

#: name: (steps, dead letters, whether the route is stopped). A step is one settlement: outcomes of the next deliveries.
CASES = {
    "fewer refusals than the budget": (["refused 2"], 2, False),
    "as many in a row": (["refused 3"], 3, True),
    "as many in several settlements": (["refused 1", "refused 1", "refused 1"], 3, True),
    "what is refused beyond the budget waits": (["refused 9"], 3, True),
    "an arrival ends the row": (["refused 2", "arrived 1", "refused 2"], 4, False),
    "an arrival in the same settlement ends the row": (["refused 2, arrived 1, refused 2"], 4, False),
    "a row may be longer than the budget, if it ends in its settlement": (["refused 3, arrived 1, refused 2"], 5, False),
    "attempts that are spent count": (["failed 3"], 3, True),
    "what was not attempted says nothing about the target": (["impossible 9"], 9, False),
    "nor does it end the row": (["refused 2", "impossible 1", "refused 1"], 4, True),
    "while the route is stopped, a refusal makes no dead letter": (["refused 3", "refused 9"], 3, True),
    "what was not attempted ends nothing": (["refused 3", "impossible 1"], 4, True),
    "an arrival ends the stop": (["refused 3", "arrived 1"], 3, False),
    "for an hour after that, eight times as many stop the route": (["refused 3", "arrived 1", "refused 23"], 26, False),
    "and no more than that": (["refused 3", "arrived 1", "refused 30"], 27, True),
    "a row within these eight times begins the hour again": (
        ["refused 3", "arrived 1", "50 minutes later", "refused 3", "arrived 1", "50 minutes later", "refused 3"], 9, False,
    ),
    "an hour later the budget is as before": (["refused 3", "arrived 1", "60 minutes later", "refused 9"], 6, True),
    "a shorter row does not begin the hour again": (
        ["refused 3", "arrived 1", "50 minutes later", "refused 2", "arrived 1", "50 minutes later", "refused 9"], 8, True,
    ),
    "a person lets it go on, with a new budget": (["refused 3", "resumed", "refused 2"], 5, False),
    "and with no more than that": (["refused 3", "arrived 1", "refused 24", "resumed", "refused 9"], 30, True),
}  # fmt: skip

RESULTS = {"refused": Result.REJECTED, "impossible": Result.REJECTED, "arrived": Result.SENT, "failed": Result.FAILED}


@asynccontextmanager
async def courier(dsn: str) -> AsyncIterator[DeliverySession]:
    """A delivery session that holds the lease."""
    async with connected(dsn) as taker, connected(dsn) as settler:
        session = DeliverySession(settler, taker, Settings(dsn=dsn, session_timeout=600), uuid4())
        assert (await session.take_lease()).held
        yield session


async def waiting(connection: asyncpg.Connection, count: int) -> list[TakenDelivery]:
    """The next deliveries, never attempted ones first, as if they were in flight."""
    rows = await connection.fetch(
        "select id, event_ref from iu_route_delivery order by due_at nulls first, id limit $1", count
    )
    assert len(rows) == count
    event = {"domain": "iu", "type": "version_applied", "stream": "update"}
    return [
        TakenDelivery(Delivery(id=row[0], route=ROUTE, idempotency_key="", attempt=1, event=Event(id=row[1], **event)))
        for row in rows
    ]


async def take_step(session: DeliverySession, connection: asyncpg.Connection, step: str) -> None:
    """Carry out one step of a case."""
    if step == "resumed":
        await connection.execute("select fn_iu_route_resume($1)", ROUTE)
    elif step.endswith("later"):
        await connection.execute(f"update iu_delivery_breaker set lifted_at = lifted_at - interval '{step[:-6]}'")
    else:
        parts = [(word, int(number)) for word, number in (part.split() for part in step.split(", "))]
        taken = iter(await waiting(connection, sum(number for _, number in parts)))
        words = [word for word, number in parts for _ in range(number)]
        done = [
            Outcome(next(taken), RESULTS[word], 0.0, n * 0.001, "code", called="" if word == "impossible" else "it")
            for n, word in enumerate(words)
        ]
        assert await session.settle(done) is not None


async def paused_by(connection: asyncpg.Connection) -> str | None:
    held: str | None = await connection.fetchval("select paused_by from v_iu_delivery where route_code = $1", ROUTE)
    return held


async def dead_letters(connection: asyncpg.Connection) -> int:
    count: int = await connection.fetchval("select count(*) from iu_route_dead_letter")
    return count


@pytest.mark.parametrize("case", CASES)
async def test_the_budget_of_dead_letters_follows_its_state_table(live, case):
    """A number of dead letters in a row stops a route; only a successful delivery or an operator ends the row.

    Fails when: a success does not end the row; a delivery that was not attempted ends it; a rejection makes a dead
    letter while the route is stopped; or the eightfold budget is missing or has no end.
    """
    steps, dead, stopped = CASES[case]
    async with connected(live.dsn) as connection, courier(live.dsn) as session:
        await open_route(connection, dead_letters_in_a_row=BUDGET, attempts=1, breaker=1000)
        await connection.execute(MANY, 60)
        await drain(connection)
        for step in steps:
            await take_step(session, connection, step)
        assert await dead_letters(connection) == dead
        assert await paused_by(connection) == ("dead_letter_budget" if stopped else None)


# -- trial deliveries ------------------------------------------------------------------------------------------------

#: A trial delivery is due, and the number of trial deliveries so far is $1.
NEXT = "update iu_delivery_breaker set trial_at = now(), trial_id = null, trials = $1"
ANY = TakeRequest(route=ROUTE, capacity=10, position=0, deadline=1)


@pytest.mark.parametrize("order", ["none", "subject"])
async def test_trial_deliveries_of_a_stopped_route_are_newest_oldest_and_failed(live, order):
    """The trial deliveries of a stopped route are in turn the newest, the oldest and a failed delivery.

    On an ordered route the newest is one that waits for no other delivery.

    Fails when: a trial delivery is always the oldest, or always a failed one; or the newest overtakes its subject.
    """
    subject = uuid4()
    async with connected(live.dsn) as connection, courier(live.dsn) as session:
        await open_route(connection, dead_letters_in_a_row=1, order=order)
        await connection.execute(MANY, 6)
        for _ in range(2):
            await insert_event(connection, subject=subject)
        await drain(connection)
        ids = [row["id"] for row in await connection.fetch("select id from iu_route_delivery order by id")]
        await take_step(session, connection, "refused 1")
        probes = []
        for number in range(5):
            await connection.execute(NEXT, number)
            (taken,) = (await session.take([ANY], [], [])).taken
            probes.append(taken.delivery.id)
            assert await session.settle([Outcome(taken, Result.REJECTED, 0.0, 0.0, "no", called="it")]) == 0
            assert await connection.fetchval("select trials from iu_delivery_breaker") == number + 1
        newest = ids[-1] if order == "none" else ids[-2]
        assert probes == [newest, ids[1], newest, (ids[-2] if order == "none" else ids[-3]), ids[2]]


async def test_an_impossible_trial_delivery_is_replaced_at_once(live):
    """A trial delivery with a payload that is too large becomes a dead letter, and the next one follows at once.

    It was not sent, so it is no answer of the target.

    Fails when: it remains the trial delivery in flight.
    """
    async with connected(live.dsn) as connection, courier(live.dsn) as session:
        await open_route(connection, dead_letters_in_a_row=1)
        await connection.execute(MANY, 3)
        await drain(connection)
        await take_step(session, connection, "refused 1")
        await connection.execute(NEXT, 0)
        (taken,) = (await session.take([ANY], [], [])).taken
        assert await session.settle([Outcome(taken, Result.REJECTED, 0.0, 0.0, "payload_too_large")]) == 1
        (other,) = (await session.take([ANY], [taken.delivery.id], [])).taken
        assert other.delivery.id != taken.delivery.id


async def test_a_delivery_without_an_attempt_does_not_close_the_circuit_breaker(live):
    """In an outage a payload that is too large becomes a dead letter, and the circuit breaker stays open.

    Fails when: every rejection counts as an answer of the target.
    """
    async with connected(live.dsn) as connection, courier(live.dsn) as session:
        await open_route(connection, breaker=1)
        await connection.execute(MANY, 3)
        await drain(connection)
        await take_step(session, connection, "failed 1")
        assert await paused_by(connection) == "breaker_open"
        await take_step(session, connection, "impossible 1")
        assert await paused_by(connection) == "breaker_open"
        await take_step(session, connection, "refused 1")
        assert await paused_by(connection) is None


async def test_an_attempt_is_given_back_twice(live):
    """Of a delivery that opens the circuit breaker again and again, two attempts are given back, and no more.

    Fails when: the number of attempts that are given back has no bound.
    """
    tries = []
    async with connected(live.dsn) as connection, courier(live.dsn) as session:
        await open_route(connection, breaker=1, attempts=9)
        await connection.execute(MANY, 1)
        await drain(connection)
        for _ in range(4):
            await take_step(session, connection, "failed 1")
            await connection.execute("select fn_iu_route_resume($1)", ROUTE)
            tries.append(await connection.fetchval("select tries from iu_route_delivery"))
    assert tries == [0, 0, 1, 2]


# -- producers and targets -------------------------------------------------------------------------------------------

#: A number of events that the target rejects, each with a subject, a source and an actor of its own.
BAD = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref, source_system,
                              actor_ref, safe_payload)
    select 'iu', 'version_applied', 'update', 'immediate', gen_random_uuid(), gen_random_uuid()::text,
           gen_random_uuid()::text, '{"note": "bad"}'
      from generate_series(1, $1::int)
"""


async def refuses_bad(delivery: Delivery) -> None:
    """A healthy target: it rejects events marked bad and accepts all others."""
    if delivery.event.data["note"] == "bad":
        raise Reject("bad", code="bad")


@pytest.mark.parametrize("order", ["none", "subject"])
async def test_poison_events_of_one_producer_do_not_stop_other_producers(live, order):
    """After the events of one producer have stopped the route, events of others arrive
    while most of its own still wait.

    The contents of the events do not matter: a successful delivery shows that the target is not at fault.

    Fails when: a stopped route makes no trial deliveries, or only with the oldest events.
    """
    recording = RecordingTarget(refuses_bad)
    async with connected(live.dsn) as connection:
        await open_route(connection, dead_letters_in_a_row=5, trial_interval_max=0.2, order=order)
        async with delivering(live.dsn, recording.target()) as recorder:
            await connection.execute(BAD, 1000)
            held = await recorder.wait_for(RoutePaused)
            assert held.paused_by == "dead_letter_budget"
            good = [await insert_event(connection, note="good")]
            await wait_until(lambda: asyncio.sleep(0, good[0] in recording.delivered), "the good event arrives")
            assert await count_deliveries(connection) > 500
            await recorder.wait_for(RouteResumed)
            # Other producers go on: all their events arrive, and each bad event becomes one dead letter.
            while await count_deliveries(connection) > 0:
                good.append(await insert_event(connection, note="good"))
                await wait_until(lambda: asyncio.sleep(0, good[-1] in recording.delivered), "the good event arrives")
        assert recording.delivered == dict.fromkeys(good, 1)
        assert await dead_letters(connection) == 1000


async def test_a_rejecting_target_causes_no_more_dead_letters_than_the_budget(live):
    """A target that rejects everything causes no more dead letters than the budget; the other deliveries wait.

    Health gives a warning, and the deliveries go on without an operator when the target accepts events again.

    Fails when: dead letters are not counted, a stopped route makes further ones, or it waits for an operator.
    """
    broken = True
    began: set[UUID] = set()

    async def behave(delivery: Delivery) -> None:
        began.add(delivery.event.id)
        if broken:
            raise Reject("everything is wrong", code="http_400")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, dead_letters_in_a_row=5, concurrency=10, trial_interval_max=0.05)
        async with delivering(live.dsn, recording.target()) as recorder:
            await connection.execute(MANY, 500)
            held = await recorder.wait_for(RoutePaused)
            assert (held.paused_by, held.why) == ("dead_letter_budget", "http_400")
            probes = "select trials >= 20 from iu_delivery_breaker"
            await wait_until(lambda: connection.fetchval(probes), "refused probes")
            assert (await dead_letters(connection), await count_deliveries(connection)) == (5, 495)
            # The five rejected, those in flight at the stop, and the trial deliveries; ten times as many had been
            # taken.
            assert len(began) < 5 + 5 + 10 + 60
            answer = json.loads(await connection.fetchval("select fn_iu_route_worker_health($1)::text", WORKER))
            assert answer["healthy"]
            (warning,) = [w for w in answer["warnings"] if w["code"] == "dead_letter_budget"]
            assert warning["detail"].startswith(f"{ROUTE}: http_400")
            broken = False
            await wait_until_settled(connection)
        assert await dead_letters(connection) == 5
        assert len(recording.delivered) == 495
