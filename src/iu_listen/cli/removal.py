"""The commands that remove an entry: an event type, a route, a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from iu_listen.cli import output
from iu_listen.cli.confirm import require_confirmation
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.install import requirements
from iu_listen.postgres.session import Connection

Step = Callable[[Connection], Awaitable[object]]
Consequence = Callable[[Connection], Awaitable[str]]


def remove(
    what: str,
    name: str,
    options: ConnectionOptions | None,
    *,
    plan: bool,
    yes: bool,
    require: Step,
    delete: Step,
    consequence: Consequence | None = None,
) -> int:
    """Run a command that removes an entry, and return its exit code.

    Args:
        what: The kind of the entry, as ``event type``.
        name: The name of the entry.
        options: The options of the command.
        plan: Change nothing.
        yes: Do not ask for confirmation.
        require: Raises an error if there is no such entry.
        delete: Removes the entry.
        consequence: Describes an effect of the removal that is easily missed; empty: there is none.
    """

    async def run() -> None:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            await require(connection)
            if consequence and (text := await consequence(connection)):
                output.note(text)
            if not plan:
                require_confirmation(f"Remove the {what} {name}?", yes=yes)
                await delete(connection)

    anyio.run(run)
    if options and options.json:
        output.as_json({what.replace(" ", "_"): name, "done": not plan})
    else:
        output.line(f"Plan: the {what} {name} would be removed." if plan else f"The {what} {name} was removed.")
    return 0
