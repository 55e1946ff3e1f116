"""Freed subjects: the next delivery of such a subject may go on, as the earlier one was settled or given back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import islice

from iu_listen.model.delivery import RouteState, TakeRequest


class FreedSubjects:
    """Freed subject keys, by route. A key stays until a take query asks for the next delivery of its subject.

    A key may belong to a subject without a delivery, or with its first delivery in flight. Asking for it then costs one
    search of an index and finds nothing.
    """

    def __init__(self) -> None:
        #: Keys by route, in the order in which they were freed, each once.
        self._keys: dict[str, dict[int, None]] = {}

    def add(self, route: str, keys: Iterable[int]) -> None:
        """Add freed subjects of a route."""
        self._keys.setdefault(route, {}).update(dict.fromkeys(keys))

    def waits(self, route: str) -> bool:
        """Whether a route has freed subjects that no take query has asked for."""
        return bool(self._keys.get(route))

    def next(self, wants: Sequence[TakeRequest]) -> list[tuple[str, int]]:
        """Remove and return routes and keys for a take query, at most ``want.room`` of each route."""
        asked = []
        for want in wants:
            if keys := self._keys.get(want.route):
                for key in list(islice(keys, want.room)):
                    del keys[key]
                    asked.append((want.route, key))
        return asked

    def answered(self, asked: Iterable[tuple[str, int]], states: Sequence[RouteState], counts: Collection[str]) -> None:
        """Process an answer: add those keys again for which the answer is incomplete.

        Args:
            asked: Routes and keys of the take query.
            states: State of each route in the answer. For a paused route no subject was searched. ``kept_back`` means
                that deliveries were left out because their payloads exceed the byte limit.
            counts: Codes of the routes for which the answer is valid.
        """
        vain = {state.route for state in states if state.held or state.kept_back or state.route not in counts}
        self.put_back(pair for pair in asked if pair[0] in vain)

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
