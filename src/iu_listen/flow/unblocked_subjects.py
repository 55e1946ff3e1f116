"""Unblocked subjects: the next delivery of such a subject may go on, as the earlier one was settled or given back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import islice

from iu_listen.model.delivery import RouteState, TakeRequest


class UnblockedSubjects:
    """Keys of unblocked subjects, by route. A key stays until a take query asks for the next delivery of its subject.

    A key may belong to a subject without a delivery, or with its first delivery in flight. Asking for it then costs one
    search of an index and finds nothing.
    """

    def __init__(self) -> None:
        #: Keys by route, in the order in which they were unblocked, each once.
        self._keys: dict[str, dict[int, None]] = {}

    def add(self, route: str, keys: Iterable[int]) -> None:
        """Add unblocked subjects of a route."""
        self._keys.setdefault(route, {}).update(dict.fromkeys(keys))

    def pending(self, route: str) -> bool:
        """Whether a route has unblocked subjects that no take query has asked for."""
        return bool(self._keys.get(route))

    def next(self, requests: Sequence[TakeRequest]) -> list[tuple[str, int]]:
        """Remove and return routes and keys for a take query, at most ``capacity`` keys of each route."""
        asked = []
        for request in requests:
            if keys := self._keys.get(request.route):
                for key in list(islice(keys, request.capacity)):
                    del keys[key]
                    asked.append((request.route, key))
        return asked

    def answered(
        self, asked: Iterable[tuple[str, int]], states: Sequence[RouteState], valid_routes: Collection[str]
    ) -> None:
        """Process an answer: add those keys again for which the answer is incomplete.

        Args:
            asked: Routes and keys of the take query.
            states: State of each route in the answer. For a paused route no subject was searched. ``kept_back`` means
                that deliveries were left out because their payloads exceed the byte limit.
            valid_routes: Codes of the routes for which the answer is valid.
        """
        unanswered = {s.route for s in states if s.paused_by or s.kept_back or s.route not in valid_routes}
        self.put_back(pair for pair in asked if pair[0] in unanswered)

    def put_back(self, asked: Iterable[tuple[str, int]]) -> None:
        """Add the keys of a take query again, because it was not answered."""
        for route, key in asked:
            self.add(route, [key])

    def forget(self, route: str | None = None) -> None:
        """Remove the keys of a route that has gone, or of all routes (None)."""
        if route is None:
            self._keys.clear()
        else:
            self._keys.pop(route, None)
