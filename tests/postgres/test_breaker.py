"""The circuit breaker of a route: its state machine as a table, and its effect on good and on poison events.

The migrations are 019 and 020.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
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
from postgres.delivery_helpers import ROUTE, Arrivals, delivering, open_route, pending, settled
from support import MANY, connected, drain, insert_event, wait_until

# -- the state machine -----------------------------------------------------------------------------------------------

POLICY = {"breaker": 3, "probe_max": 2}
CLOSED = {"failures": 0, "streak": [], "open": False, "probes": 0, "probing": None}

FAIL = """
    select b.failures, b.streak, b.opened_at is not null as open, b.probes, b.probing_id as probing,
           extract(epoch from b.probe_at - now())::float8 as pause
      from jsonb_populate_record(null::iu_delivery_breaker, jsonb_build_object(
               'route_code', 'r', 'failures', $1::int, 'streak', $2::bigint[], 'probes', $4::int, 'probing_id', $5::bigint,
               'opened_at', case when $3 then now() - interval '1 hour' end, 'letters', 0)) before
     cross join lateral fn_iu_delivery_breaker_fail(before, $6, $7, $8, $9, 'code', $10::jsonb, now(), 1.0) b
"""

#: name: (before, failing id, unavailable, at fault, retry_after), (after, seconds until the next trial delivery)
TRANSITIONS = {
    "closed: a failure counts": ((CLOSED, 1, False, False, None), ({"failures": 1, "streak": [1]}, None)),
    "closed: the same delivery counts once": (
        ({"failures": 1, "streak": [1]}, 1, False, False, None),
        ({"failures": 1, "streak": [1]}, None),
    ),
    "closed: an unavailable target counts each time": (
        ({"failures": 1, "streak": [1]}, 1, True, False, None),
        ({"failures": 2, "streak": [1]}, None),
    ),
    "closed: a delivery at fault does not count": (
        ({"failures": 2, "streak": [1, 2]}, 3, False, True, None),
        ({"failures": 2, "streak": [1, 2, 3]}, None),
    ),
    "closed: nor does it where it says unavailable": (
        ({"failures": 2, "streak": [1, 2]}, 3, True, True, 60.0),
        ({"failures": 2, "streak": [1, 2, 3]}, None),
    ),
    "closed → open: as many different deliveries as the policy says": (
        ({"failures": 2, "streak": [1, 2]}, 3, False, False, None),
        ({"failures": 3, "streak": [1, 2, 3], "open": True}, 0.25),
    ),
    "closed → open: very many deliveries at fault": (
        ({"failures": 0, "streak": list(range(45))}, 45, False, True, None),
        ({"failures": 0, "streak": list(range(46)), "open": True}, 0.25),
    ),
    "closed → open: the target asks for a pause": (
        (CLOSED, 1, True, False, 9.0),
        ({"failures": 1, "streak": [1], "open": True}, 9.0),
    ),
    "open: deliveries that were in flight change nothing": (
        ({"failures": 3, "streak": [1, 2, 3], "open": True}, 4, False, False, None),
        ({"failures": 3, "streak": [1, 2, 3], "open": True}, None),
    ),
    "half-open → open: the probe fails, and the pause doubles": (
        ({"open": True, "probes": 1, "probing": 7}, 7, False, False, None),
        ({"open": True, "probes": 2}, 1.0),
    ),
    "half-open → open: up to the longest pause": (
        ({"open": True, "probes": 9, "probing": 7}, 7, True, False, None),
        ({"open": True, "probes": 10}, 2.0),
    ),
    "half-open → open: the target asks for a longer pause": (
        ({"open": True, "probes": 9, "probing": 7}, 7, True, False, 30.0),
        ({"open": True, "probes": 10}, 30.0),
    ),
}


@pytest.mark.parametrize("name", TRANSITIONS)
@pytest.mark.asyncio
async def test_the_circuit_breaker_is_this_table(live, name):
    """`fn_iu_delivery_breaker_fail` is a pure function: the table lists each effect of a failure on a circuit breaker."""
    (before, *failure), (expected, pause) = TRANSITIONS[name]
    before = CLOSED | before
    async with connected(live.dsn) as connection:
        after = await connection.fetchrow(FAIL, *before.values(), *failure, json.dumps(POLICY))
    assert {key: after[key] for key in CLOSED} == CLOSED | expected
    assert after["pause"] == (None if pause is None else pytest.approx(pause))


@pytest.mark.asyncio
async def test_a_success_closes_the_breaker_and_tells_whose_fault_it_was(live):
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
                f"""insert into iu_delivery_breaker (route_code, failures, streak, opened_at, probing_id)
                    values ($1, 1, $2, {opened}, $3)""",
                ROUTE, ids[:1], ids[0],
            )  # fmt: skip
            await connection.execute("select fn_iu_delivery_breaker_succeed($1, $1)", [ROUTE])
            row = await connection.fetchrow("select failures, streak, opened_at, probing_id from iu_delivery_breaker")
            assert tuple(row) == (0, [], None, None)
            found = [
                r["at_fault"] for r in await connection.fetch("select at_fault from iu_route_delivery order by id")
            ]
            assert found == [own, False]


# -- poison events and outages ---------------------------------------------------------------------------------------


async def letters(connection: asyncpg.Connection) -> Counter[UUID]:
    return Counter(row["event_ref"] for row in await connection.fetch("select event_ref from iu_route_dead_letter"))


async def ended(connection: asyncpg.Connection, arrivals: Arrivals, good: set[UUID], poison: set[UUID]) -> None:
    """Wait until all deliveries have ended; each good event has arrived, each poison event is one dead letter."""
    await settled(connection, 60)
    assert set(arrivals.arrived) == good
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

    arrivals = Arrivals(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, backoff=0.05, backoff_max=0.2, probe_max=0.2, order=order)
        async with delivering(live.dsn, arrivals.target()):
            poison = {await insert_event(connection, note="poison") for _ in range(poisons)}
            await wait_until(
                lambda: connection.fetchval("select count(*) >= $1 from iu_route_attempt", poisons + 2), "attempts"
            )
            good = set()
            while await pending(connection) or len(good) < 5:
                good.add(await insert_event(connection, note="good"))
                await wait_until(lambda: asyncio.sleep(0, good <= set(arrivals.arrived)), "the good event", 10)
            await ended(connection, arrivals, good, poison)


@pytest.mark.asyncio
async def test_an_outage_among_poison_events_loses_no_good_event(live):
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

    arrivals = Arrivals(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=3, backoff=0.02, backoff_max=0.1, probe_max=0.1, breaker=3)
        async with delivering(live.dsn, arrivals.target()):
            poison = {await insert_event(connection, note="poison") for _ in range(10)}
            good = {await insert_event(connection, note="good") for _ in range(10)}
            await wait_until(lambda: connection.fetchval("select probes >= 20 from iu_delivery_breaker"), "probes")
            assert await connection.fetchval("select max(tries) from iu_route_delivery") == 0
            down = False
            await ended(connection, arrivals, good, poison)


@pytest.mark.asyncio
@pytest.mark.parametrize("stopped", ["null", "now()"], ids=["breaker", "budget"])
@pytest.mark.parametrize("order", ["none", "subject"])
async def test_a_delivery_that_is_attempted_alone_can_be_the_probe(live, order, stopped):
    """If all deliveries of a paused route are in quarantine, one of them becomes the trial delivery and ends the pause.

    The pause comes from an open circuit breaker or from a spent budget of dead letters.

    Fails when: a delivery in quarantine is given back because its route is paused.
    """
    arrivals = Arrivals()
    async with connected(live.dsn) as connection:
        await open_route(connection, order=order)
        await connection.execute(MANY, 5)
        await drain(connection)
        await connection.execute("update iu_route_delivery set alone = true, due_at = now(), failed_at = now()")
        await connection.execute(
            f"""insert into iu_delivery_breaker (route_code, opened_at, probe_at, stopped_at)
                values ($1, now(), now(), {stopped})""",
            ROUTE,
        )
        async with delivering(live.dsn, arrivals.target()):
            await settled(connection)
        assert len(arrivals.arrived) == 5
        assert arrivals.most == 1


@pytest.mark.asyncio
async def test_a_probe_that_the_consumer_does_not_have_is_followed_by_another_at_once(live):
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
            "insert into iu_delivery_breaker (route_code, opened_at, probe_at) values ($1, now(), now())", ROUTE
        )
        session = DeliverySession(settler, taker, Settings(dsn=live.dsn), uuid4())
        want = TakeRequest(route=ROUTE, room=10, after=0, deadline=1)
        first = await session.take([want], [], [])
        (probe,) = [taken.delivery.id for taken in first.taken]
        assert [state.probing for state in first.routes if state.route == ROUTE] == [probe]
        assert not (await session.take([want], [probe], [])).taken
        assert (await session.take([want], [], [])).taken


OPENED = "insert into iu_delivery_breaker (route_code, opened_at, probe_at, probes) values ($1, now(), now(), $2)"
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
async def test_a_probe_waits_until_it_may_begin(live):
    """While calls from before an outage use up the concurrency, the trial delivery waits, and begins after them.

    Fails when: the trial delivery is given back because the route is paused, and is taken again and again.
    """
    release = asyncio.Event()

    async def behave(delivery):
        if delivery.event.data["note"] == "slow":
            await release.wait()
            raise Failed("slow")

    arrivals = Arrivals(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=2, deadline=3600)
        async with delivering(live.dsn, arrivals.target()) as recorder:
            for _ in range(2):
                await insert_event(connection, note="slow")
            await wait_until(lambda: asyncio.sleep(0, len(arrivals.calls) == 2), "slow calls")
            await connection.execute(OPENED, ROUTE, 0)
            await recorder.wait_for(RoutePaused)
            good = await insert_event(connection, note="good")
            probing = "select probe_at from iu_delivery_breaker where probing_id is not null"
            taken = await wait_until(lambda: connection.fetchval(probing), "a probe is taken")
            await further_questions(connection)
            assert await connection.fetchval(probing) == taken
            release.set()
            await wait_until(lambda: asyncio.sleep(0, good in arrivals.arrived), "the probe arrives")
            await recorder.wait_for(RouteResumed)
            await settled(connection)


@pytest.mark.asyncio
@pytest.mark.parametrize("probes", [0, 1, 2])
async def test_one_probe_is_in_flight_at_a_time(live, probes):
    """While a trial delivery is in flight, no other delivery of the route begins, whether the next
    turn is a new or a failed one.

    Fails when: the consumer does not report that it holds the trial delivery.
    """
    release = asyncio.Event()
    arrivals = Arrivals(lambda _: release.wait())
    async with connected(live.dsn) as connection:
        await open_route(connection, deadline=3600)
        await connection.execute(MANY, 20)
        await drain(connection)
        await connection.execute(OPENED, ROUTE, probes)
        async with delivering(live.dsn, arrivals.target()):
            await wait_until(lambda: asyncio.sleep(0, arrivals.calls != []), "a probe")
            await further_questions(connection)
            assert arrivals.most == 1
            release.set()
            await settled(connection)
        assert len(arrivals.arrived) == 20


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
        self.arrived: Counter[UUID] = Counter()
        self._succeeded: float = -10.0

    def attempt(self, taken: TakenDelivery, step: int) -> Outcome:
        event = taken.delivery.event.id
        result = self.down.get(step) or self.poison.get(event, Result.SENT)
        beside = step - self._succeeded < 2
        if result in {Result.SENT, Result.REJECTED}:
            self._succeeded = step
        self.arrived[event] += result is Result.SENT
        return Outcome(taken, result, 0.0, 0.0, "code", "detail", None, beside, "it")


INSERT = """
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane, event_subject_ref)
    values ($1, 'iu', 'version_applied', 'update', 'immediate', $2)
"""
STUCK = """
    select d.id, d.tries, d.credits, d.at_fault, d.due_at - now() as due, b.failures, b.streak, b.opened_at, b.probes
      from iu_route_delivery d left join iu_delivery_breaker b using (route_code) order by d.id
"""
ELAPSE = (
    "update iu_route_delivery set due_at = now() where due_at > now(); update iu_delivery_breaker set probe_at = now()"
)
FRESH = "truncate iu_route_delivery, iu_delivery_breaker, iu_route_dead_letter, iu_delivery_lease"


async def play(
    dsn: str,
    target: Target,
    rooms: list[int],
    waves: list[int],
    events: dict[UUID, UUID],
    budget: int,
    policy: dict[str, Any],
) -> None:
    """Write events in waves, take and settle until nothing is left, and check the end of each event.

    Args:
        dsn: The database.
        target: The target that is called.
        rooms: The number of deliveries that each step takes; the list is repeated.
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
        left, after = list(events), 0
        for step in count():
            if not left and step % 4 == 0 and await pending(connection):
                # A target that rejects the last event cannot be told from one that is down: one more event arrives.
                left = [uuid4()]
                events |= {left[0]: left[0]}
            wave, left = left[: waves[step % len(waves)]], left[waves[step % len(waves)] :]
            for event in wave:
                await connection.execute(INSERT, event, events[event])
            if wave:
                await drain(connection)
            if not left and not await pending(connection):
                break
            assert step < 500, [dict(r) for r in await connection.fetch(STUCK)]
            want = TakeRequest(route=ROUTE, room=rooms[step % len(rooms)], after=after, deadline=1)
            supply = await session.take([want], [], [])
            # On an ordered route the position passes parked deliveries.
            after = 0 if policy["order"] == "subject" else next(s.after for s in supply.routes if s.route == ROUTE)
            assert await session.settle([target.attempt(taken, step) for taken in supply.taken]) is not None
            if not supply.taken:
                # Let the next retry and the next trial delivery become due.
                await connection.execute(ELAPSE)
        dead = await letters(connection)
    assert dead == Counter(target.poison.keys())
    assert +target.arrived == Counter(event for event in events if event not in target.poison)


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
        "rooms": draw(st.lists(st.integers(1, 20), min_size=1, max_size=3)),
        "waves": draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)),
        "budget": draw(st.sampled_from([1, 2, 100])),
        "events": {event: subjects[n % len(subjects)] for n, event in enumerate(events)},
    }


@pytest.mark.slow
@pytest.mark.parametrize("order", ["none", "subject"])
def test_good_events_arrive_and_poison_events_end(live, order):
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
