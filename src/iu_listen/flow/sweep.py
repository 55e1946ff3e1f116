"""The sweep: finds deliveries before the positions of their routes that may go on (sql/functions/delivery_sweep)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Final

from iu_listen.flow.freed_subjects import FreedSubjects
from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.ports import DeliveryStore
from iu_listen.flow.route import Route
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import PROBED, Search

#: Interval at which all subjects are searched, in seconds. It finds subjects that were not freed by a settlement.
RESCAN: Final = 30.0
#: Pause between two parts of a sweep, in seconds. A part has at most 500 subjects, so a sweep of n subjects takes about
#: n / 10 000 seconds.
PAUSE: Final = 0.05


class Sweeper:
    """Searches deliveries before the positions of routes, a bounded part at a time.

    Args:
        clock: Monotonic clock, in seconds.
        freed: Receives the subjects that may go on.
        ledger: The deliveries that the consumer has taken.
        ring: Set when a delivery may go on.
    """

    def __init__(
        self, clock: Callable[[], float], freed: FreedSubjects, ledger: InFlightLedger, ring: WakeEvent
    ) -> None:
        self._clock = clock
        self._freed = freed
        self._ledger = ledger
        self._ring = ring
        self._started = -math.inf
        self._searched = -math.inf

    def pause(self, routes: Iterable[Route]) -> float:
        """Seconds until the next part of a sweep; inf: no route has to be searched."""
        left = self._searched + PAUSE - self._clock()
        return max(0.0, left) if any(self._may(route) for route in routes) else math.inf

    async def turn(self, session: DeliveryStore, routes: Collection[Route]) -> None:
        """Search the next part of each route, if PAUSE seconds have passed since the last part."""
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
            # Skip subjects with an in-flight delivery: its settlement frees the subject.
            in_flight = {t.subject_key for t in self._ledger if t.delivery.route == found.route} if found.keys else ()
            keys = [key for key in found.keys if key not in in_flight]
            if keys:
                self._freed.add(found.route, keys)
                self._ring.set()

    def _may(self, route: Route) -> bool:
        """Whether a route has to be searched, and its deliveries may begin, at least as trial deliveries."""
        lets = route.target is not None and route.state.held in {"", *PROBED}
        return lets and route.sweep.active and not self._freed.waits(route.state.route)
