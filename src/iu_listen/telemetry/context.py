"""The trace context in which a target runs, so that instrumented calls of the target continue the event's trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry.context import Context, attach
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    ProxyTracerProvider,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    get_tracer,
    get_tracer_provider,
    set_span_in_context,
    use_span,
)

from iu_listen.model.delivery import Delivery
from iu_listen.model.spans import DESTINATION

#: The key under which a context stores the current span. It is read from a context with a span, and used directly,
#: because a call of set_span_in_context() for each delivery would take longer.
_KEY: Final = next(iter(set_span_in_context(INVALID_SPAN, Context())))


class _TargetSpan(NonRecordingSpan):
    """The span in which a target runs. It records nothing: the trace export sends this span from the audit.

    Its context is computed on demand, because most targets make no instrumented calls.
    """

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._found: SpanContext | None = None

    def get_span_context(self) -> SpanContext:
        """The trace id and the span id of Delivery.traceparent; remote, because no SDK here records the span."""
        if self._found is None:
            _, trace, span, flags = self._delivery.traceparent.split("-")
            self._found = SpanContext(
                int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
            )
        return self._found

    def __repr__(self) -> str:
        return f"NonRecordingSpan({self.get_span_context()!r})"


def activate(delivery: Delivery) -> None:
    """Make the span of the target the current span of the running task; it replaces the context of the task.

    The former context is not restored: the task only calls targets, and calls this function before each of them.
    """
    attach(Context({_KEY: _TargetSpan(delivery)}))


@contextmanager
def activate_group(deliveries: Sequence[Delivery]) -> Iterator[None]:
    """The context of the call of a group: a live span with a link to the attempt of each delivery.

    The tracer provider of the program makes the span, because its instrumented calls are recorded there. Without a
    provider the context is that of the first delivery, as in a call with one delivery.
    """
    activate(deliveries[0])
    if isinstance(get_tracer_provider(), ProxyTracerProvider):
        yield
        return
    span = get_tracer("iu_listen").start_span(
        f"process {DESTINATION}",
        context=Context(),
        kind=SpanKind.CONSUMER,
        attributes={
            "messaging.system": "postgresql",
            "messaging.destination.name": DESTINATION,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.batch.message_count": len(deliveries),
            "iu.route.code": deliveries[0].route,
        },
        links=[Link(_TargetSpan(delivery).get_span_context()) for delivery in deliveries],
    )
    if not span.get_span_context().is_valid:
        yield
        return
    # The text of an exception is not recorded, because it may contain confidential data.
    with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except BaseException:
            span.set_status(StatusCode.ERROR)
            raise
