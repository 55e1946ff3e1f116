"""The trace context in which a target runs, so that whatever it calls continues the trace of its event."""

from __future__ import annotations

from typing import Final

from opentelemetry.context import Context, attach
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from iu_listen.model.delivery import Delivery

#: Where a context keeps the current span. Taken from one that has a span, and used directly, because a delivery to a
#: coroutine takes 28 µs in all, and set_span_in_context() half of one.
_KEY: Final = next(iter(set_span_in_context(INVALID_SPAN, Context())))


class _TargetSpan(NonRecordingSpan):
    """The span in which a target works. It records nothing: the span is exported from the audit.

    Its context is computed when something asks for it, because most targets call nothing that is instrumented.
    """

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._found: SpanContext | None = None

    def get_span_context(self) -> SpanContext:
        """Its trace and its id (Delivery.traceparent); remote, because no SDK in this process records it."""
        if self._found is None:
            _, trace, span, flags = self._delivery.traceparent.split("-")
            self._found = SpanContext(
                int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
            )
        return self._found

    def __repr__(self) -> str:
        return f"NonRecordingSpan({self.get_span_context()!r})"


def activate(delivery: Delivery) -> None:
    """Make the span in which the target works the current one of the running task, in place of what was there.

    Nothing is put back afterwards: the task that calls targets does nothing else, and sets it before each call.
    """
    attach(Context({_KEY: _TargetSpan(delivery)}))
