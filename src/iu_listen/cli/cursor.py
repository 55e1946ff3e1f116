"""Where workers are, and how they are put somewhere else: cursor show, reset."""

from __future__ import annotations

from typing import Annotated, Literal

import anyio
from cyclopts import App, Parameter

from iu_listen.cli import show
from iu_listen.cli.change import Plan
from iu_listen.cli.door import Where, looking
from iu_listen.model.errors import Refused
from iu_listen.postgres import census

cursor = App(name="cursor", help="Show where workers are, and put them somewhere else.")


def register(app: App) -> None:
    """Add this group."""
    app.command(cursor)


@cursor.command(name="show")
def cursor_show(*, where: Where | None = None) -> int:
    """Show where every worker is."""

    async def run() -> int:
        async with looking(where) as (_, connection):
            await census.require_package(connection)
            found = await census.rows(connection, "workers")
        if where and where.json:
            show.as_json(found)
        else:
            show.table(
                ("worker", "domain", "youngest event routed", "of", "backlog", "consumed", "in a tick"),
                (
                    (w["worker_name"], w["event_domain"], w["last_event_id"] or "fresh", w["last_created_at"],
                     w["backlog"], w["prev"], w["tick"])
                    for w in found
                ),
            )  # fmt: skip
        return 0

    return anyio.run(run)


@cursor.command(name="reset")
def cursor_reset(
    *,
    to: Annotated[Literal["beginning", "now"], Parameter(help="Where to.")],
    worker: Annotated[
        str | None, Parameter(help="Which worker. Default: IU_LISTEN_WORKER, else the one of 060.")
    ] = None,
    plan: Plan = False,
    yes: Annotated[bool, Parameter(help="Really do it.", negative=())] = False,
    where: Where | None = None,
) -> int:
    """Put a worker somewhere else.

    To the beginning: everything is read again; idempotency keys suppress second decisions. To now: what waits is
    never routed by this worker. The worker gate must be closed.
    """
    machine = bool(where and where.json)

    async def run() -> int:
        async with looking(where, worker=worker) as (door, connection):
            name = door.settings.worker
            await census.require_package(connection)
            await census.require_primary(connection)
            await census.require_worker(connection, name)
            mine = next(w for w in await census.rows(connection, "workers") if w["worker_name"] == name)
            if to == "beginning":
                total = await census.value(connection, "count_events", mine["event_domain"])
                domain = mine["event_domain"]
                effect = f"{show.text(total)} events of domain {domain} are read again; decided ones stay as they are"
            else:
                effect = f"{show.text(mine['backlog'])} waiting events are never routed by {name}"
            if plan or not yes:
                if machine:
                    show.as_json({"worker": name, "to": to, "effect": effect, "done": False})
                else:
                    show.line(f"Plan: {effect}.")
                if not plan:
                    raise Refused("nothing was changed", "Say --yes to do it, or --plan to only look.")
                return 0
            if any(g["open"] for g in await census.gates(connection) if g["gate"] == "worker"):
                raise Refused("the worker gate is open", "Close it first: iu-listen gate close worker")
            await census.value(connection, "reset_cursor", name, "3:3:" if to == "beginning" else None)
            if machine:
                show.as_json({"worker": name, "to": to, "effect": effect, "done": True})
            else:
                show.line(f"Done: {effect}.")
        return 0

    return anyio.run(run)
