"""The command group route, without its commands policy and resume: show, change and backtest routes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import routes, times
from iu_listen.cli import output
from iu_listen.cli.confirm import require_confirmation, require_reason
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.parameters import Actor, Exact, NoQuestion, Plan
from iu_listen.install import requirements
from iu_listen.model.errors import Refused
from iu_listen.model.settings import mask
from iu_listen.model.text import MAX_COUNT, MAX_SEARCHED
from iu_listen.postgres import queries

#: The four switches of deliveries, each with the command that opens it.
SWITCHES = {
    "master": "iu-listen gate open master",
    "worker": "iu-listen gate open worker",
    "delivery": "iu-listen gate open delivery",
    "listed": "this command",
}
#: Descriptions of the past decision for an event; a state that is not listed is shown as it is.
PAST_DECISIONS = {
    "no_route": "skipped: no route selected it",
    "route_disabled": "skipped: its routes were disabled",
    "not decided": "no attempt: not read yet, or routed by other routes",
    "dry_run": "dry run of this route",
    "sent": "delivered by this route",
    "failed": "delivery by this route failed",
}

route: App = App(name="route", help="Show, enable and disable routes, and make them live or a dry run.")


def register(app: App) -> None:
    """Add this group."""
    app.command(route)


# -- show and enable ---------------------------------------------------------------------------------------------


@route.command(name="list")
def route_list(*, options: ConnectionOptions | None = None) -> int:
    """List all routes."""
    return print_routes(None, options)


@route.command(name="show")
def route_show(code: str, /, *, options: ConnectionOptions | None = None) -> int:
    """Show one route."""
    return print_routes(code, options)


@route.command(name="enable")
def route_enable(code: str, /, *, options: ConnectionOptions | None = None) -> int:
    """Enable a route. If it is a dry run, it stays one: nothing is delivered."""
    return _set_route(code, options, enabled=True)


@route.command(name="disable")
def route_disable(code: str, /, *, options: ConnectionOptions | None = None) -> int:
    """Disable a route. Its events get attempts with the status `skipped`."""
    return _set_route(code, options, enabled=False)


def print_routes(code: str | None, options: ConnectionOptions | None) -> int:
    """Print one route, or all routes (``code`` is None)."""

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_base(connection)
            found = await queries.rows(connection, "list_routes", code)
            if code and not found:
                raise await routes.no_such_route(connection, code)
        if options and options.json:
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


def _set_route(code: str, options: ConnectionOptions | None, *, enabled: bool) -> int:
    async def run() -> None:
        async with connected(options) as (_, connection):
            await requirements.require_base(connection)
            await requirements.require_primary(connection)
            if not await queries.rows(connection, "set_route", code, enabled):
                raise await routes.no_such_route(connection, code)

    anyio.run(run)
    return print_routes(code, options)


# -- backtest ----------------------------------------------------------------------------------------------------


@route.command(name="backtest")
def route_backtest(
    code: str,
    /,
    *,
    since: Annotated[str, Parameter(help="Beginning of the period: 2h, '3 days', or ISO 8601.")] = "1 day",
    exact: Exact = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Show the decisions that a route in its present form would make about past events if it were enabled.

    Beside them stand the decisions that were made. The command changes nothing and delivers nothing, so use it before
    you enable a new or changed route. At most 10 000 events are judged, among the newest 100 000 of the domain.
    """

    async def run() -> tuple[list[queries.Row], datetime, bool]:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            moment = await times.moment(connection, since)
            if not await queries.rows(connection, "list_routes", code):
                raise await routes.no_such_route(connection, code)
            if exact:
                return await queries.rows(connection, "backtest", code, moment, None, None), moment, True
            judged = await queries.rows(connection, "backtest", code, moment, MAX_SEARCHED, MAX_COUNT)
            whole = sum(row["events"] for row in judged if row["would"] == "take") < MAX_COUNT
            whole = whole and await queries.value(connection, "backtest_reaches", code, moment, MAX_SEARCHED)
            return judged, moment, whole

    found, begin, whole = anyio.run(run)
    if options and options.json:
        output.as_json({"route": code, "since": begin, "events": found, "whole": whole})
        return 0
    output.table(
        ("route would", "decision made", "events", "oldest", "newest", "example"),
        (
            (row["would"], PAST_DECISIONS.get(row["was"], row["was"]), row["events"], row["oldest"],
             row["youngest"], row["examples"][0])
            for row in found
        ),
    )  # fmt: skip
    period = output.text(begin)
    output.note(
        f"Events since {period}; nothing was changed." if found else f"The route selects no event since {period}."
    )
    if not whole:
        output.note("Only the newest events of this period were judged. To judge all of them, use --exact.")
    return 0


# -- live and dry ------------------------------------------------------------------------------------------------


@route.command(name="live")
def route_live(
    code: str,
    /,
    *,
    why: Annotated[str, Parameter(help="Reason; recorded in iu_delivery_change.")],
    actor: Actor = None,
    plan: Plan = False,
    yes: NoQuestion = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Let a route deliver: add it to the list of live routes, enable it, and end its dry run.

    This is the last of four switches; the others are the gates master, worker and delivery. Use the command
    `route backtest` first. Events that were decided before are not delivered; their dead letters are delivered if they
    are replayed. Exit 1, also with --plan, if no event can match the route, or its target cannot receive deliveries.
    """
    require_reason(why)

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            found = await routes.switches(connection, code)
            verdict = await routes.target_verdict(connection, found)
            refused = verdict.problem if verdict.certain else ""
            answer = _shown(found) | {"problem": refused or None, "done": False}
            if plan or refused or not (options and options.json):
                _print_plan(answer, options)
            if refused:
                raise Refused(f"{code} cannot deliver: {refused}", f"Nothing was changed. {verdict.hint}".strip())
            if verdict.problem:
                output.note(f"The target could not be checked completely: {verdict.problem}. {verdict.hint}")
            if plan:
                return 0
            require_confirmation(f"Let {code} deliver?", yes=yes)
            await routes.route_live(connection, code, live=True, why=why, actor=actor)
            after = _shown(await routes.switches(connection, code))
        if options and options.json:
            output.as_json(after | {"problem": None, "done": True})
        else:
            output.line(f"{code} is live.")
            for switch, command in SWITCHES.items():
                if not after[switch]:
                    output.note(f"The {switch} gate is still closed. Open it: {command}")
        return 0

    return anyio.run(run)


@route.command(name="dry")
def route_dry(
    code: str,
    /,
    *,
    why: Annotated[str | None, Parameter(help="Reason; recorded in iu_delivery_change.")] = None,
    actor: Actor = None,
    options: ConnectionOptions | None = None,
) -> int:
    """Make a route a dry run again, at once. Calls that are in progress are completed, and no further one begins."""

    async def run() -> dict[str, Any]:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            await routes.switches(connection, code)
            await routes.route_live(connection, code, live=False, why=why, actor=actor)
            return _shown(await routes.switches(connection, code))

    after = anyio.run(run)
    if options and options.json:
        output.as_json(after | {"problem": None, "done": True})
    else:
        output.line(f"{code} is a dry run.")
    return 0


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    """The columns of a route that are shown, with a password in its address masked."""
    return {name: value for name, value in found.items() if name != "policy"} | {
        "target_ref": mask(found["target_ref"])
    }


def _print_plan(answer: dict[str, Any], options: ConnectionOptions | None) -> None:
    if options and options.json:
        output.as_json(answer)
        return
    output.table(
        ("switch", "state", "opened by"),
        ((switch, output.mark(answer[switch], "open", "closed"), command) for switch, command in SWITCHES.items()),
    )
    delivers = "cannot deliver" if answer["problem"] else "delivers"
    output.line(f"Plan: {answer['route_code']} {delivers} to {answer['target_kind']} {answer['target_ref']}.")
