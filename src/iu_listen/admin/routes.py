"""Lets a route deliver, or turns it back to dry run."""

from __future__ import annotations

from iu_listen.postgres.queries import value
from iu_listen.postgres.session import Connection


async def route_live(connection: Connection, code: str, *, live: bool, why: str | None, actor: str | None) -> None:
    """Let a route deliver, or turn it back to dry run; ``actor`` and ``why`` are recorded.

    Raises:
        Refused: Its target does not support deliveries, or the role lacks the privilege.
    """
    await value(connection, "route_live", code, live, why, actor)
