"""Which exporter the standard OTEL_* variables ask for, and as what service we export."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Literal

from opentelemetry.sdk.resources import SERVICE_NAME, Resource

from iu_listen.model.errors import ConfigurationError


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
    try:
        return found[0].load()()
    except OSError as taken:
        raise ConfigurationError(
            f"{variable}={name} cannot begin: {taken.strerror or taken}",
            "Another address: OTEL_EXPORTER_PROMETHEUS_HOST, OTEL_EXPORTER_PROMETHEUS_PORT (9464)"
            if name == "prometheus"
            else "",
        ) from taken


def resource(environ: Mapping[str, str]) -> Resource:
    """Who exports."""
    return Resource.create({SERVICE_NAME: environ.get("OTEL_SERVICE_NAME", "iu-listen")})
