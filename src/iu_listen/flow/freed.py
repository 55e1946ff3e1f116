"""Subjects of which a delivery may go on: what came before it is settled, or was given back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import islice

from iu_listen.model.delivery import RouteState, Want


class Freed:
    """Keys of subjects by route, each from when it is freed until the database was asked for its next delivery.

    A key may be here that has no delivery any more, or whose first delivery is in flight: to ask in vain costs one
    search of an index.
    """

    def __init__(self) -> None:
        #: Dictionaries, because they keep the order and hold each key once.
        self._keys: dict[str, dict[int, None]] = {}

    def add(self, route: str, keys: Iterable[int]) -> None:
        """Subjects of a route are freed."""
        self._keys.setdefault(route, {}).update(dict.fromkeys(keys))

    def waits(self, route: str) -> bool:
        """Whether subjects of a route wait to be asked for."""
        return bool(self._keys.get(route))

    def next(self, wants: Sequence[Want]) -> list[tuple[str, int]]:
        """Take out routes and keys to ask for, as many of each route as there is room for."""
        asked = []
        for want in wants:
            if keys := self._keys.get(want.route):
                for key in list(islice(keys, want.room)):
                    del keys[key]
                    asked.append((want.route, key))
        return asked

    def answered(self, asked: Iterable[tuple[str, int]], states: Sequence[RouteState], counts: Collection[str]) -> None:
        """A question was answered. What the answer cannot tell is asked for again.

        Args:
            asked: What it asked for.
            states: What was answered of each route. Of one that is held no subject was looked for, and a delivery that
                was found is kept back where there is no room for its bytes.
            counts: Codes of the routes for which the answer counts.
        """
        vain = {state.route for state in states if state.held or state.kept_back or state.route not in counts}
        self.put_back(pair for pair in asked if pair[0] in vain)

    def put_back(self, asked: Iterable[tuple[str, int]]) -> None:
        """A question was not answered."""
        for route, key in asked:
            self.add(route, [key])

    def forget(self, route: str | None = None) -> None:
        """A route is gone, or (None) all are read from the beginning."""
        if route is None:
            self._keys.clear()
        else:
            self._keys.pop(route, None)
