"""Commands with a reading and a changing half: gate, route, dead-letter."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal
from uuid import UUID

import anyio
from cyclopts import App, Parameter

from iu_listen.cli import show
from iu_listen.cli.door import Where, between, looking
from iu_listen.model.errors import ConfigurationError
from iu_listen.postgres import census
from iu_listen.postgres.session import Connection

Plan = Annotated[bool, Parameter(help="Show what would happen, and change nothing.", negative=())]
GateName = Literal["master", "worker", "delivery"]

gate = App(name="gate", help="Show, open and close the gates. A gate that is missing is closed.")
route = App(name="route", help="List, show, enable and disable routes, and let them deliver.")
dead_letter = App(name="dead-letter", help="List, show and replay what could not be routed.")


def register(app: App) -> None:
    """Add these groups."""
    for group in (gate, route, dead_letter):
        app.command(group)


# -- gate --------------------------------------------------------------------------------------------------------


@gate.command(name="show")
def gate_show(*, where: Where | None = None) -> int:
    """Show every gate and since when it has its value."""

    async def run() -> int:
        async with looking(where) as (_, connection):
            await census.require_substrate(connection)
            _print_gates(await census.gates(connection), where)
        return 0

    return anyio.run(run)


@gate.command(name="open")
def gate_open(name: GateName, /, *, where: Where | None = None) -> int:
    """Open a gate. A waiting consumer starts within a second."""
    return _set_gate(name, where, opened=True)


@gate.command(name="close")
def gate_close(name: GateName, /, *, where: Where | None = None) -> int:
    """Close a gate. The running batch ends, the next one does not begin."""
    return _set_gate(name, where, opened=False)


def _set_gate(name: GateName, where: Where | None, *, opened: bool) -> int:
    async def run() -> int:
        async with looking(where) as (_, connection):
            await census.require_substrate(connection)
            await census.require_primary(connection)
            await census.set_gate(connection, name, opened=opened)
            _print_gates(await census.gates(connection), where)
        return 0

    return anyio.run(run)


def _print_gates(found: list[dict[str, Any]], where: Where | None) -> None:
    if where and where.json:
        show.as_json(found)
    else:
        show.table(
            ("gate", "", "since", "key"),
            ((g["gate"], show.mark(g["open"], "open", "closed"), show.ago(g["since"]), g["key"]) for g in found),
        )


# -- route -------------------------------------------------------------------------------------------------------

#: What was done with an event so far, in words; other states stand for themselves.
BACKTESTED = {
    "no_route": "skipped: no route took it",
    "route_disabled": "skipped: its routes were disabled",
    "not decided": "nobody has looked at it yet, or it was left to others",
    "dry_run": "taken by it: dry run",
    "sent": "taken by it, and delivered",
    "failed": "taken by it, and failed",
}


@route.command(name="list")
def route_list(*, where: Where | None = None) -> int:
    """List all routes."""
    return _print_routes(None, where)


@route.command(name="show")
def route_show(code: str, /, *, where: Where | None = None) -> int:
    """Show one route."""
    return _print_routes(code, where)


@route.command(name="enable")
def route_enable(code: str, /, *, where: Where | None = None) -> int:
    """Enable a route. It stays a dry run: nothing is delivered."""
    return _set_route(code, where, enabled=True)


@route.command(name="disable")
def route_disable(code: str, /, *, where: Where | None = None) -> int:
    """Disable a route. Its events are audited as skipped."""
    return _set_route(code, where, enabled=False)


@route.command(name="backtest")
def route_backtest(
    code: str,
    /,
    *,
    since: Annotated[str, Parameter(help="How far back: 2h, '3 days', or ISO 8601.")] = "1 day",
    where: Where | None = None,
) -> int:
    """Show what a route, as it stands now and were it enabled, would do with past events, beside what was done.

    Nothing is written and nothing is delivered: enable a new or changed route when you have seen it.
    """

    async def run() -> tuple[list[census.Row], str]:
        async with looking(where) as (_, connection):
            await census.require_package(connection)
            moment = await census.moment(connection, since)
            if not await census.rows(connection, "list_routes", code):
                raise await no_such_route(connection, code)
            return await census.rows(connection, "backtest", code, moment), f"{moment:%Y-%m-%d %H:%M:%S}Z"

    found, begin = anyio.run(run)
    if where and where.json:
        show.as_json({"route": code, "since": begin, "events": found})
        return 0
    show.table(
        ("it would", "done so far", "events", "oldest", "youngest", "for example"),
        (
            (row["would"], BACKTESTED.get(row["was"], row["was"]), row["events"], row["oldest"],
             row["youngest"], row["examples"][0])
            for row in found
        ),
    )  # fmt: skip
    show.note(f"Events since {begin}; nothing was changed." if found else f"No event since {begin} concerns it.")
    return 0


def _print_routes(code: str | None, where: Where | None) -> int:
    async def run() -> int:
        async with looking(where) as (_, connection):
            await census.require_substrate(connection)
            found = await census.rows(connection, "list_routes", code)
            if code and not found:
                raise await no_such_route(connection, code)
        if where and where.json:
            show.as_json(found[0] if code else found)
        else:
            show.table(
                ("route", "events", "target", "enabled", "dry run"),
                (
                    (r["route_code"], f"{r['event_domain']}.{r['event_type']} on {r['event_stream']}",
                     f"{r['target_kind']} {r['target_ref']}", r["enabled"], r["dry_run"])
                    for r in found
                ),
            )  # fmt: skip
        return 0

    return anyio.run(run)


def _set_route(code: str, where: Where | None, *, enabled: bool) -> int:
    async def run() -> None:
        async with looking(where) as (_, connection):
            await census.require_substrate(connection)
            await census.require_primary(connection)
            if not await census.rows(connection, "set_route", code, enabled):
                raise await no_such_route(connection, code)

    anyio.run(run)
    return _print_routes(code, where)


async def no_such_route(connection: Connection, code: str) -> ConfigurationError:
    """The error for a code that nobody has registered, with those that there are."""
    known = ", ".join(r["route_code"] for r in await census.rows(connection, "list_routes", None))
    return ConfigurationError(f"there is no route {code}", f"Routes: {known or 'none'}.")


# -- dead-letter -------------------------------------------------------------------------------------------------


@dead_letter.command(name="list")
def dead_letter_list(
    *,
    resolved: Annotated[bool, Parameter(help="Resolved ones too.", negative=())] = False,
    route: Annotated[str | None, Parameter(help="Only of this route.")] = None,
    limit: Annotated[int, Parameter(help="How many at most.", validator=between(1, 1_000_000))] = 50,
    where: Where | None = None,
) -> int:
    """List dead letters, the oldest first."""

    async def run() -> int:
        async with looking(where) as (_, connection):
            await census.require_package(connection)
            found = await census.rows(connection, "list_dead_letters", resolved, route, limit)
        if where and where.json:
            show.as_json(found)
        else:
            _print_dead_letters(found)
        return 0

    return anyio.run(run)


def _print_dead_letters(found: list[dict[str, Any]]) -> None:
    show.table(
        ("dead letter", "event", "route", "age", "failure", "replays", "resolved"),
        (
            (d["id"], d["event_ref"], d["route_code"], show.ago(d["created_at"]),
             d["failure_detail"] or d["failure_code"], d["replay_count"], d["resolution"])
            for d in found
        ),
    )  # fmt: skip


@dead_letter.command(name="show")
def dead_letter_show(id: UUID, /, *, where: Where | None = None) -> int:
    """Show one dead letter, the whole event with it."""

    async def run() -> int:
        async with looking(where) as (_, connection):
            await census.require_package(connection)
            found = await census.rows(connection, "show_dead_letter", id)
        if not found:
            raise ConfigurationError(f"there is no dead letter {id}", "iu-listen dead-letter list --resolved")
        letter = {**found[0], "event_snapshot": json.loads(found[0]["event_snapshot"])}
        if where and where.json:
            show.as_json(letter)
        else:
            for name, value in letter.items():
                words = (
                    json.dumps(value, indent=2, ensure_ascii=False) if name == "event_snapshot" else show.text(value)
                )
                show.line(f"{name:16}  {words}")
        return 0

    return anyio.run(run)


@dead_letter.command(name="replay")
def dead_letter_replay(
    ids: Annotated[list[UUID] | None, Parameter(help="Which ones.")] = None,
    /,
    *,
    all: Annotated[bool, Parameter(help="All open ones.", negative=())] = False,
    route: Annotated[str | None, Parameter(help="With --all: only of this route.")] = None,
    actor: Annotated[str | None, Parameter(help="Who asks; recorded. Default: the database user.")] = None,
    plan: Plan = False,
    where: Where | None = None,
) -> int:
    """Decide dead letters again, under their own idempotency keys. Exit 1 when one is still open afterwards."""
    if bool(ids) == all:
        raise ConfigurationError("say which dead letters: their ids, or --all", "iu-listen dead-letter list")
    if ids and route:
        raise ConfigurationError("--route goes with --all", "The ids alone say which dead letters.")

    async def run() -> int:
        async with looking(where) as (_, connection):
            await census.require_package(connection)
            await census.require_primary(connection)
            letters = [
                letter
                for one in ids
                or [d["id"] for d in await census.rows(connection, "list_dead_letters", False, route, 100_000)]
                for letter in await census.rows(connection, "show_dead_letter", one) or [{"id": one, "event_ref": None}]
            ]
            if missing := [str(d["id"]) for d in letters if d["event_ref"] is None]:
                raise ConfigurationError(
                    f"there is no dead letter {missing[0]}", "iu-listen dead-letter list --resolved"
                )
            if plan:
                _print_replay_plan(letters, where)
                return 0
            answers = [await census.replay(connection, d["id"], actor) for d in letters]
        if where and where.json:
            show.as_json(answers)
        else:
            show.table(
                ("dead letter", "answer", "decision", "attempt", "resolved"),
                (
                    (a["dead_letter_id"], a["status"], a.get("decision"), a.get("attempt_no"), a["resolved"])
                    for a in answers
                ),
            )
        return 0 if all_resolved(answers) else 1

    return anyio.run(run)


def all_resolved(answers: list[dict[str, Any]]) -> bool:
    """Whether every replay ended its dead letter."""
    return not [a for a in answers if not a["resolved"]]


def _would(letter: dict[str, Any]) -> str:
    """What a replay would decide now."""
    if letter["resolved_at"]:
        return "nothing: it is resolved"
    if letter["route_enabled"] is None:
        return "skipped: there is no route"
    if not letter["route_enabled"]:
        return "skipped: the route is disabled; it would stay open"
    return "dry_run" if letter["route_dry_run"] else "deliver"


def _print_replay_plan(letters: list[dict[str, Any]], where: Where | None) -> None:
    rows = [
        {"id": d["id"], "event": d["event_ref"], "route": d["route_code"], "created_at": d["created_at"],
         "attempt_no": d["attempt_no"] + 1, "newer_of_subject": d["newer_of_subject"], "would": _would(d)}
        for d in letters
    ]  # fmt: skip
    if where and where.json:
        show.as_json(rows)
        return
    show.table(
        ("dead letter", "route", "age", "attempt", "newer events of its subject", "would be"),
        (
            (r["id"], r["route"], show.ago(r["created_at"]), r["attempt_no"], r["newer_of_subject"], r["would"])
            for r in rows
        ),
    )
    show.note(f"Plan: {len(rows)} dead letter(s); nothing was changed.")
