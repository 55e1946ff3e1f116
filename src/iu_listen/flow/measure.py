"""What the database is asked for the sake of metrics, beside the work; only where somebody wants metrics."""

from __future__ import annotations

import anyio

from iu_listen.flow.ports import Sessions, Watcher
from iu_listen.model.errors import words
from iu_listen.model.facts import WorkerName
from iu_listen.model.observation import Measured, MeasureFailed, SessionFailed

#: Pause between two measurements, in seconds. Prometheus asks every 15 s by default.
PAUSE = 10.0
#: Part of the time that measuring may take from the database: a huge backlog takes long to count.
SHARE = 0.05


async def keep_measuring(sessions: Sessions, watcher: Watcher, worker: WorkerName) -> None:
    """Measure again and again until cancelled. A failure is said once an episode, and ends nothing."""
    told = ""
    while True:
        took = 0.0
        try:
            async with sessions.surveyor() as surveyor:
                while True:
                    began = anyio.current_time()
                    try:
                        found = await surveyor.measure()
                    finally:
                        took = anyio.current_time() - began
                    watcher.note(Measured(worker, found))
                    told = ""
                    await anyio.sleep(_pause(took))
        except Exception as failed:  # noqa: BLE001 whatever it is, the work goes on
            watcher.note(MeasureFailed(worker, type(failed).__name__))
            why = words(failed)
            if why != told:
                told = why
                watcher.note(SessionFailed("measure", why, _pause(took)))
            await anyio.sleep(_pause(took))


def _pause(took: float) -> float:
    """How long to leave the database alone after so many seconds, whether they were of use or not."""
    return max(PAUSE, took * (1 / SHARE - 1))
