"""The command adopt: copy the events of an outbox table that exists, without a change of the application."""

from __future__ import annotations

from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import adoption
from iu_listen.cli import output
from iu_listen.cli.confirm import require_confirmation
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.parameters import NoQuestion, Plan
from iu_listen.install import requirements
from iu_listen.model.adoption import FIELDS, PRESETS
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.routing import DEFAULT_DOMAIN
from iu_listen.postgres.session import Connection

#: The columns of the list of adopted tables.
COLUMNS = ("table", "domain", "fields", "problem")


def register(app: App) -> None:
    """Add this command."""
    app.command(adopt)


def adopt(
    *,
    table: Annotated[
        str | None, Parameter(help="The table, as schema.name. Without it: list the adopted tables.")
    ] = None,
    preset: Annotated[
        str | None,
        Parameter(help=f"A known kind of table: {', '.join(PRESETS)}. Default: the first one whose columns exist."),
    ] = None,
    maps: Annotated[
        list[str] | None,
        Parameter(
            name="--map",
            help=f"FIELD=COLUMN, or FIELD=COLUMN,COLUMN, or FIELD='constant'; repeatable. Fields: {', '.join(FIELDS)}.",
            negative=(),
        ),
    ] = None,
    domain: Annotated[str, Parameter(help="Domain of the events. The default worker reads iu.")] = DEFAULT_DOMAIN,
    remove: Annotated[bool, Parameter(help="End the adoption. Events that were copied stay.", negative=())] = False,
    plan: Plan = False,
    yes: NoQuestion = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Copy each new row of an existing outbox table to event_outbox, in the transaction that inserts it.

    A trigger is created on the table; the application is not changed. The rows that exist already are not copied.
    New types are registered when their first event comes; a type that event-type remove made inactive is skipped.
    The list exits with 1 if a table has a problem.
    """

    async def run() -> tuple[dict[str, Any], str]:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            if table is None:
                return {"adopted": await _listed(connection)}, ""
            if remove:
                answer: dict[str, Any] = {"table": table}
                statements = await adoption.removal(connection, table)
            else:
                planned, statements = await adoption.plan(connection, table, preset, _pairs(maps or []), domain)
                answer = {"table": planned.table, "domain": planned.domain}
                answer["fields"] = {field: list(columns) for field, columns in planned.fields.items()}
            if not plan:
                await requirements.require_primary(connection)
                require_confirmation(f"{'End the adoption of' if remove else 'Adopt'} {table}?", yes=yes)
                await adoption.adopt(connection, statements)
            return answer | {"removed" if remove else "created": not plan, "sql": statements}, statements

    if table is None and (preset or maps or remove):
        raise ConfigurationError("--table is missing", "Give the table: --table public.outbox")
    answer, statements = anyio.run(run)
    if options and options.json:
        output.as_json(answer["adopted"] if table is None else answer)
    elif table is None:
        _print_list(answer["adopted"])
    else:
        _print_change(answer, statements, plan=plan)
    return int(any(row["problem"] for row in answer.get("adopted", ())))


def _print_list(adopted: list[dict[str, str]]) -> None:
    if not adopted:
        output.line("No table is adopted. iu-listen adopt --table public.outbox --plan shows what would be done.")
        return
    output.table(COLUMNS, [[row[name] for name in COLUMNS] for row in adopted])


async def _listed(connection: Connection) -> list[dict[str, str]]:
    found = await adoption.adopted_tables(connection)
    return [{"table": a.table, "domain": a.domain, "fields": a.fields, "problem": a.problem} for a in found]


def _pairs(maps: list[str]) -> dict[str, str]:
    pairs = {}
    for text in maps:
        field, separator, columns = text.partition("=")
        if not separator or not columns:
            raise ConfigurationError(
                f"--map {text} is not of the form FIELD=COLUMN", "For example: --map type=event_name"
            )
        pairs[field.strip()] = columns.strip()
    return pairs


def _print_change(answer: dict[str, Any], statements: str, *, plan: bool) -> None:
    for field, columns in answer.get("fields", {}).items():
        output.line(f"{field:<13} {','.join(columns)}")
    if plan:
        output.block(statements)
        output.line("Plan: nothing was changed.")
    elif "removed" in answer:
        output.line(f"The adoption of {answer['table']} was ended. Events that were copied stay.")
    else:
        output.line(f"Each new row of {answer['table']} is copied to event_outbox from now on.")
