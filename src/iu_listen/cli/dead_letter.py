"""dead-letter: list, show and replay what could not be routed or delivered."""

from __future__ import annotations

import json
from typing import Annotated, Any
from uuid import UUID

import anyio
from cyclopts import App, Parameter
from rich.progress import Progress

from iu_listen.cli import show
from iu_listen.cli.change import Plan
from iu_listen.cli.door import Where, between, looking
from iu_listen.model.errors import ConfigurationError
from iu_listen.postgres import census

dead_letter = App(name="dead-letter", help="List, show and replay what could not be routed or delivered.")


def register(app: App) -> None:
    """Add this group."""
    app.command(dead_letter)


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
        letter = {**found[0], "event_snapshot": show.parsed(found[0]["event_snapshot"])}
        if where and where.json:
            show.as_json(letter)
        else:
            for name, value in letter.items():
                words = json.dumps(value, indent=2, ensure_ascii=False) if isinstance(value, dict) else show.text(value)
                show.block(f"{name:16}  {words}")
        return 0

    return anyio.run(run)


@dead_letter.command(name="replay")
def dead_letter_replay(
    ids: Annotated[list[UUID] | None, Parameter(help="Which ones.")] = None,
    /,
    *,
    all: Annotated[bool, Parameter(help="All open ones.", negative=())] = False,
    route: Annotated[str | None, Parameter(help="With --all: only of this route.")] = None,
    failure: Annotated[str | None, Parameter(help="With --all: only with this failure code.")] = None,
    rate: Annotated[
        float | None, Parameter(help="How many a second at most.", validator=between(0.001, 1_000_000))
    ] = None,
    actor: Annotated[str | None, Parameter(help="Who asks; recorded. Default: the database user.")] = None,
    why: Annotated[str | None, Parameter(help="Why; recorded.")] = None,
    plan: Plan = False,
    where: Where | None = None,
) -> int:
    """Decide dead letters again, under their own idempotency keys.

    Those of live routes are queued, and are resolved when they arrive: delivery list, delivery cancel. Each is a
    transaction of its own, so Ctrl-C leaves the rest as it is. Exit 1 when one is neither resolved nor queued.
    """
    if bool(ids) == all:
        raise ConfigurationError("say which dead letters: their ids, or --all", "iu-listen dead-letter list")
    if ids and (route or failure):
        raise ConfigurationError("--route and --failure go with --all", "The ids alone say which dead letters.")

    async def run() -> int:
        async with looking(where) as (_, connection):
            await census.require_package(connection)
            await census.require_primary(connection)
            letters = [
                letter
                for one in ids
                or [
                    d["id"]
                    for d in await census.rows(connection, "list_dead_letters", False, route, 100_000)
                    if failure in (None, d["failure_code"])
                ]
                for letter in await census.rows(connection, "show_dead_letter", one) or [{"id": one, "event_ref": None}]
            ]
            if missing := [str(d["id"]) for d in letters if d["event_ref"] is None]:
                raise ConfigurationError(
                    f"there is no dead letter {missing[0]}", "iu-listen dead-letter list --resolved"
                )
            if plan:
                _print_replay_plan(letters, where)
                return 0
            answers: list[census.Row] = []
            with Progress(console=show.err(), transient=True, disable=not show.err().is_terminal) as progress:
                for letter in progress.track(letters, description="replaying"):
                    # Before all but the first: so many a second, however long each takes.
                    if rate and answers:
                        await anyio.sleep(1 / rate)
                    answers.append(await census.replay(connection, letter["id"], actor, why))
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
        return int(any(not a["resolved"] and a["status"] not in ("queued", "already_queued") for a in answers))

    return anyio.run(run)


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
