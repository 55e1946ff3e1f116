"""The command group dead-letter, without its commands replay and resolve: list and show dead letters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import dead_letters, times
from iu_listen.admin.ids import complete_id
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.parameters import ID, Exact, Id, in_range
from iu_listen.install import requirements
from iu_listen.model.text import MAX_SEARCHED, counted
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection

dead_letter: App = App(
    name="dead-letter", help="List, show, replay and resolve dead letters: events that a route gave up."
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """Options that select dead letters."""

    route: Annotated[str | None, Parameter(help="Only dead letters of this route.")] = None
    failure: Annotated[str | None, Parameter(help="Only dead letters with this failure code.")] = None
    since: Annotated[
        str | None, Parameter(help="Only dead letters created since this time: 2h, '3 days', or ISO 8601.")
    ] = None
    event: Annotated[str | None, ID, Parameter(help="Only dead letters of this event.")] = None
    subject: Annotated[
        str | None, Parameter(help="Only dead letters of this subject: its id, or its canonical address.")
    ] = None

    async def filter(self, connection: Connection) -> dead_letters.DeadLetterFilter:
        """The options as a filter for queries, with ids completed and times parsed."""
        since = await times.moment(connection, self.since) if self.since else None
        event = await complete_id(connection, "event", self.event) if self.event else None
        return dead_letters.DeadLetterFilter(
            route=self.route, failure=self.failure, since=since, event=event, subject=self.subject
        )


def register(app: App) -> None:
    """Add this group."""
    app.command(dead_letter)


# -- list and show -------------------------------------------------------------------------------------------------


@dead_letter.command(name="list")
def dead_letter_list(
    *,
    resolved: Annotated[bool, Parameter(help="Also list resolved dead letters.", negative=())] = False,
    filter_options: FilterOptions | None = None,
    before: Annotated[str | None, ID, Parameter(help="Only dead letters older than this one: the next page.")] = None,
    limit: Annotated[int, Parameter(help="Largest number of dead letters.", validator=in_range(1, 1_000_000))] = 50,
    exact: Exact = False,
    options: ConnectionOptions | None = None,
) -> int:
    """List dead letters, the newest first, and count the open ones by route and failure code.

    The counts end at 10 000. A search by subject, and one by route or failure code with --resolved, is made among the
    newest 100 000.
    """

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            chosen = await (filter_options or FilterOptions()).filter(connection)
            last = await complete_id(connection, "dead_letter", before) if before else None
            found = await dead_letters.page(
                connection, chosen, resolved=resolved, before=last, limit=limit, exact=exact
            )
            as_json = bool(options and options.json)
            kinds = [] if as_json else await dead_letters.kinds(connection, exact=exact)
        if as_json:
            output.as_json(found.rows)
            return 0
        _print_dead_letters(found.rows)
        if len(kinds) > 1 or (len(found.rows) < found.total and before is None):
            print_kinds(kinds)
        _print_remainder(found, resolved=resolved, before=before)
        if not found.whole:
            words = f"The newest {output.text(MAX_SEARCHED)} dead letters were searched."
            output.note(f"{words} To search all of them, use --exact.")
        return 0

    return anyio.run(run)


def _print_dead_letters(found: list[queries.Row]) -> None:
    output.table(
        ("dead letter", "event", "route", "age", "failure", "detail", "replays", "resolved"),
        (
            (d["id"], d["event_ref"], d["route_code"], output.ago(d["created_at"]), d["failure_code"],
             d["failure_detail"], d["replay_count"], d["resolution"])
            for d in found
        ),
    )  # fmt: skip


def _print_remainder(found: dead_letters.DeadLetterPage, *, resolved: bool, before: str | None) -> None:
    """Print the number of dead letters that are not shown, and the command that shows the next page."""
    if not found.rows:
        output.note(
            "There is no older dead letter." if before else f"No {'' if resolved else 'open '}dead letter matches."
        )
        return
    if before is None and len(found.rows) >= found.total:
        return
    words = f"{output.text(len(found.rows))} of {counted(found.total)} dead letters are shown."
    output.note(f"{words} For older ones, repeat the command with --before {found.rows[-1]['id']}")


def print_kinds(kinds: list[queries.Row]) -> None:
    """Print the counts of open dead letters by route and failure code."""
    output.table(
        ("dead letters of route", "failure", "open", "oldest", "newest"),
        (
            (
                k["route_code"],
                k["failure_code"],
                dead_letters.open_phrase(k),
                output.ago(k["oldest_at"]),
                output.ago(k["newest_at"]),
            )
            for k in kinds
        ),
    )


@dead_letter.command(name="show")
def dead_letter_show(id: Id, /, *, options: ConnectionOptions | None = None) -> int:
    """Show one dead letter with its whole event."""

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            found = await dead_letters.show(connection, await complete_id(connection, "dead_letter", id))
        answer = {**found, "event_snapshot": output.parsed(found["event_snapshot"])}
        if options and options.json:
            output.as_json(answer)
        else:
            for name, value in answer.items():
                words = (
                    json.dumps(value, indent=2, ensure_ascii=False) if isinstance(value, dict) else output.text(value)
                )
                output.block(f"{name:16}  {words}")
        return 0

    return anyio.run(run)
