"""The trace context in which a target runs, so that instrumented calls of the target continue the event's trace."""

from __future__ import annotations

from typing import Final

from opentelemetry.context import Context, attach
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from iu_listen.model.delivery import Delivery

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
