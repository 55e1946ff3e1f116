"""Observations as metrics: counted per batch, never per event. Off and free unless OTEL_METRICS_EXPORTER is set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from iu_listen.model.observation import AuditPassed, BatchRan, Observation, SpansExported, WakeLost
from iu_listen.telemetry.exporters import exporter, resource

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider


class MetricWatcher:
    """A Watcher that counts. docs/reference/metrics.md has every instrument.

    Args:
        provider: Where metrics go.
    """

    def __init__(self, provider: MeterProvider) -> None:
        self._provider = provider
        meter = provider.get_meter("iu_listen")
        self._events = meter.create_counter("iu.events", "{event}", "Events read, by the wake that found them.")
        self._lost = meter.create_counter("iu.wakes.lost", "{wake}", "Catch-ups that found what nobody rang for.")
        self._checked = meter.create_counter("iu.audit.checked", "{event}", "Events that an audit looked at.")
        self._missing = meter.create_gauge(
            "iu.audit.missing", "{event}", "Events that lack attempts, by the last audit."
        )

        self._exported = meter.create_counter("iu.traces.exported", "{span}", "Spans that a collector took.")
        self._rejected = meter.create_counter("iu.traces.rejected", "{span}", "Spans that one refused for good.")
        self._ignored = meter.create_counter("iu.traces.ignored", "{event}", "Malformed trace contexts.")

    def note(self, observation: Observation, /) -> None:
        """Record what an observation says, if it has a figure."""
        match observation:
            case BatchRan(worker, wake, batch) if batch.seen:
                self._events.add(batch.seen, {"iu.worker": worker, "iu.wake": wake.value})
            case WakeLost(worker, _):
                self._lost.add(1, {"iu.worker": worker})
            case SpansExported(spans, rejected, ignored):
                self._exported.add(spans)
                self._rejected.add(rejected)
                self._ignored.add(ignored)
            case AuditPassed(worker, checked, missing, _):
                self._checked.add(checked, {"iu.worker": worker})
                self._missing.set(missing, {"iu.worker": worker})

    def close(self) -> None:
        """Send what is left, in bounded time."""
        self._provider.shutdown()


def metric_watcher(environ: Mapping[str, str]) -> MetricWatcher | None:
    """The watcher that OTEL_METRICS_EXPORTER asks for; None when it asks for none.

    Raises:
        ConfigurationError: no exporter of that name is installed.
    """
    found = exporter(environ, "metrics")
    if found is None:
        return None
    # Every command would pay for this import, a tenth of its start, and hardly any wants metrics.
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415

    reader = PeriodicExportingMetricReader(found)
    return MetricWatcher(MeterProvider([reader], resource=resource(environ), shutdown_on_exit=False))
