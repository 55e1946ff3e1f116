"""What holds back routes: said when it begins, when it changes, and when it ends."""

from __future__ import annotations

from iu_listen.flow.ports import Watcher
from iu_listen.flow.route import Route
from iu_listen.model.facts import WorkerName
from iu_listen.model.observation import RouteFree, RouteHeld


class Holds:
    """Says what holds the routes of one worker.

    Args:
        worker: The worker.
        watcher: Who is told.
    """

    def __init__(self, worker: WorkerName, watcher: Watcher) -> None:
        self._worker = worker
        self._watcher = watcher

    def tell(self, route: Route) -> None:
        """Say what holds a route now, if that is news."""
        held, why, code = route.state.held, route.state.why, route.state.route
        if not held and route.no_target:
            held, why = "no_target", route.no_target
        if held != route.told:
            free = RouteFree(self._worker, code, route.told)
            self._watcher.note(RouteHeld(self._worker, code, held, why, route.hint) if held else free)
            route.told = held
