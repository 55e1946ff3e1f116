"""The command group cursor: show and reset the cursors of workers, accept sites, and reanchor."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import cursors, gates, times
from iu_listen.cli import output
from iu_listen.cli.confirm import not_confirmed
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.parameters import Plan, WorkerName, Yes
from iu_listen.install import requirements
from iu_listen.model.errors import Refused
from iu_listen.model.text import counted
from iu_listen.postgres import queries

cursor: App = App(name="cursor", help="Show and move the cursors of workers.")


def register(app: App) -> None:
    """Add this group."""
    app.command(cursor)


@cursor.command(name="show")
def cursor_show(*, options: ConnectionOptions | None = None) -> int:
    """Show the cursor of every worker."""

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            found = await queries.rows(connection, "workers")
        if options and options.json:
            output.as_json(found)
        else:
            output.table(
                ("worker", "domain", "newest event routed", "created", "backlog", "cursor", "open tick"),
                (
                    (w["worker_name"], w["event_domain"], w["last_event_id"] or "fresh", w["last_created_at"],
                     counted(w["backlog"]), w["prev"], w["tick"])
                    for w in found
                ),
            )  # fmt: skip
        return 0

    return anyio.run(run)


@cursor.command(name="site")
def cursor_site(
    *,
    accept: Annotated[
        str | None,
        Parameter(
            help="Let the consumers of this site deliver; the value `last` means the site that was refused last."
        ),
    ] = None,
    options: ConnectionOptions | None = None,
) -> int:
    """Show the sites from which consumers use the database, or let the consumers of a new site deliver.

    A consumer at an unknown address delivers nothing, because the database may be a copy of another one.
    """

    async def run() -> list[queries.Row]:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            if accept is not None:
                chosen = None if accept == "last" else accept
                if not await queries.rows(connection, "accept_site", chosen, None):
                    raise Refused(
                        f"no consumer was refused at site {accept}" if accept != "last" else "no consumer was refused",
                        "`iu-listen cursor site` lists the sites.",
                    )
            return await queries.rows(connection, "sites")

    found = anyio.run(run)
    if options and options.json:
        output.as_json(found)
    else:
        output.table(
            ("site", "last seen", "may deliver since", "accepted by"),
            ((s["site"], s["seen_at"], s["accepted_at"] or "no", s["accepted_by"]) for s in found),
        )
    return 0


@cursor.command(name="reset")
def cursor_reset(
    *,
    to: Annotated[Literal["beginning", "now"], Parameter(help="New position of the cursor.")],
    worker: WorkerName = None,
    plan: Plan = False,
    yes: Yes = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Move the cursor of a worker. The worker gate must be closed.

    With --to beginning, all events are read again, and idempotency keys suppress second decisions. With --to now, this
    worker never routes its present backlog.
    """
    machine = bool(options and options.json)

    async def run() -> int:
        async with connected(options, worker=worker) as (context, connection):
            name = context.settings.worker
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            await requirements.require_worker(connection, name)
            mine = next(w for w in await queries.rows(connection, "workers") if w["worker_name"] == name)
            if to == "beginning":
                total = await queries.value(connection, "count_events", mine["event_domain"])
                domain = mine["event_domain"]
                effect = (
                    f"all {output.text(total)} events of domain {domain} will be read again; existing decisions stay"
                )
            else:
                events = f"{counted(mine['backlog'])} event{'s' * (mine['backlog'] != 1)}"
                effect = f"the worker {name} will never route its backlog ({events})"
            if plan or not yes:
                if machine:
                    output.as_json({"worker": name, "to": to, "effect": effect, "done": False})
                else:
                    output.line(f"Plan: {effect}. Nothing was changed.")
                    if any(g["open"] for g in await gates.all_gates(connection) if g["gate"] == "worker"):
                        output.note("The worker gate is open. Close it before the reset: iu-listen gate close worker")
                if not plan:
                    raise not_confirmed()
                return 0
            if any(g["open"] for g in await gates.all_gates(connection) if g["gate"] == "worker"):
                raise Refused("the worker gate is open", "Close it first: iu-listen gate close worker")
            await queries.value(connection, "reset_cursor", name, "3:3:" if to == "beginning" else None)
            if machine:
                output.as_json({"worker": name, "to": to, "effect": effect, "done": True})
            else:
                output.line(f"Done: {effect}.")
        return 0

    return anyio.run(run)


@cursor.command(name="reanchor")
def cursor_reanchor(
    *,
    since: Annotated[
        str | None,
        Parameter(help="Read again all events that were created since this time: 2h, '3 days', or ISO 8601."),
    ] = None,
    force: Annotated[bool, Parameter(help="Reanchor even if no worker refuses to work.", negative=())] = False,
    plan: Plan = False,
    yes: Yes = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Adopt a foreign history, after a restore or a logical copy. The worker gate must be closed.

    Events that a worker has not read are read, uncertain events are read again, and idempotency keys suppress second
    decisions. With --since, uncertain events before that time count as read. The cursors of all workers are changed in
    one transaction, and producers do not wait.
    """
    machine = bool(options and options.json)

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            moment = await times.moment(connection, since) if since else None
            found = await cursors.reanchor(connection, moment, force=force, plan=True)
            answer = {"done": False, "since": moment} | {k: v for k, v in found.items() if k != "status"}
            if plan or not yes:
                if machine:
                    output.as_json(answer)
                else:
                    _print_plan(found, moment)
                if not plan:
                    raise not_confirmed()
                return 0
            did = await cursors.reanchor(connection, moment, force=force, plan=False)
            if machine:
                output.as_json(
                    answer | {"done": True} | {k: did[k] for k in ("lineage", "again", "past", "traces_since")}
                )
            else:
                again, past = output.plural(did["again"], "event"), output.plural(did["past"], "event")
                output.line(f"Done: to be read: {again}; counted as read: {past}.")
                output.note(
                    "Next: `iu-listen gate open worker`. When the backlog is empty, `iu-listen completeness` checks"
                    " that every event has its attempts."
                )
                if did["traces_since"]:
                    output.note(
                        "The trace export begins anew. To export the spans that were not sent: iu-listen trace-export"
                        f" --since '{did['traces_since']}'"
                    )
        return 0

    return anyio.run(run)


def _print_plan(found: dict[str, Any], since: datetime | None) -> None:
    output.table(
        ("worker", "domain", "reads", "events", "unread", "uncertain", "to be read", "count as read"),
        (
            (w["worker_name"], w["event_domain"], output.mark(not w["refusal"], "yes", f"refuses: {w['refusal']}"),
             w["events"], w["unread"], w["uncertain"], w["again"], w["past"])
            for w in found["workers"]
        ),
    )  # fmt: skip
    if found["numbers_behind"]:
        output.line(
            f"The sequence of event numbers is {output.text(found['numbers_behind'])} behind the newest event; the"
            " reanchor moves it ahead."
        )
    if not since and any(w["uncertain"] for w in found["workers"]):
        output.line(
            "Uncertain events are read again. If you know since which time attempts may be missing, use --since."
        )
    if not found["foreign"]:
        output.line("No worker refuses: the history is not foreign, and the command changes nothing without --force.")
    output.line("Plan: nothing was changed.")
