"""Reads the standard OTEL_* variables: the exporters, and the resource (the service) that exports.

Values are read as the specification says (opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables): an
empty value counts as unset, words may be in any case, and a timeout is a whole number of milliseconds. An invalid value
is refused at the start, with the name of its variable; the SDK would ignore it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any, Final, Literal
from urllib.parse import unquote

from opentelemetry.sdk.resources import SERVICE_NAME, Resource

from iu_listen.model.errors import ConfigurationError
from iu_listen.telemetry.sdk_logs import install_sdk_log_filter

# Called at import, so that log lines of the SDK are handled in each program that uses it.
install_sdk_log_filter()

Signal = Literal["traces", "metrics"]

#: The documented exporters of each signal.
DOCUMENTED_EXPORTERS: Final[Mapping[Signal, tuple[str, ...]]] = {
    "traces": ("otlp", "console", "none"),
    "metrics": ("otlp", "prometheus", "console", "none"),
}
#: Longest timeout of a request, in seconds.
MAX_REQUEST_TIMEOUT: Final = 300.0


def otlp_variable(environ: Mapping[str, str], name: str, signal: Signal = "traces") -> str:
    """The value of ``OTEL_EXPORTER_OTLP_<SIGNAL>_<name>``, else of ``OTEL_EXPORTER_OTLP_<name>``, else empty."""
    return environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}") or ""


def otlp_timeout(environ: Mapping[str, str], signal: Signal = "traces") -> float:
    """The longest duration of a request, in seconds. The variable is in milliseconds; 0 means MAX_REQUEST_TIMEOUT.

    Raises:
        ConfigurationError: The value is not a whole number of milliseconds.
    """
    given = otlp_variable(environ, "TIMEOUT", signal).strip() or "10000"
    if not (given.isascii() and given.isdigit()):
        raise ConfigurationError(
            f"OTEL_EXPORTER_OTLP_TIMEOUT={given} is not a whole number of milliseconds",
            "Example: 10000 is ten seconds.",
        )
    return min(int(given[:12]) / 1000 or MAX_REQUEST_TIMEOUT, MAX_REQUEST_TIMEOUT)


def otlp_protocol(environ: Mapping[str, str], signal: Signal = "traces") -> str:
    """The OTLP protocol: ``http/protobuf``, which is the default, or ``grpc``.

    Raises:
        ConfigurationError: The variable has another value.
    """
    protocol = otlp_variable(environ, "PROTOCOL", signal).strip().lower() or "http/protobuf"
    if protocol not in ("http/protobuf", "grpc"):
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf or grpc, not {protocol}")
    return protocol


def exporter_names(environ: Mapping[str, str], signal: Signal) -> list[str]:
    """The names of exporters in ``OTEL_<SIGNAL>_EXPORTER``, without duplicates; empty: nothing is exported.

    Raises:
        ConfigurationError: There is no exporter of a name, or the list contains ``none`` and other names.
    """
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    names = list(dict.fromkeys(name for n in environ.get(variable, "").split(",") if (name := n.strip().lower())))
    if names == ["none"]:
        return []
    if "none" in names:
        raise ConfigurationError(
            f"{variable}: none cannot be combined with other exporters", f"Example: {variable}=none"
        )
    for name in names:
        if name not in DOCUMENTED_EXPORTERS[signal] and not _registered(name, signal):
            raise ConfigurationError(f"{variable}={name}: unknown exporter", _hint(name, signal))
    return names


def _hint(name: str, signal: Signal) -> str:
    """The hint for an unknown exporter, with a similar name if there is one."""
    if name == "prometheus":
        return "Prometheus receives only metrics: OTEL_METRICS_EXPORTER=prometheus."
    there = f"Known exporters: {', '.join(DOCUMENTED_EXPORTERS[signal])}, and the exporters of installed packages."
    close = get_close_matches(name, DOCUMENTED_EXPORTERS[signal], n=1)
    return f'Did you mean "{close[0]}"? {there}' if close else there


def _registered(name: str, signal: Signal) -> list[Any]:
    """The entry points of installed packages for exporters of this name."""
    return list(entry_points(group=f"opentelemetry_{signal}_exporter", name=name))


def exporters(environ: Mapping[str, str], signal: Signal) -> list[Any]:
    """The exporters of ``OTEL_<SIGNAL>_EXPORTER``; empty: nothing is exported.

    Args:
        environ: The environment. Each exporter reads its own variables from the environment of the process.
        signal: ``traces`` or ``metrics``.

    Raises:
        ConfigurationError: An exporter is not installed, or cannot start.
    """
    return [_exporter(environ, signal, name) for name in exporter_names(environ, signal)]


def _exporter(environ: Mapping[str, str], signal: Signal, name: str) -> Any:
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    # ``otlp`` is the name in the specification; the packages register their exporters under longer names.
    registered, extra = name, name
    if name == "otlp":
        grpc = otlp_protocol(environ, signal) == "grpc"
        registered, extra = ("otlp_proto_grpc", "otlp-grpc") if grpc else ("otlp_proto_http", "otlp")
    found = _registered(registered, signal)
    if not found:
        raise ConfigurationError(
            f"{variable}={name}: the exporter is not installed", f"pip install 'iu-listen[{extra}]'"
        )
    # Passed explicitly, because the SDK reads the variable as seconds.
    options = {"timeout": otlp_timeout(environ, signal)} if registered.startswith("otlp_") else {}
    with _creating(variable, name):
        return found[0].load()(**options)


@contextmanager
def _creating(variable: str, name: str) -> Iterator[None]:
    """Translate errors at the creation of an exporter or a reader, for example because of an invalid variable.

    Raises:
        ConfigurationError: The exporter or the reader cannot start.
    """
    try:
        yield
    except (OSError, ValueError, OverflowError) as wrong:
        # Only the text of an OSError is shown. The text of other errors may contain a value, which may be a token.
        why = (wrong.strerror or str(wrong)) if isinstance(wrong, OSError) else type(wrong).__name__
        hint = (
            "Set another address: OTEL_EXPORTER_PROMETHEUS_HOST, OTEL_EXPORTER_PROMETHEUS_PORT (default: 9464)"
            if name == "prometheus"
            else "Check the variables that begin with OTEL_EXPORTER_OTLP_ and OTEL_METRIC_EXPORT_."
        )
        raise ConfigurationError(f"{variable}={name}: the exporter cannot start: {why}", hint) from wrong


def metric_reader(found: Any) -> Any:
    """The SDK's reader for a metric exporter. The exporter ``prometheus`` is a reader itself.

    Raises:
        ConfigurationError: OTEL_METRIC_EXPORT_INTERVAL or OTEL_METRIC_EXPORT_TIMEOUT is invalid.
    """
    # Imported here, because the import would slow down the start of each command, and few commands export metrics.
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader  # noqa: PLC0415

    if isinstance(found, MetricReader):
        return found
    with _creating("OTEL_METRICS_EXPORTER", "with an interval"):
        return PeriodicExportingMetricReader(found)


def samples_all(environ: Mapping[str, str]) -> bool:
    """Whether all live spans are exported: OTEL_TRACES_SAMPLER is unset, or names a sampler that keeps all spans."""
    return environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() in ("", "always_on", "parentbased_always_on")


def resource(environ: Mapping[str, str]) -> Resource:
    """The resource that exports: OTEL_RESOURCE_ATTRIBUTES, and the service name, which OTEL_SERVICE_NAME overrides."""
    pairs = (pair.partition("=") for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",") if "=" in pair)
    given = {key.strip(): unquote(value.strip()) for key, _, value in pairs if key.strip()}
    name = environ.get("OTEL_SERVICE_NAME") or given.get(SERVICE_NAME) or "iu-listen"
    return Resource.create({**given, SERVICE_NAME: name})
