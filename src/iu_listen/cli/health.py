"""The command health: report whether a worker makes progress."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter
from rich.markup import escape

from iu_listen.admin.health import figure_phrase, worker_health
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.parameters import WorkerName, in_range
from iu_listen.install import requirements
from iu_listen.model.errors import DatabaseUnreachable
from iu_listen.model.text import humane
from iu_listen.postgres import queries


def register(app: App) -> None:
    """Add this command."""
    app.command(health)


def health(
    *,
    worker: WorkerName = None,
    here: Annotated[
        bool, Parameter(help="Check only whether a consumer on this host makes progress.", negative=())
    ] = False,
    wait: Annotated[
        float | None,
        Parameter(
            help="Repeat the check until the worker is healthy, at most for this time, in seconds.",
            validator=in_range(0, 86400),
        ),
    ] = None,
    options: ConnectionOptions | None = None,
) -> int:
    """Report whether the worker can do its work.

    Exit 0: healthy; 1: not healthy; 2: no package in this database; 3: the database cannot be reached.

    A worker is healthy if it is registered, its history is not foreign, and the master gate is open. If the worker gate
    is open too, a consumer must have sent a heartbeat within three intervals, and no event may wait without a consumer
    that routes it. A backlog, dead letters, polling and a closed worker gate are warnings. With --wait a script can
    wait for a deployment: the command repeats the check, also while the server cannot be reached, and the last answer
    counts.
    """

    async def check() -> dict[str, Any]:
        async with connected(options, worker=worker, bounded=True) as (context, connection):
            name = context.settings.worker
            if not here:
                package = await requirements.require_package(connection)
                return await worker_health(connection, name, package)
            # Readiness checks run this every few seconds. So it reads one row, and neither counts the backlog nor
            # checks the whole package.
            if not await queries.value(connection, "ledger_exists"):
                await requirements.require_package(connection)
            beating = await queries.value(connection, "host_beats", platform.node(), name)
            reason = f"no consumer on {platform.node()} has sent a heartbeat within three intervals"
            return {"healthy": beating, "worker_name": name, "reasons": [] if beating else [reason], "warnings": []}

    async def run() -> int:
        answer = await _until_healthy(check, wait or 0)
        if options and options.json:
            output.as_json(answer)
        else:
            print_health(answer)
        return 0 if answer["healthy"] else 1

    return anyio.run(run)


async def _until_healthy(check: Callable[[], Awaitable[dict[str, Any]]], seconds: float) -> dict[str, Any]:
    """The first healthy answer within ``seconds``, else the last answer. An unreachable server is tried again."""
    give_up = anyio.current_time() + seconds
    while True:
        late = anyio.current_time() >= give_up
        try:
            answer = await check()
            if answer["healthy"] or late:
                return answer
        except DatabaseUnreachable:
            if late:
                raise
        await anyio.sleep(min(0.5, max(0.0, give_up - anyio.current_time())))


def print_health(answer: dict[str, Any]) -> None:
    """Print whether a worker is healthy, with reasons and warnings."""
    words = answer["worker_name"] + (f": {condition_phrase(answer)}" if "condition" in answer else "")
    output.line(f"{output.mark(answer['healthy'], 'healthy', 'NOT HEALTHY')}  {escape(words)}", markup=True)
    for reason in answer["reasons"]:
        output.line(f"  because {humane(reason)}")
    for warning in answer["warnings"]:
        detail = f" ({humane(warning['detail'])})" if "detail" in warning else ""
        output.line(f"  warning: {warning['code'].replace('_', ' ')}: {figure_phrase(warning)}{detail}")


def condition_phrase(row: dict[str, Any]) -> str:
    """The condition of a worker, as a phrase."""
    words: str = row["condition"].replace("_", " ")
    return f"{words} ({humane(row['condition_why'])})" if row["condition_why"] else words
