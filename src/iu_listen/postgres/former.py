"""The sessions of a running consumer on the server: what is left of a former one is ended before the next one works.

A client that gives a session up cannot tell the server. A statement that waits for a lock goes on waiting there, and
each new try would leave another server process behind, until the server accepts no more connections from any client.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

from iu_listen.model.errors import SessionLost
from iu_listen.postgres.connection import PATIENCE, Connection
from iu_listen.postgres.session import ask_rows, connect_again
from iu_listen.postgres.sqlfiles import query

#: How many former sessions of one role in the consumer may still be there. With more of them no new one is opened.
MOST: Final = 2


class Former:
    """Which server processes one consumer has had, by what they were for."""

    def __init__(self) -> None:
        self._known: dict[str, list[tuple[int, datetime]]] = defaultdict(list)

    async def succeed(self, purpose: str, connection: Connection, deadline: float) -> None:
        """End what is left of the former sessions of this purpose, and remember this one.

        Raises:
            SessionLost: too many of them do not end.
        """
        if connection.pooled:
            # The pooler bounds what it opens, and ends a statement whose client has gone.
            return
        known = self._known[purpose]
        pids, began = [pid for pid, _ in known], [moment for _, moment in known]
        rows = await ask_rows(connection, deadline, query("end_former"), pids, began)
        known[:] = [(row["pid"], row["backend_start"]) for row in rows if not row["mine"]]
        if len(known) > MOST:
            raise SessionLost(f"{len(known)} former sessions of this process do not end on the server")
        known += [(row["pid"], row["backend_start"]) for row in rows if row["mine"]]


@asynccontextmanager
async def succeeding(
    former: Former, purpose: str, dsn: str | None, *, deadline: float, patience: float, **options: Any
) -> AsyncIterator[Connection]:
    """A session of a running consumer, in the place of its former ones of the same purpose.

    Args:
        former: The sessions that the consumer has had.
        purpose: What it is for.
        dsn: Connection string.
        deadline: Longest wait for the session itself, in seconds.
        patience: Longest wait of the client for an answer in it, in seconds; the server ends a statement before that.
        options: As those of connect().

    Raises:
        SessionLost: no session can be had.
    """
    connection = await connect_again(dsn, deadline=deadline, statement_timeout=PATIENCE * patience, **options)
    try:
        await former.succeed(purpose, connection, deadline)
        yield connection
    finally:
        connection.terminate()
