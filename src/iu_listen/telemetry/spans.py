"""Observations as live spans: one for each batch that found something. Off and free unless OTEL_TRACES_EXPORTER is set.

Names and attributes are OpenTelemetry's messaging conventions (process, CONSUMER), with iu.* beside them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace import SpanKind, Status, StatusCode

from iu_listen.model.observation import BatchRan, Observation
from iu_listen.model.trace import Link, batch_link
from iu_listen.telemetry.exporters import exporter, resource


class GivenIds(IdGenerator):
    """Makes the next root span the one that attempts link to; any other is random.

    Attributes:
        next: Trace and span of the next root span; None: random ones.
    """

    def __init__(self) -> None:
        self.next: Link | None = None
        self._random = RandomIdGenerator()

    def generate_trace_id(self) -> int:
        """16 bytes."""
        return int(self.next.trace_id, 16) if self.next else self._random.generate_trace_id()

    def generate_span_id(self) -> int:
        """8 bytes."""
        return int(self.next.span_id, 16) if self.next else self._random.generate_span_id()


class SpanWatcher:
    """A Watcher that makes a span of every batch that found events.

    Args:
        provider: Where spans go.
        ids: Its generator of ids; None: batches have random ones, and attempts link to nothing.
    """

    def __init__(self, provider: TracerProvider, ids: GivenIds | None = None) -> None:
        self._provider = provider
        self._ids = ids or GivenIds()
        self._tracer = provider.get_tracer("iu_listen")

    def note(self, observation: Observation, /) -> None:
        """Make the span of a batch, with the times that it had."""
        if not isinstance(observation, BatchRan) or not observation.batch.seen:
            return
        batch, ended = observation.batch, time.time_ns()
        self._ids.next = batch_link(batch.lineage, batch.xact_id) if batch.xact_id else None
        span = self._tracer.start_span(
            "process event_outbox",
            kind=SpanKind.CONSUMER,
            start_time=ended - round(batch.seconds * 1e9),
            attributes={
                "messaging.system": "postgresql",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": "event_outbox",
                "messaging.consumer.group.name": observation.worker,
                "messaging.batch.message_count": batch.seen,
                "iu.wake": observation.wake.value,
                "iu.attempts": batch.attempts,
                "iu.skipped": batch.skipped,
                "iu.dead_lettered": batch.dead_lettered,
            },
        )
        if batch.dead_lettered:
            span.set_status(Status(StatusCode.ERROR, f"{batch.dead_lettered} dead letter(s)"))
        span.end(ended)

    def close(self) -> None:
        """Send what is left, in bounded time."""
        self._provider.shutdown()


def span_watcher(environ: Mapping[str, str]) -> SpanWatcher | None:
    """The watcher that OTEL_TRACES_EXPORTER asks for; None when it asks for none.

    Raises:
        ConfigurationError: no exporter of that name is installed.
    """
    found = exporter(environ, "traces")
    if found is None:
        return None
    ids = GivenIds()
    provider = TracerProvider(resource=resource(environ), shutdown_on_exit=False, id_generator=ids)
    provider.add_span_processor(BatchSpanProcessor(found))
    return SpanWatcher(provider, ids)
