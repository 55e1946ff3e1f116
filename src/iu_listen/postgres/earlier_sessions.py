"""The sessions of a running consumer. Before a new session works, its predecessors on the server are ended.

A client that gives up a session cannot tell the server. A statement that waits for a lock continues to wait there. Each
new attempt would leave another server process behind, until the server accepts no more connections from any client.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

from iu_listen.model.errors import SessionLost
from iu_listen.postgres.connection import SERVER_TIMEOUT_SHARE, Connection
from iu_listen.postgres.session import ask_rows, connect_again
from iu_listen.postgres.sqlfiles import query

#: Largest number of earlier sessions of one purpose that may still exist. With more of them no new session is opened.
MAX_EARLIER_SESSIONS: Final = 2


class EarlierSessions:
    """The server processes of the sessions that one consumer has had, by the purpose of the session."""

    def __init__(self) -> None:
        self._known: dict[str, list[tuple[int, datetime]]] = defaultdict(list)

    async def replace(self, purpose: str, connection: Connection, deadline: float) -> None:
        """End the earlier sessions of this purpose that still exist on the server, and remember this session.

        Raises:
            SessionLost: More than MAX_EARLIER_SESSIONS earlier sessions do not end.
        """
        if connection.pooled:
            # A pooler limits the number of its sessions, and ends a statement whose client has gone.
            return
        known = self._known[purpose]
        pids, began = [pid for pid, _ in known], [moment for _, moment in known]
        rows = await ask_rows(connection, deadline, query("end_earlier_sessions"), pids, began)
        known[:] = [(row["pid"], row["backend_start"]) for row in rows if not row["mine"]]
        if len(known) > MAX_EARLIER_SESSIONS:
            raise SessionLost(
                f"{len(known)} earlier sessions of this consumer do not end on the server",
                "The server may be overloaded. Look at pg_stat_activity, and end them with pg_terminate_backend().",
            )
        known += [(row["pid"], row["backend_start"]) for row in rows if row["mine"]]


@asynccontextmanager
async def replacing_earlier(
    earlier: EarlierSessions, purpose: str, dsn: str | None, *, deadline: float, answer_timeout: float, **options: Any
) -> AsyncIterator[Connection]:
    """A session of a running consumer, which replaces its earlier sessions of the same purpose.

    Args:
        earlier: The earlier sessions of the consumer.
        purpose: The purpose of the session, as a name.
        dsn: Connection string.
        deadline: Longest wait for the session itself, in seconds.
        answer_timeout: Longest wait of the client for an answer, in seconds. The server cancels a statement before this
            time (SERVER_TIMEOUT_SHARE).
        options: Further arguments of connect().

    Raises:
        SessionLost: No session could be opened, or too many earlier sessions do not end.
    """
    statement_timeout = SERVER_TIMEOUT_SHARE * answer_timeout
    connection = await connect_again(dsn, deadline=deadline, statement_timeout=statement_timeout, **options)
    try:
        await earlier.replace(purpose, connection, deadline)
        yield connection
    finally:
        connection.terminate()
