"""Observations as log lines: one line for each fact that an operator needs, and none while the consumer is idle."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import structlog

from iu_listen.model.delivery import DeadLetters
from iu_listen.model.monitoring import Blocker
from iu_listen.model.observation import (
    BatchRan,
    BlockerCleared,
    BlockerFound,
    CallAbandoned,
    CompletenessChecked,
    DeliveriesSettled,
    ExportDelayed,
    GroupFailed,
    HeartbeatWritten,
    LeaseTaken,
    Listening,
    MetricsFailed,
    MetricsTaken,
    NotificationMissed,
    Observation,
    Polling,
    RoutePaused,
    RouteResumed,
    SessionFailed,
    SpansExported,
    StandingBy,
    Started,
    StateChanged,
    Stopped,
    Stopping,
)
from iu_listen.model.routing import Batch, State
from iu_listen.model.spans import batch_link
from iu_listen.model.text import visible
from iu_listen.telemetry.sdk_logs import install_sdk_log_filter

#: Smallest number of events of a batch that gets a log line. Smaller batches are only in the audit.
LOGGED_BATCH_EVENTS = 1000
#: Shortest time between two lines for the same failure of the same session, in seconds.
SAME_FAILURE_INTERVAL = 60.0

#: Most lines about the dead letters of one batch or of one settlement: one for each route and failure code.
LOGGED_KINDS = 5
#: The hint for dead letters.
DEAD_LETTER_HINT = "iu-listen dead-letter list"
#: The hint for a target that ignores its cancellation.
ABANDONED_HINT = (
    "a target must let CancelledError pass and must not wait for a thread without a timeout: docs/how-to/delivery.md"
)
#: The hints for paused routes, by reason.
PAUSE_HINTS = {
    "master_gate_closed": "iu-listen gate open master",
    "worker_gate_closed": "iu-listen gate open worker",
    "delivery_gate_closed": "iu-listen gate open delivery",
    "route_not_listed": "iu-listen route live CODE",
    "route_disabled": "iu-listen route live CODE, or iu-listen delivery cancel CODE",
    "dry_run": "iu-listen route live CODE, or iu-listen delivery cancel CODE",
    "breaker_open": "no event is lost: trial deliveries continue until one succeeds",
    "dead_letter_budget": "iu-listen dead-letter list, then route resume CODE; a successful delivery resumes it, too",
    "no_target": "give the module of the target: iu-listen run --app MODULE; docs/how-to/delivery.md",
}


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
    # All lines of the process must have the log format; asyncio would write its own lines to stderr in another format.
    install_sdk_log_filter(_write_library_message, ("opentelemetry", "asyncio"))


def _write_library_message(logger: str, why: str) -> None:
    if logger.startswith("opentelemetry"):
        structlog.get_logger().warning("message of the OpenTelemetry SDK", logger=logger, why=why)
    else:
        structlog.get_logger().warning("message of asyncio", logger=logger, why=why)


def log_error(message: str, hint: str, exit_code: int) -> None:
    """Log the error that ends a process, as a JSON line."""
    configure("json")
    structlog.get_logger().error(message, hint=hint, exit_code=exit_code)


def log_unknown_variables(unknown: Mapping[str, str]) -> None:
    """Log each environment variable that has no effect, with its hint: the answer of unknown_variables()."""
    for name, hint in unknown.items():
        structlog.get_logger().warning("unknown environment variable: it has no effect", variable=name, hint=hint)


def log_handlers_without_route(names: Sequence[str], app: str) -> None:
    """Warn of handlers that get no event, because no route delivers to them."""
    if names:
        structlog.get_logger().warning(
            "handlers without a route get no events", handlers=list(names), hint=f"iu-listen route sync --app {app}"
        )


def log_running_threads(threads: Sequence[str]) -> None:
    """Log that the process ends although threads, or a task (if ``threads`` is empty), are still running."""
    structlog.get_logger().warning(
        "process ended while tasks or threads of targets were still running", threads=list(threads), hint=ABANDONED_HINT
    )


def _blocker_fields(blocker: Blocker) -> dict[str, Any]:
    """The known facts about a blocker, as fields of a log line."""
    facts = asdict(blocker)
    return {name: round(v, 1) if isinstance(v, float) else v for name, v in facts.items() if v is not None}


def _span_fields(batch: Batch) -> dict[str, str]:
    """The trace id and the span id of a batch, under the field names that OpenTelemetry specifies for logs."""
    return batch_link(batch.lineage, batch.xact_id)._asdict() if batch.xact_id else {}


class StandardLog:
    """Lines for the standard ``logging`` module: logger ``iu_listen``, the fields in the message and in ``extra``."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("iu_listen")

    def info(self, event: str, **fields: Any) -> None:
        """Log a line at level INFO."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log a line at level WARNING."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log a line at level ERROR."""
        self._write(logging.ERROR, event, fields)

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        words = "".join(f" {name}={visible(str(value))}" for name, value in fields.items() if value is not None)
        self._logger.log(level, "%s%s", event, words, extra={"iu_listen": fields})


class LogObserver:
    """An observer that writes log lines. Implements Observer.

    Args:
        log: The logger: a StandardLog(), or a logger of structlog, which is the default (see configure()).
    """

    def __init__(self, log: Any = None) -> None:
        self._log = log or structlog.get_logger()
        self._last_logged: dict[str, tuple[str, float]] = {}

    def _is_news(self, subject: str, why: str) -> bool:
        """Whether a failure is to be logged: its reason is new, or the last line is SAME_FAILURE_INTERVAL seconds old.

        Without this limit an outage would write a line for each try.
        """
        now = time.monotonic()
        before, at = self._last_logged.get(subject, ("", float("-inf")))
        if why == before and now - at < SAME_FAILURE_INTERVAL:
            return False
        self._last_logged[subject] = why, now
        return True

    def observe(self, observation: Observation, /) -> None:  # noqa: C901, PLR0912, PLR0915 a table, a line for each
        """Write the line for an observation, if there is one."""
        log = self._log
        match observation:
            case Started(worker, database):
                log.info("started", worker=worker, database=database)
            case StandingBy(worker, holder):
                log.info("standby: another consumer holds the lease", worker=worker, holder=holder)
            case LeaseTaken(worker):
                log.info("lease taken", worker=worker)
            case Listening(None):
                log.warning("listening, but every bell slot is taken: polling")
            case Listening(slot) if self._is_news("listening", str(slot)):
                log.info("listening", slot=slot)
            case Polling(why):
                log.warning("LISTEN/NOTIFY is unavailable, polling", why=why)
            case StateChanged(worker, State.IDLE, _):
                log.info("working", worker=worker)
            case StateChanged(worker, State.GATE_CLOSED, why):
                log.warning(
                    "waiting: a gate is closed",
                    worker=worker,
                    gate=why,
                    hint=f"iu-listen gate open {why.removesuffix('_gate_closed')}",
                )
            case StateChanged(worker, state, why):
                log.error("not working", worker=worker, state=str(state), why=why)
            case BatchRan(worker, wake, batch, _, kinds) if batch.dead_lettered:
                self._log_dead_letters(
                    "events became dead letters", worker, batch.dead_lettered, kinds, wake=str(wake),
                    **_span_fields(batch),
                )  # fmt: skip
            case BatchRan(worker, wake, batch) if batch.seen >= LOGGED_BATCH_EVENTS:
                log.info(
                    "large batch", worker=worker, events=batch.seen, ms=round(batch.seconds * 1000, 1), wake=str(wake),
                    **_span_fields(batch),
                )  # fmt: skip
            case BatchRan() | HeartbeatWritten() | Listening():
                pass
            case NotificationMissed(worker, events):
                log.error(
                    "missed notification: the catch-up poll found committed events", worker=worker, events=events,
                    hint="the trigger zz_event_outbox_bell may be disabled; run iu-listen doctor",
                )  # fmt: skip
            case BlockerFound(worker, blocker):
                log.warning("blocker found", worker=worker, **_blocker_fields(blocker))
            case BlockerCleared(worker, blocker):
                log.info("blocker ended", worker=worker, **_blocker_fields(blocker))
            case CompletenessChecked(_, _, 0, _):
                pass
            case CompletenessChecked(worker, checked, missing, _):
                log.error(
                    "completeness check found events without attempts", worker=worker, events=missing, checked=checked,
                    hint="iu-listen completeness --repair",
                )  # fmt: skip
            case CallAbandoned() | GroupFailed() | RoutePaused() | RouteResumed() | DeliveriesSettled():
                self._observe_delivery(observation)
            case SpansExported() | ExportDelayed():
                self._observe_trace_export(observation)
            case MetricsTaken() | MetricsFailed():
                pass
            case SessionFailed(session, why, retry_in):
                # The end of the worker session ends the listener session as well.
                if session in ("listener", "worker"):
                    self._last_logged.pop("listening", None)
                if self._is_news(session, why):
                    log.warning("session failed", session=session, why=why, retry_in_s=round(retry_in, 2))
            case Stopping(why):
                log.info("stopping", why=why)
            case Stopped(worker, events):
                log.info("stopped", worker=worker, events=events)

    def _observe_delivery(
        self, observation: CallAbandoned | GroupFailed | RoutePaused | RouteResumed | DeliveriesSettled
    ) -> None:
        """Write the line for an observation of the dispatcher, if there is one."""
        log = self._log
        match observation:
            case CallAbandoned(worker, route, called, running):
                if self._is_news(f"abandoned {route}", called):
                    log.warning(
                        "call abandoned: the target ignores its cancellation", worker=worker, route=route,
                        target=called, still_running=running, hint=ABANDONED_HINT,
                    )  # fmt: skip
            case GroupFailed(worker, route, called, deliveries, why):
                if self._is_news(f"group {route}", why):
                    log.warning(
                        "group failed: each of its deliveries is attempted in a call of its own", worker=worker,
                        route=route, target=called, deliveries=deliveries, why=why,
                    )  # fmt: skip
            case RoutePaused(worker, route, paused_by, why, hint):
                hint = hint or PAUSE_HINTS[paused_by]
                log.warning("route paused", worker=worker, route=route, paused_by=paused_by, why=why, hint=hint)
            case RouteResumed(worker, route, paused_by):
                log.info("route resumed", worker=worker, route=route, was_paused_by=paused_by)
            case DeliveriesSettled(worker, _, dead, kinds) if dead:
                self._log_dead_letters("deliveries became dead letters", worker, dead, kinds)

    def _log_dead_letters(self, event: str, worker: str, dead: int, kinds: Sequence[DeadLetters], **more: Any) -> None:
        """Write a line for each of the first kinds of new dead letters, and one for the number of all others."""
        shown = kinds[:LOGGED_KINDS]
        for kind in shown:
            self._log.error(
                event, worker=worker, route=kind.route, failure_code=kind.code, why=kind.why, count=kind.count,
                event_id=kind.event, hint=DEAD_LETTER_HINT, **more,
            )  # fmt: skip
        if others := dead - sum(kind.count for kind in shown):
            self._log.error(event, worker=worker, count=others, hint=DEAD_LETTER_HINT, **more)

    def _observe_trace_export(self, observation: SpansExported | ExportDelayed) -> None:
        """Write the line for an observation of the trace export, if there is one."""
        log = self._log
        match observation:
            case SpansExported(_, rejected, _, why) if rejected:
                if self._is_news("refused", ""):
                    log.error("the collector rejected spans for good", spans=rejected, why=why)
            case ExportDelayed(why, _, str(poison)):
                if self._is_news("malformed", ""):
                    log.error("span skipped: the collector calls it malformed", span_id=poison, why=why)
            case ExportDelayed(why, retry_in, None):
                if self._is_news("collector", why):
                    log.warning(
                        "trace export delayed: the spans are sent again", why=why, retry_in_s=round(retry_in, 2)
                    )
