"""The command group event-type: list, add and remove event types, and show the events that were refused."""

from __future__ import annotations

from typing import Annotated

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import event_types
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.parameters import NoQuestion, Plan
from iu_listen.cli.removal import remove
from iu_listen.install import requirements
from iu_listen.model.routing import DEFAULT_DOMAIN

#: The columns of an event type that the table shows.
COLUMNS = ("event_type", "event_domain", "event_stream", "delivery_lane", "active", "routes")

Domain = Annotated[str, Parameter(help="Domain of the events. The default worker reads iu.")]

event_type: App = App(
    name="event-type", help="List, add and remove event types. Only events of registered types can be written."
)


def register(app: App) -> None:
    """Add this group."""
    app.command(event_type)


@event_type.command(name="list")
def type_list(*, options: ConnectionOptions | None = None) -> int:
    """List all event types, with the number of their routes."""
    return _print_types(options)


@event_type.command(name="add")
def type_add(
    name: str,
    /,
    *,
    stream: Annotated[str, Parameter(help="Stream of its events.")] = "event",
    lane: Annotated[str, Parameter(help="Lane of its events.")] = "immediate",
    severity: Annotated[str, Parameter(help="Severity of its events.")] = "info",
    domain: Domain = DEFAULT_DOMAIN,
    options: ConnectionOptions | None = None,
) -> int:
    """Register an event type, for example order_placed. A type that is registered already stays as it is.

    On the base of IU Core only its streams are possible, for example update.
    """

    async def run() -> None:
        async with connected(options) as (_, connection):
            await requirements.require_base(connection)
            await requirements.require_primary(connection)
            await event_types.add_type(connection, name, domain=domain, stream=stream, lane=lane, severity=severity)

    anyio.run(run)
    return _print_types(options, name, domain)


@event_type.command(name="remove")
def type_remove(
    name: str,
    /,
    *,
    domain: Domain = DEFAULT_DOMAIN,
    plan: Plan = False,
    yes: NoQuestion = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Remove an event type that has no routes: no further event of it can be written. Its events stay."""
    return remove(
        "event type", name, options, plan=plan, yes=yes,
        require=lambda connection: event_types.require_type(connection, name, domain=domain),
        delete=lambda connection: event_types.remove_type(connection, name, domain=domain),
    )  # fmt: skip


@event_type.command(name="refused")
def type_refused(
    *,
    reset: Annotated[
        bool, Parameter(help="Let the number begin at 0: the events were dealt with.", negative=())
    ] = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Show how many events were refused because their type is not registered. `doctor` warns of them until a reset."""

    async def run() -> int | None:
        async with connected(options) as (_, connection):
            await requirements.require_base(connection)
            count = await event_types.refused(connection)
            if reset:
                await requirements.require_primary(connection)
                await event_types.reset_refused(connection)
            return count

    count = anyio.run(run)
    if options and options.json:
        output.as_json({"refused": count, "reset": reset})
        return 0
    shown = "not counted by the emitter of this base" if count is None else output.text(count)
    output.line(f"Refused events: {shown}.{' The number is 0 now.' if reset else ''}")
    return 0


def _print_types(options: ConnectionOptions | None, name: str | None = None, domain: str | None = None) -> int:
    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_base(connection)
            found = await event_types.list_types(connection, domain)
        shown = [t for t in found if name in (None, t["event_type"])]
        if options and options.json:
            output.as_json(shown[0] if name else shown)
        else:
            output.table(
                ("type", "domain", "stream", "lane", "active", "routes"),
                (tuple(t[column] for column in COLUMNS) for t in shown),
            )
        return 0

    return anyio.run(run)
