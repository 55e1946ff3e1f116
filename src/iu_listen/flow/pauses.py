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

    def report(self, route: Route) -> None:
        """Report the reason why a route is paused, or that it is resumed, if that has changed since the last report."""
        paused_by, why = route.state.paused_by, route.state.failure
        if not paused_by and route.no_target:
            paused_by, why = "no_target", route.no_target
        if paused_by == route.last_reported:
            return
        if paused_by:
            # The hint of the route is about its target.
            hint = route.hint if paused_by == "no_target" else ""
            self._observer.observe(RoutePaused(self._worker, route.code, paused_by, why, hint))
        else:
            self._observer.observe(RouteResumed(self._worker, route.code, route.last_reported))
        route.last_reported = paused_by
