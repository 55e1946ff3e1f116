"""The route table: the routes of a worker as the last answers of the database describe them. It calls nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.route import Route, TakeLimit
from iu_listen.model.delivery import RouteState, TakeRequest

#: Shortest pause before a take query that is made because a delivery is due, in seconds.
MIN_DUE_PAUSE: Final = 0.01


@dataclass(frozen=True, slots=True)
class RouteChanges:
    """The consequences of an answer for the route table.

    Attributes:
        gone: Routes that were removed from the table.
        known: Routes in the answer, each with True if its target may have changed.
    """

    gone: Sequence[Route]
    known: Sequence[tuple[Route, bool]]


class RouteTable:
    """The routes of one worker, by code.

    Args:
        ledger: The in-flight deliveries.
    """

    def __init__(self, ledger: InFlightLedger) -> None:
        self._ledger = ledger
        self._routes: dict[str, Route] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def __contains__(self, code: str) -> bool:
        return code in self._routes

    def __getitem__(self, code: str) -> Route:
        return self._routes[code]

    def learn(self, states: Sequence[RouteState], valid_routes: Collection[str]) -> RouteChanges:
        """Store the states of an answer. A route without a state has gone; it is removed when none of its calls runs.

        Args:
            states: The states of all routes of the worker.
            valid_routes: Codes of the routes for which the positions in the answer are valid (unchanged()).
        """
        known = {state.route for state in states}
        gone = [route for route in self if route.code not in known and not route.running]
        for route in gone:
            del self._routes[route.code]
        return RouteChanges(gone, [self._update(state, state.route in valid_routes) for state in states])

    def _update(self, state: RouteState, position_is_valid: bool) -> tuple[Route, bool]:
        new = state.route not in self._routes
        route = self._routes.setdefault(state.route, Route.of(state))
        if state.paused_by != route.state.paused_by:
            # Deliveries may have been cancelled while the route was paused, and parked deliveries may go on.
            route.sweep.start()
        target_changed = route.update(state) or new
        if position_is_valid:
            route.advance(state)
        return route, target_changed

    def requests(self, free_bytes: int, limit: TakeLimit, failures: int) -> list[TakeRequest]:
        """The requests of all routes for the next take query.

        Args:
            free_bytes: Prefetch that is left, in bytes.
            limit: How many deliveries of a route may be taken.
            failures: Number of take queries that failed in a row. After a failure only one delivery of one route is
                requested, with the routes in turn, so that a delivery that cannot be read does not block the other
                routes.
        """
        requests = [route.request(self._ledger.load(route.code), free_bytes, limit) for route in self]
        if not failures:
            return requests
        turn = failures % max(1, len(requests))
        return [replace(request, capacity=min(request.capacity, int(n == turn))) for n, request in enumerate(requests)]

    def unchanged(self, requests: Sequence[TakeRequest]) -> set[str]:
        """Codes of the routes for which the answer to these requests is valid.

        It is not valid for a route that has given back a delivery since: its position then moved back.
        """
        moved_back = {r.route for r in requests if r.route in self and r.position > self[r.route].position}
        return self._routes.keys() - moved_back

    def due_in(self) -> float:
        """Seconds until the next delivery of a route with free capacity is due; inf: none is waiting."""
        waits = [
            route.state.due_in
            for route in self
            if route.state.due_in is not None and route.capacity(self._ledger.load(route.code))
        ]
        return max(MIN_DUE_PAUSE, min(waits, default=math.inf))

    def trial_ids(self) -> list[int | None]:
        """Id of the trial delivery of each route; None: a route has none."""
        return [route.state.trial_id for route in self]

    def restart(self) -> None:
        """Reset the positions of all routes, because a new session may reach another history of the database."""
        for route in self:
            route.restart()
