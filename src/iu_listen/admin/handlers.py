"""Event types and routes of handlers: those that functions with @on name in code."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from iu_listen.admin import event_types, routes
from iu_listen.model.errors import Refused
from iu_listen.model.routing import DEFAULT_DOMAIN
from iu_listen.postgres.queries import rows
from iu_listen.postgres.session import Connection
from iu_listen.targets.handlers import Handler
from iu_listen.targets.python import PythonTarget


@dataclass(frozen=True, slots=True)
class MissingParts:
    """The parts of the handlers of a module that a database does not have.

    Attributes:
        types: Event types that are not registered.
        routes: Routes that do not exist, as pairs of code and event type.
    """

    types: tuple[str, ...]
    routes: tuple[tuple[str, str], ...]


async def missing_parts(connection: Connection, handlers: Iterable[Handler]) -> MissingParts:
    """The event types and routes of handlers that the database does not have.

    Raises:
        Refused: A route has the code of a handler, and another event type or target.
    """
    handlers = list(handlers)
    known = {t["event_type"] for t in await event_types.list_types(connection, DEFAULT_DOMAIN)}
    existing = {r["route_code"]: r for r in await rows(connection, "list_routes", None)}
    for handler in handlers:
        route = existing.get(handler.name)
        if route and (route["event_type"], route["target_ref"]) != (handler.event_type, handler.name):
            raise Refused(
                f"route {handler.name} delivers {route['event_type']} to {route['target_ref']}, not to this handler",
                "Give the handler another name: @on(..., name='...').",
            )
    return MissingParts(
        tuple(dict.fromkeys(h.event_type for h in handlers if h.event_type not in known)),
        tuple((h.name, h.event_type) for h in handlers if h.name not in existing),
    )


async def add_parts(connection: Connection, parts: MissingParts) -> None:
    """Register the missing event types, and create the missing routes as dry runs."""
    for name in parts.types:
        await event_types.add_type(connection, name)
    for code, event_type in parts.routes:
        await routes.add_route(connection, code, event_type=event_type, target=code)


async def without_route(connection: Connection, functions: Iterable[PythonTarget]) -> list[str]:
    """The names of the handlers to which no route delivers. Without a handler nothing is read."""
    names = [f.name for f in functions if isinstance(f, Handler)]
    reached = {r["target_ref"] for r in await rows(connection, "list_routes", None)} if names else set()
    return [name for name in names if name not in reached]


async def undeclared_routes(connection: Connection, names: Collection[str]) -> list[str]:
    """The codes of the live routes to coroutines and handlers whose name is none of these."""
    return [
        r["route_code"] for r in await rows(connection, "list_routes", None)
        if r["target_kind"] == "workflow" and r["enabled"] and not r["dry_run"] and r["target_ref"] not in names
    ]  # fmt: skip
