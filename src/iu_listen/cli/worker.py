"""The command group worker: list, add and remove workers."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import workers
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.health import condition_phrase
from iu_listen.cli.parameters import NoQuestion, Plan
from iu_listen.cli.removal import remove
from iu_listen.install import requirements
from iu_listen.install.migrate import retry_on_lock_timeout
from iu_listen.model.text import counted
from iu_listen.postgres import queries

worker: App = App(name="worker", help="List, add and remove workers. Each worker reads the events of one domain.")


def register(app: App) -> None:
    """Add this group."""
    app.command(worker)


@worker.command(name="list")
def worker_list(*, options: ConnectionOptions | None = None) -> int:
    """List all workers, with their domains and conditions."""

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            found = await queries.rows(connection, "workers")
        if options and options.json:
            output.as_json(found)
        else:
            output.table(
                ("worker", "domain", "condition", "backlog", "routed", "dead letters"),
                (
                    (w["worker_name"], w["event_domain"], condition_phrase(w), counted(w["backlog"]), w["total_seen"],
                     counted(w["open_dead_letters"]))
                    for w in found
                ),
            )  # fmt: skip
        return 0

    return anyio.run(run)


@worker.command(name="add")
def worker_add(
    name: str,
    /,
    *,
    domain: Annotated[str, Parameter(help="Domain of its events.")],
    options: ConnectionOptions | None = None,
) -> int:
    """Register a worker for a domain. It begins with the first event of the domain.

    Run its consumer with run --worker NAME. The worker gate is one for all workers.
    """

    async def run() -> None:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            await retry_on_lock_timeout(connection, partial(workers.add_worker, connection, name, domain))

    anyio.run(run)
    return worker_list(options=options)


@worker.command(name="remove")
def worker_remove(
    name: str,
    /,
    *,
    plan: Plan = False,
    yes: NoQuestion = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Remove a worker without a consumer and without waiting deliveries. Its attempts and dead letters stay."""
    return remove(
        "worker", name, options, plan=plan, yes=yes,
        require=lambda connection: workers.require_removable(connection, name),
        delete=lambda connection: retry_on_lock_timeout(connection, partial(workers.remove_worker, connection, name)),
    )  # fmt: skip
