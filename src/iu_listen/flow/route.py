"""What the consumer knows of a route that delivers: where it has come to, and how much of it there is room for."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, Self

from iu_listen.flow.workers import Lane
from iu_listen.model.called import called
from iu_listen.model.delivery import RouteState, Taken, Want

#: How many deliveries of a route are taken and not settled beyond those under way, as a multiple of its concurrency.
AHEAD: Final = 9
#: The same, at most.
MOST_AHEAD: Final = 1000


#: The first of all keys of subjects.
FIRST_KEY: Final = -(2**63)


class Room(Enum):
    """How many deliveries may be taken: none, as many as can begin at once, or more than that (prefetch)."""

    NONE = 0
    FLIGHT = 1
    AHEAD = 2


@dataclass(slots=True)
class Sweep:
    """How far a route has been searched for deliveries that its position has passed (sql/worker/022).

    Attributes:
        key: Subjects from this key on are searched next; None: none are.
        again: They are searched once more from the first one: one that was searched already may have been freed.
        behind: Deliveries without a subject are searched beyond this id, up to the position; None: none are.
    """

    key: int | None = None
    again: bool = False
    behind: int | None = None

    @property
    def active(self) -> bool:
        """Whether there is something to be searched."""
        return self.key is not None or self.behind is not None

    def start(self) -> None:
        """Search all subjects. A sweep that is under way goes on, so that none is left out, and is repeated."""
        if self.key is None:
            self.key = FIRST_KEY
        elif self.key != FIRST_KEY:
            self.again = True

    def skip(self, after: int) -> None:
        """The position has passed deliveries beyond this id without a look at them."""
        self.start()
        self.behind = after if self.behind is None else min(self.behind, after)

    def goes_on(self, key: int | None, behind: int | None) -> None:
        """A part was searched; the next one begins here."""
        self.key, self.behind = key, behind
        if key is None and self.again:
            self.key, self.again = FIRST_KEY, False


@dataclass(slots=True, kw_only=True)
class Route(Lane):
    """A lane with what the database says of its route.

    Attributes:
        state: That.
        no_target: Why there is none.
        hint: What to do about it.
        looked_at: When one was looked for.
        after: The last id that was taken, of those that were never tried.
        busy: How many are taken and not settled.
        bytes: How many bytes their payloads have.
        sweep: How far it has been searched for deliveries before that id.
        told: What holds it, as was said last.
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
        """A route that was not known."""
        return cls(concurrency=0, state=state)

    def becomes(self, state: RouteState) -> bool:
        """What the database says of it now. True: it may have another target."""
        before, self.state = self._aim, state
        self.concurrency = int(state.policy["concurrency"])
        self.called = called(state.kind, state.reference, state.policy["target"])
        # So a target that refuses everything is not called much more often than its budget of dead letters.
        self.most_failing = int(state.policy["dead_letters_in_a_row"])
        return before != self._aim

    def reaches(self, state: RouteState) -> None:
        """Where the position has come to."""
        self.after = max(self.after, state.after)
        if state.passed is not None:
            self.sweep.skip(state.passed)

    def restart(self) -> None:
        """Read from the first id again."""
        self.after, self.sweep = 0, Sweep()

    @property
    def ordered(self) -> bool:
        """Whether it keeps the order of a subject."""
        return bool(self.state.policy["order"] == "subject")

    @property
    def _aim(self) -> tuple[str, str, str]:
        """What its target depends on."""
        return self.state.kind, self.state.reference, repr(self.state.policy["target"])

    def want(self, left: int, room: Room) -> Want:
        """What to ask for.

        Args:
            left: How many bytes of payload there is room for, of all routes. A route that has none may have one
                delivery all the same, so that the large payloads of one route do not hold up another.
            room: How far to go.
        """
        most = {Room.NONE: 0, Room.FLIGHT: max(0, self.concurrency - self.busy), Room.AHEAD: self.room}[room]
        return Want(
            route=self.state.route,
            room=min(self.room, most),
            after=self.after,
            deadline=self.deadline,
            span=self.state.span,
            bytes=max(left, 0 if self.bytes else 1),
        )

    @property
    def deadline(self) -> float:
        """How long an attempt may take, in seconds."""
        return float(self.state.policy["deadline"])

    @property
    def room(self) -> int:
        """How many may be taken now."""
        most = self.concurrency + min(self.concurrency * AHEAD, MOST_AHEAD)
        # A part of it at once: while these are called, others are settled, and yet others taken.
        return min(max(0, most - self.busy), -(-most // 2)) if self.target else 0


def wants(routes: Sequence[Route], left: int, room: Room, failed: int) -> list[Want]:
    """What to ask for, of all routes.

    Args:
        routes: The routes.
        left: How many bytes of payload there is room for.
        room: How far to go.
        failed: How many questions in a row have failed. After a failure one delivery of one route is asked for, of each
            route in turn, so that one that cannot be taken does not keep back the other routes.
    """
    asked = [route.want(left, room) for route in routes]
    if not failed:
        return asked
    turn = failed % max(1, len(asked))
    return [replace(want, room=min(want.room, int(n == turn))) for n, want in enumerate(asked)]


def due_in(routes: Iterable[Route]) -> float:
    """Seconds until the next delivery is due that there is room for, 0.01 at least; inf: none waits for its time."""
    return max(0.01, min((r.state.due_in for r in routes if r.state.due_in is not None and r.room), default=math.inf))


def split(queue: Sequence[Taken], *, keep: bool, probe: int | None) -> tuple[list[Taken], deque[Taken]]:
    """A queue as what is given back and what stays: where ``keep`` is true the probe, and what is attempted alone."""

    def stays(taken: Taken) -> bool:
        return keep and (taken.alone or taken.delivery.id == probe)

    return [taken for taken in queue if not stays(taken)], deque(taken for taken in queue if stays(taken))


def unchanged(wants: Sequence[Want], routes: Mapping[str, Route]) -> set[str]:
    """Routes for which the answer to a question counts: those that have not given back deliveries since then."""
    given_back = {want.route for want in wants if want.route in routes and want.after > routes[want.route].after}
    return routes.keys() - given_back


def handed_over(given: Sequence[Taken]) -> tuple[list[Taken], bool]:
    """The deliveries that a batch hands over, and whether it kept back any.

    The first delivery of a route that is kept back (it has a problem) ends those of its route.
    """
    kept_back = {taken.delivery.route: taken.delivery.id for taken in reversed(given) if taken.problem}
    handed = [t for t in given if t.delivery.id < kept_back.get(t.delivery.route, math.inf)]
    return handed, bool(kept_back)
