"""The command status: the state of workers, consumers, routes, deliveries and dead letters."""

from __future__ import annotations

import json
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import dead_letters, gates
from iu_listen.admin.health import blocker_phrase, worker_health
from iu_listen.admin.routes import pending_phrase
from iu_listen.cli import output, streams
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.dead_letter import print_kinds
from iu_listen.cli.delivery import print_delivering_routes
from iu_listen.cli.gate import print_gates
from iu_listen.cli.health import condition_phrase, print_health
from iu_listen.cli.parameters import Exact, in_range
from iu_listen.install import requirements
from iu_listen.model.errors import DatabaseUnreachable
from iu_listen.model.text import MAX_COUNT, counted, number
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection


def register(app: App) -> None:
    """Add this command."""
    app.command(status)


def status(
    *,
    exit_code: Annotated[
        bool, Parameter(help="Exit with 1 if a worker is not healthy, as health does.", negative=())
    ] = False,
    watch: Annotated[
        float | None,
        Parameter(help="Repeat the output at this interval, in seconds, until Ctrl-C.", validator=in_range(0.1, 86400)),
    ] = None,
    exact: Exact = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Show whether every worker is healthy, with reasons.

    Then show blockers, open dead letters, gates, workers, consumers, attempts, completeness checks, deliveries and
    trace exports. Waiting events and dead letters are counted up to 10 000, and of the attempts the newest 10 000.
    """

    async def run() -> int:
        while True:
            try:
                async with connected(options) as (_, connection):
                    answer = await _status(connection, exact=exact)
            except DatabaseUnreachable as error:
                # With --watch the error is shown until the database can be reached again.
                if watch is None:
                    raise
                _clear_screen(watch)
                output.problem(error.message, error.hint)
            else:
                _clear_screen(watch)
                if options and options.json:
                    output.as_json(answer)
                else:
                    _print_status(answer)
                # A closed output, for example of head, ends the command as Ctrl-C does.
                if watch is None or streams.reader_closed():
                    return int(exit_code and not answer["healthy"])
            await anyio.sleep(watch)

    return anyio.run(run)


def _clear_screen(watch: float | None) -> None:
    """With --watch, clear the screen if the output is a terminal."""
    if watch is not None and output.out().is_terminal:
        output.out().clear()


async def _status(connection: Connection, *, exact: bool) -> dict[str, Any]:
    package = await requirements.require_package(connection)
    workers = await queries.rows(connection, "workers")
    if exact:
        counts = {row["worker_name"]: row for row in await queries.rows(connection, "worker_counts")}
        workers = [worker | counts.get(worker["worker_name"], {}) for worker in workers]
    health = [await worker_health(connection, w["worker_name"], package) for w in workers]
    answer: dict[str, Any] = {
        "healthy": all(h["healthy"] for h in health) and bool(health),
        "health": health,
        "gates": await gates.all_gates(connection),
        "workers": workers,
        "consumers": await queries.rows(connection, "consumers"),
        "blockers": await queries.rows(connection, "blockers"),
        "attempts": await queries.rows(connection, "attempt_summary", None if exact else MAX_COUNT),
        "completeness": await queries.rows(connection, "completeness/passes", None if exact else MAX_COUNT),
        "exports": await queries.rows(connection, "trace/exports"),
        "deliveries": await queries.rows(connection, "delivery/routes", None if exact else MAX_COUNT),
        "dead_letters": await dead_letters.kinds(connection, exact=exact),
    }
    for consumer in answer["consumers"]:
        consumer["wakes"] = json.loads(consumer["wakes"])
    return answer


def _print_status(answer: dict[str, Any]) -> None:
    _print_headline(answer)
    if answer["blockers"]:
        output.table(
            ("blocker", "session", "effect"),
            ((b["what"].replace("_", " "), blocker_phrase(b), b["effect"]) for b in answer["blockers"]),
        )
    if answer["dead_letters"]:
        print_kinds(answer["dead_letters"])
    print_gates(answer["gates"])
    _print_workers(answer["workers"])
    _print_consumers(answer["consumers"])
    output.table(
        ("route", "status", "attempts", "last attempt"),
        ((a["route_code"], a["status"], a["attempts"], output.ago(a["last_at"])) for a in answer["attempts"]),
        f"The newest {number(MAX_COUNT)} attempts"
        if sum(a["attempts"] for a in answer["attempts"]) == MAX_COUNT
        else "",
    )
    _print_completeness(answer["completeness"])
    if answer["deliveries"]:
        print_delivering_routes(answer["deliveries"])
    if answer["exports"]:
        _print_exports(answer["exports"])


def _print_headline(answer: dict[str, Any]) -> None:
    """Print whether all workers are healthy, with the reasons if not. These lines stand above all tables."""
    for health in answer["health"]:
        print_health(health)
    if not answer["health"]:
        output.line(f"{output.mark(False, no='NOT HEALTHY')}  no worker is registered", markup=True)
    for route in answer["deliveries"]:
        if route["paused_by"]:
            reason = f" ({route['why']})" if route["why"] else ""
            paused = f"route {route['route_code']} is paused: {route['paused_by'].replace('_', ' ')}{reason}"
            output.line(f"  warning: {paused}; {_deliveries_phrase(route)} waiting")


def _deliveries_phrase(route: queries.Row) -> str:
    """The number of the deliveries of a route, with the noun."""
    return f"{pending_phrase(route)} {'delivery' if route['pending'] == 1 else 'deliveries'}"


def _print_workers(workers: list[queries.Row]) -> None:
    output.table(
        ("worker", "condition", "domain", "backlog", "oldest event", "routed", "dead letters", "last run"),
        (
            (w["worker_name"], output.mark(w["healthy"], condition_phrase(w), condition_phrase(w)), w["event_domain"],
             counted(w["backlog"]), output.ago(w["oldest_created_at"]) if w["backlog"] else "–", w["total_seen"],
             counted(w["open_dead_letters"]), output.ago(w["last_run_at"]))
            for w in workers
        ),
    )  # fmt: skip


def _print_consumers(consumers: list[queries.Row]) -> None:
    output.table(
        ("consumer", "worker", "state", "heartbeat", "woken by", "last wake-up", "events", "missed notifications"),
        (
            (f"{c['host']}:{c['pid']}", c["worker_name"],
             output.mark(not c["silent"], c["state"], f"{c['state']}, silent"), output.ago(c["beat_at"]),
             _woken_by(c), c["last_wake"], c["events"], c["wakes"].get("lost", 0))
            for c in consumers
        ),
    )  # fmt: skip
    if not consumers:
        output.note("No consumer has worked on this database yet. Start one: iu-listen run")


def _woken_by(consumer: dict[str, Any]) -> str:
    """How a consumer is woken: by notifications or by polling. A consumer that has ended is not woken at all."""
    if consumer["state"] == "stopped":
        return "–"
    return "notifications" if consumer["listening"] else "polling"


def _print_completeness(passes: list[queries.Row]) -> None:
    output.table(
        ("completeness of", "last pass", "checked", "incomplete", "accepted", "running"),
        (
            (p["worker_name"], output.ago(p["finished_at"]), p["checked"],
             output.mark(not p["missing"], "none", counted(p["missing"])), counted(p["accepted"] or 0),
             f"for {output.ago(p['started_at']).removesuffix(' ago')}" if p["started_at"] else None)
            for p in passes
        ),
    )  # fmt: skip


def _print_exports(exports: list[queries.Row]) -> None:
    output.table(
        ("trace export", "spans", "refused", "waiting attempts", "oldest", "last export"),
        (
            (e["name"], e["exported"], e["rejected"], e["waiting"],
             output.duration(e["seconds"]) if e["waiting"] else "–", output.ago(e["last_export_at"]))
            for e in exports
        ),
    )  # fmt: skip
