"""The progress of the sweep of a route, and the freed subjects, both of which are kept between two queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from uuid import uuid4

import pytest

from iu_listen.flow.freed_subjects import FreedSubjects
from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.route import FIRST_KEY, Route, Sweep
from iu_listen.flow.sweep import PAUSE, RESCAN, Sweeper
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import Delivery, Event, Found, RouteState, Search, TakenDelivery, TakeRequest

POLICY = {"concurrency": 1, "deadline": 1, "order": "subject", "target": {}}


def state(route: str, held: str = "", *, kept_back: bool = False) -> RouteState:
    """The state of a route as the database reports it."""
    return RouteState(route=route, kind="workflow", reference=route, policy=POLICY, held=held, kept_back=kept_back)


def test_a_sweep_that_is_asked_for_again_goes_on_and_is_repeated():
    """A sweep that is requested while another runs does not interrupt it, and follows it,
    so that no subject is left out.

    Fails when: each request begins the sweep at the first key, or a request during a sweep is forgotten.
    """
    sweep = Sweep()
    assert not sweep.active
    sweep.start()
    sweep.start()
    assert sweep.key == FIRST_KEY
    for key in (10, 20):
        sweep.goes_on(key, None)
        sweep.start()
        assert sweep.key == key
    sweep.goes_on(None, None)
    assert sweep.key == FIRST_KEY
    sweep.goes_on(None, None)
    assert not sweep.active


def test_what_was_passed_first_is_searched_first():
    """Deliveries without a subject are searched from the lowest id after which the position has passed some.

    Fails when: a later position replaces an earlier one.
    """
    sweep = Sweep()
    for after, behind in ((50, 50), (90, 50), (40, 40)):
        sweep.skip(after)
        assert (sweep.key, sweep.behind) == (FIRST_KEY, behind)
    sweep.goes_on(None, None)
    assert not sweep.active


def test_subjects_are_asked_for_once_and_as_far_as_there_is_room():
    """A subject that is freed twice is requested once; subjects that do not fit are requested later.

    Fails when: keys are kept twice, or are removed without being requested.
    """
    freed = FreedSubjects()
    freed.add("a", [1, 2, 3, 2])
    freed.add("b", [1])
    wants = [TakeRequest(route=route, room=room, after=0, deadline=1) for route, room in (("a", 2), ("b", 0), ("c", 9))]
    assert freed.next(wants) == [("a", 1), ("a", 2)]
    assert freed.next(wants) == [("a", 3)]
    assert freed.next(wants) == []
    assert (freed.waits("a"), freed.waits("b")) == (False, True)
    freed.forget("b")
    assert not freed.waits("b")


def test_what_an_answer_does_not_tell_is_asked_for_again():
    """Freed subjects are kept if their route is paused, their payloads did not fit, or the answer came too late.

    Fails when: a subject is forgotten as soon as it is requested.
    """
    freed = FreedSubjects()
    asked = [("held", 1), ("full", 2), ("late", 3), ("told", 4)]
    states = [state("held", "breaker_open"), state("full", kept_back=True), state("late"), state("told")]
    freed.answered(asked, states, {"held", "full", "told"})
    assert [route for route in ("held", "full", "late", "told") if freed.waits(route)] == ["held", "full", "late"]


class Target:
    """A target that these tests never call."""

    async def deliver(self, delivery: Delivery, /) -> None:
        raise AssertionError

    async def aclose(self) -> None:
        raise AssertionError


class Part:
    """The part of a session that sweeps: records its queries and returns prepared answers."""

    def __init__(self, *answers: Found) -> None:
        self.answers = list(answers)
        self.asked: list[Search] = []

    async def sweep(self, searches: Sequence[Search]) -> list[Found]:
        self.asked += searches
        return [self.answers.pop(0) for _ in searches]


def found(keys: Sequence[int] = (), key: int | None = None, first: int | None = None) -> Found:
    """An answer for the route "r"."""
    return Found(route="r", keys=keys, key=key, first=first, behind=None)


class Sweeping:
    """A sweeper of one route, on a clock that is set by hand."""

    def __init__(self, *answers: Found) -> None:
        self.now = 0.0
        self.freed, self.ledger, self.ring, self.session = (
            FreedSubjects(),
            InFlightLedger(),
            WakeEvent(),
            Part(*answers),
        )
        self.sweeper = Sweeper(lambda: self.now, self.freed, self.ledger, self.ring)
        self.route = Route.of(state("r"))
        self.route.target, self.route.after = Target(), 100

    async def turn(self, now: float) -> int:
        """Take a turn at this time; return the number of queries."""
        self.now, before = now, len(self.session.asked)
        await self.sweeper.turn(self.session, [self.route])  # type: ignore[arg-type]
        return len(self.session.asked) - before


@pytest.mark.anyio
async def test_a_sweep_takes_a_part_at_a_time_and_rests():
    """The parts of a sweep follow one another after a pause, and the next sweep begins after half a minute.

    Fails when: parts follow without a pause, or a sweep follows the last one at once.
    """
    s = Sweeping(found(key=5), found(key=None), found(key=None))
    assert [await s.turn(now) for now in (0, PAUSE / 2, PAUSE, 3 * PAUSE, RESCAN - 1, RESCAN + 1)] == [1, 0, 1, 0, 0, 1]
    assert [search.key for search in s.session.asked] == [FIRST_KEY, 5, FIRST_KEY]
    assert s.sweeper.pause([s.route]) == math.inf


@pytest.mark.anyio
@pytest.mark.parametrize("held", ["", "breaker_open", "dead_letter_budget", "delivery_gate_closed"])
async def test_a_route_is_searched_when_what_is_found_may_begin(held):
    """A route is not swept while a switch pauses it, it has no target, or freed subjects still wait to be requested.

    A route that waits for a trial delivery is swept: a delivery that was never attempted may end its pause.

    Fails when: such a route is swept all the time, or is not swept while it waits for a trial delivery.
    """
    s = Sweeping(found([1]), found(), found())
    s.route.state = state("r", held)
    searched = held != "delivery_gate_closed"
    assert await s.turn(0) == searched
    if searched:
        assert await s.turn(RESCAN + 1) == 0
        assert s.freed.next([TakeRequest(route="r", room=9, after=0, deadline=1)]) == [("r", 1)]
    s.route.target = None
    assert await s.turn(RESCAN + 2) == 0
    assert s.sweeper.pause([s.route]) == math.inf


@pytest.mark.anyio
async def test_a_subject_in_flight_is_not_found():
    """A sweep ignores a subject with a delivery in flight, because its settlement frees it; others are requested.

    Fails when: that subject is requested as well, which gives the in-flight delivery a second time.
    """
    s = Sweeping(found([1, 2]))
    event = Event(id=uuid4(), domain="d", type="t", stream="s")
    delivery = Delivery(id=7, route="r", idempotency_key="k", attempt=1, event=event)
    s.ledger.add(TakenDelivery(delivery, subject_key=1), s.route)
    await s.turn(0)
    assert s.freed.next([TakeRequest(route="r", room=9, after=0, deadline=1)]) == [("r", 2)]


@pytest.mark.anyio
async def test_the_position_goes_back_to_a_delivery_without_a_subject():
    """The first delivery without a subject sets the position back to it, unless the route was restarted meanwhile.

    Fails when: the delivery is found and not read, or an answer from before the restart counts.
    """
    s = Sweeping(found(first=40), found(first=30))
    s.route.sweep.skip(10)
    await s.turn(0)
    assert (s.route.after, s.session.asked[0].behind, s.session.asked[0].after) == (39, 10, 100)

    class Anew(Part):
        async def sweep(self, searches: Sequence[Search]) -> list[Found]:
            s.route.restart()
            s.route.after = 100
            return await super().sweep(searches)

    s.session = Anew(found(first=30))
    s.route.sweep.skip(10)
    await s.turn(1)
    assert (s.route.after, s.route.sweep.active) == (100, False)
