"""Quarantine: finds the delivery that ends the process of the consumer, so that all other deliveries can go on.

A call can end the process before any outcome is recorded: by a segmentation fault, by the out-of-memory killer, or by
blocking the event loop for longer than the delivery lease. The lease then ends without being given back. The next lease
holder is cautious for CAUTION_PERIOD seconds: before a call begins, the ids of all in-flight deliveries are written to
the row of the lease. So the in-flight deliveries are known after the next such end; they are at most as many as the
concurrency of each route allows. Each of them is then attempted alone, while no other delivery is in flight. If the
process ends during that attempt, that delivery is the cause: the attempt is spent, and after the last attempt the
delivery becomes a dead letter.

    lease not given back     in-flight ids known    consequence
    first time               none                   cautious for CAUTION_PERIOD
    again                    several                each of these deliveries is attempted alone, after a pause
    again                    one                    its attempt is spent; it is attempted alone after its backoff
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

from iu_listen.flow.call_executor import CallExecutor
from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.ports import DeliveryStore
from iu_listen.flow.route import TakeLimit
from iu_listen.flow.routes import RouteTable
from iu_listen.model.delivery import TakenDelivery

#: Time for which a lease holder is cautious after a lease that was not given back, in seconds. A delivery that ended
#: the process is due at once in the next process, so it is attempted within this time.
CAUTION_PERIOD: Final = 60.0


class Quarantine:
    """Decides which deliveries are attempted alone, and which ids are written to the row of the delivery lease.

    Args:
        calls: The calls of the consumer.
        ledger: The deliveries that the consumer has taken.
    """

    def __init__(self, calls: CallExecutor, ledger: InFlightLedger) -> None:
        self._calls = calls
        self._ledger = ledger
        self._until = -math.inf
        self._waiting: deque[TakenDelivery] = deque()
        self._written: tuple[tuple[str, int], ...] = ()

    def start(self, now: float) -> None:
        """Be cautious from ``now`` on (monotonic clock, in seconds), because the last lease was not given back."""
        self._until = now + CAUTION_PERIOD
        self._written = ()

    def cautious(self, now: float) -> bool:
        """Whether ids are written before calls begin. Then no delivery is prefetched or handed over by a batch."""
        return now < self._until or self.isolating

    @property
    def isolating(self) -> bool:
        """Whether a delivery is attempted alone, or waits for that. Then no other delivery may begin."""
        return bool(self._waiting) or self._calls.only_id is not None

    def add(self, taken: TakenDelivery) -> None:
        """Add a delivery that has to be attempted alone."""
        self._waiting.append(taken)
        if self._calls.only_id is None:
            self._calls.only_id = CallExecutor.NO_DELIVERY

    def remove(self, route: str) -> list[TakenDelivery]:
        """Remove and return the waiting deliveries of a route."""
        removed = [taken for taken in self._waiting if taken.delivery.route == route]
        self._waiting = deque(taken for taken in self._waiting if taken.delivery.route != route)
        return removed

    def take_limit(self, now: float) -> TakeLimit:
        """How many deliveries of a route may be taken."""
        if self.isolating:
            return TakeLimit.NONE
        return TakeLimit.CONCURRENCY if self.cautious(now) else TakeLimit.PREFETCH

    async def write(self, session: DeliveryStore, now: float, new: Iterable[TakenDelivery], routes: RouteTable) -> bool:
        """Write the ids of in-flight deliveries to the row of the lease, and start the next quarantined delivery.

        Args:
            session: The delivery session.
            now: The time, by the monotonic clock, in seconds.
            new: Deliveries that were taken and are about to begin.
            routes: The routes.

        Returns:
            False: the lease is lost, and no call may begin.
        """
        chosen = self._choose()
        in_flight = tuple(sorted({(t.delivery.route, t.delivery.id) for t in self._in_flight(now, new, chosen)}))
        if in_flight != self._written:
            if not await session.record_in_flight(in_flight):
                return False
            self._written = in_flight
        # It leaves the waiting deliveries only now: if its id could not be written, it is chosen again. It may
        # have been given back meanwhile.
        if chosen is not None and chosen in self._waiting:
            self._waiting.remove(chosen)
            if chosen.delivery.route in routes:
                self._calls.only_id = chosen.delivery.id
                routes[chosen.delivery.route].waiting.appendleft(chosen)
        return True

    def _choose(self) -> TakenDelivery | None:
        """The next delivery that is attempted alone, if no delivery is in flight; None: there is none at present."""
        only_id = self._calls.only_id
        if only_id is not None and only_id != CallExecutor.NO_DELIVERY and only_id not in self._ledger:
            only_id = self._calls.only_id = CallExecutor.NO_DELIVERY
        if only_id == CallExecutor.NO_DELIVERY and not self._waiting:
            self._calls.only_id = None
        elif only_id == CallExecutor.NO_DELIVERY and not any(self._calls.running()):
            return self._waiting[0]
        return None

    def _in_flight(
        self, now: float, new: Iterable[TakenDelivery], chosen: TakenDelivery | None
    ) -> Iterable[TakenDelivery]:
        """Deliveries that are in flight once ``new`` and ``chosen`` have begun; empty if not cautious."""
        if chosen is not None:
            return [chosen]
        if self.isolating:
            alone, waiting = self._calls.only_id, {taken.delivery.id for taken in self._waiting}
            return [
                t
                for t in self._ledger
                if alone in {t.delivery.id, CallExecutor.NO_DELIVERY} and t.delivery.id not in waiting
            ]
        if now < self._until:
            return [taken for taken in [*self._ledger, *new] if not taken.alone and not taken.problem]
        return []

    def forget(self) -> None:
        """Remove all deliveries, because they were given up."""
        self._waiting.clear()
        self._calls.only_id = None
