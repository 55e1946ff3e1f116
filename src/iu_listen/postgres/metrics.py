"""The session that reads the figures of the metrics. Their SQL is in sql/functions/metrics.up.sql."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from iu_listen.model.monitoring import Gauge, MetricsSnapshot
from iu_listen.model.settings import Settings
from iu_listen.postgres.earlier_sessions import EarlierSessions, replacing_earlier
from iu_listen.postgres.session import Connection, ask_rows
from iu_listen.postgres.sqlfiles import query

#: Number of the newest attempts whose latency is measured each time.
LATENCY_SAMPLE: Final = 200


class MetricsSession:
    """Implements flow.ports.MetricsSource. Created by metrics_session()."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._last: int | None = None

    async def measure(self) -> MetricsSnapshot:
        """The current figures, and the latencies in seconds of the newest decisions since the last measurement."""
        settings = self._settings
        measures = await ask_rows(self._connection, settings.batch_deadline, query("metrics"), settings.worker)
        (latency,) = await ask_rows(
            self._connection,
            settings.batch_deadline,
            query("decision_latency"),
            settings.worker,
            self._last,
            LATENCY_SAMPLE,
        )
        self._last = latency["last_id"]
        return MetricsSnapshot(
            measures=tuple(Gauge(**row) for row in measures),
            latencies=tuple(latency["seconds"]),
            since_commit=latency["since_commit"],
        )


@asynccontextmanager
async def metrics_session(settings: Settings, earlier: EarlierSessions) -> AsyncIterator[MetricsSession]:
    """Open the session that reads the figures of the metrics.

    Raises:
        SessionLost: No session could be opened.
    """
    async with replacing_earlier(
        earlier, "metrics", settings.dsn, name=f"iu-listen metrics {settings.worker}", deadline=settings.deadline,
        answer_timeout=settings.batch_deadline, read_only=True,
    ) as connection:  # fmt: skip
        yield MetricsSession(connection, settings)
