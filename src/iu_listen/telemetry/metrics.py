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
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
#: Bucket boundaries of batch sizes, in events.
EVENTS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class MetricObserver:
    """An observer that records metrics. Implements Watcher.

    Args:
        provider: The SDK's provider of meters, with its exporters.
        database: The name of the database.
    """

    def __init__(self, provider: MeterProvider, database: str) -> None:
        self._provider = provider
        self._here = {"db.namespace": database}
        meter = provider.get_meter("iu_listen")
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Events read, by the wake that found them."
        )
        self._duration = meter.create_histogram(
            "messaging.process.duration", "s", "How long a batch took that found events.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )  # fmt: skip
        self._size = meter.create_histogram(
            "iu.batch.size", "{event}", "Events of a batch that found some.", explicit_bucket_boundaries_advisory=EVENTS
        )
        self._attempts = meter.create_counter("iu.attempts", "{attempt}", "Attempts, by what was decided.")
        self._wakes = meter.create_counter("iu.wakes", "{wake}", "Looks at the outbox, by what caused them.")
        self._lost = meter.create_counter("iu.wakes.lost", "{wake}", "Catch-ups that found what nobody rang for.")
        self._latency = meter.create_histogram(
            "iu.decision.latency", "s", "From commit to decision, of the youngest 200 attempts each time.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )  # fmt: skip
        self._failures = meter.create_counter(
            "iu.sessions.failed", "{failure}", "Sessions that were lost or could not be had."
        )
        # The gauges by name of the measure in fn_iu_metrics, each with the attribute for the part of the measure.
        self._gauges = {
            "gate": (meter.create_gauge("iu.gate.open", "1", "1 while a gate is open, else 0."), "iu.gate"),
            "healthy": (
                meter.create_gauge("iu.worker.healthy", "1", "1 while the worker could do its work, else 0."), ""
            ),
            "notification_queue": (
                meter.create_gauge(
                    "iu.notification_queue.usage", "1", "How full the cluster's NOTIFY queue is, from 0 to 1."
                ),
                "",
            ),
            "refused_emits": (
                meter.create_gauge(
                    "iu.emit.refused", "{event}", "Events of unregistered types that the emitter refused, so far."
                ),
                "",
            ),
            "lag_items": (
                meter.create_gauge("iu.lag.items", "{item}", "How much waits, by what it waits for."), "iu.lag.part"
            ),
            "lag_seconds": (
                meter.create_gauge("iu.lag.duration", "s", "How long the oldest of it has waited."), "iu.lag.part"
            ),
        }  # fmt: skip
        self._measurements = meter.create_counter(
            "iu.measurements", "{measurement}", "Measurements of the database; those with an error failed."
        )
        self._checked = meter.create_counter("iu.completeness.checked", "{event}", "Events that an audit looked at.")
        self._missing = meter.create_gauge(
            "iu.completeness.missing", "{event}", "Events that lack attempts, by the last audit."
        )
        self._deliveries = meter.create_counter(
            "iu.deliveries", "{attempt}", "Attempts to deliver, by route and result; those that failed have an error."
        )
        self._delivery_duration = meter.create_histogram(
            "iu.delivery.duration", "s", "How long attempts to deliver took: the median of what was settled at once.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )  # fmt: skip
        self._route_held = meter.create_gauge("iu.route.held", "1", "1 while a route is held back, else 0.")
        self._exported = meter.create_counter("iu.traces.exported", "{span}", "Spans that a collector took.")
        self._rejected = meter.create_counter("iu.traces.rejected", "{span}", "Spans that one refused for good.")
        self._held = meter.create_counter("iu.traces.held", "{request}", "Requests that a collector did not take.")
        self._ignored = meter.create_counter("iu.traces.ignored", "{event}", "Malformed trace contexts.")

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
                self._lost.add(1, self._of(worker))
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
                held = isinstance(observation, RoutePaused)
                self._route_held.set(int(held), self._of(worker) | {"iu.route.code": route})
            case SpansExported(spans, rejected, ignored):
                self._exported.add(spans, self._of())
                self._rejected.add(rejected, self._of())
                self._ignored.add(ignored, self._of())
            case ExportDelayed():
                self._held.add(1, self._of())
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
