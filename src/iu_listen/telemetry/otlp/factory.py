"""Creates the client of an OTLP collector that the OTEL_* variables select."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from iu_listen.model.errors import ConfigurationError
from iu_listen.telemetry.otlp.base import OtlpCollector
from iu_listen.telemetry.sdk_exporters import exporter_names, otlp_protocol

#: Names of the exporter in OTEL_TRACES_EXPORTER, each with its protocol; empty: OTEL_EXPORTER_OTLP_PROTOCOL decides.
EXPORTER_PROTOCOLS: Final = {"otlp": "", "otlp_proto_http": "http/protobuf", "otlp_proto_grpc": "grpc"}


def create_collector(environ: Mapping[str, str]) -> OtlpCollector | None:
    """The collector for ``otlp`` in OTEL_TRACES_EXPORTER; None: the variable does not contain ``otlp``.

    Raises:
        ConfigurationError: A required package is not installed, or a variable has an invalid value.
    """
    wanted = next((name for name in exporter_names(environ, "traces") if name in EXPORTER_PROTOCOLS), None)
    if wanted is None:
        return None
    protocol = EXPORTER_PROTOCOLS[wanted] or otlp_protocol(environ)
    try:
        # Imported here, because the imports are slow and at most one of the two is needed.
        if protocol == "grpc":
            from iu_listen.telemetry.otlp.grpc import GrpcCollector  # noqa: PLC0415

            return GrpcCollector(environ)
        from iu_listen.telemetry.otlp.http import HttpCollector  # noqa: PLC0415

        return HttpCollector(environ)
    except ImportError as missing:
        extra = "otlp-grpc" if protocol == "grpc" else "otlp"
        raise ConfigurationError(
            f"OTEL_TRACES_EXPORTER={wanted} requires the extra {extra}, which is not installed",
            f"pip install 'iu-listen[{extra}]'",
        ) from missing
