"""The deliveries that the dispatcher holds: how they are accepted, given back, and given up.

A delivery is *given back* while the consumer holds the delivery lease: it is taken again later. A delivery is *given
up* because another consumer may hold the lease: its call is cancelled, and its outcome is not recorded.
"""

from __future__ import annotations

from collections.abc import Sequence

from iu_listen.flow.call_executor import CallExecutor
from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.quarantine import Quarantine
from iu_listen.flow.route import Route
from iu_listen.flow.routes import RouteTable
from iu_listen.flow.unblocked_subjects import UnblockedSubjects
from iu_listen.model.delivery import Outcome, Result, TakenDelivery


class TakenDeliveries:
    """Moves deliveries between the ledger, the queues of their routes, the quarantine and the calls.

    Args:
        ledger: The in-flight deliveries.
        routes: The routes, with their queues.
        calls: The calls of the consumer.
        quarantine: The deliveries that are attempted alone.
        unblocked: Receives the subjects whose next delivery may go on.
    """

    def __init__(
        self,
        ledger: InFlightLedger,
        routes: RouteTable,
        calls: CallExecutor,
        quarantine: Quarantine,
        unblocked: UnblockedSubjects,
    ) -> None:
        self._ledger = ledger
        self._routes = routes
        self._calls = calls
        self._quarantine = quarantine
        self._unblocked = unblocked

    def accept(self, new: Sequence[TakenDelivery]) -> bool:
        """Add new deliveries to the ledger and to the queues. Returns whether one of them went into quarantine."""
        quarantined = False
        for taken in new:
            route = self._routes[taken.delivery.route]
            self._ledger.add(taken)
            if taken.problem:
                self._calls.reject(route, taken)
            elif taken.alone:
                self._quarantine.add(taken)
                quarantined = True
            else:
                route.waiting.append(taken)
        return quarantined

    def begin(self) -> None:
        """Start calls on all routes, within their limits."""
        for route in self._routes:
            self._calls.begin(route)

    def settled(self, outcome: Outcome) -> None:
        """Remove a delivery whose outcome was recorded. The next delivery of its subject may go on."""
        taken = outcome.taken
        code = taken.delivery.route
        if self._ledger.remove(taken.delivery.id) and outcome.result is not Result.SENT and code in self._routes:
            route = self._routes[code]
            route.failing = max(0, route.failing - 1)
        if taken.subject_key is not None:
            self._unblocked.add(code, [taken.subject_key])

    def give_back(self, route: Route, *, keep_trials: bool = False) -> None:
        """Give back the queued deliveries of a route.

        Args:
            route: The route.
            keep_trials: True: the trial delivery and quarantined deliveries are kept.
        """
        given_back = route.take_waiting(keep_trials=keep_trials)
        if not keep_trials:
            given_back += self._quarantine.remove(route.code)
        for taken in given_back:
            # A delivery without a row is queued by its batch, with an id beyond the position.
            if taken.unconfirmed:
                pass
            # A delivery that was attempted before lies at no known place: its subject leads to it.
            elif taken.delivery.attempt > 1 and taken.subject_key is not None:
                self._unblocked.add(route.code, [taken.subject_key])
            else:
                route.position = min(route.position, taken.delivery.id - 1)
            self._ledger.remove(taken.delivery.id)

    def remove_route(self, route: Route) -> None:
        """Give back the deliveries of a route that has gone, and let its call tasks end."""
        self.give_back(route)
        self._unblocked.forget(route.code)
        self._calls.close_queue(route)

    def give_up_ordered(self) -> None:
        """Give up the deliveries of ordered routes, because another consumer may hold the lease at once."""
        for taken in self._calls.running():
            if taken.subject_key is not None:
                self.give_up_call(taken)
        for route in self._routes:
            if route.ordered:
                self._restart(route)

    def give_up(self) -> None:
        """Give up all deliveries and all outcomes, because another consumer holds the lease or may hold it."""
        for taken in self._calls.running():
            self.give_up_call(taken)
        for route in self._routes:
            self._restart(route)
            route.failing = 0
        for taken in self._ledger:
            self._ledger.remove(taken.delivery.id)
        self._quarantine.forget()
        self._calls.done.clear()
        self._unblocked.forget()

    def give_up_call(self, taken: TakenDelivery) -> None:
        """Give up a delivery during its call: the call is cancelled, and its outcome is not recorded."""
        self._calls.give_up(taken)
        self._ledger.remove(taken.delivery.id)

    def _restart(self, route: Route) -> None:
        self.give_back(route)
        route.restart()
