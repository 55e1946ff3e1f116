"""The state of a route in the dispatcher: its position, its sweep, and its prefetch.

The prefetch is back-pressure: it bounds how many further deliveries may be taken.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, Self

from iu_listen.flow.call_tasks import TargetQueue
from iu_listen.model.called import called
from iu_listen.model.delivery import RouteState, TakenDelivery, TakeRequest

#: Prefetch of a route: deliveries taken in addition to those in flight, as a multiple of its concurrency.
AHEAD: Final = 9
#: Largest prefetch of a route, in deliveries.
MOST_AHEAD: Final = 1000


#: The lowest subject key. Subject keys are 64-bit hashes.
FIRST_KEY: Final = -(2**63)


class Room(Enum):
    """How many deliveries may be taken: none, as many as can begin at once, or these and a prefetch."""

    NONE = 0
    FLIGHT = 1
    AHEAD = 2


@dataclass(slots=True)
class Sweep:
    """Progress of the sweep of a route: the search for deliveries before its position (sql/functions/delivery_sweep).

    Attributes:
        key: The next search begins at this subject key; None: no subjects are searched.
        again: Search all subjects once more after this pass, because a subject that was already searched may have been
            freed.
        behind: Search deliveries without a subject with ids after this one, up to the position; None: none.
    """

    key: int | None = None
    again: bool = False
    behind: int | None = None

    @property
    def active(self) -> bool:
        """Whether a search is due."""
        return self.key is not None or self.behind is not None

    def start(self) -> None:
        """Search all subjects. A running sweep is completed first and then repeated, so that no subject is missed."""
        if self.key is None:
            self.key = FIRST_KEY
        elif self.key != FIRST_KEY:
            self.again = True

    def skip(self, after: int) -> None:
        """Search the deliveries after this id, because the position moved past them without reading them."""
        self.start()
        self.behind = after if self.behind is None else min(self.behind, after)

    def goes_on(self, key: int | None, behind: int | None) -> None:
        """Note where the next part of the search begins; None: that search has ended."""
        self.key, self.behind = key, behind
        if key is None and self.again:
            self.key, self.again = FIRST_KEY, False


@dataclass(slots=True, kw_only=True)
class Route(TargetQueue):
    """A lane, with the state of its route in the database.

    Attributes:
        state: The route as last read from the database.
        no_target: Reason why the route has no usable target; empty: it has one, or it was not looked up yet.
        hint: Advice for the operator that belongs to ``no_target``.
        looked_at: Time of the last lookup of the target, by the clock of the consumer, in seconds.
        after: Position of the route: deliveries that were never attempted have been read up to this id.
        busy: Number of deliveries that are taken and not settled.
        bytes: Size of these deliveries, in bytes.
        sweep: Progress of the search for deliveries before the position.
        told: Reason of the pause that was last reported; empty: the route was not paused.
    """

    state: RouteState
    no_target: str = ""
    hint: str = ""
    looked_at: float = -math.inf
    after: int = 0
    busy: int = 0
    bytes: int = 0
    sweep: Sweep = field(default_factory=Sweep)
    told: str = ""

    @classmethod
    def of(cls, state: RouteState) -> Self:
        """A new route."""
        return cls(concurrency=0, state=state)

    def becomes(self, state: RouteState) -> bool:
        """Store the new state of the route. True: its target may have changed."""
        before, self.state = self._aim, state
        self.concurrency = int(state.policy["concurrency"])
        self.called = called(state.kind, state.reference, state.policy["target"])
        # This limits how far the calls of a target that rejects everything can exceed the budget of dead letters.
        self.most_failing = int(state.policy["dead_letters_in_a_row"])
        return before != self._aim

    def reaches(self, state: RouteState) -> None:
        """Move the position to that of the answer, and search the deliveries that it skipped."""
        self.after = max(self.after, state.after)
        if state.passed is not None:
            self.sweep.skip(state.passed)

    def restart(self) -> None:
        """Reset the position, so that deliveries are read from the lowest id again."""
        self.after, self.sweep = 0, Sweep()

    @property
    def ordered(self) -> bool:
        """Whether the route keeps the order of events of one subject."""
        return bool(self.state.policy["order"] == "subject")

    @property
    def _aim(self) -> tuple[str, str, str]:
        """The values that determine the target."""
        return self.state.kind, self.state.reference, repr(self.state.policy["target"])

    def want(self, left: int, room: Room) -> TakeRequest:
        """The want of this route for the next take query.

        Args:
            left: Prefetch that is left for all routes together, in bytes. A route that holds no delivery may take one
                even if nothing is left, so that large payloads of one route do not block another route.
            room: Limit of the number of deliveries.
        """
        most = {Room.NONE: 0, Room.FLIGHT: max(0, self.concurrency - self.busy), Room.AHEAD: self.room}[room]
        return TakeRequest(
            route=self.state.route,
            room=min(self.room, most),
            after=self.after,
            deadline=self.deadline,
            span=self.state.span,
            bytes=max(left, 0 if self.bytes else 1),
        )

    @property
    def deadline(self) -> float:
        """The deadline of a call, in seconds."""
        return float(self.state.policy["deadline"])

    @property
    def room(self) -> int:
        """How many deliveries may be taken now."""
        most = self.concurrency + min(self.concurrency * AHEAD, MOST_AHEAD)
        # At most half of it at once, so that calls, settlements and take queries of a route overlap.
        return min(max(0, most - self.busy), -(-most // 2)) if self.target else 0


def wants(routes: Sequence[Route], left: int, room: Room, failed: int) -> list[TakeRequest]:
    """The wants of all routes for the next take query.

    Args:
        routes: The routes.
        left: Prefetch that is left, in bytes.
        room: Limit of the number of deliveries.
        failed: Number of take queries that failed in a row. After a failure only one delivery of one route is wanted,
            with the routes in turn, so that a delivery that cannot be read does not block the other routes.
    """
    asked = [route.want(left, room) for route in routes]
    if not failed:
        return asked
    turn = failed % max(1, len(asked))
    return [replace(want, room=min(want.room, int(n == turn))) for n, want in enumerate(asked)]


def due_in(routes: Iterable[Route]) -> float:
    """Seconds until the next delivery of a route with free capacity is due, at least 0.01; inf: none is waiting."""
    return max(0.01, min((r.state.due_in for r in routes if r.state.due_in is not None and r.room), default=math.inf))


def split(
    queue: Sequence[TakenDelivery], *, keep: bool, probe: int | None
) -> tuple[list[TakenDelivery], deque[TakenDelivery]]:
    """Split a queue into the deliveries that are given back and those that stay.

    Args:
        queue: The queue.
        keep: True: the trial delivery and quarantined deliveries stay. False: none stays.
        probe: Id of the trial delivery; None: there is none.
    """

    def stays(taken: TakenDelivery) -> bool:
        return keep and (taken.alone or taken.delivery.id == probe)

    return [taken for taken in queue if not stays(taken)], deque(taken for taken in queue if stays(taken))


def unchanged(wants: Sequence[TakeRequest], routes: Mapping[str, Route]) -> set[str]:
    """Routes for which an answer is valid: those that have given back no delivery since these wants were made."""
    given_back = {want.route for want in wants if want.route in routes and want.after > routes[want.route].after}
    return routes.keys() - given_back


def handed_over(given: Sequence[TakenDelivery]) -> tuple[list[TakenDelivery], bool]:
    """The deliveries that can be accepted from a batch, and whether any of its deliveries was left out.

    Left out are the first delivery of a route that has a ``problem`` and all later deliveries of that route.
    """
    kept_back = {taken.delivery.route: taken.delivery.id for taken in reversed(given) if taken.problem}
    handed = [t for t in given if t.delivery.id < kept_back.get(t.delivery.route, math.inf)]
    return handed, bool(kept_back)
