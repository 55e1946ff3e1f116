"""The circuit breaker under random poison events and outages, compared with a model of the receiver."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iu_listen import Settings
from iu_listen.model.delivery import Outcome, Result, TakenDelivery, TakeRequest
from iu_listen.postgres.delivery import DeliverySession
from postgres.breaker_helpers import dead_letters_by_event
from postgres.delivery_helpers import (
    ROUTE,
    count_deliveries,
    open_route,
)
from support import connected, drain

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
            connection,
            backoff=0.001,
            backoff_max=0.001,
            trial_interval_max=0.01,
            dead_letters_in_a_row=budget,
            **policy,
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
        dead = await dead_letters_by_event(connection)
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
