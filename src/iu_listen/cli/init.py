"""The command init: the neutral base and the package, for an application without IU Core."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter
from rich.markup import escape

from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.install import LockTimeout, applied, apply_on
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
    verbose: Annotated[
        bool, Parameter(help="Show the evidence of every preflight check, and every check afterwards.", negative=())
    ] = False,
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
            if machine or verbose:
                return await apply_on(context, connection, apply_options, machine=machine)
            answer = await applied(context, connection, apply_options, quiet=True)
            _print_summary(answer)
        return 0 if answer["pass"] else 1

    return anyio.run(run)


def _print_summary(answer: dict[str, Any]) -> None:
    """Print the result in a few lines, and everything that is wrong except what follows from something else."""
    would_create = answer.get("base") == "would be created"
    for gate in answer["gates"]:
        if gate["pass"] or gate["evidence"].startswith("not ") or (would_create and gate["name"] == "no drift"):
            continue
        output.line(f"{output.mark(False)}  gate {gate['number']}  {gate['name']}", markup=True)
        output.line(f"      {gate['evidence']}")
        if gate["hint"]:
            output.line(f"      → {gate['hint']}")
    checks = answer.get("verify", [])
    for check in checks:
        if not check["pass"]:
            output.line(f"{output.mark(False)}  {check['id']} {escape(check['check'])}", markup=True)
            output.line(f"      expected {check['expected']}, observed {check['observed']}")
    if would_create:
        output.line("Plan: the tables of the neutral base and the package would be created; nothing was changed.")
    elif not answer["pass"]:
        created = answer.get("base") == "created"
        output.line("Only the base was created." if created else "Nothing was changed.")
    else:
        gates = ", ".join(f"{g['gate']} {'open' if g['open'] else 'closed'}" for g in answer["gates_after"])
        files, passed = output.plural(len(answer["applied"]), "file"), output.plural(len(checks), "check")
        output.line(f"The outbox and iu-listen are ready: {files} applied, {passed} passed.")
        output.line(f"Gates: {gates}. Nothing is read or delivered before all three are open.")
        output.note(
            "Next: iu-listen route sync --app MODULE, and iu-listen gate open worker. All checks: iu-listen verify"
        )
        return
    output.note("With --verbose or --json, the evidence of all gates is shown.")


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
