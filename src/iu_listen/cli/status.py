"""Commands that change nothing: status, health, attempts and doctor."""

from __future__ import annotations

import json
import platform
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import anyio
from cyclopts import App, Parameter
from rich.markup import escape

from iu_listen.admin import dead_letters as letters
from iu_listen.admin import doctor, gates
from iu_listen.admin.health import blocker_phrase, worker_health
from iu_listen.admin.ids import whole
from iu_listen.cli import outlet, output
from iu_listen.cli.context import ConnectionOptions, between, looking
from iu_listen.cli.dead_letter import print_kinds
from iu_listen.cli.deliveries import print_deliveries
from iu_listen.cli.ids import ID
from iu_listen.install import requirements
from iu_listen.model.errors import DatabaseUnreachable
from iu_listen.model.text import humane
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection

Limit = Annotated[int, Parameter(help="How many rows at most.", validator=between(1, 1_000_000))]
Worker = Annotated[
    str | None, Parameter(help="Name of the worker. Default: IU_LISTEN_WORKER, else iu_outbound_default.")
]


def register(app: App) -> None:
    """Add these commands."""
    for command in (status, health, attempts):
        app.command(command)
    app.command(examine, name="doctor")


def status(
    *,
    exit_code: Annotated[
        bool, Parameter(help="End with 1 when a worker is not healthy, as health does.", negative=())
    ] = False,
    watch: Annotated[
        float | None,
        Parameter(help="Show it again every so many seconds, until Ctrl-C.", validator=between(0.1, 86400)),
    ] = None,
    where: ConnectionOptions | None = None,
) -> int:
    """Show whether all is well, and why not; then what is in the way, gates, workers, consumers and what waits."""

    async def run() -> int:
        while True:
            try:
                async with looking(where) as (_, connection):
                    answer = await _status(connection)
            except DatabaseUnreachable as error:
                # With --watch the error is shown until the database can be reached again.
                if watch is None:
                    raise
                _begin_anew(watch)
                output.problem(error.message, error.hint)
            else:
                _begin_anew(watch)
                if where and where.json:
                    output.as_json(answer)
                else:
                    _print_status(answer)
                # A closed output, for example of head, ends the command as Ctrl-C does.
                if watch is None or outlet.reader_left():
                    return int(exit_code and not answer["healthy"])
            await anyio.sleep(watch)

    return anyio.run(run)


def _begin_anew(watch: float | None) -> None:
    """Clear the screen, if the output is a terminal."""
    if watch is not None and output.out().is_terminal:
        output.out().clear()


async def _status(connection: Connection) -> dict[str, Any]:
    await requirements.require_package(connection)
    workers = await queries.rows(connection, "workers")
    health = [await worker_health(connection, w["worker_name"]) for w in workers]
    answer: dict[str, Any] = {
        "healthy": all(h["healthy"] for h in health) and bool(health),
        "health": health,
        "gates": await gates.all_gates(connection),
        "workers": workers,
        "consumers": await queries.rows(connection, "consumers"),
        "blockers": await queries.rows(connection, "blockers"),
        "attempts": await queries.rows(connection, "attempt_summary"),
        "audits": await queries.rows(connection, "completeness/passes"),
        "exports": await queries.rows(connection, "trace/exports"),
        "deliveries": await queries.rows(connection, "delivery/routes"),
        "dead_letters": await letters.kinds(connection),
    }
    for consumer in answer["consumers"]:
        consumer["wakes"] = json.loads(consumer["wakes"])
    return answer


def _condition(row: dict[str, Any]) -> str:
    """The condition of a worker, as a phrase."""
    words = row["condition"].replace("_", " ")
    return f"{words}: {humane(row['condition_why'])}" if row["condition_why"] else words


def _wakes_by(consumer: dict[str, Any]) -> str:
    """How a consumer is woken: by notifications or by polling. A consumer that has ended is not woken at all."""
    if consumer["state"] == "stopped":
        return "–"
    return "bell" if consumer["listening"] else "polling"


def _print_headline(answer: dict[str, Any]) -> None:
    """Print whether all workers are healthy, with the reasons if not. These lines stand above all tables."""
    for health in answer["health"]:
        _print_health(health)
    if not answer["health"]:
        output.line(f"{output.mark(False, no='NOT HEALTHY')}  no worker is registered", markup=True)
    for route in answer["deliveries"]:
        if route["paused_by"]:
            why = f" ({route['why']})" if route["why"] else ""
            paused = f"route {route['route_code']} is paused by {route['paused_by']}"
            output.line(f"  warning: {paused}{why}: {output.text(route['pending'])} wait")


def _print_status(answer: dict[str, Any]) -> None:
    _print_headline(answer)
    if answer["blockers"]:
        output.table(
            ("in the way", "who", "what follows"),
            ((c["what"].replace("_", " "), blocker_phrase(c), c["effect"]) for c in answer["blockers"]),
        )
    if answer["dead_letters"]:
        print_kinds(answer["dead_letters"])
    output.table(
        ("gate", "", "since", "key"),
        (
            (g["gate"], output.mark(g["open"], "open", "closed"), output.ago(g["since"]), g["key"])
            for g in answer["gates"]
        ),
    )
    output.table(
        ("worker", "is", "domain", "backlog", "oldest waits", "routed", "dead letters", "last run"),
        (
            (w["worker_name"], output.mark(w["healthy"], _condition(w), _condition(w)), w["event_domain"], w["backlog"],
             output.ago(w["oldest_created_at"]) if w["backlog"] else "–", w["total_seen"],
             w["open_dead_letters"], output.ago(w["last_run_at"]))
            for w in answer["workers"]
        ),
    )  # fmt: skip
    output.table(
        ("consumer", "worker", "state", "last beat", "wakes by", "last wake", "events", "lost wakes"),
        (
            (f"{c['host']}:{c['pid']}", c["worker_name"],
             output.mark(not c["silent"], f"{c['state']}", f"{c['state']}, silent"), output.ago(c["beat_at"]),
             _wakes_by(c), c["last_wake"], c["events"], c["wakes"].get("lost", 0))
            for c in answer["consumers"]
        ),
    )  # fmt: skip
    if not answer["consumers"]:
        output.note("No consumer has ever been seen. Start one: iu-listen run")
    output.table(
        ("route", "status", "attempts", "last"),
        ((a["route_code"], a["status"], a["attempts"], output.ago(a["last_at"])) for a in answer["attempts"]),
    )
    output.table(
        ("audit of", "last pass", "checked", "incomplete", "accepted", "running"),
        (
            (a["worker_name"], output.ago(a["finished_at"]), a["checked"],
             output.mark(not a["missing"], "none", output.text(a["missing"])), a["accepted"],
             f"for {output.ago(a['started_at']).removesuffix(' ago')}" if a["started_at"] else None)
            for a in answer["audits"]
        ),
    )  # fmt: skip
    if answer["deliveries"]:
        print_deliveries(answer["deliveries"])
    if answer["exports"]:
        output.table(
            ("export of", "spans", "refused", "waiting", "for", "last"),
            (
                (e["name"], e["exported"], e["rejected"], e["waiting"],
                 output.duration(e["seconds"]) if e["waiting"] else "–", output.ago(e["last_export_at"]))
                for e in answer["exports"]
            ),
        )  # fmt: skip


def health(
    *,
    worker: Worker = None,
    here: Annotated[
        bool, Parameter(help="Ask only whether a consumer on this host makes progress.", negative=())
    ] = False,
    wait: Annotated[
        float | None,
        Parameter(help="Ask again until it is healthy, at most so many seconds.", validator=between(0, 86400)),
    ] = None,
    where: ConnectionOptions | None = None,
) -> int:
    """Answer whether the worker could do its work: exit 0 yes, 1 no, 2 no package, 3 nobody to ask.

    Healthy means: registered, its history believed, the master gate open, and not silent beyond three cadences
    while the worker gate is open, nor leaving old events to nobody. Backlog, dead letters, polling and a closed worker
    gate are warnings beside it. With --wait a script can wait for a deployment: it asks again, also while there is no
    server yet, and the last answer counts.
    """

    async def ask() -> dict[str, Any]:
        async with looking(where, worker=worker) as (door, connection):
            name = door.settings.worker
            if not here:
                await requirements.require_package(connection)
                return await worker_health(connection, name)
            # Probes run this every few seconds. So it reads one row, and neither counts the backlog nor checks the
            # whole package.
            if not await queries.value(connection, "ledger_exists"):
                await requirements.require_package(connection)
            beating = await queries.value(connection, "host_beats", platform.node(), name)
            reasons = [] if beating else [f"no consumer on {platform.node()} has beaten within three cadences"]
            return {"healthy": beating, "worker_name": name, "reasons": reasons, "warnings": []}

    async def run() -> int:
        answer = await _until_healthy(ask, wait or 0)
        if where and where.json:
            output.as_json(answer)
        else:
            _print_health(answer)
        return 0 if answer["healthy"] else 1

    return anyio.run(run)


async def _until_healthy(ask: Callable[[], Awaitable[dict[str, Any]]], seconds: float) -> dict[str, Any]:
    """The first healthy answer within ``seconds``, else the last answer. An unreachable server is tried again."""
    give_up = anyio.current_time() + seconds
    while True:
        late = anyio.current_time() >= give_up
        try:
            answer = await ask()
            if answer["healthy"] or late:
                return answer
        except DatabaseUnreachable:
            if late:
                raise
        await anyio.sleep(min(0.5, max(0.0, give_up - anyio.current_time())))


def _print_health(answer: dict[str, Any]) -> None:
    words = f"  is {_condition(answer)}" if "condition" in answer else ""
    output.line(
        f"{output.mark(answer['healthy'], 'healthy', 'NOT HEALTHY')}  {escape(answer['worker_name'] + words)}",
        markup=True,
    )
    for reason in answer["reasons"]:
        output.line(f"  because {humane(reason)}")
    for warning in answer["warnings"]:
        detail = f" ({humane(warning['detail'])})" if "detail" in warning else ""
        output.line(f"  warning: {warning['code'].replace('_', ' ')}: {output.text(warning['figure'])}{detail}")


def attempts(
    *,
    event: Annotated[str | None, ID, Parameter(help="Only of this event.")] = None,
    route: Annotated[str | None, Parameter(help="Only of this route.")] = None,
    status: Annotated[
        Literal["dry_run", "pending", "sent", "failed", "skipped"] | None, Parameter(help="Only with this status.")
    ] = None,
    limit: Limit = 20,
    where: ConnectionOptions | None = None,
) -> int:
    """List attempts from the audit, the youngest first. Exit 1 when an event was named and has none."""

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_substrate(connection)
            one = await whole(connection, "event", event) if event else None
            found = await queries.rows(connection, "list_attempts", one, route, status, limit + 1)
        more, found = len(found) > limit, found[:limit]
        if where and where.json:
            output.as_json(found)
        else:
            output.table(
                ("event", "route", "status", "decision", "no", "when", "failure"),
                (
                    (a["event_ref"], a["route_code"], a["status"], a["decision"], a["attempt_no"], a["created_at"],
                     a["failure_code"])
                    for a in found
                ),
            )  # fmt: skip
            if more:
                output.note(f"There are more than these {output.text(limit)}: --limit, --event, --route, --status.")
        return 1 if event and not found else 0

    return anyio.run(run)


def examine(*, worker: Worker = None, where: ConnectionOptions | None = None) -> int:
    """Look for everything that could be wrong, and say what to do about it. Exit 1 when something is."""

    async def run() -> int:
        async with looking(where, worker=worker) as (door, connection):
            found = await doctor.examine(connection, door.settings.worker)
        bad = any(f.level == "fail" for f in found)
        if where and where.json:
            output.as_json({"pass": not bad, "findings": [f.as_json() for f in found]})
            return 1 if bad else 0
        words = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]FAIL[/]"}
        output.table(
            ("", "what", "found", "what to do"),
            ((output.Markup(words[f.level]), f.what, f.found, f.hint) for f in found),
        )
        return 1 if bad else 0

    return anyio.run(run)
