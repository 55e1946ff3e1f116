"""Routes without a usable target: finds targets, and writes the routes that have none to the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from iu_listen.flow.call_executor import MOST_ABANDONED
from iu_listen.flow.ports import DeliveryStore, TargetProvider
from iu_listen.flow.route import Route
from iu_listen.model.errors import ConfigurationError

_WHAT_TO_DO: Final = (
    "Let the coroutine pass on CancelledError and wait for no thread without a timeout; then restart the consumer"
)


def find_target(targets: TargetProvider, route: Route, *, crowded: bool) -> bool:
    """Find the target of a route and store it in the route, or store the reason and a hint if there is none.

    Args:
        targets: The registry of targets.
        route: The route.
        crowded: True: MOST_ABANDONED abandoned calls of its target still run, so the target is not usable.

    Returns:
        Whether the route has a usable target.
    """
    if crowded:
        route.no_target = f"{MOST_ABANDONED} calls of {route.called} still run, because they ignore their cancellation"
        route.hint = _WHAT_TO_DO
        return False
    try:
        state = route.state
        route.target = targets.find(state.kind, state.reference, state.policy["target"])
    except ConfigurationError as error:
        route.no_target, route.hint = error.message, error.hint
        return False
    route.no_target = route.hint = ""
    return True


class Unusable:
    """Writes the routes without a usable target to the database when they change. The commands show them."""

    def __init__(self) -> None:
        self._session: DeliveryStore | None = None
        self._told: Mapping[str, tuple[str, str]] = {}

    async def tell(self, session: DeliveryStore, routes: Iterable[Route]) -> None:
        """Write these routes if they changed, or if the session is new: another consumer may have written meanwhile."""
        known = {r.state.route: (r.no_target, r.hint) for r in routes if r.no_target}
        if known != self._told or session is not self._session:
            await session.note_unusable(known)
            self._session, self._told = session, known
