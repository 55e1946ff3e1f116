"""The session that measures for metrics. What is measured is in sql/worker/018_measure.up.sql."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from iu_listen.model.facts import Measure, Survey
from iu_listen.model.settings import Settings
from iu_listen.postgres.session import Connection, ask_rows, connect_again
from iu_listen.postgres.sqlfiles import query

#: How many of the youngest attempts are asked how late they were.
SAMPLE: Final = 200
#: Part of the client's patience after which the server ends a query: what nobody waits for any more piles up.
PATIENCE: Final = 0.9


class SurveyorSession:
    """Satisfies flow.ports.Surveyor. Made by surveyor_session()."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._last: int | None = None

    async def measure(self) -> Survey:
        """Everything that is measured now, and how late the decisions since the last time were."""
        settings = self._settings
        measures = await ask_rows(self._connection, settings.batch_deadline, query("measures"), settings.worker)
        (latency,) = await ask_rows(
            self._connection, settings.batch_deadline, query("decision_latency"), settings.worker, self._last, SAMPLE
        )
        self._last = latency["last_id"]
        return Survey(
            measures=tuple(Measure(**row) for row in measures),
            latencies=tuple(latency["seconds"]),
            since_commit=latency["since_commit"],
        )


@asynccontextmanager
async def surveyor_session(settings: Settings) -> AsyncIterator[SurveyorSession]:
    """Open the session that measures.

    Raises:
        SessionLost: no session can be had.
    """
    connection = await connect_again(
        settings.dsn,
        name=f"iu-listen measure {settings.worker}",
        deadline=settings.deadline,
        read_only=True,
        statement_timeout=PATIENCE * settings.batch_deadline,
    )
    try:
        yield SurveyorSession(connection, settings)
    finally:
        connection.terminate()
