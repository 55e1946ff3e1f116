"""Observations as log lines: one for each thing an operator cares about, none while idle."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from iu_listen.model.facts import State
from iu_listen.model.observation import (
    BatchRan,
    Beaten,
    LeaseTaken,
    Listening,
    Observation,
    Polling,
    SessionFailed,
    StandingBy,
    Started,
    StateChanged,
    Stopped,
    Stopping,
    WakeLost,
)

#: A full batch is worth a line; single events are not, they are in the audit.
BIG_BATCH = 1000


def configure(log_format: str) -> None:
    """Set up structlog for a process: ``console``, ``json``, or ``auto`` (console on a terminal). Writes to stderr."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class LogWatcher:
    """A Watcher that writes to structlog."""

    def __init__(self) -> None:
        self._log = structlog.get_logger()

    def note(self, observation: Observation, /) -> None:  # noqa: C901, PLR0912 a table, a line for each
        """Write the line for an observation, if it deserves one."""
        log = self._log
        match observation:
            case Started(worker, database):
                log.info("started", worker=worker, database=database)
            case StandingBy(worker, holder):
                log.info("standing by: another consumer is active", worker=worker, holder=holder)
            case LeaseTaken(worker):
                log.info("active", worker=worker)
            case Listening(None):
                log.warning("listening, but every bell slot is taken: polling between looks")
            case Listening(slot):
                log.info("listening", slot=slot)
            case Polling(why):
                log.warning("polling: there is no bell", why=why)
            case StateChanged(worker, State.IDLE, _):
                log.info("working", worker=worker)
            case StateChanged(worker, State.GATE_CLOSED, why):
                log.warning(
                    "waiting for a gate to open",
                    worker=worker,
                    gate=why,
                    hint=f"iu-listen gate open {why.removesuffix('_gate_closed')}",
                )
            case StateChanged(worker, state, why):
                log.error("not working", worker=worker, state=str(state), why=why)
            case BatchRan(worker, wake, batch) if batch.dead_lettered:
                log.error(
                    "dead letters",
                    worker=worker,
                    count=batch.dead_lettered,
                    wake=str(wake),
                    hint="iu-listen dead-letter list",
                )
            case BatchRan(worker, wake, batch) if batch.seen >= BIG_BATCH:
                log.info("batch", worker=worker, events=batch.seen, ms=round(batch.seconds * 1000, 1), wake=str(wake))
            case BatchRan() | Beaten():
                pass
            case WakeLost(worker, events):
                log.error(
                    "wake-up lost: the catch-up timer found events that nobody rang for", worker=worker, events=events,
                    hint="is zz_event_outbox_bell enabled? iu-listen doctor",
                )  # fmt: skip
            case SessionFailed(session, why, retry_in):
                log.warning("session failed", session=session, why=why, retry_in_s=round(retry_in, 2))
            case Stopping(why):
                log.info("stopping", why=why)
            case Stopped(worker, events):
                log.info("stopped", worker=worker, events=events)
