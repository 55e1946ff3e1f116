"""Live spans: one for a batch that found something, none otherwise, and nothing at all unless asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import messaging_attributes as messaging
from opentelemetry.trace import SpanKind, StatusCode

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.facts import DEFAULT_WORKER, Batch, Wake
from iu_listen.model.observation import BatchRan
from iu_listen.telemetry.spans import SpanWatcher, span_watcher


@pytest.fixture
def kept():
    """A watcher, and the exporter in memory that keeps its spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return SpanWatcher(provider), exporter


def ran(**batch):
    return BatchRan(DEFAULT_WORKER, Wake.NOTIFY, Batch(status="ran", seconds=0.25, **batch))


def test_a_batch_is_a_consumer_span_with_its_own_length(kept):
    """The span has the messaging attributes of the conventions, and began as long ago as the batch took."""
    watcher, exporter = kept
    watcher.note(ran(seen=3, attempts=3))
    (span,) = exporter.get_finished_spans()

    assert (span.name, span.kind) == ("process event_outbox", SpanKind.CONSUMER)
    assert span.end_time - span.start_time == 250_000_000
    assert span.attributes[messaging.MESSAGING_BATCH_MESSAGE_COUNT] == 3
    assert span.attributes[messaging.MESSAGING_OPERATION_TYPE] == "process"
    assert span.attributes[messaging.MESSAGING_SYSTEM] == "postgresql"
    assert span.attributes[messaging.MESSAGING_DESTINATION_NAME] == "event_outbox"
    assert span.attributes[messaging.MESSAGING_CONSUMER_GROUP_NAME] == DEFAULT_WORKER
    assert span.status.status_code is StatusCode.UNSET


def test_dead_letters_make_the_span_an_error(kept):
    """A batch with dead letters is an error that says how many."""
    watcher, exporter = kept
    watcher.note(ran(seen=3, attempts=3, dead_lettered=2))
    (span,) = exporter.get_finished_spans()

    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "2 dead letter(s)"


def test_an_idle_look_makes_no_span(kept):
    """A look that found nothing is not worth a span."""
    watcher, exporter = kept
    watcher.note(ran())

    assert exporter.get_finished_spans() == ()


def test_without_the_variable_there_is_no_watcher():
    """Tracing that nobody asked for costs nothing: there is no watcher at all."""
    assert span_watcher({}) is None
    assert span_watcher({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}) is None


def test_an_exporter_that_is_not_installed_is_named():
    """An exporter that does not exist is a configuration error, not a silence."""
    with pytest.raises(ConfigurationError, match="OTEL_TRACES_EXPORTER=nowhere"):
        span_watcher({"OTEL_TRACES_EXPORTER": "nowhere"})


def test_the_console_exporter_works_as_asked():
    """OTEL_TRACES_EXPORTER=console prints the span of a batch."""
    program = """
from iu_listen.model.facts import Batch, Wake
from iu_listen.model.observation import BatchRan
from iu_listen.telemetry.spans import span_watcher
watcher = span_watcher({"OTEL_TRACES_EXPORTER": "console"})
watcher.note(BatchRan("worker", Wake.NOTIFY, Batch(status="ran", seen=1)))
watcher.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert '"name": "process event_outbox"' in done.stdout
