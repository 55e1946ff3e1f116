"""Makes a route live or a dry run, and finds the reason why it cannot deliver."""

from __future__ import annotations

import json

from iu_listen.admin.event_types import require_name, require_type
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.routing import DEFAULT_DOMAIN
from iu_listen.model.text import counted_up_to, nearest
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


def pending_phrase(route: Row) -> str:
    """The number of the deliveries of a route, a row of delivery/routes, as text."""
    return counted_up_to(route["pending"], more=route["more"])


async def target_verdict(connection: Connection, route: Row) -> TargetVerdict:
    """The problem that prevents deliveries of a route: first checked by the database, then by this process.

    Args:
        connection: The session.
        route: The answer of switches().
    """
    for row in await rows(connection, "delivery/problems", route["route_code"]):
        return TargetVerdict(row["problem"], row["hint"] or "")
    return check(route["target_kind"], route["target_ref"], json.loads(route["policy"]).get("target") or {})


def parse_target(text: str) -> tuple[str, str]:
    """The target kind and the target of a route, from the short form of a command line.

    Args:
        text: Name of a coroutine; an address with a scheme, as ``https://host/path``; or ``sql:schema.function``.
    """
    if "://" in text:
        return "external_endpoint", text
    if text.startswith("sql:"):
        return "sql_function", text.removeprefix("sql:")
    return "workflow", text.removeprefix("coroutine:")


async def add_route(
    connection: Connection, code: str, *, event_type: str, target: str, domain: str = DEFAULT_DOMAIN
) -> None:
    """Create a route as an enabled dry run.

    Args:
        connection: A session.
        code: Code of the route.
        event_type: Type of the events; it must be registered.
        target: The target, as parse_target() reads it.
        domain: Domain of the events.

    Raises:
        ConfigurationError: The type is not registered, or the code is not a name.
        Refused: There is a route with this code.
    """
    require_name("the route", code)
    await require_type(connection, event_type, domain=domain)
    if await rows(connection, "list_routes", code):
        raise Refused(f"there is a route {code} already", "iu-listen route show has its settings; remove it first.")
    await rows(connection, "route/add", code, domain, event_type, *parse_target(target))


async def remove_route(connection: Connection, code: str) -> None:
    """Remove a route that is not live and has no deliveries.

    Raises:
        ConfigurationError: There is no such route.
        Refused: It is live, or deliveries wait.
    """
    await switches(connection, code)
    if not await rows(connection, "route/remove", code):
        raise Refused(
            f"route {code} is live, or has deliveries that wait",
            f"First: iu-listen route dry {code}, and iu-listen delivery cancel {code}",
        )


async def no_such_route(connection: Connection, code: str) -> ConfigurationError:
    """The error for a code that no route has; it lists the codes of all routes, the most similar ones first."""
    known = nearest(code, (r["route_code"] for r in await rows(connection, "list_routes", None)))
    return ConfigurationError(f"there is no route {code}", f"Existing routes: {', '.join(known) or 'none'}.")
