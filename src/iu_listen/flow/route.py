"""The state of one route in the dispatcher: its position, its sweep, and its capacity for further deliveries.

The capacity is back-pressure: it includes a prefetch, which bounds how many deliveries are held in memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Self

from iu_listen.flow.call_tasks import TargetQueue
from iu_listen.flow.in_flight import Load
from iu_listen.model.called import called
from iu_listen.model.delivery import RouteState, TakenDelivery, TakeRequest

#: Prefetch of a route: deliveries taken in addition to those whose calls run, as a multiple of their largest number.
PREFETCH_FACTOR: Final = 9
#: Largest prefetch of a route, in deliveries.
MAX_PREFETCH: Final = 1000
#: The lowest subject key. Subject keys are 64-bit hashes.
LOWEST_SUBJECT_KEY: Final = -(2**63)


class TakeLimit(Enum):
    """How many deliveries of a route may be taken."""

    NONE = 0
    #: As many as can begin at once.
    CONCURRENCY = 1
    #: As many as can begin at once, and a prefetch.
    PREFETCH = 2


@dataclass(slots=True)
class Sweep:
    """Progress of the sweep of a route: the search for deliveries before its position (sql/functions/delivery_sweep).

    Attributes:
        next_key: The next search begins at this subject key; None: no subjects are searched.
        repeat: Search all subjects once more after this pass, because a subject that was already searched may have been
            unblocked.
        after_id: Search deliveries without a subject with ids after this one, up to the position; None: search none.
    """

    next_key: int | None = None
    repeat: bool = False
    after_id: int | None = None

    @property
    def active(self) -> bool:
        """Whether a search is due."""
        return self.next_key is not None or self.after_id is not None

    def start(self) -> None:
        """Search all subjects. A running sweep is completed first and then repeated, so that no subject is missed."""
        if self.next_key is None:
            self.next_key = LOWEST_SUBJECT_KEY
        elif self.next_key != LOWEST_SUBJECT_KEY:
            self.repeat = True

    def skip(self, after_id: int) -> None:
        """Search the deliveries after this id, because the position moved past them without reading them."""
        self.start()
        self.after_id = after_id if self.after_id is None else min(self.after_id, after_id)

    def advance(self, next_key: int | None, after_id: int | None) -> None:
        """Note where the next part of the search begins; None: that search has ended."""
        self.next_key, self.after_id = next_key, after_id
        if next_key is None and self.repeat:
            self.next_key, self.repeat = LOWEST_SUBJECT_KEY, False


@dataclass(slots=True, kw_only=True)
class Route(TargetQueue):
    """The queue of a route's target, with the state of the route in the database.

    Attributes:
        state: The route as last read from the database.
        no_target: Reason why the route has no usable target; empty: it has one, or it was not looked up yet.
        hint: Advice for the operator that belongs to ``no_target``.
        looked_up_at: Time of the last lookup of the target, by the clock of the consumer, in seconds.
        position: Deliveries of the route that were never attempted have been read up to this id.
        sweep: Progress of the search for deliveries before the position.
        last_reported: Reason of the pause that was last reported; empty: the route was not paused.
    """

    state: RouteState
    no_target: str = ""
    hint: str = ""
    looked_up_at: float = -math.inf
    position: int = 0
    sweep: Sweep = field(default_factory=Sweep)
    last_reported: str = ""

    @classmethod
    def of(cls, state: RouteState) -> Self:
        """A new route."""
        return cls(concurrency=0, state=state)

    @property
    def code(self) -> str:
        """Code of the route."""
        return self.state.route

    @property
    def ordered(self) -> bool:
        """Whether the route keeps the order of events of one subject."""
        return bool(self.state.policy["order"] == "subject")

    @property
    def deadline(self) -> float:
        """The deadline of a call, in seconds."""
        return float(self.state.policy["deadline"])

    def update(self, state: RouteState) -> bool:
        """Store the new state of the route. Returns whether its target may have changed."""
        before, self.state = self._target_values, state
        self.held: bool = False
        self.concurrency: int = int(state.policy["concurrency"])
        self.called: str = called(state.kind, state.reference, state.policy["target"])
        # This limits how far the calls of a target that rejects everything can exceed the budget of dead letters.
        self.max_failing: int = int(state.policy["dead_letters_in_a_row"])
        return before != self._target_values

    @property
    def _target_values(self) -> tuple[str, str, str]:
        """The values that determine the target."""
        return self.state.kind, self.state.reference, repr(self.state.policy["target"])

    def advance(self, state: RouteState) -> None:
        """Move the position to that of the answer, and search the deliveries that it skipped."""
        self.position = max(self.position, state.position)
        if state.skipped_after is not None:
            self.sweep.skip(state.skipped_after)

    def restart(self) -> None:
        """Reset the position, so that deliveries are read from the lowest id again."""
        self.position, self.sweep = 0, Sweep()

    def capacity(self, load: Load) -> int:
        """How many deliveries may be taken now, at most.

        Args:
            load: The in-flight deliveries of the route.
        """
        if not self.target:
            return 0
        begun = self.concurrency * self.group
        most = begun + min(begun * PREFETCH_FACTOR, MAX_PREFETCH)
        # At most half of it at once, so that calls, settlements and take queries of a route overlap.
        return min(max(0, most - load.deliveries), -(-most // 2))

    def request(self, load: Load, free_bytes: int, limit: TakeLimit) -> TakeRequest:
        """The request of this route for the next take query.

        Args:
            load: The in-flight deliveries of the route.
            free_bytes: Prefetch that is left for all routes together, in bytes. A route without an in-flight delivery
                may take one even if nothing is left, so that large payloads of one route do not block another route.
            limit: How many deliveries may be taken.
        """
        capacity = self.capacity(load)
        if limit is TakeLimit.NONE:
            capacity = 0
        elif limit is TakeLimit.CONCURRENCY:
            capacity = min(capacity, max(0, self.concurrency - load.deliveries))
        return TakeRequest(
            route=self.code,
            capacity=capacity,
            position=self.position,
            deadline=self.deadline,
            span=self.state.span,
            max_bytes=max(free_bytes, 0 if load.bytes else 1),
        )

    def take_waiting(self, *, keep_trials: bool) -> list[TakenDelivery]:
        """Remove waiting deliveries from the queue and return them.

        Args:
            keep_trials: True: the trial delivery and quarantined deliveries stay in the queue. False: none stays.
        """

        def stays(taken: TakenDelivery) -> bool:
            return keep_trials and (taken.alone or taken.delivery.id == self.state.trial_id)

        removed = [taken for taken in self.waiting if not stays(taken)]
        self.waiting: deque[TakenDelivery] = deque(taken for taken in self.waiting if stays(taken))
        return removed


def without_problems(deliveries: Sequence[TakenDelivery]) -> tuple[list[TakenDelivery], bool]:
    """The deliveries that can be accepted from a batch, and whether any of its deliveries was left out.

    Left out are the first delivery of a route that has a ``problem`` and all later deliveries of that route.
    """
    first_problems = {taken.delivery.route: taken.delivery.id for taken in reversed(deliveries) if taken.problem}
    accepted = [t for t in deliveries if t.delivery.id < first_problems.get(t.delivery.route, math.inf)]
    return accepted, bool(first_problems)
