"""The sweep: finds deliveries before the positions of their routes that may go on (sql/functions/delivery_sweep)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.ports import DeliveryStore
from iu_listen.flow.route import Route
from iu_listen.flow.unblocked_subjects import UnblockedSubjects
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import TRIAL_PAUSES, Search

#: Interval at which all subjects are searched, in seconds. It finds subjects that were not unblocked by a settlement.
SWEEP_INTERVAL: Final = 30.0
#: Pause between two parts of a sweep, in seconds. A part has at most 500 subjects, so a sweep of n subjects takes about
#: n / 10 000 seconds.
SWEEP_PAUSE: Final = 0.05


class Sweeper:
    """Searches deliveries before the positions of routes, a bounded part at a time.

    Args:
        clock: Monotonic clock, in seconds.
        unblocked: Receives the subjects that may go on.
        ledger: The in-flight deliveries.
        wake: Set when a delivery may go on.
    """

    def __init__(
        self, clock: Callable[[], float], unblocked: UnblockedSubjects, ledger: InFlightLedger, wake: WakeEvent
    ) -> None:
        self._clock = clock
        self._unblocked = unblocked
        self._ledger = ledger
        self._wake = wake
        self._started = -math.inf
        self._searched = -math.inf

    def pause(self, routes: Iterable[Route]) -> float:
        """Seconds until the next part of a sweep; inf: no route has to be searched."""
        remaining = self._searched + SWEEP_PAUSE - self._clock()
        return max(0.0, remaining) if any(self._must_search(route) for route in routes) else math.inf

    async def search(self, session: DeliveryStore, routes: Iterable[Route]) -> None:
        """Search the next part of each route, if SWEEP_PAUSE seconds have passed since the last part."""
        now = self._clock()
        if now - self._started > SWEEP_INTERVAL:
            self._started = now
            for route in routes:
                route.sweep.start()
        searched = (
            {r.code: (r, r.sweep) for r in routes if self._must_search(r)}
            if now - self._searched >= SWEEP_PAUSE
            else {}
        )
        if not searched:
            return
        self._searched = now
        searches = [
            Search(route=code, from_key=sweep.next_key, after_id=sweep.after_id, position=route.position)
            for code, (route, sweep) in searched.items()
        ]
        for found in await session.sweep(searches):
            route, sweep = searched[found.route]
            sweep.advance(found.next_key, found.after_id)
            if found.first_id is not None and route.sweep is sweep:
                route.position = min(route.position, found.first_id - 1)
                self._wake.set()
            # Skip subjects with an in-flight delivery: its settlement unblocks the subject.
            in_flight = {t.subject_key for t in self._ledger if t.delivery.route == found.route} if found.keys else ()
            keys = [key for key in found.keys if key not in in_flight]
            if keys:
                self._unblocked.add(found.route, keys)
                self._wake.set()

    def _must_search(self, route: Route) -> bool:
        """Whether a route has to be searched, and its deliveries may begin, at least as trial deliveries."""
        may_begin = route.target is not None and route.state.paused_by in {"", *TRIAL_PAUSES}
        return may_begin and route.sweep.active and not self._unblocked.pending(route.code)
