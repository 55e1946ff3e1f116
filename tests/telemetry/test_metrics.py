"""Metrics: figures of batches and audits, and nothing at all unless asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.facts import DEFAULT_WORKER, Batch, Wake
from iu_listen.model.observation import AuditPassed, BatchRan, Started, WakeLost
from iu_listen.telemetry.metrics import MetricWatcher, metric_watcher


@pytest.fixture
def kept():
    """A watcher, and a function that reads what it has recorded: by name and attributes."""
    reader = InMemoryMetricReader()
    watcher = MetricWatcher(MeterProvider([reader], shutdown_on_exit=False))

    def read():
        found = {}
        data = reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        found[(metric.name, *(point.attributes[k] for k in sorted(point.attributes)))] = point.value
        return found

    yield watcher, read
    watcher.close()


def test_batches_are_counted_by_wake(kept):
    """Events add up for each wake that found them; a look that found nothing counts nothing."""
    watcher, read = kept
    for wake, seen in ((Wake.NOTIFY, 3), (Wake.CATCH_UP, 2), (Wake.NOTIFY, 4), (Wake.LINGER, 0)):
        watcher.note(BatchRan(DEFAULT_WORKER, wake, Batch(status="ran", seen=seen)))

    assert read() == {("iu.events", "notify", DEFAULT_WORKER): 7, ("iu.events", "catch_up", DEFAULT_WORKER): 2}


def test_lost_wakes_are_counted(kept):
    """Each lost wake-up counts one, however many events it found."""
    watcher, read = kept
    watcher.note(WakeLost(DEFAULT_WORKER, 5))
    watcher.note(WakeLost(DEFAULT_WORKER, 1))

    assert read() == {("iu.wakes.lost", DEFAULT_WORKER): 2}


def test_the_last_audit_is_a_gauge(kept):
    """What is missing is what the last audit says; what was looked at adds up."""
    watcher, read = kept
    watcher.note(AuditPassed(DEFAULT_WORKER, 100, 25, 1.0))
    watcher.note(AuditPassed(DEFAULT_WORKER, 110, 0, 1.0))

    assert read() == {("iu.audit.missing", DEFAULT_WORKER): 0, ("iu.audit.checked", DEFAULT_WORKER): 210}


def test_observations_without_a_figure_record_nothing(kept):
    """What has no figure makes no metric."""
    watcher, read = kept
    watcher.note(Started(DEFAULT_WORKER, ""))

    assert read() == {}


def test_without_the_variable_there_is_no_watcher():
    """Metrics that nobody asked for cost nothing: there is no watcher at all."""
    assert metric_watcher({}) is None
    assert metric_watcher({"OTEL_METRICS_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}) is None


def test_an_exporter_that_is_not_installed_is_named():
    """An exporter that does not exist is a configuration error, not a silence."""
    with pytest.raises(ConfigurationError, match="OTEL_METRICS_EXPORTER=nowhere"):
        metric_watcher({"OTEL_METRICS_EXPORTER": "nowhere"})


def test_the_console_exporter_works_as_asked():
    """OTEL_METRICS_EXPORTER=console prints the figures, at the latest when the service stops."""
    program = """
from iu_listen.model.observation import AuditPassed
from iu_listen.telemetry.metrics import metric_watcher
watcher = metric_watcher({"OTEL_METRICS_EXPORTER": "console"})
watcher.note(AuditPassed("worker", 100, 25, 1.0))
watcher.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert '"name": "iu.audit.missing"' in done.stdout
    assert '"value": 25' in done.stdout
