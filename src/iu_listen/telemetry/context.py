"""The trace context in which a target runs, so that whatever it calls continues the trace of its event."""

from __future__ import annotations

from opentelemetry.context import Context, attach
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from iu_listen.model.delivery import Delivery


def activate(delivery: Delivery) -> None:
    """Make the span of this call the current one of the running task, in place of what was there.

    The span itself is exported from the audit, so this one records nothing; the SDK of a program takes it for a remote
    parent. Nothing is put back afterwards: the task that calls targets does nothing else, and sets it before each call.
    """
    _, trace, span, flags = delivery.traceparent.split("-")
    here = SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    attach(set_span_in_context(NonRecordingSpan(here), Context()))
