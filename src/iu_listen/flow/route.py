"""What the consumer knows of a route that delivers: where it has come to, and how much of it there is room for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from iu_listen.flow.calls import Lane
from iu_listen.model.delivery import RouteState, Taken, Want

#: How many deliveries of a route are taken and not settled beyond those under way, as a multiple of its concurrency.
AHEAD: Final = 9
#: The same, at most.
MOST_AHEAD: Final = 1000


@dataclass(slots=True, kw_only=True)
class Route(Lane):
    """A lane with what the database says of its route.

    Attributes:
        state: That.
        no_target: Why there is none.
        looked_at: When one was looked for.
        after: The last id that was taken, of those that were never tried.
        busy: How many are taken and not settled.
        told: What holds it, as was said last.
    """

    state: RouteState
    no_target: str = ""
    looked_at: float = -math.inf
    after: int = 0
    busy: int = 0
    told: str = ""

    @classmethod
    def of(cls, state: RouteState) -> Self:
        """A route that was not known."""
        return cls(concurrency=0, state=state)

    def becomes(self, state: RouteState) -> bool:
        """What the database says of it now. True: it may have another target."""
        before, self.state = self._aim, state
        self.concurrency = int(state.policy["concurrency"])
        # So its budget of dead letters is exceeded by no more than itself, and what was under way.
        self.most_failing = int(state.policy["dead_letters_per_hour"])
        return before != self._aim

    def rescan(self) -> None:
        """Look for the first of each subject from the beginning, if the route keeps their order."""
        if self.state.policy["order"] == "subject":
            self.after = 0

    @property
    def _aim(self) -> tuple[str, str, str]:
        """What its target depends on."""
        return self.state.kind, self.state.reference, repr(self.state.policy["target"])

    @property
    def want(self) -> Want:
        """What to ask for."""
        return Want(route=self.state.route, room=self.room, after=self.after, deadline=self.deadline)

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


def may_go_on(freed: Sequence[Taken], wants: Sequence[Want]) -> tuple[list[Taken], list[Taken]]:
    """Those that others have waited for: as many as there is room for these, and the rest, asked for later."""
    room = {want.route: want.room for want in wants}
    now: list[Taken] = []
    later: list[Taken] = []
    for taken in freed:
        room[taken.delivery.route] = left = room.get(taken.delivery.route, 0) - 1
        (now if left >= 0 else later).append(taken)
    return now, later
