"""Every OTEL_* variable that the program reads, as OpenTelemetry's specification defines it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

from iu_listen.model.errors import ConfigurationError
from iu_listen.telemetry.otlp.factory import create_collector
from iu_listen.telemetry.otlp.grpc import GrpcCollector
from iu_listen.telemetry.otlp.http import HttpCollector
from iu_listen.telemetry.sdk_exporters import (
    exporter_names,
    exporters,
    otlp_protocol,
    otlp_timeout,
    resource,
    samples_all,
)

SOURCES = Path(__file__).parents[2] / "src/iu_listen"
ON = {"OTEL_TRACES_EXPORTER": "otlp"}


def traces(environ: Mapping[str, str]) -> Any:
    return exporter_names(environ, "traces")


def metrics(environ: Mapping[str, str]) -> Any:
    return exporter_names(environ, "metrics")


def kinds(environ: Mapping[str, str]) -> Any:
    """The exporters of live spans, by their classes."""
    return [type(one) for one in exporters(environ, "traces")]


def timeouts(environ: Mapping[str, str]) -> Any:
    """The timeouts of the SDK's exporters, in seconds."""
    return [one._client._timeout for signal in ("traces", "metrics") for one in exporters(environ, signal)]  # type: ignore[arg-type]


def service(environ: Mapping[str, str]) -> Any:
    return resource(environ).attributes["service.name"]


def tenant(environ: Mapping[str, str]) -> Any:
    return resource(environ).attributes.get("tenant")


def of(attribute: str) -> Any:
    """A function that returns an attribute of the collector to which the audit is exported."""

    def read(environ: Mapping[str, str]) -> Any:
        there = create_collector(ON | environ)
        assert there is not None
        found = getattr(there, attribute)
        there.close()
        return found

    return read


def where(environ: Mapping[str, str]) -> Any:
    there = create_collector(environ)
    return type(there) if there else None


def refusal(ask: Any) -> Any:
    """A function that returns the message of a refused value."""

    def read(environ: Mapping[str, str]) -> Any:
        with pytest.raises(ConfigurationError) as refused:
            ask(environ)
        return f"{refused.value.message}. {refused.value.hint}"

    return read


TIMEOUT = "OTEL_EXPORTER_OTLP_TIMEOUT"
#: The environment, the question, and the answer; for a refusal, a part of its text.
TABLE: list[tuple[dict[str, str], Any, Any]] = [
    # Exporters: a list of words in any case; an empty value counts as unset.
    ({}, traces, []),
    ({"OTEL_TRACES_EXPORTER": ""}, traces, []),
    ({"OTEL_TRACES_EXPORTER": "none"}, traces, []),
    ({"OTEL_TRACES_EXPORTER": " otlp"}, traces, ["otlp"]),
    ({"OTEL_TRACES_EXPORTER": "OTLP"}, traces, ["otlp"]),
    ({"OTEL_TRACES_EXPORTER": "otlp,console"}, traces, ["otlp", "console"]),
    ({"OTEL_TRACES_EXPORTER": "console, otlp,,otlp"}, traces, ["console", "otlp"]),
    ({"OTEL_TRACES_EXPORTER": "otlp,console"}, kinds, [OTLPSpanExporter, ConsoleSpanExporter]),
    ({"OTEL_TRACES_EXPORTER": "console,otlp"}, where, HttpCollector),
    ({"OTEL_TRACES_EXPORTER": "console"}, where, None),
    ({"OTEL_TRACES_EXPORTER": "otlp_proto_grpc"}, where, GrpcCollector),
    ({"OTEL_TRACES_EXPORTER": "otpl"}, refusal(traces), 'Did you mean "otlp"? Known exporters: otlp, console, none,'),
    ({"OTEL_TRACES_EXPORTER": "zipkin"}, refusal(traces), "=zipkin: unknown exporter. Known exporters: otlp, cons"),
    ({"OTEL_TRACES_EXPORTER": "prometheus"}, refusal(traces), "receives only metrics: OTEL_METRICS_EXPORTER=prometheus"),
    ({"OTEL_TRACES_EXPORTER": "otlp,none"}, refusal(traces), "none cannot be combined"),
    ({"OTEL_METRICS_EXPORTER": "prometheus,otlp"}, metrics, ["prometheus", "otlp"]),
    ({"OTEL_METRICS_EXPORTER": "promtheus"}, refusal(metrics), 'Did you mean "prometheus"?'),
    ({"OTEL_SDK_DISABLED": "True"} | ON, traces, []),
    ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otpl"}, traces, []),
    ({"OTEL_SDK_DISABLED": "yes"} | ON, traces, ["otlp"]),
    # Whether attempts link to the live span of their batch.
    ({}, samples_all, True),
    ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, samples_all, True),
    ({"OTEL_TRACES_SAMPLER": "always_off"}, samples_all, False),
    ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}, samples_all, False),
    # The resource: the variable for the service name has precedence over the attributes.
    ({}, service, "iu-listen"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop%20floor,tenant=7"}, service, "shop floor"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop, tenant = 7 "}, tenant, "7"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop", "OTEL_SERVICE_NAME": "till"}, service, "till"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop", "OTEL_SERVICE_NAME": ""}, service, "shop"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "a"}, service, "iu-listen"),
    # The timeout: whole milliseconds; 0 means no limit, which is five minutes here.
    ({}, otlp_timeout, 10.0),
    ({TIMEOUT: "10000"}, otlp_timeout, 10.0),
    ({TIMEOUT: "250"}, of("timeout"), 0.25),
    ({TIMEOUT: "250", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "1500"}, otlp_timeout, 1.5),
    ({"OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "1500"}, otlp_timeout, 10.0),
    ({TIMEOUT: "250", "OTEL_METRICS_EXPORTER": "otlp"} | ON, timeouts, [0.25, 0.25]),
    ({TIMEOUT: "0"}, otlp_timeout, 300.0),
    ({TIMEOUT: "3600000"}, otlp_timeout, 300.0),
    ({TIMEOUT: ""}, otlp_timeout, 10.0),
    ({TIMEOUT: "10s"}, refusal(otlp_timeout), "TIMEOUT=10s is not a whole number of milliseconds. Example: 10000 is ten seconds"),
    ({TIMEOUT: "0.5"}, refusal(otlp_timeout), "not a whole number"),
    ({TIMEOUT: "-1"}, refusal(otlp_timeout), "not a whole number"),
    # The endpoint and the protocol.
    ({}, of("url"), "http://localhost:4318/v1/traces"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, of("url"), "http://c:4318/v1/traces"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/x"}, of("url"),
     "http://t/x"),
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, of("url"), "http://localhost:4317"),
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "HTTP/protobuf"} | ON, where,
     HttpCollector),
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, refusal(otlp_protocol), "must be http/protobuf or grpc"),
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"} | ON, where, GrpcCollector),
    ({"OTEL_EXPORTER_OTLP_HEADERS": "a=b%20c, D=e"}, of("headers"), {"a": "b c", "d": "e"}),
    ({"OTEL_EXPORTER_OTLP_HEADERS": "a=b", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "c=d"}, of("headers"), {"c": "d"}),
    ({"OTEL_EXPORTER_OTLP_COMPRESSION": "GZIP"}, of("zipped"), True),
    ({"OTEL_EXPORTER_OTLP_COMPRESSION": "br"}, refusal(of("zipped")), "must be none or gzip"),
    ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "/none"}, refusal(of("certificate")), "certificate or key cannot be used"),
    ({"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "/none", "OTEL_EXPORTER_OTLP_CLIENT_KEY": "/none"},
     refusal(of("client_key")), "OTEL_EXPORTER_OTLP_CLIENT_KEY=/none"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "ask", "expected"), TABLE, ids=[" ".join(map("=".join, e.items())) or "-" for e, *_ in TABLE]
)
def test_a_variable_means_what_the_specification_says(environ, ask, expected):
    """Each value has the meaning of the specification; an invalid one is refused with its name."""
    found = ask(environ)

    if isinstance(expected, str) and ask.__qualname__.startswith("refusal"):
        assert expected in found
    else:
        assert found == expected


def test_the_table_has_every_variable():
    """Each variable that the source code reads is in the table.

    Fails when: a variable is added without a test.
    """
    read = set()
    for file in SOURCES.rglob("*.py"):
        text = file.read_text()
        read |= set(re.findall(r'environ\.get\("(OTEL_[A-Z_]+)"', text))
        read |= {f"OTEL_EXPORTER_OTLP_{name}" for name in re.findall(r'otlp_variable\(environ, "([A-Z_]+)"', text)}
        # The names of the variables for certificates and exporters are composed.
        read |= {f"OTEL_EXPORTER_OTLP_{name}" for name in re.findall(r'"((?:CLIENT_)?(?:CERTIFICATE|KEY))"', text)}
    tested = {name for environ, *_ in TABLE for name in environ}

    assert read >= {"OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME", "OTEL_EXPORTER_OTLP_TIMEOUT"}
    assert read <= tested
