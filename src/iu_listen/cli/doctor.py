"""The command doctor: search for possible faults."""

from __future__ import annotations

import os

import anyio
from cyclopts import App

from iu_listen.admin import doctor
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.parameters import WorkerName
from iu_listen.model.settings import unknown_variables

#: The word of each level, in rich's markup.
LEVEL_MARKUP = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]FAIL[/]"}


def register(app: App) -> None:
    """Add this command."""
    app.command(run, name="doctor")


def run(*, worker: WorkerName = None, options: ConnectionOptions | None = None) -> int:
    """Search for possible faults, and print a hint for each. Exit 1 if there is a fault."""

    async def examine() -> int:
        async with connected(options, worker=worker) as (context, connection):
            unknown = unknown_variables(os.environ, context.settings)
            findings = await doctor.examine(connection, context.settings.worker)
        findings += [
            doctor.Finding("warn", "environment", f"{name} is no setting, and has no effect", hint)
            for name, hint in unknown.items()
        ]
        failed = any(f.level == "fail" for f in findings)
        if options and options.json:
            output.as_json({"pass": not failed, "findings": [f.as_json() for f in findings]})
        else:
            output.table(
                ("level", "check", "result", "hint"),
                ((output.Markup(LEVEL_MARKUP[f.level]), f.what, f.found, f.hint) for f in findings),
            )
        return int(failed)

    return anyio.run(examine)
