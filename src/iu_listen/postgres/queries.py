"""Runs the named queries of sql/queries/ and returns their rows."""

from __future__ import annotations

from typing import Any

from iu_listen.postgres.session import Connection, translate_driver_errors
from iu_listen.postgres.sqlfiles import query

Row = dict[str, Any]


async def rows(connection: Connection, name: str, *args: Any) -> list[Row]:
    """The rows of sql/queries/<name>.sql."""
    with translate_driver_errors():
        return [dict(row) for row in await connection.fetch(query(name), *args)]


async def value(connection: Connection, name: str, *args: Any) -> Any:
    """The one value of sql/queries/<name>.sql."""
    with translate_driver_errors():
        return await connection.fetchval(query(name), *args)
