"""Metrics of batches and audits; none unless they are configured."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.monitoring import Gauge, MetricsSnapshot
from iu_listen.model.observation import (
    BatchRan,
    CompletenessChecked,
    ExportDelayed,
    MetricsFailed,
    MetricsTaken,
    NotificationMissed,
    SessionFailed,
    SpansExported,
    StandingBy,
    Started,
)
from iu_listen.model.routing import DEFAULT_WORKER, Batch, Wake
from iu_listen.telemetry.metrics import MetricObserver, metric_observer

W = DEFAULT_WORKER


@pytest.fixture
def kept():
    """A watcher, and a function that reads the recorded values by name and attributes; all are of one database."""
    reader = InMemoryMetricReader()
    observer = MetricObserver(MeterProvider([reader], shutdown_on_exit=False), "kb")

    def read():
        found = {}
        data = reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        assert point.attributes["db.namespace"] == "kb"
                        told = ("iu.", "error.")
                        attributes = (point.attributes[k] for k in sorted(point.attributes) if k.startswith(told))
                        value = getattr(point, "value", None)
                        found[(metric.name, *attributes)] = (point.count, point.sum) if value is None else value
        return found

    yield observer, read
    observer.close()


def test_batches_are_recorded(kept):
    """Events are added up by wake-up reason, size and duration are distributions, attempts are divided by decision.

    A batch that found nothing is counted only as a wake-up.
    """
    observer, read = kept
    for wake, seen, more in (
        (Wake.NOTIFY, 3, {"attempts": 4, "skipped": 1, "dead_lettered": 1}),
        (Wake.CATCH_UP, 2, {"attempts": 2}),
        (Wake.NOTIFY, 4, {"attempts": 4, "skipped": 4}),
        (Wake.LINGER, 0, {}),
    ):
        observer.observe(BatchRan(W, wake, Batch(status="ran", seen=seen, seconds=0.5, **more)))

    assert read() == {
        ("messaging.client.consumed.messages", "notify"): 7,
        ("messaging.client.consumed.messages", "catch_up"): 2,
        ("messaging.process.duration",): (3, 1.5),
        ("iu.batch.size", W): (3, 9),
        ("iu.attempts", "dry_run", W): 4,
        ("iu.attempts", "skipped", W): 5,
        ("iu.attempts", "dead_letter", W): 1,
        ("iu.wakes", "notify", W): 2,
        ("iu.wakes", "catch_up", W): 1,
        ("iu.wakes", "linger", W): 1,
    }


def test_what_was_measured_is_gauges_and_latencies(kept):
    """A survey sets gauges, each with its part and its worker, and adds latencies to a distribution."""
    observer, read = kept
    measures = (
        Gauge(what="gate", part="worker", figure=1.0),
        Gauge(what="notification_queue", part=None, figure=0.25),
        Gauge(what="healthy", part=None, figure=0.0, worker=W),
        Gauge(what="lag_items", part="backlog", figure=7.0, worker=W),
        Gauge(what="lag_seconds", part="backlog", figure=1.5, worker=W),
    )
    observer.observe(MetricsTaken(W, MetricsSnapshot(measures=measures, latencies=(0.001, 0.002), since_commit=True)))
    observer.observe(MetricsTaken(W, MetricsSnapshot(measures=measures[:1], latencies=(2.0,), since_commit=False)))

    assert read() == {
        ("iu.measurements", W): 2,
        ("iu.gate.open", "worker"): 1,
        ("iu.notification_queue.usage",): 0.25,
        ("iu.worker.healthy", W): 0,
        ("iu.lag.items", "backlog", W): 7,
        ("iu.lag.duration", "backlog", W): 1.5,
        ("iu.decision.latency", "commit", W): (2, 0.003),
        ("iu.decision.latency", "insert", W): (1, 2.0),
    }


def test_a_measure_that_nobody_knows_is_left_out(kept):
    """Unknown measures of a newer database are ignored; the known ones are recorded.

    Fails when: every measure must have a gauge.
    """
    observer, read = kept
    measures = (
        Gauge(what="mood", part="good", figure=1.0),
        Gauge(what="notification_queue", part=None, figure=0.25),
    )
    observer.observe(MetricsTaken(W, MetricsSnapshot(measures=measures, latencies=(0.5,), since_commit=True)))

    assert read() == {
        ("iu.notification_queue.usage",): 0.25,
        ("iu.decision.latency", "commit", W): (1, 0.5),
        ("iu.measurements", W): 1,
    }


def test_what_fails_is_counted(kept):
    """Counted are lost sessions by name, failed measurements, refused requests and spans, and malformed contexts."""
    observer, read = kept
    observer.observe(MetricsFailed(W, "NoAnswer"))
    observer.observe(MetricsFailed(W, "NoAnswer"))
    observer.observe(SessionFailed("listener", "gone", 1.0))
    observer.observe(ExportDelayed("503", 1.0, None))
    observer.observe(SpansExported(7, 2, 3))

    assert read() == {
        ("iu.measurements", "NoAnswer", W): 2,
        ("iu.sessions.failed", "listener"): 1,
        ("iu.traces.requests.failed",): 1,
        ("iu.traces.exported",): 7,
        ("iu.traces.rejected",): 2,
        ("iu.traces.ignored",): 3,
    }


def test_missed_notifications_are_counted(kept):
    """Each missed notification counts one, for any number of events."""
    observer, read = kept
    observer.observe(NotificationMissed(DEFAULT_WORKER, 5))
    observer.observe(NotificationMissed(DEFAULT_WORKER, 1))

    assert read() == {("iu.notifications.missed", DEFAULT_WORKER): 2}


def test_the_last_audit_is_a_gauge(kept):
    """The gauge of missing attempts is that of the latest audit; the number of checked events is a sum."""
    observer, read = kept
    observer.observe(CompletenessChecked(DEFAULT_WORKER, 100, 25, 1.0))
    observer.observe(CompletenessChecked(DEFAULT_WORKER, 110, 0, 1.0))

    assert read() == {("iu.completeness.missing", DEFAULT_WORKER): 0, ("iu.completeness.checked", DEFAULT_WORKER): 210}


def test_observations_without_a_figure_record_nothing(kept):
    """An observation without a value records no metric."""
    observer, read = kept
    observer.observe(StandingBy(W, "another"))

    assert read() == {}


def test_a_worker_is_known_from_the_start(kept):
    """A consumer that has started reports zero wake-ups, so that one that never wakes up is visible."""
    observer, read = kept
    observer.observe(Started(W, ""))

    assert read() == {("iu.wakes", "start_up", W): 0}


def test_without_the_variable_there_is_no_watcher():
    """Without the variable there is no metric watcher, and so no cost."""
    assert metric_observer({}, "kb") is None
    assert metric_observer({"OTEL_METRICS_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, "kb") is None


def test_an_exporter_that_is_not_installed_is_named():
    """An exporter that does not exist is a configuration error, and not ignored."""
    with pytest.raises(ConfigurationError, match="OTEL_METRICS_EXPORTER=nowhere"):
        metric_observer({"OTEL_METRICS_EXPORTER": "nowhere"}, "kb")


def test_the_console_exporter_works_as_asked():
    """OTEL_METRICS_EXPORTER=console prints the metrics, at the latest when the process stops."""
    program = """
from iu_listen.model.observation import CompletenessChecked
from iu_listen.telemetry.metrics import metric_observer
observer = metric_observer({"OTEL_METRICS_EXPORTER": "console"}, "kb")
observer.observe(CompletenessChecked("worker", 100, 25, 1.0))
observer.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert '"name": "iu.completeness.missing"' in done.stdout
    assert '"value": 25' in done.stdout
