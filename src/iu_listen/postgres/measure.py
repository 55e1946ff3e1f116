"""The session that measures for metrics. What is measured is in sql/worker/018_measure.up.sql."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from iu_listen.model.facts import Measure, Survey
from iu_listen.model.settings import Settings
from iu_listen.postgres.former import Former, succeeding
from iu_listen.postgres.session import Connection, ask_rows
from iu_listen.postgres.sqlfiles import query

#: How many of the youngest attempts are asked how late they were.
SAMPLE: Final = 200


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
async def surveyor_session(settings: Settings, former: Former) -> AsyncIterator[SurveyorSession]:
    """Open the session that measures.

    Raises:
        SessionLost: no session can be had.
    """
    async with succeeding(
        former, "measure", settings.dsn, name=f"iu-listen measure {settings.worker}", deadline=settings.deadline,
        patience=settings.batch_deadline, read_only=True,
    ) as connection:  # fmt: skip
        yield SurveyorSession(connection, settings)
