"""Observations as metrics, recorded once for each batch. They are off unless OTEL_METRICS_EXPORTER is set.

Names and units follow the conventions of OpenTelemetry (messaging.*); metrics without a convention begin with iu.*. The
table is in docs/reference/metrics.md; deploy/prometheus and deploy/grafana use it. Each data point names its database,
because a scrape may contain several databases.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from iu_listen.model.delivery import Outcome
from iu_listen.model.monitoring import MetricsSnapshot
from iu_listen.model.observation import (
    BatchRan,
    CompletenessChecked,
    DeliveriesSettled,
    ExportDelayed,
    MetricsFailed,
    MetricsTaken,
    NotificationMissed,
    Observation,
    RoutePaused,
    RouteResumed,
    SessionFailed,
    SpansExported,
    Started,
)
from iu_listen.model.routing import Batch, Wake, WorkerName
from iu_listen.model.spans import DESTINATION
from iu_listen.telemetry.sdk_exporters import exporters, metric_reader, resource

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider

#: Bucket boundaries of latencies, in seconds: from the shortest possible latency to the length of an outage.
LATENCY_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
#: Bucket boundaries of batch sizes, in events.
BATCH_SIZE_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class MetricObserver:
    """An observer that records metrics. Implements Observer.

    Args:
        provider: The SDK's provider of meters, with its exporters.
        database: The name of the database.
    """

    def __init__(self, provider: MeterProvider, database: str) -> None:
        self._provider = provider
        self._here = {"db.namespace": database}
        meter = provider.get_meter("iu_listen")
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Events that batches read."
        )
        self._duration = meter.create_histogram(
            "messaging.process.duration", "s", "Duration of a batch that found events.",
            explicit_bucket_boundaries_advisory=LATENCY_BUCKETS,
        )  # fmt: skip
        self._size = meter.create_histogram(
            "iu.batch.size", "{event}", "Number of events of a batch that found events.",
            explicit_bucket_boundaries_advisory=BATCH_SIZE_BUCKETS,
        )  # fmt: skip
        self._attempts = meter.create_counter("iu.attempts", "{attempt}", "Attempts that batches wrote.")
        self._wakes = meter.create_counter("iu.wakes", "{wake}", "Batches, also those without events.")
        self._missed = meter.create_counter(
            "iu.notifications.missed", "{wake}", "Catch-up polls that found events without a notification."
        )
        self._latency = meter.create_histogram(
            "iu.decision.latency", "s", "Time from commit to decision, of the latest 200 attempts at each measurement.",
            explicit_bucket_boundaries_advisory=LATENCY_BUCKETS,
        )  # fmt: skip
        self._failures = meter.create_counter(
            "iu.sessions.failed", "{failure}", "Sessions that were lost or could not be opened."
        )
        # The gauges by name of the measure in fn_iu_metrics, each with the attribute for the part of the measure.
        self._gauges = {
            "gate": (meter.create_gauge("iu.gate.open", "1", "1: the gate is open; 0: it is closed."), "iu.gate"),
            "healthy": (
                meter.create_gauge("iu.worker.healthy", "1", "1: the worker is healthy; 0: it is not."), ""
            ),
            "notification_queue": (
                meter.create_gauge(
                    "iu.notification_queue.usage", "1", "Used fraction of the NOTIFY queue of the server, from 0 to 1."
                ),
                "",
            ),
            "refused_emits": (
                meter.create_gauge(
                    "iu.emit.refused", "{event}", "Events that fn_iu_emit_event refused because of their type."
                ),
                "",
            ),
            "lag_items": (
                meter.create_gauge("iu.lag.items", "{item}", "Number of items that wait."), "iu.lag.part"
            ),
            "lag_seconds": (
                meter.create_gauge("iu.lag.duration", "s", "Age of the oldest item that waits."), "iu.lag.part"
            ),
        }  # fmt: skip
        self._measurements = meter.create_counter("iu.measurements", "{measurement}", "Measurements of the database.")
        self._checked = meter.create_counter(
            "iu.completeness.checked", "{event}", "Events that completeness checks read."
        )
        self._missing = meter.create_gauge(
            "iu.completeness.missing", "{event}", "Events that lack attempts, by the last completeness check."
        )
        self._deliveries = meter.create_counter("iu.deliveries", "{attempt}", "Settled attempts to deliver.")
        self._delivery_duration = meter.create_histogram(
            "iu.delivery.duration", "s", "Median duration of the calls that were settled together.",
            explicit_bucket_boundaries_advisory=LATENCY_BUCKETS,
        )  # fmt: skip
        self._route_paused = meter.create_gauge("iu.route.paused", "1", "1: the route is paused; 0: it delivers.")
        self._exported = meter.create_counter("iu.traces.exported", "{span}", "Spans that the collector accepted.")
        self._rejected = meter.create_counter(
            "iu.traces.rejected", "{span}", "Spans that the collector rejected for good."
        )
        self._export_failures = meter.create_counter(
            "iu.traces.requests.failed", "{request}", "Export requests that the collector did not accept."
        )
        self._ignored = meter.create_counter(
            "iu.traces.ignored", "{event}", "Events whose trace context was malformed and ignored."
        )

    def observe(self, observation: Observation, /) -> None:  # noqa: C901 a table, a line for each
        """Record the figures of an observation, if it has any."""
        match observation:
            case Started(worker, _):
                # Creates the time series of the worker before its first batch.
                self._wakes.add(0, self._of(worker) | {"iu.wake": Wake.START_UP.value})
            case BatchRan(worker, wake, batch):
                self._wakes.add(1, self._of(worker) | {"iu.wake": wake.value})
                if batch.seen:
                    self._batch(worker, wake, batch)
            case NotificationMissed(worker, _):
                self._missed.add(1, self._of(worker))
            case MetricsTaken(worker, survey):
                self._measurements.add(1, self._of(worker))
                self._measured(worker, survey)
            case MetricsFailed(worker, kind):
                self._measurements.add(1, self._of(worker) | {"error.type": kind})
            case SessionFailed(session, _, _):
                self._failures.add(1, self._of() | {"iu.session": session})
            case DeliveriesSettled(worker, outcomes):
                self._settled(worker, outcomes)
            case RoutePaused(worker, route) | RouteResumed(worker, route):
                paused = isinstance(observation, RoutePaused)
                self._route_paused.set(int(paused), self._of(worker) | {"iu.route.code": route})
            case SpansExported(spans, rejected, ignored):
                self._exported.add(spans, self._of())
                self._rejected.add(rejected, self._of())
                self._ignored.add(ignored, self._of())
            case ExportDelayed():
                self._export_failures.add(1, self._of())
            case CompletenessChecked(worker, checked, missing, _):
                self._checked.add(checked, self._of(worker))
                self._missing.set(missing, self._of(worker))

    def _of(self, worker: str | None = None) -> dict[str, str]:
        """The attributes of a data point: the database, and the worker if one is given."""
        return self._here | ({"iu.worker": worker} if worker else {})

    def _batch(self, worker: WorkerName, wake: Wake, batch: Batch) -> None:
        process = {
            **self._here,
            "messaging.system": "postgresql",
            "messaging.operation.name": "process",
            "messaging.destination.name": DESTINATION,
            "messaging.consumer.group.name": worker,
        }
        self._consumed.add(batch.seen, {**process, "iu.wake": wake.value})
        self._duration.record(batch.seconds, process)
        self._size.record(batch.seen, self._of(worker))
        # A failed attempt of a batch is also a dead letter. A dead letter has no attempt if its audit row failed.
        decided = {
            "dry_run": max(batch.attempts - batch.skipped - batch.delivered - batch.dead_lettered, 0),
            "delivered": batch.delivered,
            "skipped": batch.skipped,
            "dead_letter": batch.dead_lettered,
        }
        for decision, count in decided.items():
            if count:
                self._attempts.add(count, self._of(worker) | {"iu.decision": decision})

    def _settled(self, worker: WorkerName, outcomes: Sequence[Outcome]) -> None:
        counts: Counter[tuple[str, str, str]] = Counter()
        took: dict[str, list[float]] = {}
        for outcome in outcomes:
            route = outcome.taken.delivery.route
            counts[route, outcome.result.value, outcome.code] += 1
            took.setdefault(route, []).append(outcome.ended - outcome.began)
        for (route, result, code), count in counts.items():
            of = self._of(worker) | {"iu.route.code": route, "iu.delivery.result": result}
            self._deliveries.add(count, of | ({"error.type": code} if code else {}))
        # One figure for each route and set, because recording a figure takes as long as the rest of a delivery.
        for route, seconds in took.items():
            self._delivery_duration.record(statistics.median(seconds), self._of(worker) | {"iu.route.code": route})

    def _measured(self, worker: WorkerName, survey: MetricsSnapshot) -> None:
        for measure in survey.measures:
            if measure.what not in self._gauges:
                # The package in the database may be newer than this process, and have measures that it does not know.
                continue
            gauge, part = self._gauges[measure.what]
            gauge.set(measure.figure, self._of(measure.worker) | ({part: measure.part} if part else {}))
        since = self._of(worker) | {"iu.since": "commit" if survey.since_commit else "insert"}
        for seconds in survey.latencies:
            self._latency.record(seconds, since)

    def close(self) -> None:
        """Send the remaining data and end the provider."""
        self._provider.shutdown()


def metric_observer(environ: Mapping[str, str], database: str) -> MetricObserver | None:
    """The observer with the exporters of OTEL_METRICS_EXPORTER; None: metrics are not exported.

    The exporter ``prometheus`` serves metrics on http://localhost:9464/metrics; OTEL_EXPORTER_PROMETHEUS_HOST and
    OTEL_EXPORTER_PROMETHEUS_PORT change the address.

    Args:
        environ: The environment.
        database: The name of the database.

    Raises:
        ConfigurationError: No exporter of that name is installed, or its port is in use.
    """
    found = exporters(environ, "metrics")
    if not found:
        return None
    # Imported here, because the import would slow down the start of each command, and few commands export metrics.
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415

    return MetricObserver(
        MeterProvider([metric_reader(one) for one in found], resource=resource(environ), shutdown_on_exit=False),
        database,
    )
