"""Paused routes: reports when a pause begins, when its reason changes, and when it ends."""

from __future__ import annotations

from iu_listen.flow.ports import Observer
from iu_listen.flow.route import Route
from iu_listen.model.observation import RoutePaused, RouteResumed
from iu_listen.model.routing import WorkerName


class PauseReporter:
    """Reports why routes of one worker are paused.

    Args:
        worker: The worker.
        observer: Observer that receives the observations.
    """

    def __init__(self, worker: WorkerName, observer: Observer) -> None:
        self._worker = worker
        self._observer = observer

    def tell(self, route: Route) -> None:
        """Report the reason why a route is paused, or that it is free, if that has changed since the last report."""
        held, why, code = route.state.held, route.state.why, route.state.route
        if not held and route.no_target:
            held, why = "no_target", route.no_target
        if held != route.told:
            free = RouteResumed(self._worker, code, route.told)
            self._observer.observe(RoutePaused(self._worker, code, held, why, route.hint) if held else free)
            route.told = held
