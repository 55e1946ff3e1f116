"""Observations as live spans: wake and batch, reconnect, take-over. They are off unless OTEL_TRACES_EXPORTER is set.

Live spans show the work of the consumer. The spans of events are exported from the audit (flow/trace_export.py), and
the span of an attempt links to the span of its batch. Names and attributes: docs/reference/spans.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

from iu_listen.model.observation import BatchRan, LeaseTaken, Listening, Observation, SessionFailed, StandingBy
from iu_listen.model.spans import DESTINATION, batch_link
from iu_listen.telemetry.sdk_exporters import exporters, resource


class GivenIds(IdGenerator):
    """Generates random ids, unless the next id is given.

    Attributes:
        trace: Trace id of the next root span, in hexadecimal; None: a random id.
        span: Span id of the next span, in hexadecimal; None: a random id.
    """

    def __init__(self) -> None:
        self.trace: str | None = None
        self.span: str | None = None
        self._random = RandomIdGenerator()

    def generate_trace_id(self) -> int:
        """A trace id of 16 bytes."""
        given, self.trace = self.trace, None
        return int(given, 16) if given else self._random.generate_trace_id()

    def generate_span_id(self) -> int:
        """A span id of 8 bytes."""
        given, self.span = self.span, None
        return int(given, 16) if given else self._random.generate_span_id()


class SpanObserver:
    """An observer that creates a span for an activity after it has ended, with its times. Implements Observer.

    Args:
        provider: The SDK's provider of tracers, with its exporters.
        ids: The id generator of the provider; None: the spans of batches have random ids, and attempts cannot link to
            them.
    """

    def __init__(self, provider: TracerProvider, ids: GivenIds | None = None) -> None:
        self._provider = provider
        self._ids = ids or GivenIds()
        self._tracer = provider.get_tracer("iu_listen")
        # Activities that have begun and not ended: lost sessions (begin in ns, first reason, number of tries), and a
        # take-over (begin in ns, former lease holder).
        self._lost: dict[str, tuple[int, str, int]] = {}
        self._leader = ""
        self._taken: tuple[int, str] | None = None

    def observe(self, observation: Observation, /) -> None:
        """Create the spans of the activities that end with an observation."""
        match observation:
            case BatchRan():
                self._take_over(observation)
                if observation.batch.seen:
                    self._batch(observation)
            case SessionFailed("worker" | "listener" as session, why, _):
                since, first, tries = self._lost.get(session, (time.time_ns(), why, 0))
                self._lost[session] = since, first, tries + 1
                if session == "worker":
                    self._taken = None
            case StandingBy(_, holder):
                self._leader = holder
            case LeaseTaken():
                self._reconnected("worker")
                self._taken, self._leader = (time.time_ns(), self._leader) if self._leader else None, ""
            case Listening():
                self._reconnected("listener")

    def _batch(self, ran: BatchRan) -> None:
        """Create the span of the wake and its child, the span of the batch, with the ids to which attempts link."""
        batch = ran.batch
        took = round(batch.seconds * 1e9)
        began = batch.began_ns or time.time_ns() - took
        ended = began + took
        message: dict[str, str | int] = {
            "messaging.system": "postgresql",
            "messaging.destination.name": DESTINATION,
            "messaging.consumer.group.name": ran.worker,
            "messaging.batch.message_count": batch.seen,
        }
        link = batch_link(batch.lineage, batch.xact_id) if batch.xact_id else None
        if link:
            self._ids.trace = link.trace_id
        wake = self._tracer.start_span(
            f"receive {DESTINATION}",
            kind=SpanKind.CLIENT,
            start_time=began - round(ran.delay * 1e9),
            attributes=message
            | {
                "messaging.operation.name": "receive",
                "messaging.operation.type": "receive",
                "iu.wake": ran.wake.value,
            },
        )
        if link:
            self._ids.span = link.span_id
        span = self._tracer.start_span(
            f"process {DESTINATION}",
            context=set_span_in_context(wake),
            kind=SpanKind.CONSUMER,
            start_time=began,
            attributes=message
            | {
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "iu.wake": ran.wake.value,
                "iu.attempts": batch.attempts,
                "iu.skipped": batch.skipped,
                "iu.dead_lettered": batch.dead_lettered,
            },
        )
        self._ids.trace = self._ids.span = None
        if batch.dead_lettered:
            count = batch.dead_lettered
            span.set_status(Status(StatusCode.ERROR, f"{count} dead letter{'' if count == 1 else 's'}"))
        span.end(ended)
        wake.end(ended)

    def _reconnected(self, session: str) -> None:
        """Create the span from the loss of a session until its successor works."""
        lost = self._lost.pop(session, None)
        if lost is None:
            return
        since, why, tries = lost
        self._tracer.start_span(
            f"reconnect {session}",
            start_time=since,
            attributes={
                "db.system.name": "postgresql",
                "iu.session": session,
                "iu.reconnect.tries": tries,
                "iu.reconnect.reason": why,
            },
        ).end()

    def _take_over(self, ran: BatchRan) -> None:
        """Create the span from taking another consumer's lease until the first batch."""
        if self._taken is None:
            return
        (since, former), self._taken = self._taken, None
        self._tracer.start_span(
            "take_over",
            start_time=since,
            attributes={"messaging.consumer.group.name": ran.worker, "iu.take_over.from": former},
        ).end()

    def close(self) -> None:
        """Send the remaining spans and end the provider."""
        self._provider.shutdown()


def span_observer(environ: Mapping[str, str]) -> SpanObserver | None:
    """The observer with the exporters of OTEL_TRACES_EXPORTER; None: traces are not exported.

    Raises:
        ConfigurationError: There is no exporter of that name, or it is not installed or cannot start.
    """
    found = exporters(environ, "traces")
    if not found:
        return None
    ids = GivenIds()
    provider = TracerProvider(resource=resource(environ), shutdown_on_exit=False, id_generator=ids)
    for exporter in found:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return SpanObserver(provider, ids)
