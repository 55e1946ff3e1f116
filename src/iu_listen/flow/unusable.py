"""Routes without a usable target: what the consumer knows, and what the database was told of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from iu_listen.flow.calls import MOST_ABANDONED
from iu_listen.flow.ports import Deliveries, Targets
from iu_listen.flow.route import Route
from iu_listen.model.errors import ConfigurationError

_WHAT_TO_DO: Final = (
    "Let the coroutine pass on CancelledError and wait for no thread without a timeout; then restart the consumer"
)


def find_target(targets: Targets, route: Route, *, crowded: bool) -> bool:
    """Find the target of a route, or keep why there is none and what to do about it. True: there is one.

    Args:
        targets: Where it is looked for.
        route: The route.
        crowded: As many abandoned calls of it still run as may.
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
    """Tells the database which routes have no usable target, when that changes; every command that looks reads it."""

    def __init__(self) -> None:
        self._session: Deliveries | None = None
        self._told: Mapping[str, tuple[str, str]] = {}

    async def tell(self, session: Deliveries, routes: Iterable[Route]) -> None:
        """Write what changed; in a new session all of it, because another consumer may have written meanwhile."""
        known = {r.state.route: (r.no_target, r.hint) for r in routes if r.no_target}
        if known != self._told or session is not self._session:
            await session.note_unusable(known)
            self._session, self._told = session, known
