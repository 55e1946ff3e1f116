"""The targets of routes: finds them, and writes the routes without a usable target to the database."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from iu_listen.flow.call_executor import MAX_ABANDONED, CallExecutor
from iu_listen.flow.ports import DeliveryStore, GroupTarget, TargetProvider
from iu_listen.flow.route import Route
from iu_listen.model.errors import ConfigurationError

#: Pause before a target that was not found is looked up again, in seconds.
TARGET_RETRY_PAUSE: Final = 10.0
_ABANDONED_HINT: Final = (
    "Let the coroutine pass on CancelledError and wait for no thread without a timeout; then restart the consumer"
)


class RouteTargets:
    """Keeps the target of each route up to date.

    Args:
        targets: The registry of targets.
        calls: The calls of the consumer. A target with too many abandoned calls is not usable.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, targets: TargetProvider, calls: CallExecutor, clock: Callable[[], float]) -> None:
        self._targets = targets
        self._calls = calls
        self._clock = clock
        self._session: DeliveryStore | None = None
        self._last_written: Mapping[str, tuple[str, str]] = {}

    def invalidate(self, route: Route, changed: bool) -> bool:
        """Remove the target of a route if it may have changed, or has too many abandoned calls.

        Args:
            route: The route.
            changed: Whether the target may have changed.

        Returns:
            Whether the target was removed.
        """
        if not changed and not self._calls.too_many_abandoned(route):
            return False
        route.target = None
        route.looked_up_at = -math.inf
        return True

    def find(self, route: Route) -> bool:
        """Find the target of a route that has none, at most every TARGET_RETRY_PAUSE seconds.

        If there is no usable target, the reason and a hint are stored in the route.

        Returns:
            Whether a target was found now.
        """
        now = self._clock()
        if route.target or now - route.looked_up_at < TARGET_RETRY_PAUSE:
            return False
        if self._calls.too_many_abandoned(route):
            # ``looked_up_at`` is not set, so that the route is checked again after every take query.
            route.no_target = (
                f"{MAX_ABANDONED} abandoned calls of {route.called} still run, because they ignore their cancellation"
            )
            route.hint = _ABANDONED_HINT
            return False
        route.looked_up_at = now
        try:
            state = route.state
            route.target = found = self._targets.find(state.kind, state.reference, state.policy["target"])
        except ConfigurationError as error:
            route.no_target, route.hint = error.message, error.hint
            return False
        route.group, route.group_wait = (found.group, found.group_wait) if isinstance(found, GroupTarget) else (1, 0.0)
        route.no_target = route.hint = ""
        return True

    async def write_unusable(self, session: DeliveryStore, routes: Iterable[Route]) -> None:
        """Write the routes without a usable target to the database, for the commands.

        They are written if they changed, and in each new session: another consumer may have written meanwhile.
        """
        unusable = {route.code: (route.no_target, route.hint) for route in routes if route.no_target}
        if unusable != self._last_written or session is not self._session:
            await session.note_unusable(unusable)
            self._session, self._last_written = session, unusable
