"""Measurement of the database for metrics, concurrent with routing. It runs only if metrics are enabled."""

from __future__ import annotations

import anyio

from iu_listen.flow.ports import Observer, Sessions
from iu_listen.model.errors import safe_message
from iu_listen.model.observation import MetricsFailed, MetricsTaken, SessionFailed
from iu_listen.model.routing import WorkerName

#: Pause between two measurements, in seconds. Prometheus scrapes every 15 s by default.
MEASURE_INTERVAL = 10.0
#: Largest fraction of the time during which a measurement may run: counting a huge backlog takes long.
MEASURE_TIME_SHARE = 0.05


async def keep_measuring(sessions: Sessions, observer: Observer, worker: WorkerName) -> None:
    """Measure repeatedly until cancelled.

    A failure stops neither the measurement nor the consumer. Equal failures in a row are reported once as
    SessionFailed, and each of them as MetricsFailed.
    """
    last_reported = ""
    while True:
        took = 0.0
        try:
            async with sessions.metrics() as session:
                while True:
                    began = anyio.current_time()
                    try:
                        snapshot = await session.measure()
                    finally:
                        took = anyio.current_time() - began
                    observer.observe(MetricsTaken(worker, snapshot))
                    last_reported = ""
                    await anyio.sleep(_pause(took))
        except Exception as failed:  # noqa: BLE001 no error may end this task
            observer.observe(MetricsFailed(worker, type(failed).__name__))
            why = safe_message(failed)
            if why != last_reported:
                last_reported = why
                observer.observe(SessionFailed("metrics", why, _pause(took)))
            await anyio.sleep(_pause(took))


def _pause(took: float) -> float:
    """Pause in seconds after a measurement, successful or not, that took ``took`` seconds."""
    return max(MEASURE_INTERVAL, took * (1 / MEASURE_TIME_SHARE - 1))
