"""Adopted tables: outbox tables of applications whose new rows a trigger copies to event_outbox."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from iu_listen.admin.event_types import require_name
from iu_listen.install.adoption_sql import removal_sql, trigger_sql
from iu_listen.install.migrate import retry_on_lock_timeout
from iu_listen.install.verify import Check
from iu_listen.model.adoption import (
    FUNCTION_PREFIX,
    TRIGGER,
    Adoption,
    Column,
    Table,
    is_constant,
    plan_adoption,
)
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.postgres.queries import Row, rows, value
from iu_listen.postgres.session import Connection

#: The kinds of relations that can have the trigger: tables and partitioned tables.
_TABLE_KINDS: Final = ("r", "p")
#: The parameters of adopt/list.
_NAMES: Final = (TRIGGER, FUNCTION_PREFIX)
_STATES: Final = {"D": "disabled", "R": "enabled for replication only"}


@dataclass(frozen=True, slots=True)
class AdoptedTable:
    """An adopted table, as it is found in the database.

    Attributes:
        table: Its schema and name.
        domain: The domain of its events.
        fields: Each field with its columns, as one text.
        problem: Why its rows are not copied, or not as planned; empty: all is well.
    """

    table: str
    domain: str
    fields: str
    problem: str


async def read_table(connection: Connection, name: str) -> Table:
    """Read the columns and the unique indexes of a table.

    Args:
        connection: A session.
        name: The table, with its schema if that is not ``public``; quoted as in SQL if necessary.

    Raises:
        ConfigurationError: There is no such table.
        Refused: It is the outbox itself, or not a table.
    """
    full_name = _with_schema(name)
    found = await rows(connection, "adopt/table", full_name)
    if not found:
        raise ConfigurationError(f"there is no table {full_name}", "Give schema and name: --table public.outbox")
    row = found[0]
    columns = [Column(**column) for column in json.loads(row["columns"] or "[]")]
    unique = tuple(frozenset(names) for names in json.loads(row["unique_indexes"]))
    table = Table(row["schema"], row["name"], {column.name: column for column in columns}, unique)
    if table.full_name == "public.event_outbox":
        raise Refused("event_outbox is the outbox itself", "Its events need no adoption.")
    if row["kind"] not in _TABLE_KINDS:
        raise Refused(f"{table.full_name} is not a table", "Adopt the table into which the application inserts.")
    return table


async def plan(
    connection: Connection, name: str, preset: str | None, maps: dict[str, str], domain: str
) -> tuple[Adoption, str]:
    """The mapping of a table, and the statements that adopt it.

    Raises:
        ConfigurationError: The table, a column, a field or a preset does not exist, or a column does not fit.
        Refused: The base is that of IU Core, the table is adopted already, or it has no usable id.
    """
    require_name("the domain", domain)
    if await value(connection, "is_iu_core"):
        raise Refused(
            "on the base of IU Core no table can be adopted",
            "Its types, streams and subjects are fixed; see iu-listen init.",
        )
    table = await read_table(connection, name)
    if table.full_name in await adopted_names(connection):
        raise Refused(
            f"table {table.full_name} is adopted already",
            f"iu-listen adopt --table {table.full_name} --remove removes that.",
        )
    adoption = plan_adoption(table, preset, maps, domain)
    return adoption, trigger_sql(adoption, table)


async def adopt(connection: Connection, statements: str) -> None:
    """Execute the statements of a plan in one transaction.

    Inserts into the table wait for at most half a second at a time behind the creation of the trigger.
    """

    async def work() -> None:
        async with connection.transaction():
            await connection.execute(statements)

    await retry_on_lock_timeout(connection, work)


async def removal(connection: Connection, name: str) -> str:
    """The statements that end the adoption of a table. Its events in event_outbox stay.

    Args:
        connection: A session.
        name: The table, as ``adopt`` lists it; it need not exist any more.

    Raises:
        ConfigurationError: No such table is adopted.
    """
    full_name = _with_schema(name)
    if found := await rows(connection, "adopt/table", full_name):
        full_name = f"{found[0]['schema']}.{found[0]['name']}"
    tables = {adoption.table: row["trigger_table"] for adoption, row in await _adoptions(connection)}
    if full_name not in tables:
        raise ConfigurationError(f"table {full_name} is not adopted", f"Adopted tables: {', '.join(tables) or 'none'}.")
    return removal_sql(full_name, tables[full_name])


async def adopted_names(connection: Connection) -> list[str]:
    """Schema and name of each adopted table."""
    return [adoption.table for adoption, _ in await _adoptions(connection)]


async def adopted_tables(connection: Connection) -> list[AdoptedTable]:
    """All adopted tables, each with its problem if there is one."""
    result = []
    for adoption, row in await _adoptions(connection):
        fields = ", ".join(f"{field}={','.join(columns)}" for field, columns in adoption.fields.items())
        problem = await _problem(connection, adoption, row)
        result.append(AdoptedTable(adoption.table, adoption.domain, fields, problem))
    return result


async def checks(connection: Connection) -> list[Check]:
    """One check for each adopted table, for ``verify``."""
    return [
        Check(f"A{number}", f"rows of {adopted.table} are copied", "all", adopted.problem or "all", not adopted.problem)
        for number, adopted in enumerate(await adopted_tables(connection), start=1)
    ]


async def _adoptions(connection: Connection) -> list[tuple[Adoption, Row]]:
    """The mapping of each trigger function that adopt() created, with its row of adopt/list."""
    found = [(Adoption.parse(row["comment"] or ""), row) for row in await rows(connection, "adopt/list", *_NAMES)]
    return [(adoption, row) for adoption, row in found if adoption]


def _with_schema(name: str) -> str:
    return name if "." in name else f"public.{name}"


async def _problem(connection: Connection, adoption: Adoption, row: Row) -> str:
    if row["trigger_table"] is None:
        return "its trigger is missing"
    if state := _STATES.get(row["enabled"]):
        return f"its trigger is {state}"
    table = await read_table(connection, row["trigger_table"])
    if table.full_name != adoption.table:
        return f"the table is {table.full_name} now"
    used = [name for columns in adoption.fields.values() for name in columns if not is_constant(name)]
    if gone := [name for name in used if name not in table.columns]:
        return f"column {gone[0]} does not exist any more, so every INSERT fails"
    if row["source"] not in trigger_sql(adoption, table):
        return "its function differs from the mapping"
    return ""
