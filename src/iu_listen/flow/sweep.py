"""The sweep: finds deliveries that the positions of their routes have passed, and that may go on (sql/worker/022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Final

from iu_listen.flow.freed import Freed
from iu_listen.flow.ledger import Ledger
from iu_listen.flow.ports import Deliveries
from iu_listen.flow.ring import Ring
from iu_listen.flow.route import Route
from iu_listen.model.delivery import PROBED, Search

#: How often all subjects are searched for one that was freed by something else than a settlement, in seconds.
RESCAN: Final = 30.0
#: Pause between two parts of a sweep, in seconds. A part is at most 500 subjects, so a sweep of n subjects takes
#: n / 10 000 seconds.
PAUSE: Final = 0.05


class Sweeper:
    """Searches what the positions of routes have passed, a bounded part at a time.

    Args:
        clock: The clock of the consumer, in seconds.
        freed: Where subjects that may go on are noted.
        ledger: The deliveries that the consumer has taken.
        ring: Rung when something may go on.
    """

    def __init__(self, clock: Callable[[], float], freed: Freed, ledger: Ledger, ring: Ring) -> None:
        self._clock = clock
        self._freed = freed
        self._ledger = ledger
        self._ring = ring
        self._started = -math.inf
        self._searched = -math.inf

    def pause(self, routes: Iterable[Route]) -> float:
        """Seconds until the next part; inf: nothing is to be searched."""
        left = self._searched + PAUSE - self._clock()
        return max(0.0, left) if any(self._may(route) for route in routes) else math.inf

    async def turn(self, session: Deliveries, routes: Collection[Route]) -> None:
        """Search the next part of each route, when its time has come."""
        now = self._clock()
        if now - self._started > RESCAN:
            self._started = now
            for route in routes:
                route.sweep.start()
        asked = {r.state.route: (r, r.sweep) for r in routes if self._may(r)} if now - self._searched >= PAUSE else {}
        if not asked:
            return
        self._searched = now
        searches = [Search(route=c, key=s.key, behind=s.behind, after=r.after) for c, (r, s) in asked.items()]
        for found in await session.sweep(searches):
            route, sweep = asked[found.route]
            sweep.goes_on(found.key, found.behind)
            if found.first is not None and route.sweep is sweep:
                route.after = min(route.after, found.first - 1)
                self._ring.set()
            # The next delivery of a subject is asked for when the one in flight is settled.
            in_flight = {t.subject_key for t in self._ledger if t.delivery.route == found.route} if found.keys else ()
            keys = [key for key in found.keys if key not in in_flight]
            if keys:
                self._freed.add(found.route, keys)
                self._ring.set()

    def _may(self, route: Route) -> bool:
        """Whether a route is to be searched, and what is found may begin, be it as a probe."""
        lets = route.target is not None and route.state.held in {"", *PROBED}
        return lets and route.sweep.active and not self._freed.waits(route.state.route)
