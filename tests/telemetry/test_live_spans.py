"""Live spans: one for a batch with events, none for an empty one, and none unless they are configured."""

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
from iu_listen.model.observation import BatchRan, LeaseTaken, Listening, SessionFailed, StandingBy
from iu_listen.model.routing import DEFAULT_WORKER, Batch, Wake
from iu_listen.model.spans import batch_link
from iu_listen.telemetry.live_spans import GivenIds, SpanObserver, span_observer


@pytest.fixture
def kept():
    """A watcher, and the in-memory exporter that keeps its spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return SpanObserver(provider), exporter


def ran(**batch):
    return BatchRan(DEFAULT_WORKER, Wake.NOTIFY, Batch(status="ran", seconds=0.25, **batch))


def test_a_batch_is_a_consumer_span_with_its_own_length(kept):
    """The span has the messaging attributes of the conventions, and its duration is that of the batch."""
    observer, exporter = kept
    observer.observe(ran(seen=3, attempts=3, began_ns=10**18))
    wake, span = sorted(exporter.get_finished_spans(), key=lambda s: s.name == "process event_outbox")

    assert (span.name, span.kind) == ("process event_outbox", SpanKind.CONSUMER)
    assert (span.start_time, span.end_time) == (10**18, 10**18 + 250_000_000)
    assert span.attributes[messaging.MESSAGING_BATCH_MESSAGE_COUNT] == 3
    assert span.attributes[messaging.MESSAGING_OPERATION_TYPE] == "process"
    assert span.attributes[messaging.MESSAGING_SYSTEM] == "postgresql"
    assert span.attributes[messaging.MESSAGING_DESTINATION_NAME] == "event_outbox"
    assert span.attributes[messaging.MESSAGING_CONSUMER_GROUP_NAME] == DEFAULT_WORKER
    assert span.status.status_code is StatusCode.UNSET
    assert (wake.name, wake.kind, wake.parent) == ("receive event_outbox", SpanKind.CLIENT, None)
    assert span.parent == wake.context


def test_a_wake_begins_when_it_rang(kept):
    """The wake-up span begins with the notification, the batch after the delay; both end together, with the reason."""
    observer, exporter = kept
    batch = Batch(status="ran", seen=1, seconds=0.25)
    observer.observe(BatchRan(DEFAULT_WORKER, Wake.NOTIFY, batch, 0.125))
    wake, span = sorted(exporter.get_finished_spans(), key=lambda s: s.name == "process event_outbox")

    assert span.start_time - wake.start_time == 125_000_000
    assert span.end_time == wake.end_time
    assert wake.attributes["iu.wake"] == "notify"


def test_attempts_find_their_batch():
    """The batch has the ids that its attempts link to; its wake-up is in the same trace, the next batch in another."""
    exporter, ids = InMemorySpanExporter(), GivenIds()
    provider = TracerProvider(id_generator=ids)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer = SpanObserver(provider, ids)
    observer.observe(ran(seen=1, lineage="a history", xact_id=7))
    observer.observe(ran(seen=1, lineage="a history", xact_id=8))
    observer.observe(ran(seen=1))
    found = [(format(s.context.trace_id, "032x"), format(s.context.span_id, "016x")) for s in
             exporter.get_finished_spans() if s.name == "process event_outbox"]  # fmt: skip

    assert found[:2] == [batch_link("a history", 7), batch_link("a history", 8)]
    assert len({span.context.trace_id for span in exporter.get_finished_spans()}) == 3
    assert len({span.context.span_id for span in exporter.get_finished_spans()}) == 6


def test_a_reconnect_is_a_span(kept):
    """The span lasts from the first failure to the working session, with reason and number; the next loss is a new
    span.
    """
    observer, exporter = kept
    observer.observe(SessionFailed("worker", "the server went away", 0.1))
    observer.observe(SessionFailed("worker", "starting up", 0.2))
    observer.observe(SessionFailed("listener", "the server went away", 0.1))
    observer.observe(LeaseTaken(DEFAULT_WORKER))
    observer.observe(Listening(1))
    observer.observe(LeaseTaken(DEFAULT_WORKER))
    worker, bell = exporter.get_finished_spans()

    assert (worker.name, bell.name) == ("reconnect worker", "reconnect listener")
    assert worker.attributes["iu.reconnect.tries"] == 2
    assert worker.attributes["iu.reconnect.reason"] == "the server went away"
    assert worker.end_time >= worker.start_time


def test_a_take_over_is_a_span(kept):
    """The span lasts from the lease to the first batch, with the former holder; only a former standby takes over."""
    observer, exporter = kept
    observer.observe(LeaseTaken(DEFAULT_WORKER))
    observer.observe(ran())
    assert exporter.get_finished_spans() == ()
    observer.observe(StandingBy(DEFAULT_WORKER, "pid 7"))
    observer.observe(LeaseTaken(DEFAULT_WORKER))
    observer.observe(ran())
    observer.observe(ran())
    (span,) = exporter.get_finished_spans()

    assert (span.name, span.attributes["iu.take_over.from"]) == ("take_over", "pid 7")


def test_a_take_over_survives_whatever_fails_beside_it(kept):
    """A failed collector or audit between lease and batch does not end the take-over; losing the lease does.

    Fails when: any failed session ends a take-over.
    """
    observer, exporter = kept
    for session, names in (("listener", ["take_over"]), ("traces", ["take_over"]), ("worker", ["reconnect worker"])):
        exporter.clear()
        observer.observe(StandingBy(DEFAULT_WORKER, "pid 7"))
        observer.observe(LeaseTaken(DEFAULT_WORKER))
        observer.observe(SessionFailed(session, "gone", 1.0))
        if session == "worker":
            observer.observe(LeaseTaken(DEFAULT_WORKER))
        observer.observe(ran())
        assert [span.name for span in exporter.get_finished_spans()] == names


def test_dead_letters_make_the_span_an_error(kept):
    """A batch with dead letters is an error with their number."""
    observer, exporter = kept
    observer.observe(ran(seen=3, attempts=3, dead_lettered=2))
    (span,) = (span for span in exporter.get_finished_spans() if span.name == "process event_outbox")

    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "2 dead letters"


def test_an_idle_look_makes_no_span(kept):
    """A batch without events makes no span."""
    observer, exporter = kept
    observer.observe(ran())

    assert exporter.get_finished_spans() == ()


def test_without_the_variable_there_is_no_watcher():
    """Without the variable there is no span watcher, and so no cost."""
    assert span_observer({}) is None
    assert span_observer({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}) is None


def test_an_exporter_that_is_not_installed_is_named():
    """An exporter that does not exist is a configuration error, and not ignored."""
    with pytest.raises(ConfigurationError, match="OTEL_TRACES_EXPORTER=nowhere"):
        span_observer({"OTEL_TRACES_EXPORTER": "nowhere"})


def test_the_console_exporter_works_as_asked():
    """OTEL_TRACES_EXPORTER=console prints the span of a batch."""
    program = """
from iu_listen.model.routing import Batch, Wake
from iu_listen.model.observation import BatchRan, LeaseTaken, Listening, SessionFailed, StandingBy
from iu_listen.model.spans import batch_link
from iu_listen.telemetry.live_spans import span_observer
observer = span_observer({"OTEL_TRACES_EXPORTER": "console"})
observer.observe(BatchRan("worker", Wake.NOTIFY, Batch(status="ran", seen=1)))
observer.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert '"name": "process event_outbox"' in done.stdout
