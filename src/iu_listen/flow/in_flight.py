"""The in-flight ledger: the deliveries that the consumer holds and has not settled, and their size in bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from iu_listen.flow.route import Route
from iu_listen.model.delivery import TakenDelivery


class InFlightLedger:
    """Deliveries by id, from the moment when they are taken until they are settled or given back.

    Attributes:
        attempted: Ids of the deliveries that were attempted before. In the database they look like deliveries that are
            due.
        passed: Ids that left the ledger since the last take query began: its answer may still contain them.
        passed_beside: Ids that left the ledger since the last batch began: the batch may still hand them over.
        bytes: Size of all deliveries in the ledger, in bytes (Taken.bytes).
    """

    def __init__(self) -> None:
        self._routes: dict[int, tuple[Route, TakenDelivery]] = {}
        self.attempted: set[int] = set()
        self.passed: set[int] = set()
        self.passed_beside: set[int] = set()
        self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self._routes)

    def __len__(self) -> int:
        return len(self._routes)

    def __contains__(self, id: int) -> bool:
        return id in self._routes

    def __iter__(self) -> Iterator[TakenDelivery]:
        return iter([taken for _, taken in self._routes.values()])

    def busy(self, routes: Iterable[Route]) -> list[int]:
        """Ids that a take query must exclude: held deliveries that were attempted before, and trial deliveries."""
        probes = {id for route in routes if (id := route.state.probing) is not None and id in self._routes}
        return [*self.attempted | probes]

    def new(
        self, given: Sequence[TakenDelivery], routes: Collection[str], passed: Collection[int]
    ) -> list[TakenDelivery]:
        """The deliveries of an answer that are not in the ledger yet, each once, in the order of the answer.

        Args:
            given: Deliveries in the answer. A delivery of a freed subject may occur twice.
            routes: Codes of the routes for which the answer is valid.
            passed: Ids that left the ledger since the query began.
        """
        fresh = (t for t in given if t.delivery.id not in self._routes and t.delivery.id not in passed)
        return list({t.delivery.id: t for t in fresh if t.delivery.route in routes}.values())

    def add(self, taken: TakenDelivery, route: Route) -> None:
        """Add a delivery that was taken for a route."""
        self._routes[taken.delivery.id] = route, taken
        route.busy += 1
        route.bytes += taken.bytes
        self.bytes += taken.bytes
        if taken.delivery.attempt > 1:
            self.attempted.add(taken.delivery.id)

    def remove(self, id: int) -> Route | None:
        """Remove a delivery that was settled or given back. Returns its route; None: it was not in the ledger."""
        self.passed.add(id)
        self.passed_beside.add(id)
        self.attempted.discard(id)
        route, taken = self._routes.pop(id, (None, None))
        if route is not None and taken is not None:
            route.busy -= 1
            route.bytes -= taken.bytes
            self.bytes -= taken.bytes
        return route
