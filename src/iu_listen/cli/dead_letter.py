"""dead-letter: list, show, replay and resolve events that could not be routed or delivered."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import dead_letters, gates, times
from iu_listen.admin import dead_letters as letters
from iu_listen.admin.ids import whole
from iu_listen.cli import output
from iu_listen.cli.ask import confirmed, progress, reason
from iu_listen.cli.change import Plan
from iu_listen.cli.context import ConnectionOptions, between, looking
from iu_listen.cli.ids import ID, Id
from iu_listen.install import requirements
from iu_listen.model.errors import ConfigurationError
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection

dead_letter = App(name="dead-letter", help="List, show, replay and resolve what could not be routed or delivered.")

Actor = Annotated[str | None, Parameter(help="Who asks; recorded. Default: the database user.")]
#: The results of a replay after which this command has nothing left to do for a dead letter.
SETTLED = frozenset({"replayed", "queued", "already_queued", "already_resolved"})


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Which:
    """Options that choose among dead letters."""

    route: Annotated[str | None, Parameter(help="Only of this route.")] = None
    failure: Annotated[str | None, Parameter(help="Only with this failure code.")] = None
    since: Annotated[str | None, Parameter(help="Only created since then: 2h, '3 days', or ISO 8601.")] = None
    event: Annotated[str | None, ID, Parameter(help="Only of this event.")] = None
    subject: Annotated[str | None, Parameter(help="Only about this subject: its id, or its canonical address.")] = None

    async def filter(self, connection: Connection) -> letters.Filter:
        """The options as a filter for queries, with ids completed and times parsed."""
        since = await times.moment(connection, self.since) if self.since else None
        event = await whole(connection, "event", self.event) if self.event else None
        return letters.Filter(route=self.route, failure=self.failure, since=since, event=event, subject=self.subject)


def register(app: App) -> None:
    """Add this group."""
    app.command(dead_letter)


# -- look --------------------------------------------------------------------------------------------------------


@dead_letter.command(name="list")
def dead_letter_list(
    *,
    resolved: Annotated[bool, Parameter(help="Resolved ones too.", negative=())] = False,
    which: Which | None = None,
    before: Annotated[str | None, ID, Parameter(help="Only older ones than this dead letter: the next page.")] = None,
    limit: Annotated[int, Parameter(help="How many at most.", validator=between(1, 1_000_000))] = 50,
    where: ConnectionOptions | None = None,
) -> int:
    """List dead letters, the newest first, and count the open ones by route and failure code."""

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            chosen = await (which or Which()).filter(connection)
            last = await whole(connection, "dead_letter", before) if before else None
            found = await letters.page(connection, chosen, resolved=resolved, before=last, limit=limit)
            as_json = bool(where and where.json)
            kinds = [] if as_json else await letters.kinds(connection)
        if as_json:
            output.as_json(found.letters)
            return 0
        _print_dead_letters(found.letters)
        if len(kinds) > 1 or (len(found.letters) < found.total and before is None):
            print_kinds(kinds)
        _print_place(found, resolved=resolved, before=before)
        return 0

    return anyio.run(run)


def _print_dead_letters(found: list[queries.Row]) -> None:
    output.table(
        ("dead letter", "event", "route", "age", "failure", "detail", "replays", "resolved"),
        (
            (d["id"], d["event_ref"], d["route_code"], output.ago(d["created_at"]), d["failure_code"],
             d["failure_detail"], d["replay_count"], d["resolution"])
            for d in found
        ),
    )  # fmt: skip


def _print_place(found: letters.Listed, *, resolved: bool, before: str | None) -> None:
    """Print the number of dead letters that are not shown, and the command that shows the next page."""
    if not found.letters:
        output.note("No older dead letter." if before else f"No {'' if resolved else 'open '}dead letter matches.")
        return
    if before is None and len(found.letters) >= found.total:
        return
    words = f"{output.text(len(found.letters))} of {letters.counted(found.total)}."
    output.note(f"{words} Older ones: the same command with --before {found.letters[-1]['id']}")


def print_kinds(kinds: list[queries.Row]) -> None:
    """Print the counts of open dead letters by route and failure code."""
    output.table(
        ("dead letters of route", "failure", "open", "oldest", "newest"),
        (
            (
                k["route_code"],
                k["failure_code"],
                letters.counted(k["open"]),
                output.ago(k["oldest_at"]),
                output.ago(k["newest_at"]),
            )
            for k in kinds
        ),
    )


@dead_letter.command(name="show")
def dead_letter_show(id: Id, /, *, where: ConnectionOptions | None = None) -> int:
    """Show one dead letter, the whole event with it."""

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            found = await letters.show(connection, await whole(connection, "dead_letter", id))
        letter = {**found, "event_snapshot": output.parsed(found["event_snapshot"])}
        if where and where.json:
            output.as_json(letter)
        else:
            for name, value in letter.items():
                words = (
                    json.dumps(value, indent=2, ensure_ascii=False) if isinstance(value, dict) else output.text(value)
                )
                output.block(f"{name:16}  {words}")
        return 0

    return anyio.run(run)


# -- replay ------------------------------------------------------------------------------------------------------


@dead_letter.command(name="replay")
def dead_letter_replay(
    ids: Annotated[list[str] | None, ID, Parameter(help="Which ones.")] = None,
    /,
    *,
    all: Annotated[bool, Parameter(help="All open ones that the other options let through.", negative=())] = False,
    which: Which | None = None,
    rate: Annotated[
        float | None, Parameter(help="How many a second at most.", validator=between(0.001, 1_000_000))
    ] = None,
    actor: Actor = None,
    why: Annotated[str | None, Parameter(help="Why; recorded.")] = None,
    plan: Plan = False,
    where: ConnectionOptions | None = None,
) -> int:
    """Decide dead letters again, under their own idempotency keys.

    Those of live routes are queued, and are resolved when they arrive: delivery list, delivery cancel. With --all they
    are replayed in parts, a transaction each, so Ctrl-C leaves the rest as it is. Exit 1 when one is neither resolved
    nor queued.
    """
    _one_or_all(ids, which, all=all)

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            if ids:
                return await _replay_these(connection, ids, actor, why, rate, where, plan=plan)
            chosen = await (which or Which()).filter(connection)
            planned = await letters.plan(connection, chosen)
            if plan:
                closed = await _closed(connection)
                _print_plan(planned, where, would=closed)
                return int(bool(closed and planned.groups))
            counts: Counter[tuple[str, str]] = Counter()
            with progress("replaying", planned.total) as advance:
                async for part in letters.replay_all(connection, planned, chosen, actor, why, rate):
                    answers = part["answers"] if part["status"] == "ran" else {part["status"]: 0}
                    counts.update({(part["route_code"], answer): count for answer, count in answers.items()})
                    advance(part.get("done", 0))
        return _print_answers(planned, counts, where)

    return anyio.run(run)


def _one_or_all(ids: list[str] | None, which: Which | None, *, all: bool) -> None:
    if bool(ids) == all:
        raise ConfigurationError("say which dead letters: their ids, or --all", "iu-listen dead-letter list")
    if ids and which and which != Which():
        raise ConfigurationError(
            "--route, --failure, --since, --event and --subject go with --all", "The ids alone say which dead letters."
        )


async def _replay_these(
    connection: Connection,
    typed: list[str],
    actor: str | None,
    why: str | None,
    rate: float | None,
    where: ConnectionOptions | None,
    *,
    plan: bool,
) -> int:
    ids = [await whole(connection, "dead_letter", id) for id in typed]
    await letters.require(connection, ids)
    if plan:
        closed = await _closed(connection)
        _print_plan_of([await letters.show(connection, id) for id in ids], where, would=closed)
        return int(bool(closed))
    answers: list[queries.Row] = []
    with progress("replaying", len(ids)) as advance:
        for id in ids:
            # The pause between two replays limits the rate, whatever the duration of a replay.
            if rate and answers:
                await anyio.sleep(1 / rate)
            answers.append(await dead_letters.replay(connection, id, actor, why))
            advance(1)
    if where and where.json:
        output.as_json(answers)
    else:
        output.table(
            ("dead letter", "answer", "decision", "attempt", "resolved"),
            (
                (a["dead_letter_id"], a["status"], a.get("decision"), a.get("attempt_no"), a["resolved"])
                for a in answers
            ),
        )
    return int(any(not a["resolved"] and a["status"] not in SETTLED for a in answers))


def _print_answers(planned: letters.BulkPlan, counts: Counter[tuple[str, str]], where: ConnectionOptions | None) -> int:
    rows = []
    for (route, answer), count in sorted(counts.items()):
        status, _, decision = answer.partition(" ")
        rows.append({"route_code": route, "status": status, "decision": decision or None, "count": count})
    if where and where.json:
        output.as_json(rows)
    elif rows:
        output.table(
            ("route", "answer", "decision", "dead letters"),
            ((r["route_code"], r["status"], r["decision"], r["count"]) for r in rows),
        )
    if not planned.groups:
        output.note("No open dead letter matches; nothing was changed. iu-listen dead-letter list")
    return int(any(r["status"] not in SETTLED for r in rows))


async def _closed(connection: Connection) -> str:
    """The text that says that a replay would do nothing, because a gate is closed; empty: no gate is closed."""
    closed = await gates.in_the_way(connection)
    return f"nothing: the {closed[0]} gate is closed (iu-listen gate open {closed[0]})" if closed else ""


def _would(route_enabled: bool | None, *, dry_run: bool | None) -> str:
    """The decision that a replay would make now, given the state of the route."""
    if route_enabled is None:
        return "skipped: there is no route"
    if not route_enabled:
        return "skipped: the route is disabled; it would stay open"
    return "dry_run" if dry_run else "deliver"


def _print_plan(planned: letters.BulkPlan, where: ConnectionOptions | None, *, would: str = "") -> None:
    """Print the plan for dead letters that filters select, summed by route and failure code."""
    rows = [
        {"route_code": g["route_code"], "failure_code": g["failure_code"], "count": g["count"],
         "oldest_at": g["oldest_at"], "newest_at": g["newest_at"], "example": g["example"],
         "would": would or _would(g["route_enabled"], dry_run=g["route_dry_run"])}
        for g in planned.groups
    ]  # fmt: skip
    if where and where.json:
        output.as_json(rows)
        return
    output.table(
        ("route", "failure", "dead letters", "oldest", "newest", "would be", "for example"),
        (
            (r["route_code"], r["failure_code"], r["count"], output.ago(r["oldest_at"]), output.ago(r["newest_at"]),
             r["would"], r["example"])
            for r in rows
        ),
    )  # fmt: skip
    output.note(f"Plan: {output.text(planned.total)} dead letter(s); nothing was changed.")


def _print_plan_of(found: Sequence[dict[str, Any]], where: ConnectionOptions | None, *, would: str = "") -> None:
    """Print the plan for dead letters that were named by id, each with the newer events of its subject."""
    rows = [
        {"id": d["id"], "event": d["event_ref"], "route": d["route_code"], "created_at": d["created_at"],
         "attempt_no": d["attempt_no"] + 1, "newer_of_subject": d["newer_of_subject"],
         "newer_looked_at": d["newer_looked_at"],
         "would": would or ("nothing: it is resolved" if d["resolved_at"]
                            else _would(d["route_enabled"], dry_run=d["route_dry_run"]))}
        for d in found
    ]  # fmt: skip
    if where and where.json:
        output.as_json(rows)
        return
    output.table(
        ("dead letter", "route", "age", "attempt", "newer events of its subject", "would be"),
        (
            (r["id"], r["route"], output.ago(r["created_at"]), r["attempt_no"],
             f"{r['newer_of_subject']} of the next {output.text(r['newer_looked_at'])}", r["would"])
            for r in rows
        ),
    )  # fmt: skip
    output.note(f"Plan: {len(rows)} dead letter(s); nothing was changed.")


# -- resolve -----------------------------------------------------------------------------------------------------


@dead_letter.command(name="resolve")
def dead_letter_resolve(
    ids: Annotated[list[str] | None, ID, Parameter(help="Which ones.")] = None,
    /,
    *,
    why: Annotated[str, Parameter(help="Why; kept in the resolution.")],
    all: Annotated[bool, Parameter(help="All open ones that the other options let through.", negative=())] = False,
    which: Which | None = None,
    actor: Actor = None,
    plan: Plan = False,
    yes: Annotated[bool, Parameter(help="With --all: do it without asking.", negative=())] = False,
    where: ConnectionOptions | None = None,
) -> int:
    """Resolve dead letters without a replay: nothing is delivered, and the reason is kept.

    Those whose replay is on its way are left as they are. With --all they are resolved in parts, a transaction each, so
    Ctrl-C leaves the rest as it is. Exit 1 when a dead letter that was named is left open.
    """
    _one_or_all(ids, which, all=all)
    reason(why)

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            if ids:
                found = [await whole(connection, "dead_letter", id) for id in ids]
                if plan:
                    await letters.require(connection, found)
                    _print_resolved(len(found), 0, where, planned=True)
                    return 0
                count = await letters.resolve(connection, found, why, actor)
                _print_resolved(len(found), count, where)
                return int(count < len(set(found)))
            chosen = await (which or Which()).filter(connection)
            planned = await letters.plan(connection, chosen)
            if plan or not (where and where.json):
                _print_plan(planned, where, would="resolved")
            if plan or not planned.groups:
                if not plan:
                    _print_resolved(0, 0, where)
                return 0
            confirmed(f"Resolve {output.text(planned.total)} dead letters?", yes=yes)
            looked = count = 0
            with progress("resolving", planned.total) as advance:
                async for part, done in letters.resolve_all(connection, planned, chosen, why, actor):
                    looked, count = looked + part, count + done
                    advance(part)
        _print_resolved(looked, count, where)
        return 0

    return anyio.run(run)


def _print_resolved(looked: int, count: int, where: ConnectionOptions | None, *, planned: bool = False) -> None:
    if where and where.json:
        output.as_json({"looked_at": looked, "resolved": count, "planned": planned})
    elif planned:
        output.note(f"Plan: {output.text(looked)} dead letter(s) would be resolved; nothing was changed.")
    else:
        output.line(f"{output.text(count)} resolved.")
        if looked > count:
            output.note(f"{output.text(looked - count)} left: resolved before, or on their way again (delivery list).")
