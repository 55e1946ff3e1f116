"""The command groups gate and route: they show gates and routes, and change them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import gates, times
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, looking
from iu_listen.install import requirements
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.settings import mask
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection

Plan = Annotated[bool, Parameter(help="Show what would happen, and change nothing.", negative=())]
GateName = Literal["master", "worker", "delivery"]

gate = App(name="gate", help="Show, open and close the gates. A gate that is missing is closed.")
route = App(name="route", help="List, show, enable and disable routes, and let them deliver.")


def register(app: App) -> None:
    """Add these groups."""
    for group in (gate, route):
        app.command(group)


# -- gate --------------------------------------------------------------------------------------------------------


@gate.command(name="show")
def gate_show(*, where: ConnectionOptions | None = None) -> int:
    """Show every gate and since when it has its value."""

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_substrate(connection)
            _print_gates(await gates.all_gates(connection), where)
        return 0

    return anyio.run(run)


@gate.command(name="open")
def gate_open(name: GateName, /, *, where: ConnectionOptions | None = None) -> int:
    """Open a gate. A waiting consumer starts within a second."""
    return _set_gate(name, where, opened=True)


@gate.command(name="close")
def gate_close(name: GateName, /, *, where: ConnectionOptions | None = None) -> int:
    """Close a gate. The running batch ends, the next one does not begin."""
    return _set_gate(name, where, opened=False)


def _set_gate(name: GateName, where: ConnectionOptions | None, *, opened: bool) -> int:
    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_substrate(connection)
            await requirements.require_primary(connection)
            await gates.set_gate(connection, name, opened=opened)
            _print_gates(await gates.all_gates(connection), where)
        return 0

    return anyio.run(run)


def _print_gates(found: list[dict[str, Any]], where: ConnectionOptions | None) -> None:
    if where and where.json:
        output.as_json(found)
    else:
        output.table(
            ("gate", "", "since", "key"),
            ((g["gate"], output.mark(g["open"], "open", "closed"), output.ago(g["since"]), g["key"]) for g in found),
        )


# -- route -------------------------------------------------------------------------------------------------------

#: Descriptions of the past decision for an event; a state that is not listed is shown as it is.
BACKTESTED = {
    "no_route": "skipped: no route took it",
    "route_disabled": "skipped: its routes were disabled",
    "not decided": "nobody has looked at it yet, or it was left to others",
    "dry_run": "taken by it: dry run",
    "sent": "taken by it, and delivered",
    "failed": "taken by it, and failed",
}


@route.command(name="list")
def route_list(*, where: ConnectionOptions | None = None) -> int:
    """List all routes."""
    return _print_routes(None, where)


@route.command(name="show")
def route_show(code: str, /, *, where: ConnectionOptions | None = None) -> int:
    """Show one route."""
    return _print_routes(code, where)


@route.command(name="enable")
def route_enable(code: str, /, *, where: ConnectionOptions | None = None) -> int:
    """Enable a route. It stays a dry run: nothing is delivered."""
    return _set_route(code, where, enabled=True)


@route.command(name="disable")
def route_disable(code: str, /, *, where: ConnectionOptions | None = None) -> int:
    """Disable a route. Its events are audited as skipped."""
    return _set_route(code, where, enabled=False)


@route.command(name="backtest")
def route_backtest(
    code: str,
    /,
    *,
    since: Annotated[str, Parameter(help="How far back: 2h, '3 days', or ISO 8601.")] = "1 day",
    where: ConnectionOptions | None = None,
) -> int:
    """Show what a route, as it stands now and were it enabled, would do with past events, beside what was done.

    Nothing is written and nothing is delivered: enable a new or changed route when you have seen it.
    """

    async def run() -> tuple[list[queries.Row], datetime]:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            moment = await times.moment(connection, since)
            if not await queries.rows(connection, "list_routes", code):
                raise await no_such_route(connection, code)
            return await queries.rows(connection, "backtest", code, moment), moment

    found, begin = anyio.run(run)
    if where and where.json:
        output.as_json({"route": code, "since": begin, "events": found})
        return 0
    output.table(
        ("it would", "done so far", "events", "oldest", "youngest", "for example"),
        (
            (row["would"], BACKTESTED.get(row["was"], row["was"]), row["events"], row["oldest"],
             row["youngest"], row["examples"][0])
            for row in found
        ),
    )  # fmt: skip
    since_when = output.text(begin)
    output.note(
        f"Events since {since_when}; nothing was changed." if found else f"No event since {since_when} concerns it."
    )
    return 0


def _print_routes(code: str | None, where: ConnectionOptions | None) -> int:
    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_substrate(connection)
            found = await queries.rows(connection, "list_routes", code)
            if code and not found:
                raise await no_such_route(connection, code)
        if where and where.json:
            output.as_json(found[0] if code else found)
        else:
            output.table(
                ("route", "events", "target", "enabled", "dry run"),
                (
                    (r["route_code"], f"{r['event_domain']}.{r['event_type']} on {r['event_stream']}",
                     f"{r['target_kind']} {mask(r['target_ref'])}", r["enabled"], r["dry_run"])
                    for r in found
                ),
            )  # fmt: skip
        return 0

    return anyio.run(run)


def _set_route(code: str, where: ConnectionOptions | None, *, enabled: bool) -> int:
    async def run() -> None:
        async with looking(where) as (_, connection):
            await requirements.require_substrate(connection)
            await requirements.require_primary(connection)
            if not await queries.rows(connection, "set_route", code, enabled):
                raise await no_such_route(connection, code)

    anyio.run(run)
    return _print_routes(code, where)


async def no_such_route(connection: Connection, code: str) -> ConfigurationError:
    """The error for a code that no route has; it lists the codes of all routes."""
    known = ", ".join(r["route_code"] for r in await queries.rows(connection, "list_routes", None))
    return ConfigurationError(f"there is no route {code}", f"Routes: {known or 'none'}.")
