"""route live and route dry: the last lock before something leaves."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter
from rich.prompt import Confirm

from iu_listen.cli import show
from iu_listen.cli.change import Plan, no_such_route, route
from iu_listen.cli.door import Where, looking
from iu_listen.model.errors import Refused
from iu_listen.postgres import census
from iu_listen.postgres.session import Connection

#: The locks in the order in which they are asked, and how each is opened.
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
    where: Where | None = None,
) -> int:
    """Let a route deliver: put it on the list of live routes, enable it, end its dry run.

    That is the last of four locks; the others are the gates master, worker and delivery. Look first: `route backtest`.
    Events that were decided before are not delivered; dead letters are when they are replayed.
    """

    async def run() -> int:
        async with looking(where) as (_, connection):
            await census.require_package(connection)
            await census.require_primary(connection)
            found = await _locks(connection, code)
            problem = await _problem(connection, found)
            answer = found | {"problem": problem, "done": False}
            if plan or problem or not (where and where.json):
                _tell(answer, where)
            if plan:
                return 0
            if problem:
                raise Refused(problem, "Nothing was changed. docs/how-to/delivery.md")
            if not yes and not (
                sys.stdin.isatty() and Confirm.ask(f"Let {code} deliver?", default=False, console=show.err())
            ):
                raise Refused("nothing was changed", "Say --yes to do it, or --plan to only look.")
            await census.route_live(connection, code, live=True, why=why, actor=actor)
            after = await _locks(connection, code)
        if where and where.json:
            show.as_json(after | {"problem": None, "done": True})
        else:
            show.line(f"{code} is live.")
            for lock, how in LOCKS.items():
                if not after[lock]:
                    show.note(f"Still closed: the {lock} gate. {how}")
        return 0

    return anyio.run(run)


def dry(
    code: str,
    /,
    *,
    why: Annotated[str | None, Parameter(help="Why; recorded in iu_delivery_change.")] = None,
    actor: Annotated[str | None, Parameter(help="Who asks; recorded. Default: the database user.")] = None,
    where: Where | None = None,
) -> int:
    """Turn a route back to dry run, at once: the event that is being delivered is the last one."""

    async def run() -> dict[str, Any]:
        async with looking(where) as (_, connection):
            await census.require_package(connection)
            await census.require_primary(connection)
            await _locks(connection, code)
            await census.route_live(connection, code, live=False, why=why, actor=actor)
            return await _locks(connection, code)

    after = anyio.run(run)
    if where and where.json:
        show.as_json(after | {"problem": None, "done": True})
    else:
        show.line(f"{code} is a dry run.")
    return 0


async def _locks(connection: Connection, code: str) -> dict[str, Any]:
    found = await census.rows(connection, "route_locks", code)
    if not found:
        raise await no_such_route(connection, code)
    return found[0]


async def _problem(connection: Connection, found: dict[str, Any]) -> str | None:
    """Why nothing could be delivered by this route; None: it could."""
    if found["target_kind"] in ("workflow", "external_endpoint"):
        return None
    if found["target_kind"] != "sql_function":
        return f"nothing delivers to a {found['target_kind']}"
    try:
        await census.value(connection, "delivery_function", found["target_ref"])
    except Refused as refused:
        return refused.message
    return None


def _tell(answer: dict[str, Any], where: Where | None) -> None:
    if where and where.json:
        show.as_json(answer)
        return
    show.table(
        ("lock", "", "opened by"),
        ((lock, show.mark(answer[lock], "open", "closed"), how) for lock, how in LOCKS.items()),
    )
    show.line(f"Plan: {answer['route_code']} delivers to {answer['target_kind']} {answer['target_ref']}.")
