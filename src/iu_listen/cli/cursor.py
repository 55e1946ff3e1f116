"""The command group cursor: show and reset the cursors of workers, accept sites, and reanchor."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import cursors, gates, times
from iu_listen.cli import output
from iu_listen.cli.change import Plan
from iu_listen.cli.context import ConnectionOptions, looking
from iu_listen.install import requirements
from iu_listen.model.errors import Refused
from iu_listen.postgres import queries

Yes = Annotated[bool, Parameter(help="Really do it.", negative=())]

cursor = App(name="cursor", help="Show where workers are, and put them somewhere else.")


def register(app: App) -> None:
    """Add this group."""
    app.command(cursor)


@cursor.command(name="show")
def cursor_show(*, where: ConnectionOptions | None = None) -> int:
    """Show where every worker is."""

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            found = await queries.rows(connection, "workers")
        if where and where.json:
            output.as_json(found)
        else:
            output.table(
                ("worker", "domain", "youngest event routed", "of", "backlog", "consumed", "in a tick"),
                (
                    (w["worker_name"], w["event_domain"], w["last_event_id"] or "fresh", w["last_created_at"],
                     w["backlog"], w["prev"], w["tick"])
                    for w in found
                ),
            )  # fmt: skip
        return 0

    return anyio.run(run)


@cursor.command(name="site")
def cursor_site(
    *,
    accept: Annotated[
        str | None, Parameter(help="Let the consumers of this site deliver; `last`: of the one that was refused last.")
    ] = None,
    where: ConnectionOptions | None = None,
) -> int:
    """Show from where consumers reach the database, and let those of a new site deliver.

    A consumer at an address that is not known delivers nothing, because the database may be a copy of another one.
    """

    async def run() -> list[queries.Row]:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            if accept is not None:
                chosen = None if accept == "last" else accept
                if not await queries.rows(connection, "accept_site", chosen, None):
                    raise Refused(f"no consumer came from {accept}", "iu-listen cursor site")
            return await queries.rows(connection, "sites")

    found = anyio.run(run)
    if where and where.json:
        output.as_json(found)
    else:
        output.table(
            ("site", "last seen", "may deliver since", "by"),
            ((s["site"], s["seen_at"], s["accepted_at"] or "no", s["accepted_by"]) for s in found),
        )
    return 0


@cursor.command(name="reset")
def cursor_reset(
    *,
    to: Annotated[Literal["beginning", "now"], Parameter(help="Where to.")],
    worker: Annotated[
        str | None, Parameter(help="Which worker. Default: IU_LISTEN_WORKER, else iu_outbound_default.")
    ] = None,
    plan: Plan = False,
    yes: Yes = False,
    where: ConnectionOptions | None = None,
) -> int:
    """Put a worker somewhere else.

    To the beginning: everything is read again; idempotency keys suppress second decisions. To now: what waits is
    never routed by this worker. The worker gate must be closed.
    """
    machine = bool(where and where.json)

    async def run() -> int:
        async with looking(where, worker=worker) as (door, connection):
            name = door.settings.worker
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            await requirements.require_worker(connection, name)
            mine = next(w for w in await queries.rows(connection, "workers") if w["worker_name"] == name)
            if to == "beginning":
                total = await queries.value(connection, "count_events", mine["event_domain"])
                domain = mine["event_domain"]
                effect = f"{output.text(total)} events of domain {domain} are read again; decided ones stay as they are"
            else:
                effect = f"{output.text(mine['backlog'])} waiting events are never routed by {name}"
            if plan or not yes:
                if machine:
                    output.as_json({"worker": name, "to": to, "effect": effect, "done": False})
                else:
                    output.line(f"Plan: {effect}.")
                    if any(g["open"] for g in await gates.all_gates(connection) if g["gate"] == "worker"):
                        output.note("Refused while the worker gate is open: iu-listen gate close worker")
                if not plan:
                    raise Refused("nothing was changed", "Say --yes to do it, or --plan to only look.")
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
        str | None, Parameter(help="Read what was created since then again: 2h, '3 days', or ISO 8601.")
    ] = None,
    force: Annotated[bool, Parameter(help="Although no worker refuses.", negative=())] = False,
    plan: Plan = False,
    yes: Yes = False,
    where: ConnectionOptions | None = None,
) -> int:
    """Make a foreign history our own, after a restore or a logical copy.

    What a worker has not read is read, what is uncertain is read again, and idempotency keys suppress second
    decisions; with --since the uncertain events before that time count as read. All workers move, all or nothing,
    and writers do not wait. The worker gate must be closed.
    """
    machine = bool(where and where.json)

    async def run() -> int:
        async with looking(where) as (_, connection):
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
                    raise Refused("nothing was changed", "Say --yes to do it, or --plan to only look.")
                return 0
            did = await cursors.reanchor(connection, moment, force=force, plan=False)
            if machine:
                output.as_json(
                    answer | {"done": True} | {k: did[k] for k in ("lineage", "again", "past", "traces_since")}
                )
            else:
                again, past = output.text(did["again"]), output.text(did["past"])
                output.line(f"Done: {again} event(s) are to be read, {past} were moved into the past.")
                output.note(
                    "Next: iu-listen gate open worker. When nothing waits any more, iu-listen completeness shows that"
                    " nothing is missing."
                )
                if did["traces_since"]:
                    output.note(
                        f"Traces: the export begins anew. What it had not sent: iu-listen trace-export --since"
                        f" '{did['traces_since']}'"
                    )
        return 0

    return anyio.run(run)


def _print_plan(found: dict[str, Any], since: datetime | None) -> None:
    output.table(
        ("worker", "domain", "reads", "events", "unread", "uncertain", "to be read", "into the past"),
        (
            (w["worker_name"], w["event_domain"], output.mark(not w["refusal"], "yes", f"refuses: {w['refusal']}"),
             w["events"], w["unread"], w["uncertain"], w["again"], w["past"])
            for w in found["workers"]
        ),
    )  # fmt: skip
    if found["numbers_behind"]:
        output.line(
            f"The sequence is {output.text(found['numbers_behind'])} behind the events; it is put ahead of them."
        )
    if not since and any(w["uncertain"] for w in found["workers"]):
        output.line("Uncertain events are read again. If you know since when events may be missing, say --since.")
    if not found["foreign"]:
        output.line("No worker refuses: the history is our own, and only --force would change anything.")
    output.line("Plan: nothing was changed.")
