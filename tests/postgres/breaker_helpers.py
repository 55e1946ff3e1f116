"""Helpers for the tests of circuit breakers."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import asyncpg


async def dead_letters_by_event(connection: asyncpg.Connection) -> Counter[UUID]:
    """Number of dead letters of each event."""
    return Counter(row["event_ref"] for row in await connection.fetch("select event_ref from iu_route_dead_letter"))
