"""Makes a route live or a dry run, and finds the reason why it cannot deliver."""

from __future__ import annotations

import json

from iu_listen.model.errors import ConfigurationError
from iu_listen.postgres.queries import Row, rows, value
from iu_listen.postgres.session import Connection
from iu_listen.targets.check import TargetVerdict, check


async def route_live(connection: Connection, code: str, *, live: bool, why: str | None, actor: str | None) -> None:
    """Make a route live, or make it a dry run again; ``actor`` and ``why`` are recorded.

    Raises:
        Refused: Its target does not support deliveries, or the role lacks the privilege.
    """
    await value(connection, "route_live", code, live, why, actor)


async def switches(connection: Connection, code: str) -> Row:
    """A route with its target and its policy, and which of the four switches are open for it.

    Raises:
        ConfigurationError: There is no such route.
    """
    found = await rows(connection, "route_switches", code)
    if not found:
        raise await no_such_route(connection, code)
    return found[0]


async def target_verdict(connection: Connection, route: Row) -> TargetVerdict:
    """The problem that prevents deliveries of a route: first checked by the database, then by this process.

    Args:
        connection: The session.
        route: The answer of switches().
    """
    for row in await rows(connection, "delivery/problems", route["route_code"]):
        return TargetVerdict(row["problem"], row["hint"] or "")
    return check(route["target_kind"], route["target_ref"], json.loads(route["policy"]).get("target") or {})


async def no_such_route(connection: Connection, code: str) -> ConfigurationError:
    """The error for a code that no route has; it lists the codes of all routes."""
    known = ", ".join(r["route_code"] for r in await rows(connection, "list_routes", None))
    return ConfigurationError(f"there is no route {code}", f"Existing routes: {known or 'none'}.")
