"""The in-flight ledger: every delivery that the consumer has taken and not settled, and the bytes of its payload."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from iu_listen.flow.route import Route
from iu_listen.model.delivery import Taken


class Ledger:
    """Deliveries by id, from the moment when they are taken until they are settled or given back.

    Attributes:
        attempted: Ids of those that were attempted before. The database cannot tell them from deliveries that are due.
        passed: Ids that left the ledger since the last question for more: the answer may still name them.
        passed_beside: The same since the last batch began.
        bytes: Bytes of all payloads in it.
    """

    def __init__(self) -> None:
        self._routes: dict[int, tuple[Route, Taken]] = {}
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

    def __iter__(self) -> Iterator[Taken]:
        return iter([taken for _, taken in self._routes.values()])

    def busy(self, routes: Iterable[Route]) -> list[int]:
        """Ids of what the database cannot tell from other deliveries: what was attempted before, and probes."""
        probes = {id for route in routes if (id := route.state.probing) is not None and id in self._routes}
        return [*self.attempted | probes]

    def new(self, given: Sequence[Taken], routes: Collection[str], passed: Collection[int]) -> list[Taken]:
        """Of the deliveries that the database gave those that are not taken yet, each once, in the order given.

        Args:
            given: The answer of the database. A delivery that was freed is found among the new ones as well.
            routes: Codes of the routes for which the answer counts.
            passed: Ids that were taken when the question was asked, and have left the ledger since then.
        """
        fresh = (t for t in given if t.delivery.id not in self._routes and t.delivery.id not in passed)
        return list({t.delivery.id: t for t in fresh if t.delivery.route in routes}.values())

    def add(self, taken: Taken, route: Route) -> None:
        """A delivery was taken for its route."""
        self._routes[taken.delivery.id] = route, taken
        route.busy += 1
        route.bytes += taken.bytes
        self.bytes += taken.bytes
        if taken.delivery.attempt > 1:
            self.attempted.add(taken.delivery.id)

    def remove(self, id: int) -> Route | None:
        """A delivery was settled or given back; its route, or None where it was not in the ledger."""
        self.passed.add(id)
        self.passed_beside.add(id)
        self.attempted.discard(id)
        route, taken = self._routes.pop(id, (None, None))
        if route is not None and taken is not None:
            route.busy -= 1
            route.bytes -= taken.bytes
            self.bytes -= taken.bytes
        return route
