"""The commands dead-letter replay and dead-letter resolve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import dead_letters, gates
from iu_listen.admin.ids import complete_id
from iu_listen.cli import output
from iu_listen.cli.confirm import require_confirmation, require_reason
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.dead_letter import FilterOptions, dead_letter
from iu_listen.cli.parameters import ID, Actor, Plan, in_range
from iu_listen.cli.progress import progress_bar
from iu_listen.install import requirements
from iu_listen.model.errors import ConfigurationError
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection

#: The state of the route of a dead letter, by the decision with which a replay would resolve it without a delivery.
UNDELIVERED = {"dry_run": "is a dry run", "no_route": "does not exist"}
#: The results of a replay after which this command has nothing left to do for a dead letter.
FINAL_RESULTS = frozenset({"replayed", "queued", "already_queued", "already_resolved"})


def register(app: App) -> None:  # noqa: ARG001 the group dead-letter, which is registered, has these commands
    """Add these commands."""
    dead_letter.command(replay, name="replay")
    dead_letter.command(resolve, name="resolve")


# -- replay ------------------------------------------------------------------------------------------------------


def replay(
    ids: Annotated[list[str] | None, ID, Parameter(help="Ids of dead letters.")] = None,
    /,
    *,
    all: Annotated[
        bool, Parameter(help="All open dead letters that match the other options, instead of ids.", negative=())
    ] = False,
    filter_options: FilterOptions | None = None,
    rate: Annotated[
        float | None, Parameter(help="Rate limit, in replays per second.", validator=in_range(0.001, 1_000_000))
    ] = None,
    actor: Actor = None,
    why: Annotated[str | None, Parameter(help="Reason; recorded beside the actor.")] = None,
    without_delivery: Annotated[
        bool,
        Parameter(
            help="Also dead letters whose route is a dry run or was removed: they are resolved, not delivered.",
            negative=(),
        ),
    ] = False,
    plan: Plan = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Replay dead letters, under their own idempotency keys.

    Dead letters of live routes are queued, and are resolved when the delivery succeeds; see the commands
    `delivery list` and `delivery cancel`. Dead letters of routes that are disabled, a dry run or removed stay open.
    With --all the command works in parts, one transaction each, so that after Ctrl-C the rest is unchanged. Exit 1
    if a dead letter is neither resolved nor queued.
    """
    _one_or_all(ids, filter_options, all=all)

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            if ids:
                return await _replay_ids(
                    connection, ids, actor, why, rate, options, plan=plan, without_delivery=without_delivery
                )
            chosen = await (filter_options or FilterOptions()).filter(connection)
            planned = await dead_letters.plan(connection, chosen)
            if plan:
                closed = await _closed(connection)
                _print_plan(planned, options, would=closed, without_delivery=without_delivery)
                return int(bool(closed and planned.groups))
            counts: Counter[tuple[str, str]] = Counter()
            with progress_bar("replaying", planned.total) as advance:
                async for part in dead_letters.replay_all(
                    connection, planned, chosen, actor, why, rate, without_delivery=without_delivery
                ):
                    answers = part["answers"] if part["status"] == "ran" else {part["status"]: 0}
                    counts.update({(part["route_code"], answer): count for answer, count in answers.items()})
                    advance(part.get("done", 0))
        return _print_answers(planned, counts, options, without_delivery=without_delivery)

    return anyio.run(run)


def _one_or_all(ids: list[str] | None, filter_options: FilterOptions | None, *, all: bool) -> None:
    if bool(ids) == all:
        raise ConfigurationError(
            "either ids of dead letters or --all is required", "`iu-listen dead-letter list` lists the ids."
        )
    if ids and filter_options and filter_options != FilterOptions():
        raise ConfigurationError(
            "--route, --failure, --since, --event and --subject require --all",
            "Use ids alone, or --all with these options.",
        )


async def _replay_ids(
    connection: Connection,
    typed: list[str],
    actor: str | None,
    why: str | None,
    rate: float | None,
    options: ConnectionOptions | None,
    *,
    plan: bool,
    without_delivery: bool,
) -> int:
    ids = [await complete_id(connection, "dead_letter", id) for id in typed]
    await dead_letters.require(connection, ids)
    if plan:
        closed = await _closed(connection)
        found = [await dead_letters.show(connection, id) for id in ids]
        _print_plan_of(found, options, would=closed, without_delivery=without_delivery)
        return int(bool(closed))
    answers: list[queries.Row] = []
    with progress_bar("replaying", len(ids)) as advance:
        for id in ids:
            # The pause between two replays limits the rate, whatever the duration of a replay.
            if rate and answers:
                await anyio.sleep(1 / rate)
            answer = await dead_letters.replay(connection, id, actor, why, without_delivery=without_delivery)
            answers.append(answer)
            advance(1)
    if options and options.json:
        output.as_json(answers)
    else:
        output.table(
            ("dead letter", "result", "decision", "attempt", "resolved"),
            (
                (a["dead_letter_id"], a["status"], a.get("decision"), a.get("attempt_no"), a["resolved"])
                for a in answers
            ),
        )
    if not without_delivery:
        _note_undelivered(answers)
    return int(any(not a["resolved"] and a["status"] not in FINAL_RESULTS for a in answers))


def _print_answers(
    planned: dead_letters.BulkPlan,
    counts: Counter[tuple[str, str]],
    options: ConnectionOptions | None,
    *,
    without_delivery: bool,
) -> int:
    rows = []
    for (route, answer), count in sorted(counts.items()):
        status, _, decision = answer.partition(" ")
        rows.append({"route_code": route, "status": status, "decision": decision or None, "count": count})
    if options and options.json:
        output.as_json(rows)
    elif rows:
        output.table(
            ("route", "result", "decision", "dead letters"),
            ((r["route_code"], r["status"], r["decision"], r["count"]) for r in rows),
        )
    if not without_delivery:
        _note_undelivered(rows)
    if not planned.groups:
        output.note("No open dead letter matches; nothing was changed. `iu-listen dead-letter list` lists them.")
    return int(any(r["status"] not in FINAL_RESULTS for r in rows))


async def _closed(connection: Connection) -> str:
    """The text that says that a replay would do nothing, because a gate is closed; empty: no gate is closed."""
    closed = await gates.closed_gates(connection)
    return f"nothing: the {closed[0]} gate is closed (iu-listen gate open {closed[0]})" if closed else ""


def _note_undelivered(answers: Sequence[dict[str, Any]]) -> None:
    """Say what to do with dead letters that stayed open because a replay would not deliver them."""
    for route, decision in sorted({(a["route_code"], a["decision"]) for a in answers if a["status"] == "not_replayed"}):
        if decision in UNDELIVERED:
            output.note(
                f"Left open: dead letters of {route}, which {UNDELIVERED[decision]}. "
                + (f"Let it deliver: iu-listen route live {route}. " if decision == "dry_run" else "")
                + "Resolve them without a delivery: --without-delivery."
            )


def _would(row: queries.Row, *, without_delivery: bool) -> str:
    """The decision that a replay would make now, given the columns of the route."""
    decision = dead_letters.undelivered(row)
    if decision and not without_delivery:
        return f"nothing: the route {UNDELIVERED[decision]}"
    if decision == "no_route":
        return "skipped: the route does not exist"
    if not row["route_enabled"]:
        return "skipped: the route is disabled; the dead letter stays open"
    return decision or "deliver"


def _print_plan(
    planned: dead_letters.BulkPlan,
    options: ConnectionOptions | None,
    *,
    would: str = "",
    without_delivery: bool = False,
) -> None:
    """Print the plan for dead letters that filters select, summed by route and failure code."""
    rows = [
        {"route_code": g["route_code"], "failure_code": g["failure_code"], "count": g["count"],
         "oldest_at": g["oldest_at"], "newest_at": g["newest_at"], "example": g["example"],
         "would": would or _would(g, without_delivery=without_delivery)}
        for g in planned.groups
    ]  # fmt: skip
    if options and options.json:
        output.as_json(rows)
        return
    output.table(
        ("route", "failure", "dead letters", "oldest", "newest", "result", "example"),
        (
            (r["route_code"], r["failure_code"], r["count"], output.ago(r["oldest_at"]), output.ago(r["newest_at"]),
             r["would"], r["example"])
            for r in rows
        ),
    )  # fmt: skip
    output.note(f"Plan: {output.plural(planned.total, 'dead letter')}; nothing was changed.")


def _print_plan_of(
    found: Sequence[dict[str, Any]], options: ConnectionOptions | None, *, would: str, without_delivery: bool
) -> None:
    """Print the plan for dead letters that were named by id, each with the newer events of its subject."""
    rows = [
        {"id": d["id"], "event": d["event_ref"], "route": d["route_code"], "created_at": d["created_at"],
         "attempt_no": d["attempt_no"] + 1, "newer_of_subject": d["newer_of_subject"],
         "newer_looked_at": d["newer_looked_at"],
         "would": would or ("nothing: already resolved" if d["resolved_at"]
                            else _would(d, without_delivery=without_delivery))}
        for d in found
    ]  # fmt: skip
    if options and options.json:
        output.as_json(rows)
        return
    output.table(
        ("dead letter", "route", "age", "attempt", "newer events of its subject", "result"),
        (
            (r["id"], r["route"], output.ago(r["created_at"]), r["attempt_no"],
             f"{r['newer_of_subject']} of the next {output.text(r['newer_looked_at'])}", r["would"])
            for r in rows
        ),
    )  # fmt: skip
    output.note(f"Plan: {output.plural(len(rows), 'dead letter')}; nothing was changed.")


# -- resolve -----------------------------------------------------------------------------------------------------


def resolve(
    ids: Annotated[list[str] | None, ID, Parameter(help="Ids of dead letters.")] = None,
    /,
    *,
    why: Annotated[str, Parameter(help="Reason; stored in the resolution.")],
    all: Annotated[
        bool, Parameter(help="All open dead letters that match the other options, instead of ids.", negative=())
    ] = False,
    filter_options: FilterOptions | None = None,
    actor: Actor = None,
    plan: Plan = False,
    yes: Annotated[bool, Parameter(help="With --all: do not ask for confirmation.", negative=())] = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Resolve dead letters without a replay: nothing is delivered, and the reason is stored.

    Dead letters with a replay in progress are left unchanged. With --all the command works in parts, one transaction
    each, so that after Ctrl-C the rest is unchanged. Exit 1 if a named dead letter stays open.
    """
    _one_or_all(ids, filter_options, all=all)
    require_reason(why)

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            if ids:
                found = [await complete_id(connection, "dead_letter", id) for id in ids]
                if plan:
                    await dead_letters.require(connection, found)
                    _print_resolved(len(found), 0, options, planned=True)
                    return 0
                count = await dead_letters.resolve(connection, found, why, actor)
                _print_resolved(len(found), count, options)
                return int(count < len(set(found)))
            chosen = await (filter_options or FilterOptions()).filter(connection)
            planned = await dead_letters.plan(connection, chosen)
            if plan or not (options and options.json):
                _print_plan(planned, options, would="resolved")
            if plan or not planned.groups:
                if not plan:
                    _print_resolved(0, 0, options)
                return 0
            require_confirmation(f"Resolve {output.plural(planned.total, 'dead letter')}?", yes=yes)
            looked = count = 0
            with progress_bar("resolving", planned.total) as advance:
                async for part, done in dead_letters.resolve_all(connection, planned, chosen, why, actor):
                    looked, count = looked + part, count + done
                    advance(part)
        _print_resolved(looked, count, options)
        return 0

    return anyio.run(run)


def _print_resolved(looked: int, count: int, options: ConnectionOptions | None, *, planned: bool = False) -> None:
    if options and options.json:
        output.as_json({"looked_at": looked, "resolved": count, "planned": planned})
    elif planned:
        output.note(f"Plan: {output.plural(looked, 'dead letter')} would be resolved; nothing was changed.")
    else:
        output.line(f"Resolved: {output.plural(count, 'dead letter')}.")
        if looked > count:
            output.note(
                f"Left unchanged: {output.plural(looked - count, 'dead letter')}, already resolved or with a replay in"
                " progress (`iu-listen delivery list`)."
            )
