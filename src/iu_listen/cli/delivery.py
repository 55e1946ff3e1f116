"""The commands route live and route dry: they let a route deliver, or turn it back to a dry run."""

from __future__ import annotations

import json
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import routes
from iu_listen.cli import output
from iu_listen.cli.ask import confirmed, reason
from iu_listen.cli.change import Plan, no_such_route, route
from iu_listen.cli.context import ConnectionOptions, looking
from iu_listen.install import requirements
from iu_listen.model.errors import Refused
from iu_listen.model.settings import mask
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection
from iu_listen.targets.check import TargetVerdict, check

#: The switches of a delivery in the order in which they are tested, each with the command that opens it.
LOCKS = {
    "master": "iu-listen gate open master",
    "worker": "iu-listen gate open worker",
    "delivery": "iu-listen gate open delivery",
    "listed": "this command",
}


def register(app: App) -> None:  # noqa: ARG001 they are commands of route, which is registered
    """Add these commands."""
    route.command(live, name="live")
    route.command(dry, name="dry")


def live(
    code: str,
    /,
    *,
    why: Annotated[str, Parameter(help="Why; recorded in iu_delivery_change.")],
    actor: Annotated[str | None, Parameter(help="Who asks; recorded. Default: the database user.")] = None,
    plan: Plan = False,
    yes: Annotated[bool, Parameter(help="Do it without asking.", negative=())] = False,
    where: ConnectionOptions | None = None,
) -> int:
    """Let a route deliver: put it on the list of live routes, enable it, end its dry run.

    That is the last of four locks; the others are the gates master, worker and delivery. Look first: `route backtest`.
    Events that were decided before are not delivered; dead letters are when they are replayed. Exit 1, also of the
    plan, when there can be no event for it, or nothing can be delivered to its target.
    """
    reason(why)

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            found = await _locks(connection, code)
            verdict = await problem(connection, found)
            refused = verdict.problem if verdict.certain else ""
            answer = _shown(found) | {"problem": refused or None, "done": False}
            if plan or refused or not (where and where.json):
                _tell(answer, where)
            if refused:
                raise Refused(f"{code} cannot deliver: {refused}", f"Nothing was changed. {verdict.hint}".strip())
            if verdict.problem:
                output.note(f"Not looked at whole: {verdict.problem}. {verdict.hint}")
            if plan:
                return 0
            confirmed(f"Let {code} deliver?", yes=yes)
            await routes.route_live(connection, code, live=True, why=why, actor=actor)
            after = _shown(await _locks(connection, code))
        if where and where.json:
            output.as_json(after | {"problem": None, "done": True})
        else:
            output.line(f"{code} is live.")
            for lock, how in LOCKS.items():
                if not after[lock]:
                    output.note(f"Still closed: the {lock} gate. {how}")
        return 0

    return anyio.run(run)


def dry(
    code: str,
    /,
    *,
    why: Annotated[str | None, Parameter(help="Why; recorded in iu_delivery_change.")] = None,
    actor: Annotated[str | None, Parameter(help="Who asks; recorded. Default: the database user.")] = None,
    where: ConnectionOptions | None = None,
) -> int:
    """Turn a route back to dry run, at once: the event that is being delivered is the last one."""

    async def run() -> dict[str, Any]:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            await _locks(connection, code)
            await routes.route_live(connection, code, live=False, why=why, actor=actor)
            return _shown(await _locks(connection, code))

    after = anyio.run(run)
    if where and where.json:
        output.as_json(after | {"problem": None, "done": True})
    else:
        output.line(f"{code} is a dry run.")
    return 0


async def _locks(connection: Connection, code: str) -> dict[str, Any]:
    found = await queries.rows(connection, "route_switches", code)
    if not found:
        raise await no_such_route(connection, code)
    return found[0]


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    """The columns of a route that are shown, with a password in its address masked."""
    return {name: value for name, value in found.items() if name != "policy"} | {
        "target_ref": mask(found["target_ref"])
    }


async def problem(connection: Connection, found: dict[str, Any]) -> TargetVerdict:
    """The problem that prevents deliveries of this route: first checked by the database, then by this process."""
    for row in await queries.rows(connection, "delivery/problems", found["route_code"]):
        return TargetVerdict(row["problem"], row["hint"] or "")
    return check(found["target_kind"], found["target_ref"], json.loads(found["policy"]).get("target") or {})


def _tell(answer: dict[str, Any], where: ConnectionOptions | None) -> None:
    if where and where.json:
        output.as_json(answer)
        return
    output.table(
        ("lock", "", "opened by"),
        ((lock, output.mark(answer[lock], "open", "closed"), how) for lock, how in LOCKS.items()),
    )
    delivers = "cannot deliver" if answer["problem"] else "delivers"
    output.line(f"Plan: {answer['route_code']} {delivers} to {answer['target_kind']} {answer['target_ref']}.")
