"""Which exporter the standard OTEL_* variables ask for, and as what service we export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, Literal

from opentelemetry.sdk.resources import SERVICE_NAME, Resource

from iu_listen.model.errors import ConfigurationError
from iu_listen.telemetry.foreign import tame

# Whoever uses the SDK has its lines in order, whatever is set up besides.
tame()


def exporter(environ: Mapping[str, str], signal: Literal["traces", "metrics"]) -> Any:
    """An exporter as ``OTEL_<SIGNAL>_EXPORTER`` names it; None when nobody asked for one.

    Args:
        environ: The name is that of an installed exporter: console, otlp, ...; the exporter reads its own variables.
        signal: What is to be exported.

    Raises:
        ConfigurationError: no exporter of that name is installed, or it cannot begin.
    """
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    name = environ.get(variable, "none")
    if name == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    # The specification's word; the packages register longer ones.
    protocol = environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL") or environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    registered = ("otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http") if name == "otlp" else name
    found = list(entry_points(group=f"opentelemetry_{signal}_exporter", name=registered))
    if not found:
        raise ConfigurationError(
            f"{variable}={name}: no such exporter is installed",
            f"pip install 'iu-listen[{name}]'" if name in ("otlp", "prometheus") else "otlp, prometheus or console",
        )
    with _begins(variable, name):
        return found[0].load()()


@contextmanager
def _begins(variable: str, name: str) -> Iterator[None]:
    """An exporter, or its reader, is made: what it makes of its own variables may be wrong."""
    try:
        yield
    except (OSError, ValueError, OverflowError) as wrong:
        # Other texts may hold what was set, and that may be a token.
        why = (wrong.strerror or str(wrong)) if isinstance(wrong, OSError) else type(wrong).__name__
        hint = (
            "Its address: OTEL_EXPORTER_PROMETHEUS_HOST, OTEL_EXPORTER_PROMETHEUS_PORT (9464)"
            if name == "prometheus"
            else "Is one of its own variables wrong? They begin with OTEL_EXPORTER_OTLP_ or OTEL_METRIC_EXPORT_."
        )
        raise ConfigurationError(f"{variable}={name} cannot begin: {why}", hint) from wrong


def metric_reader(found: Any) -> Any:
    """The reader of a metric exporter, as the SDK wants it; ``prometheus`` is one itself.

    Raises:
        ConfigurationError: OTEL_METRIC_EXPORT_INTERVAL or _TIMEOUT cannot work.
    """
    # Every command would pay for this import, a tenth of its start, and hardly any wants metrics.
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader  # noqa: PLC0415

    if isinstance(found, MetricReader):
        return found
    with _begins("OTEL_METRICS_EXPORTER", "with an interval"):
        return PeriodicExportingMetricReader(found)


def resource(environ: Mapping[str, str]) -> Resource:
    """Who exports."""
    return Resource.create({SERVICE_NAME: environ.get("OTEL_SERVICE_NAME", "iu-listen")})
