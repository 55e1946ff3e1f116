"""Quarantine: finds the delivery that ends the process of the consumer, and lets all others go on.

A call can end the process so that nothing of it is recorded: a segmentation fault, the out-of-memory killer, a call
that blocks the event loop for longer than the lease. The lease then ends without being given back. The next holder
is cautious for a while: before any call begins, the ids of all deliveries in flight are written to the lease row. So
after the next such end they are known, at most the concurrency of each route. Each of them is then attempted alone,
while no other delivery is in flight. A process that ends during that attempt was ended by that delivery: the attempt is
spent, and after the last one the delivery becomes a dead letter.

    lease ended uncleanly    in-flight ids known    what follows
    first time               no                     cautious for CAUTION seconds
    again                    several                each of them is attempted alone, after a pause
    again                    one                    its attempt is spent; attempted alone again after its backoff
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from iu_listen.flow.calls import Calls
from iu_listen.flow.ledger import Ledger
from iu_listen.flow.ports import Deliveries
from iu_listen.flow.route import Room, Route
from iu_listen.model.delivery import Taken

#: How long a lease holder is cautious after a lease that ended uncleanly, in seconds. A delivery that ended the process
#: is due at once in the next one, so it is attempted within this time.
CAUTION: Final = 60.0


class Quarantine:
    """Which deliveries are attempted alone, and which ids are written to the lease row.

    Args:
        calls: The calls of the consumer.
        ledger: The deliveries that it has taken.
    """

    def __init__(self, calls: Calls, ledger: Ledger) -> None:
        self._calls = calls
        self._ledger = ledger
        self._until = -math.inf
        self._waiting: deque[Taken] = deque()
        self._written: tuple[tuple[str, int], ...] = ()

    def start(self, now: float) -> None:
        """The lease ended uncleanly; be cautious from ``now`` on, a time of the clock of the consumer, in seconds."""
        self._until = now + CAUTION
        self._written = ()

    def cautious(self, now: float) -> bool:
        """Whether ids are written before calls begin; no delivery is prefetched or handed over by a batch then."""
        return now < self._until or self.isolating

    @property
    def isolating(self) -> bool:
        """Whether a delivery is attempted alone, or waits for it: no other one may begin."""
        return bool(self._waiting) or self._calls.only is not None

    def add(self, taken: Taken) -> None:
        """A delivery that is to be attempted alone was taken."""
        self._waiting.append(taken)
        if self._calls.only is None:
            self._calls.only = Calls.NONE

    def drop(self, route: str) -> list[Taken]:
        """Give up what waits of a route; those deliveries."""
        dropped = [taken for taken in self._waiting if taken.delivery.route == route]
        self._waiting = deque(taken for taken in self._waiting if taken.delivery.route != route)
        return dropped

    def room(self, now: float) -> Room:
        """How many deliveries may be taken."""
        if self.isolating:
            return Room.NONE
        return Room.FLIGHT if self.cautious(now) else Room.AHEAD

    async def write(self, session: Deliveries, now: float, new: Iterable[Taken], routes: Mapping[str, Route]) -> bool:
        """Write what will be in flight to the lease row, and let the next delivery begin that is attempted alone.

        Args:
            session: The delivery session.
            now: The time, in seconds.
            new: What was taken and is about to begin.
            routes: The routes by code.

        Returns:
            False: the lease is lost, and nothing may begin.
        """
        chosen = self._choose()
        flight = tuple(sorted({(t.delivery.route, t.delivery.id) for t in self._flight(now, new, chosen)}))
        if flight != self._written:
            if not await session.in_flight(flight):
                return False
            self._written = flight
        if chosen is not None and chosen.delivery.route in routes:
            self._calls.only = chosen.delivery.id
            routes[chosen.delivery.route].queue.appendleft(chosen)
        return True

    def _choose(self) -> Taken | None:
        """The delivery that is to be attempted alone next, once nothing is in flight; None: none for now."""
        only = self._calls.only
        if only is not None and only != Calls.NONE and only not in self._ledger:
            only = self._calls.only = Calls.NONE
        if only == Calls.NONE and not self._waiting:
            self._calls.only = None
        elif only == Calls.NONE and not any(self._calls.under_way()):
            return self._waiting.popleft()
        return None

    def _flight(self, now: float, new: Iterable[Taken], chosen: Taken | None) -> Iterable[Taken]:
        """What is in flight once ``new`` and the chosen delivery have begun; nothing after the time of caution."""
        if chosen is not None:
            return [chosen]
        if self.isolating:
            alone, waiting = self._calls.only, {taken.delivery.id for taken in self._waiting}
            return [t for t in self._ledger if alone in {t.delivery.id, Calls.NONE} and t.delivery.id not in waiting]
        if now < self._until:
            return [taken for taken in [*self._ledger, *new] if not taken.alone and not taken.problem]
        return []

    def forget(self) -> None:
        """All deliveries were given up."""
        self._waiting.clear()
        self._calls.only = None
