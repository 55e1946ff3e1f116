"""The command init: the neutral base and the package, for an application without IU Core."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import App, Parameter

from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.install import LockTimeout, apply_on
from iu_listen.cli.parameters import Plan
from iu_listen.install.package import missing_base_objects, package_state
from iu_listen.install.preflight import ApplyOptions
from iu_listen.model.errors import Refused
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection

#: The reason that is recorded if no backup is asked for.
NO_BACKUP = "init creates new objects only"


def register(app: App) -> None:
    """Add this command."""
    app.command(init)


def init(
    *,
    expect_database: Annotated[str | None, Parameter(help="Expected name of the database.")] = None,
    backup_dir: Annotated[Path | None, Parameter(help="Take a backup into this directory first (pg_dump -Fc).")] = None,
    plan: Plan = False,
    lock_timeout: LockTimeout = 2.0,
    options: ConnectionOptions | None = None,
) -> int:
    """Create the outbox and everything else in a database of your own application.

    The command creates the tables of the neutral base (event_outbox, its event types, routes and attempts) and the
    package, beside the tables of the application. Nothing is read or delivered afterwards until a gate is opened. In a
    database that has these tables already, the command changes nothing. Next: event-type add, route add, gate open,
    run.
    """

    async def run() -> int:
        async with connected(options, create=True) as (context, connection):
            machine = bool(options and options.json)
            if there := await _present(connection):
                base, state = there
                if base != "neutral base":
                    raise Refused(f"{state}, on the base of IU Core; nothing was changed", "Use iu-listen apply there.")
                if machine:
                    output.as_json({"plan": plan, "base": "present", "applied": [], "pass": True})
                else:
                    output.line(f"{state}, on the neutral base; nothing was changed.")
                return 0
            apply_options = ApplyOptions(
                dsn=context.settings.dsn, expect_database=expect_database, backup_dir=backup_dir,
                no_backup="" if backup_dir else NO_BACKUP, plan=plan, base="neutral", programs=context.programs,
                lock_timeout=lock_timeout,
            )  # fmt: skip
            return await apply_on(context, connection, apply_options, machine=machine)

    return anyio.run(run)


async def _present(connection: Connection) -> tuple[str, str] | None:
    """The base of this database, and a phrase about the package; None: there is no base."""
    missing = await missing_base_objects(connection)
    if missing:
        return None
    package = await package_state(connection)
    state = (
        f"iu-listen is there: schema {package.version}" if package.installed else "there is an outbox without iu-listen"
    )
    return ("IU Core" if await queries.value(connection, "is_iu_core") else "neutral base"), state
