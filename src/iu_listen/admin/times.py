"""Points in time as a user types them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import asyncpg

from iu_listen.model.errors import ConfigurationError
from iu_listen.postgres.session import Connection
from iu_listen.postgres.sqlfiles import query


async def moment(connection: Connection, text: str) -> datetime:
    """A point in time from a timestamp or from an interval before now. A timestamp without a zone is UTC.

    Raises:
        ConfigurationError: The text is neither a timestamp nor an interval.
    """
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    # PostgreSQL reads a number without a unit as seconds. A user who types such a number probably means something else,
    # for example a year.
    if not text.strip().isdigit():
        with suppress(asyncpg.DataError):
            ago: datetime = await connection.fetchval(query("ago"), text)
            return ago
    raise ConfigurationError(
        f"cannot read {text!r} as a timestamp or an interval", "Examples: 2h, '3 days', 2026-11-24T15:00:00Z."
    )
