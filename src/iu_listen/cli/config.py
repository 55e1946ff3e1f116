"""The command group config: compare a configuration file with a database, and apply it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import App, Parameter

from iu_listen.admin.config import apply_changes, as_toml, changes, try_changes
from iu_listen.cli import output
from iu_listen.cli.confirm import require_confirmation
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.parameters import NoQuestion
from iu_listen.install import requirements
from iu_listen.model.config_file import ConfigFile, parse
from iu_listen.model.errors import ConfigurationError

File = Annotated[Path, Parameter(help="The configuration file.")]
DEFAULT_FILE = Path("iu-listen.toml")

config: App = App(name="config", help="Compare a file with event types, routes, workers and retention, and apply it.")


def register(app: App) -> None:
    """Add this group."""
    app.command(config)


@config.command(name="plan")
def config_plan(
    *,
    file: File = DEFAULT_FILE,
    check: Annotated[bool, Parameter(help="Exit 1 if there are differences.", negative=())] = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Show the differences between a file and the database. Nothing is changed.

    The changes, except new workers, are made in a transaction that is rolled back. So a file that config apply would
    refuse is refused here, too.
    """
    return _run(_read(file), options, plan=True, check=check)


@config.command(name="apply")
def config_apply(
    *, file: File = DEFAULT_FILE, yes: NoQuestion = False, options: ConnectionOptions | None = None
) -> int:
    """Make the database as a file says, in one transaction. Entries that the file does not name stay as they are.

    New routes are dry runs, as after route add; a file makes no route live.
    """
    return _run(_read(file), options, plan=False, yes=yes)


@config.command(name="show")
def config_show(*, options: ConnectionOptions | None = None) -> int:
    """Print the state of the database as a configuration file."""

    async def run() -> str:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            return await as_toml(connection)

    text = anyio.run(run)
    if options and options.json:
        output.as_json({"toml": text})
    else:
        sys.stdout.write(text)
    return 0


def _read(file: Path) -> ConfigFile:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(
            f"{file} cannot be read: {reason}", "iu-listen config show prints such a file."
        ) from error
    try:
        return parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error.message}", error.hint) from error


def _run(
    wanted: ConfigFile, options: ConnectionOptions | None, *, plan: bool, check: bool = False, yes: bool = False
) -> int:
    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            found = await changes(connection, wanted)
            machine = bool(options and options.json)
            if found and not machine:
                output.table(
                    ("change", "name", "before", "after"),
                    ((c.kind, c.name, c.before or "–", c.after) for c in found),
                )
            elif not machine:
                output.line("The database is as the file says.")
            if found and plan:
                for problem in await try_changes(connection, found):
                    output.note(problem)
            if found and not plan:
                await requirements.require_primary(connection)
                require_confirmation(
                    f"Make {output.plural(len(found), 'change')}?", yes=yes, plan="iu-listen config plan"
                )
                await apply_changes(connection, found)
                if not machine:
                    output.line(f"{output.plural(len(found), 'change')} made.")
            if machine:
                shown = [{"kind": c.kind, "name": c.name, "before": c.before, "after": c.after} for c in found]
                output.as_json({"changes": shown, "done": not plan})
        return int(check and bool(found))

    return anyio.run(run)
