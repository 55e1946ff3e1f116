"""The command attempts: list the attempts of the audit."""

from __future__ import annotations

from typing import Annotated, Literal

import anyio
from cyclopts import App, Parameter

from iu_listen.admin.ids import complete_id
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.parameters import ID, Exact, Limit
from iu_listen.install import requirements
from iu_listen.model.text import MAX_SEARCHED
from iu_listen.postgres import queries


def register(app: App) -> None:
    """Add this command."""
    app.command(attempts)


def attempts(
    *,
    event: Annotated[str | None, ID, Parameter(help="Only attempts of this event.")] = None,
    route: Annotated[str | None, Parameter(help="Only attempts of this route.")] = None,
    status: Annotated[
        Literal["dry_run", "pending", "sent", "failed", "skipped"] | None,
        Parameter(help="Only attempts with this status."),
    ] = None,
    limit: Limit = 20,
    exact: Exact = False,
    options: ConnectionOptions | None = None,
) -> int:
    """List attempts from the audit, the newest first. Exit 1 if an event was named and has no attempts.

    Attempts of a route, and those with a status other than failed, are searched among the newest 100 000.
    """

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_base(connection)
            lowest = None
            if event:
                one = await complete_id(connection, "event", event)
                found = await queries.rows(connection, "list_attempts_of", one, route, status, limit + 1)
            else:
                # Without these filters the first rows of an index are the answer, so the search needs no bound.
                if not exact and (route or status not in (None, "failed")):
                    lowest = await queries.value(connection, "attempts_from", MAX_SEARCHED)
                found = await queries.rows(connection, "list_attempts", route, status, limit + 1, lowest)
        more, found = len(found) > limit, found[:limit]
        if options and options.json:
            output.as_json(found)
        else:
            output.table(
                ("event", "route", "status", "decision", "attempt", "time", "failure"),
                (
                    (a["event_ref"], a["route_code"], a["status"], a["decision"], a["attempt_no"], a["created_at"],
                     a["failure_code"])
                    for a in found
                ),
            )  # fmt: skip
            if more:
                output.note(
                    f"Only the newest {output.text(limit)} attempts are shown. To see others, use --limit, --event,"
                    " --route or --status."
                )
            elif lowest:
                words = f"The newest {output.text(MAX_SEARCHED)} attempts were searched."
                output.note(f"{words} To search all of them, use --exact.")
        return 1 if event and not found else 0

    return anyio.run(run)
