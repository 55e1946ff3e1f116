"""The commands route add, route remove and route sync."""

from __future__ import annotations

import os
from typing import Annotated

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import dead_letters, routes
from iu_listen.admin.handlers import MissingParts, add_parts, missing_parts
from iu_listen.cli import output
from iu_listen.cli.confirm import require_confirmation
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.event_type import Domain
from iu_listen.cli.parameters import NoQuestion, Plan
from iu_listen.cli.removal import remove
from iu_listen.cli.route import print_routes, route
from iu_listen.install import requirements
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.routing import DEFAULT_DOMAIN
from iu_listen.model.settings import Settings
from iu_listen.model.text import counted
from iu_listen.postgres.session import Connection
from iu_listen.targets.handlers import Handler
from iu_listen.targets.python import load


def register(app: App) -> None:
    """Add these commands; importing the module has added them to their group."""


@route.command(name="add")
def route_add(
    code: str,
    /,
    *,
    type: Annotated[str, Parameter(help="Event type of its events; it must be registered.")],
    to: Annotated[
        str,
        Parameter(help="Target: a coroutine, an address (https://, nats://, redis://, kafka://), or sql:FUNCTION."),
    ],
    domain: Domain = DEFAULT_DOMAIN,
    options: ConnectionOptions | None = None,
) -> int:
    """Create a route as a dry run: its events get attempts, and nothing is delivered until route live CODE.

    Change its delivery policy with route policy CODE.
    """

    async def run() -> None:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            await routes.add_route(connection, code, event_type=type, target=to, domain=domain)

    anyio.run(run)
    return print_routes(code, options)


@route.command(name="remove")
def route_remove(
    code: str,
    /,
    *,
    plan: Plan = False,
    yes: NoQuestion = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Remove a route that is not live and has no deliveries. Its attempts and dead letters stay."""
    return remove(
        "route", code, options, plan=plan, yes=yes,
        require=lambda connection: routes.switches(connection, code),
        delete=lambda connection: routes.remove_route(connection, code),
        consequence=lambda connection: _lost_dead_letters(connection, code),
    )  # fmt: skip


async def _lost_dead_letters(connection: Connection, code: str) -> str:
    """The text for the open dead letters of a route, which cannot be delivered after its removal."""
    chosen = dead_letters.DeadLetterFilter(route=code)
    count = (await dead_letters.page(connection, chosen, resolved=False, before=None, limit=1)).total
    if not count:
        return ""
    return (
        f"The route has open dead letters: {counted(count)}. After its removal they cannot be delivered. "
        f"Replay them before: iu-listen dead-letter replay --all --route {code}."
    )


@route.command(name="sync")
def route_sync(
    *,
    app: Annotated[
        str | None, Parameter(help="Location of the handlers: module, or module:attribute. Default: IU_LISTEN_APP.")
    ] = None,
    plan: Plan = False,
    yes: NoQuestion = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Register the event types and create the routes of the handlers of a module: the functions with @on.

    New routes are dry runs, as after route add. Existing ones stay as they are. Routes without a handler are not
    removed.
    """
    app = Settings.load(os.environ, {"app": app}).app
    if not app:
        raise ConfigurationError("no handlers are named", "Name their module: --app MODULE, or IU_LISTEN_APP.")
    handlers = [target for target in load(app) if isinstance(target, Handler)]

    async def run() -> MissingParts:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            parts = await missing_parts(connection, handlers)
            if plan or not (parts.types or parts.routes):
                return parts
            names = ", ".join([*parts.types, *(code for code, _ in parts.routes)])
            require_confirmation(f"Add {names}?", yes=yes)
            await add_parts(connection, parts)
            return parts

    parts = anyio.run(run)
    if options and options.json:
        output.as_json({"types": list(parts.types), "routes": [code for code, _ in parts.routes], "done": not plan})
        return 0
    verb = "would be added" if plan else "added"
    for name in parts.types:
        output.line(f"event type {name} {verb}")
    for code, event_type in parts.routes:
        output.line(f"route {code} for {event_type} {verb}")
    if not (parts.types or parts.routes):
        output.line(f"All event types and routes of {app} exist.")
    return 0
