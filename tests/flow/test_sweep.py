"""The progress of the sweep of a route, and the unblocked subjects, both of which are kept between two queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from uuid import uuid4

import pytest

from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.route import LOWEST_SUBJECT_KEY, Route, Sweep
from iu_listen.flow.sweep import SWEEP_INTERVAL, SWEEP_PAUSE, Sweeper
from iu_listen.flow.unblocked_subjects import UnblockedSubjects
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import Delivery, Event, RouteState, Search, SearchResult, TakenDelivery, TakeRequest

POLICY = {"concurrency": 1, "deadline": 1, "order": "subject", "target": {}}


def state(route: str, held: str = "", *, kept_back: bool = False) -> RouteState:
    """The state of a route as the database reports it."""
    return RouteState(route=route, kind="workflow", reference=route, policy=POLICY, paused_by=held, kept_back=kept_back)


def test_a_sweep_that_is_asked_for_again_goes_on_and_is_repeated():
    """A sweep that is requested while another runs does not interrupt it, and follows it,
    so that no subject is left out.

    Fails when: each request begins the sweep at the first key, or a request during a sweep is forgotten.
    """
    sweep = Sweep()
    assert not sweep.active
    sweep.start()
    sweep.start()
    assert sweep.next_key == LOWEST_SUBJECT_KEY
    for key in (10, 20):
        sweep.advance(key, None)
        sweep.start()
        assert sweep.next_key == key
    sweep.advance(None, None)
    assert sweep.next_key == LOWEST_SUBJECT_KEY
    sweep.advance(None, None)
    assert not sweep.active


def test_what_was_passed_first_is_searched_first():
    """Deliveries without a subject are searched from the lowest id after which the position has passed some.

    Fails when: a later position replaces an earlier one.
    """
    sweep = Sweep()
    for after, behind in ((50, 50), (90, 50), (40, 40)):
        sweep.skip(after)
        assert (sweep.next_key, sweep.after_id) == (LOWEST_SUBJECT_KEY, behind)
    sweep.advance(None, None)
    assert not sweep.active


def test_subjects_are_asked_for_once_and_as_far_as_there_is_room():
    """A subject that is unblocked twice is requested once; subjects that do not fit are requested later.

    Fails when: keys are kept twice, or are removed without being requested.
    """
    unblocked = UnblockedSubjects()
    unblocked.add("a", [1, 2, 3, 2])
    unblocked.add("b", [1])
    wants = [
        TakeRequest(route=route, capacity=room, position=0, deadline=1)
        for route, room in (("a", 2), ("b", 0), ("c", 9))
    ]
    assert unblocked.next(wants) == [("a", 1), ("a", 2)]
    assert unblocked.next(wants) == [("a", 3)]
    assert unblocked.next(wants) == []
    assert (unblocked.pending("a"), unblocked.pending("b")) == (False, True)
    unblocked.forget("b")
    assert not unblocked.pending("b")


def test_what_an_answer_does_not_tell_is_asked_for_again():
    """Freed subjects are kept if their route is paused, their payloads did not fit, or the answer came too late.

    Fails when: a subject is forgotten as soon as it is requested.
    """
    unblocked = UnblockedSubjects()
    asked = [("held", 1), ("full", 2), ("late", 3), ("told", 4)]
    states = [state("held", "breaker_open"), state("full", kept_back=True), state("late"), state("told")]
    unblocked.answered(asked, states, {"held", "full", "told"})
    assert [route for route in ("held", "full", "late", "told") if unblocked.pending(route)] == ["held", "full", "late"]


class Target:
    """A target that these tests never call."""

    async def deliver(self, delivery: Delivery, /) -> None:
        raise AssertionError

    async def aclose(self) -> None:
        raise AssertionError


class Part:
    """The part of a session that sweeps: records its queries and returns prepared answers."""

    def __init__(self, *answers: SearchResult) -> None:
        self.answers = list(answers)
        self.asked: list[Search] = []

    async def sweep(self, searches: Sequence[Search]) -> list[SearchResult]:
        self.asked += searches
        return [self.answers.pop(0) for _ in searches]


def found(keys: Sequence[int] = (), key: int | None = None, first: int | None = None) -> SearchResult:
    """An answer for the route "r"."""
    return SearchResult(route="r", keys=keys, next_key=key, first_id=first, after_id=None)


class Sweeping:
    """A sweeper of one route, on a clock that is set by hand."""

    def __init__(self, *answers: SearchResult) -> None:
        self.now = 0.0
        self.unblocked, self.ledger, self.wake, self.session = (
            UnblockedSubjects(),
            InFlightLedger(),
            WakeEvent(),
            Part(*answers),
        )
        self.sweeper = Sweeper(lambda: self.now, self.unblocked, self.ledger, self.wake)
        self.route = Route.of(state("r"))
        self.route.target, self.route.position = Target(), 100

    async def turn(self, now: float) -> int:
        """Take a turn at this time; return the number of queries."""
        self.now, before = now, len(self.session.asked)
        await self.sweeper.search(self.session, [self.route])  # type: ignore[arg-type]
        return len(self.session.asked) - before


@pytest.mark.anyio
async def test_a_sweep_takes_a_part_at_a_time_and_rests():
    """The parts of a sweep follow one another after a pause, and the next sweep begins after half a minute.

    Fails when: parts follow without a pause, or a sweep follows the last one at once.
    """
    s = Sweeping(found(key=5), found(key=None), found(key=None))
    assert [
        await s.turn(now)
        for now in (0, SWEEP_PAUSE / 2, SWEEP_PAUSE, 3 * SWEEP_PAUSE, SWEEP_INTERVAL - 1, SWEEP_INTERVAL + 1)
    ] == [1, 0, 1, 0, 0, 1]
    assert [search.from_key for search in s.session.asked] == [LOWEST_SUBJECT_KEY, 5, LOWEST_SUBJECT_KEY]
    assert s.sweeper.pause([s.route]) == math.inf


@pytest.mark.anyio
@pytest.mark.parametrize("held", ["", "breaker_open", "dead_letter_budget", "delivery_gate_closed"])
async def test_a_route_is_searched_when_what_is_found_may_begin(held):
    """A route is not swept while a switch pauses it, it has no target, or unblocked subjects still wait to be requested.

    A route that waits for a trial delivery is swept: a delivery that was never attempted may end its pause.

    Fails when: such a route is swept all the time, or is not swept while it waits for a trial delivery.
    """
    s = Sweeping(found([1]), found(), found())
    s.route.state = state("r", held)
    searched = held != "delivery_gate_closed"
    assert await s.turn(0) == searched
    if searched:
        assert await s.turn(SWEEP_INTERVAL + 1) == 0
        assert s.unblocked.next([TakeRequest(route="r", capacity=9, position=0, deadline=1)]) == [("r", 1)]
    s.route.target = None
    assert await s.turn(SWEEP_INTERVAL + 2) == 0
    assert s.sweeper.pause([s.route]) == math.inf


@pytest.mark.anyio
async def test_a_subject_in_flight_is_not_found():
    """A sweep ignores a subject with a delivery in flight, because its settlement frees it; others are requested.

    Fails when: that subject is requested as well, which gives the in-flight delivery a second time.
    """
    s = Sweeping(found([1, 2]))
    event = Event(id=uuid4(), domain="d", type="t", stream="s")
    delivery = Delivery(id=7, route="r", idempotency_key="k", attempt=1, event=event)
    s.ledger.add(TakenDelivery(delivery, subject_key=1))
    await s.turn(0)
    assert s.unblocked.next([TakeRequest(route="r", capacity=9, position=0, deadline=1)]) == [("r", 2)]


@pytest.mark.anyio
async def test_the_position_goes_back_to_a_delivery_without_a_subject():
    """The first delivery without a subject sets the position back to it, unless the route was restarted meanwhile.

    Fails when: the delivery is found and not read, or an answer from before the restart counts.
    """
    s = Sweeping(found(first=40), found(first=30))
    s.route.sweep.skip(10)
    await s.turn(0)
    assert (s.route.position, s.session.asked[0].after_id, s.session.asked[0].position) == (39, 10, 100)

    class Anew(Part):
        async def sweep(self, searches: Sequence[Search]) -> list[SearchResult]:
            s.route.restart()
            s.route.position = 100
            return await super().sweep(searches)

    s.session = Anew(found(first=30))
    s.route.sweep.skip(10)
    await s.turn(1)
    assert (s.route.position, s.route.sweep.active) == (100, False)
