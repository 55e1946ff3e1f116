"""The circuit breaker of a route: its state machine as a table, and its effect on good and on poison events.

The SQL is in functions/circuit_breaker.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iu_listen import Settings
from iu_listen.model.delivery import Failed, Outcome, Reject, Result, TakenDelivery, TakeRequest, Unavailable
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
from support import MANY, connected, drain, insert_event, wait_until

# -- the state machine -----------------------------------------------------------------------------------------------

POLICY = {"breaker": 3, "probe_max": 2, "dead_letters_in_a_row": 3}
CLOSED = {
    "failures": 0, "failed_ids": [], "open": False, "trials": 0, "trial_id": None, "dead_letters": 0, "stopped": False,
    "lifted": None,
}  # fmt: skip
#: Two failures of different deliveries, of the three that open the circuit breaker.
COUNTING = CLOSED | {"failures": 2, "failed_ids": [1, 2]}
OPEN = CLOSED | {"failures": 3, "failed_ids": [1, 2, 3], "open": True, "trials": 1}
HALF_OPEN = OPEN | {"trial_id": 7}
#: The budget of dead letters is spent, and a trial delivery is in flight.
STOPPED = HALF_OPEN | {"dead_letters": 3, "stopped": True}

#: Parameters: the state before ($1 to $8, in the order of CLOSED; lifted is an age in seconds), then the event.
AFTER = """
    select b.failures, b.failed_ids, b.opened_at is not null as open, b.trials, b.trial_id, b.dead_letters,
           b.stopped_at is not null as stopped, extract(epoch from now() - b.lifted_at)::float8 as lifted,
           extract(epoch from b.trial_at - now())::float8 as pause
      from jsonb_populate_record(null::iu_delivery_breaker, jsonb_build_object(
               'route_code', 'r', 'failures', $1::int, 'failed_ids', $2::bigint[],
               'opened_at', case when $3 then now() - interval '1 hour' end, 'trials', $4::int, 'trial_id', $5::bigint,
               'trial_at', case when $3 then now() + interval '77 seconds' end,
               'dead_letters', $6::int, 'stopped_at', case when $7 then now() - interval '1 hour' end,
               'lifted_at', now() - $8::float8 * interval '1 second')) before
     cross join lateral fn_iu_breaker_after(before, $9, $10::jsonb, now(), $11, $12, $13, 'code', 1.0) b
"""
#: The time of the next trial delivery has not changed.
SAME = 77.0


@dataclass(frozen=True)
class Happened:
    """An event of a circuit breaker: its name, the id of the delivery, and the facts about a failure."""

    name: str
    id: int = 7
    at_fault: bool = False
    retry_after: float | None = None


#: name: state before, event, differences of the state after, seconds until the next trial delivery (None: not due)
TRANSITIONS = {
    # -- closed
    "closed: a failure counts": (CLOSED, Happened("failed", 1), {"failures": 1, "failed_ids": [1]}, None),
    "closed: the same delivery counts once": (COUNTING, Happened("failed", 2), {}, None),
    "closed: an unavailable target counts each time": (
        CLOSED | {"failures": 1, "failed_ids": [1]}, Happened("unavailable", 1), {"failures": 2}, None,
    ),
    "closed: a delivery at fault does not count": (
        COUNTING, Happened("failed", 3, at_fault=True), {"failed_ids": [1, 2, 3]}, None,
    ),
    "closed: nor does it where it says unavailable": (
        COUNTING, Happened("unavailable", 3, at_fault=True, retry_after=60.0), {"failed_ids": [1, 2, 3]}, None,
    ),
    "closed: a delivery that was not called changes nothing": (COUNTING, Happened("not_called", 2), {}, None),
    "closed: an arrival ends the row of failures": (COUNTING, Happened("arrived"), {"failures": 0, "failed_ids": []}, None),
    "closed: a rejection ends the row of failures": (
        COUNTING, Happened("rejected"), {"failures": 0, "failed_ids": []}, None,
    ),
    "closed: a dead letter counts": (COUNTING, Happened("dead_letter"), {"dead_letters": 1}, None),
    "closed: a rejection does not end the row of dead letters": (
        COUNTING | {"dead_letters": 2}, Happened("rejected"), {"failures": 0, "failed_ids": []}, None,
    ),
    "closed: an arrival ends the row of dead letters": (
        CLOSED | {"dead_letters": 2}, Happened("arrived"), {"dead_letters": 0}, None,
    ),
    "closed: an arrival after a spent budget begins the hour": (
        CLOSED | {"dead_letters": 3, "lifted": 2000.0}, Happened("arrived"), {"dead_letters": 0, "lifted": 0.0}, None,
    ),
    # -- closed to open
    "closed → open: as many different deliveries as the policy says": (
        COUNTING, Happened("failed", 3), {"failures": 3, "failed_ids": [1, 2, 3], "open": True}, 0.25,
    ),
    "closed → open: very many deliveries at fault": (
        CLOSED | {"failed_ids": list(range(45))}, Happened("failed", 45, at_fault=True),
        {"failed_ids": list(range(46)), "open": True}, 0.25,
    ),
    "closed → open: the target asks for a pause": (
        CLOSED, Happened("unavailable", 1, retry_after=9.0), {"failures": 1, "failed_ids": [1], "open": True}, 9.0,
    ),
    # -- open
    "open: deliveries that were in flight change nothing": (OPEN, Happened("failed", 4), {}, SAME),
    "open: nor do they if the target asks for a pause": (OPEN, Happened("unavailable", 4, retry_after=9.0), {}, SAME),
    "open: a delivery that was not called changes nothing": (OPEN, Happened("not_called", 4), {}, SAME),
    "open: a dead letter counts": (OPEN, Happened("dead_letter"), {"dead_letters": 1}, SAME),
    "open → closed: any delivery arrives": (OPEN, Happened("arrived", 4), CLOSED, None),
    "open → closed: the target rejects any delivery": (OPEN, Happened("rejected", 4), CLOSED, None),
    "open → closed: an operator resumes the route": (OPEN, Happened("resumed"), CLOSED, None),
    # -- half-open
    "half-open: other deliveries change nothing": (HALF_OPEN, Happened("failed", 4), {}, SAME),
    "half-open → open: the trial delivery fails, and the pause doubles": (
        HALF_OPEN, Happened("failed"), {"trials": 2, "trial_id": None}, 1.0,
    ),
    "half-open → open: up to the longest pause": (
        HALF_OPEN | {"trials": 9}, Happened("unavailable"), {"trials": 10, "trial_id": None}, 2.0,
    ),
    "half-open → open: the target asks for a longer pause": (
        HALF_OPEN | {"trials": 9}, Happened("unavailable", retry_after=30.0), {"trials": 10, "trial_id": None}, 30.0,
    ),
    "half-open → open: the trial delivery was not called, and another follows at once": (
        HALF_OPEN, Happened("not_called"), {"trial_id": None}, 0.0,
    ),
    "half-open → closed: any delivery arrives": (HALF_OPEN, Happened("arrived", 4), CLOSED, None),
    "half-open → closed: the target rejects any delivery": (HALF_OPEN, Happened("rejected", 4), CLOSED, None),
    # -- the budget of dead letters
    "closed → stopped: the budget is spent": (
        COUNTING | {"dead_letters": 2}, Happened("dead_letter"), {"dead_letters": 3, "stopped": True, "open": True}, 0.25,
    ),
    "open → stopped: the budget is spent": (
        HALF_OPEN | {"dead_letters": 2}, Happened("dead_letter"),
        {"dead_letters": 3, "stopped": True, "trials": 0, "trial_id": None}, 0.25,
    ),
    "closed: for an hour after an arrival the budget is eight times as large": (
        CLOSED | {"dead_letters": 22, "lifted": 3599.0}, Happened("dead_letter"), {"dead_letters": 23}, None,
    ),
    "closed → stopped: and no larger": (
        CLOSED | {"dead_letters": 23, "lifted": 3599.0}, Happened("dead_letter"),
        {"dead_letters": 24, "stopped": True, "open": True}, 0.25,
    ),
    "closed → stopped: after the hour the budget is as before": (
        CLOSED | {"dead_letters": 2, "lifted": 3601.0}, Happened("dead_letter"),
        {"dead_letters": 3, "stopped": True, "open": True}, 0.25,
    ),
    "stopped: a rejection is no success": (STOPPED, Happened("rejected"), {}, SAME),
    "stopped: a failed trial delivery doubles the pause": (
        STOPPED, Happened("failed"), {"trials": 2, "trial_id": None}, 1.0,
    ),
    "stopped: a further dead letter does not stop it again": (
        STOPPED, Happened("dead_letter"), {"dead_letters": 4}, SAME,
    ),
    "stopped → closed: any delivery arrives, and the hour begins": (
        STOPPED, Happened("arrived", 4), CLOSED | {"lifted": 0.0}, None,
    ),
    "stopped → closed: an operator resumes the route, with a new budget": (
        STOPPED | {"lifted": 60.0}, Happened("resumed"), CLOSED, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSITIONS)
@pytest.mark.asyncio
async def test_the_circuit_breaker_follows_its_state_table(live, name):
    """`fn_iu_breaker_after` is a pure function: the table lists each effect of an event on a circuit breaker.

    Fails when: a transition of the state table in the comment of `iu_delivery_breaker` is missing or differs.
    """
    before, event, changes, pause = TRANSITIONS[name]
    async with connected(live.dsn) as connection:
        after = await connection.fetchrow(
            AFTER, *before.values(), event.name, json.dumps(POLICY), event.id, event.at_fault, event.retry_after
        )
    assert {key: after[key] for key in CLOSED} == before | changes | {"lifted": after["lifted"]}
    for found, expected in ((after["lifted"], (before | changes)["lifted"]), (after["pause"], pause)):
        assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.asyncio
async def test_a_success_closes_the_circuit_breaker_and_attributes_earlier_failures(live):
    """A success of any delivery closes the circuit breaker and decides whether earlier
    failures were caused by the event.

    A delivery that failed between two successes is at fault; one that failed in an outage is not.

    Fails when: only the trial delivery closes the circuit breaker, or failures of an outage are blamed on the delivery.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await connection.execute(MANY, 2)
        await drain(connection)
        ids = [r["id"] for r in await connection.fetch("select id from iu_route_delivery order by id")]
        for opened, own in (("null", True), ("now()", False)):
            await connection.execute("delete from iu_delivery_breaker")
            await connection.execute("update iu_route_delivery set at_fault = false")
            await connection.execute(
                f"""insert into iu_delivery_breaker (route_code, failures, failed_ids, opened_at, trial_id)
                    values ($1, 1, $2, {opened}, $3)""",
                ROUTE, ids[:1], ids[0],
            )  # fmt: skip
            await connection.execute("select fn_iu_breaker_success($1, $1)", [ROUTE])
            row = await connection.fetchrow("select failures, failed_ids, opened_at, trial_id from iu_delivery_breaker")
            assert tuple(row) == (0, [], None, None)
            found = [
                r["at_fault"] for r in await connection.fetch("select at_fault from iu_route_delivery order by id")
            ]
            assert found == [own, False]


# -- poison events and outages ---------------------------------------------------------------------------------------


async def letters(connection: asyncpg.Connection) -> Counter[UUID]:
    return Counter(row["event_ref"] for row in await connection.fetch("select event_ref from iu_route_dead_letter"))


async def ended(connection: asyncpg.Connection, recording: RecordingTarget, good: set[UUID], poison: set[UUID]) -> None:
    """Wait until all deliveries have ended; each good event has arrived, each poison event is one dead letter."""
    await wait_until_settled(connection, 60)
    assert set(recording.delivered) == good
    assert await letters(connection) == dict.fromkeys(poison, 1)


@pytest.mark.parametrize("order", ["none", "subject"])
@pytest.mark.parametrize("raises", [KeyError, Failed, ConnectionResetError, Unavailable])
@pytest.mark.parametrize("poisons", [2, 7])
@pytest.mark.asyncio
async def test_poison_events_do_not_stop_a_route(live, poisons, raises, order):
    """Good events arrive after a route had only poison events, and each poison event becomes a dead letter.

    Fails when: the circuit breaker counts one event twice, a trial delivery is always one that has failed, or only the
    trial delivery closes the circuit breaker.
    """

    async def behave(delivery):
        if delivery.event.data["note"] == "poison":
            raise raises("poison")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, backoff=0.05, backoff_max=0.2, probe_max=0.2, order=order)
        async with delivering(live.dsn, recording.target()):
            poison = {await insert_event(connection, note="poison") for _ in range(poisons)}
            await wait_until(
                lambda: connection.fetchval("select count(*) >= $1 from iu_route_attempt", poisons + 2), "attempts"
            )
            good = set()
            while await count_deliveries(connection) or len(good) < 5:
                good.add(await insert_event(connection, note="good"))
                await wait_until(lambda: asyncio.sleep(0, good <= set(recording.delivered)), "the good event", 10)
            await ended(connection, recording, good, poison)


@pytest.mark.asyncio
async def test_an_outage_spends_no_attempt_of_good_or_poison_events(live):
    """In an outage no event of a route, good or poison, spends an attempt.

    After the outage each good event is delivered and each poison event becomes a dead letter.

    Fails when: the attempts of an outage are not given back, or are given back for ever.
    """
    down = True

    async def behave(delivery):
        if down:
            raise ConnectionRefusedError
        if delivery.event.data["note"] == "poison":
            raise Reject("poison") if delivery.id % 2 else ValueError("poison")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=3, backoff=0.02, backoff_max=0.1, probe_max=0.1, breaker=3)
        async with delivering(live.dsn, recording.target()):
            poison = {await insert_event(connection, note="poison") for _ in range(10)}
            good = {await insert_event(connection, note="good") for _ in range(10)}
            await wait_until(lambda: connection.fetchval("select trials >= 20 from iu_delivery_breaker"), "trials")
            assert await connection.fetchval("select max(tries) from iu_route_delivery") == 0
            down = False
            await ended(connection, recording, good, poison)


@pytest.mark.asyncio
@pytest.mark.parametrize("stopped", ["null", "now()"], ids=["breaker", "budget"])
@pytest.mark.parametrize("order", ["none", "subject"])
async def test_a_quarantined_delivery_can_be_the_trial_delivery(live, order, stopped):
    """If all deliveries of a paused route are in quarantine, one of them becomes the trial delivery and ends the pause.

    The pause comes from an open circuit breaker or from a spent budget of dead letters.

    Fails when: a delivery in quarantine is given back because its route is paused.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection, order=order)
        await connection.execute(MANY, 5)
        await drain(connection)
        await connection.execute("update iu_route_delivery set alone = true, due_at = now(), failed_at = now()")
        await connection.execute(
            f"""insert into iu_delivery_breaker (route_code, opened_at, trial_at, stopped_at)
                values ($1, now(), now(), {stopped})""",
            ROUTE,
        )
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
        assert len(recording.delivered) == 5
        assert recording.max_running == 1


@pytest.mark.asyncio
async def test_a_missing_trial_delivery_is_replaced_by_the_next_take(live):
    """If the consumer does not hold the trial delivery that the database records, the next take gets another at once.

    The consumer names the trial deliveries that it holds with each take. A trial delivery that was lost, or that an
    earlier consumer held, is not waited for.

    Fails when: the next trial delivery waits for the deadline of an attempt.
    """
    async with connected(live.dsn) as taker, connected(live.dsn) as settler, connected(live.dsn) as connection:
        await open_route(connection, deadline=3600)
        await connection.execute(MANY, 3)
        await drain(connection)
        await connection.execute(
            "insert into iu_delivery_breaker (route_code, opened_at, trial_at) values ($1, now(), now())", ROUTE
        )
        session = DeliverySession(settler, taker, Settings(dsn=live.dsn), uuid4())
        want = TakeRequest(route=ROUTE, capacity=10, position=0, deadline=1)
        first = await session.take([want], [], [])
        (probe,) = [taken.delivery.id for taken in first.taken]
        assert [state.trial_id for state in first.routes if state.route == ROUTE] == [probe]
        assert not (await session.take([want], [probe], [])).taken
        assert (await session.take([want], [], [])).taken


OPENED = "insert into iu_delivery_breaker (route_code, opened_at, trial_at, trials) values ($1, now(), now(), $2)"
ASKED = """select max(query_start) from pg_stat_activity
            where query ~ 'fn_iu_delivery_(take|sweep)' and pid <> pg_backend_pid()"""


async def further_questions(connection: asyncpg.Connection) -> None:
    """Wait until the consumer has asked for more three times, so that it has received two answers.

    The loop runs six times because a sweep may follow each take.
    """
    for _ in range(6):
        last = await connection.fetchval(ASKED)
        await wait_until(lambda last=last: connection.fetchval(f"select ({ASKED}) > $1", last), "a further question")


@pytest.mark.asyncio
async def test_a_trial_delivery_waits_for_free_concurrency(live):
    """While calls from before an outage use up the concurrency, the trial delivery waits, and begins after them.

    Fails when: the trial delivery is given back because the route is paused, and is taken again and again.
    """
    release = asyncio.Event()

    async def behave(delivery):
        if delivery.event.data["note"] == "slow":
            await release.wait()
            raise Failed("slow")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=2, deadline=3600)
        async with delivering(live.dsn, recording.target()) as recorder:
            for _ in range(2):
                await insert_event(connection, note="slow")
            await wait_until(lambda: asyncio.sleep(0, len(recording.calls) == 2), "slow calls")
            await connection.execute(OPENED, ROUTE, 0)
            await recorder.wait_for(RoutePaused)
            good = await insert_event(connection, note="good")
            probing = "select trial_at from iu_delivery_breaker where trial_id is not null"
            taken = await wait_until(lambda: connection.fetchval(probing), "a probe is taken")
            await further_questions(connection)
            assert await connection.fetchval(probing) == taken
            release.set()
            await wait_until(lambda: asyncio.sleep(0, good in recording.delivered), "the probe arrives")
            await recorder.wait_for(RouteResumed)
            await wait_until_settled(connection)


@pytest.mark.asyncio
@pytest.mark.parametrize("probes", [0, 1, 2])
async def test_only_one_trial_delivery_is_in_flight(live, probes):
    """While a trial delivery is in flight, no other delivery of the route begins, whether the next
    turn is a new or a failed one.

    Fails when: the consumer does not report that it holds the trial delivery.
    """
    release = asyncio.Event()
    recording = RecordingTarget(lambda _: release.wait())
    async with connected(live.dsn) as connection:
        await open_route(connection, deadline=3600)
        await connection.execute(MANY, 20)
        await drain(connection)
        await connection.execute(OPENED, ROUTE, probes)
        async with delivering(live.dsn, recording.target()):
            await wait_until(lambda: asyncio.sleep(0, recording.calls != []), "a probe")
            await further_questions(connection)
            assert recording.max_running == 1
            release.set()
            await wait_until_settled(connection)
        assert len(recording.delivered) == 20


# -- a model ----------------------------------------------------------------------------------------------------------
#
# The two sessions of a consumer, driven step by step without time. A target that is up or down is called at once for
# each delivery that was taken, and the outcomes are settled in any order. Backoff and trial interval are so short that
# they are over at the next step.

WORKER = "iu_outbound_default"


class Target:
    """A target with poison events and outages.

    Args:
        poison: The result of each poison event.
        down: The steps in which every delivery fails, with the result.
    """

    def __init__(self, poison: dict[UUID, Result], down: dict[int, Result]) -> None:
        self.poison = poison
        self.down = down
        self.delivered: Counter[UUID] = Counter()
        self._succeeded: float = -10.0

    def attempt(self, taken: TakenDelivery, step: int) -> Outcome:
        event = taken.delivery.event.id
        result = self.down.get(step) or self.poison.get(event, Result.SENT)
        beside = step - self._succeeded < 2
        if result in {Result.SENT, Result.REJECTED}:
            self._succeeded = step
        self.delivered[event] += result is Result.SENT
        return Outcome(taken, result, 0.0, 0.0, "code", "detail", None, beside, "it")


INSERT = """
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane, event_subject_ref)
    values ($1, 'iu', 'version_applied', 'update', 'immediate', $2)
"""
STUCK = """
    select d.id, d.tries, d.credits, d.at_fault, d.due_at - now() as due, b.failures, b.failed_ids, b.opened_at, b.trials
      from iu_route_delivery d left join iu_delivery_breaker b using (route_code) order by d.id
"""
ELAPSE = (
    "update iu_route_delivery set due_at = now() where due_at > now(); update iu_delivery_breaker set trial_at = now()"
)
FRESH = "truncate iu_route_delivery, iu_delivery_breaker, iu_route_dead_letter, iu_delivery_lease"


async def play(
    dsn: str,
    target: Target,
    capacities: list[int],
    waves: list[int],
    events: dict[UUID, UUID],
    budget: int,
    policy: dict[str, Any],
) -> None:
    """Write events in waves, take and settle until nothing is left, and check the end of each event.

    Args:
        dsn: The database.
        target: The target that is called.
        capacities: The number of deliveries that each step takes; the list is repeated.
        waves: The number of events that are written before each step; the list is repeated.
        events: Events in the order in which they are written, with their subjects.
        budget: The number of dead letters in a row that stops the route.
        policy: Further settings of the delivery policy.
    """
    async with connected(dsn) as taker, connected(dsn) as settler, connected(dsn) as connection:
        await connection.execute(FRESH)
        await open_route(
            connection, backoff=0.001, backoff_max=0.001, probe_max=0.01, dead_letters_in_a_row=budget, **policy
        )
        session = DeliverySession(settler, taker, Settings(dsn=dsn, session_timeout=600), uuid4())
        assert (await session.take_lease()).held
        left, position = list(events), 0
        for step in count():
            if not left and step % 4 == 0 and await count_deliveries(connection):
                # A target that rejects the last event cannot be told from one that is down: one more event arrives.
                left = [uuid4()]
                events |= {left[0]: left[0]}
            wave, left = left[: waves[step % len(waves)]], left[waves[step % len(waves)] :]
            for event in wave:
                await connection.execute(INSERT, event, events[event])
            if wave:
                await drain(connection)
            if not left and not await count_deliveries(connection):
                break
            assert step < 500, [dict(r) for r in await connection.fetch(STUCK)]
            want = TakeRequest(route=ROUTE, capacity=capacities[step % len(capacities)], position=position, deadline=1)
            supply = await session.take([want], [], [])
            # On an ordered route the position passes parked deliveries.
            position = (
                0 if policy["order"] == "subject" else next(s.position for s in supply.routes if s.route == ROUTE)
            )
            assert await session.settle([target.attempt(taken, step) for taken in supply.taken]) is not None
            if not supply.taken:
                # Let the next retry and the next trial delivery become due.
                await connection.execute(ELAPSE)
        dead = await letters(connection)
    assert dead == Counter(target.poison.keys())
    assert +target.delivered == Counter(event for event in events if event not in target.poison)


@st.composite
def plays(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a number of events, some of them poison, and outages."""
    number = draw(st.integers(1, 12))
    events = [uuid4() for _ in range(number)]
    failing = st.sampled_from([Result.FAILED, Result.UNAVAILABLE, Result.REJECTED])
    poison = {events[n]: draw(failing) for n in draw(st.sets(st.integers(0, number - 1)))}
    outage = st.tuples(st.integers(0, 20), st.integers(1, 10), st.just(Result.UNAVAILABLE))
    down = {step + n: result for step, length, result in draw(st.lists(outage, max_size=3)) for n in range(length)}
    subjects = [uuid4() for _ in range(draw(st.integers(1, 8)))]
    return {
        "target": Target(poison, down),
        "capacities": draw(st.lists(st.integers(1, 20), min_size=1, max_size=3)),
        "waves": draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)),
        "budget": draw(st.sampled_from([1, 2, 100])),
        "events": {event: subjects[n % len(subjects)] for n, event in enumerate(events)},
    }


@pytest.mark.slow
@pytest.mark.parametrize("order", ["none", "subject"])
def test_good_events_are_delivered_once_and_poison_events_become_dead_letters(live, order):
    """For any set of poison events and outages, each good event arrives once and each poison
    event becomes one dead letter.

    This needs no operator as long as good events keep coming, and holds for any budget of dead letters.

    Fails when: a trial delivery is never a new delivery; a success does not close the circuit breaker, or does not end
    a stop by the budget; or attempts are given back for ever.
    """

    @settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(plays())
    def check(drawn: dict[str, Any]) -> None:
        asyncio.run(play(live.dsn, policy={"order": order, "attempts": 3, "breaker": 3}, **drawn))

    check()
