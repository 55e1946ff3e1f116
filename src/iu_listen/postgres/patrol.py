"""The patrol's session: it looks at who is in the way, and at what our own sessions are doing on the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from iu_listen.model.facts import Culprit, WorkerName
from iu_listen.model.settings import Settings
from iu_listen.postgres.former import Former, succeeding
from iu_listen.postgres.session import Connection, ask, ask_rows
from iu_listen.postgres.sqlfiles import query

#: Longest wait for an answer, in seconds. Short: a dead path is to be found out, and nothing is lost by asking again.
DEADLINE: Final = 3.0


class LookoutSession:
    """Satisfies flow.ports.Lookout. Made by lookout_session()."""

    def __init__(self, connection: Connection, worker: WorkerName, deadline: float) -> None:
        self._connection = connection
        self._worker = worker
        self._deadline = deadline

    async def culprits(self) -> list[Culprit]:
        """Who delays or threatens us now."""
        return [Culprit(**row) for row in await ask_rows(self._connection, self._deadline, query("culprits"))]

    async def works(self, backend: int) -> bool:
        """Whether this server process is executing something."""
        return bool(await ask(self._connection, self._deadline, query("backend_works"), backend))

    async def deliverable(self) -> bool:
        """Whether a route of the worker delivers, or has deliveries that wait."""
        return bool(await ask(self._connection, self._deadline, query("delivery/anything"), self._worker))


@asynccontextmanager
async def lookout_session(settings: Settings, former: Former) -> AsyncIterator[LookoutSession]:
    """Open the patrol's session.

    Raises:
        NoAnswer: nothing came back in time.
        SessionLost: there is no session to be had.
    """
    deadline = min(DEADLINE, settings.deadline)
    idle = max(settings.lease, 3 * settings.catch_up)
    name = f"iu-listen patrol {settings.worker}"
    async with succeeding(
        former, "patrol", settings.dsn, name=name, deadline=deadline, patience=deadline, idle_timeout=idle,
        read_only=True,
    ) as connection:  # fmt: skip
        yield LookoutSession(connection, WorkerName(settings.worker), deadline)
