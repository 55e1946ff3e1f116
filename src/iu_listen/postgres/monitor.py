"""The session of the monitor: it looks for blockers, and at the state of the consumer's own sessions on the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from iu_listen.model.monitoring import Blocker
from iu_listen.model.routing import WorkerName
from iu_listen.model.settings import Settings
from iu_listen.postgres.earlier_sessions import EarlierSessions, replacing_earlier
from iu_listen.postgres.session import Connection, ask, ask_rows
from iu_listen.postgres.sqlfiles import query

#: Longest wait for an answer, in seconds. It is short so that a dead network path is detected early; the queries of the
#: monitor can be repeated without a loss.
MONITOR_DEADLINE: Final = 3.0


class MonitorSession:
    """Implements flow.ports.BlockerSource. Created by monitor_session()."""

    def __init__(self, connection: Connection, worker: WorkerName, deadline: float) -> None:
        self._connection = connection
        self._worker = worker
        self._deadline = deadline

    async def blockers(self) -> list[Blocker]:
        """The blockers that delay or threaten the consumer now."""
        return [Blocker(**row) for row in await ask_rows(self._connection, self._deadline, query("blockers"))]

    async def works(self, backend: int) -> bool:
        """Whether the server process with this id is executing a statement."""
        return bool(await ask(self._connection, self._deadline, query("backend_works"), backend))

    async def deliverable(self) -> bool:
        """Whether a route of the worker is live, or has deliveries that wait."""
        return bool(await ask(self._connection, self._deadline, query("delivery/anything"), self._worker))


@asynccontextmanager
async def monitor_session(settings: Settings, earlier: EarlierSessions) -> AsyncIterator[MonitorSession]:
    """Open the session of the monitor.

    Raises:
        NoAnswer: The server did not answer in time.
        SessionLost: No session could be opened for another reason.
    """
    deadline = min(MONITOR_DEADLINE, settings.deadline)
    idle = max(settings.session_timeout, 3 * settings.catch_up)
    name = f"iu-listen monitor {settings.worker}"
    async with replacing_earlier(
        earlier, "monitor", settings.dsn, name=name, deadline=deadline, answer_timeout=deadline, idle_timeout=idle,
        read_only=True,
    ) as connection:  # fmt: skip
        yield MonitorSession(connection, WorkerName(settings.worker), deadline)
