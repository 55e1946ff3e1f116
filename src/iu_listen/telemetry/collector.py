"""The way to an OTLP collector, by the standard OTEL_EXPORTER_OTLP_* variables; over HTTP or gRPC.

What an answer means: https://opentelemetry.io/docs/specs/otlp/#otlphttp-response. There a client drops what a server
does not want. Ours does not: the spans can be had again at any time, and a collector that says 404 or 401 is one that
somebody will mend. Only what the server calls malformed is wrong whenever it is sent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import anyio
import anyio.lowlevel
import anyio.to_thread

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.trace import Answer, Span, Verdict
from iu_listen.telemetry.exporters import resource
from iu_listen.telemetry.otlp import encode_spans, request

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

#: Spans that are encoded at a stretch: a third of a millisecond, in which the consumer beside us cannot wake.
SLICE: Final = 32
#: How much of a collector's words is repeated.
WORDS: Final = 200


def variable(environ: Mapping[str, str], name: str) -> str:
    """``OTEL_EXPORTER_OTLP_TRACES_<name>``, else ``OTEL_EXPORTER_OTLP_<name>``, else nothing."""
    return environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}") or ""


def headers(text: str) -> dict[str, str]:
    """``key=value,key=value``, the values percent-encoded (W3C Baggage).

    Raises:
        ConfigurationError: a pair without ``=``. The text is not repeated: it may hold a token.
    """
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if any(not separator or not key.strip() for key, separator, _ in pairs):
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_HEADERS: a header has no name, or no =", "As in authorization=Bearer%20…,x-tenant=7"
        )
    return {key.strip().lower(): unquote(value.strip()) for key, _, value in pairs}


def words(text: str) -> str:
    """The beginning of what a collector says, in a line."""
    return " ".join(text[:WORDS].split())


def accepted(answer: ExportTraceServiceResponse) -> Verdict:
    """Accepted; perhaps not all of it. The protocol forbids to send the rest again."""
    partial = answer.partial_success
    return Verdict(Answer.ACCEPTED, partial.error_message[:WORDS], rejected=partial.rejected_spans)


class OtlpCollector(ABC):
    """Satisfies flow.ports.Collector. What is the same over HTTP and gRPC.

    Args:
        environ: The OTEL_* variables.

    Raises:
        ConfigurationError: a variable holds what cannot work.
    """

    #: What the specification takes where no endpoint is given.
    default: str

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.url = self.endpoint(environ)
        if not self.url.startswith(("http://", "https://")):
            raise ConfigurationError(f"the OTLP endpoint {self.url} is no http address", f"As in {self.default}")
        try:
            self.timeout = float(variable(environ, "TIMEOUT") or 10)
        except ValueError:
            raise ConfigurationError("OTEL_EXPORTER_OTLP_TIMEOUT is no number of seconds") from None
        compression = variable(environ, "COMPRESSION") or "none"
        if compression not in ("none", "gzip"):
            raise ConfigurationError(f"OTEL_EXPORTER_OTLP_COMPRESSION must be none or gzip, not {compression}")
        self.zipped = compression == "gzip"
        self.headers = headers(variable(environ, "HEADERS"))
        self.certificate = variable(environ, "CERTIFICATE")
        self.client_certificate = variable(environ, "CLIENT_CERTIFICATE")
        self.client_key = variable(environ, "CLIENT_KEY")
        self._resource: dict[str, Any] = dict(resource(environ).attributes)

    @classmethod
    def endpoint(cls, environ: Mapping[str, str]) -> str:
        """Where traces go."""
        return variable(environ, "ENDPOINT") or cls.default

    async def send(self, spans: Sequence[Span]) -> Verdict:
        """Send spans, in bounded time."""
        parts = []
        for begin in range(0, len(spans), SLICE):
            parts.append(encode_spans(spans[begin : begin + SLICE]))
            await anyio.lowlevel.checkpoint()
        body = request(b"".join(parts), self._resource)
        # In a thread that is left to itself when it takes too long: no way of sending is trusted to keep its timeout.
        with anyio.move_on_after(3 * self.timeout):
            return await anyio.to_thread.run_sync(self.post, body, abandon_on_cancel=True)
        return Verdict(Answer.AGAIN, f"no answer within {3 * self.timeout:g} s")

    @abstractmethod
    def post(self, body: bytes) -> Verdict:
        """Send a request, and wait for what comes of it. Raises nothing."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""


def collector(environ: Mapping[str, str]) -> OtlpCollector | None:
    """The collector that OTEL_TRACES_EXPORTER=otlp asks for; None when it asks for none, or for another exporter.

    Raises:
        ConfigurationError: what it needs is not installed, or a variable holds what cannot work.
    """
    wanted = environ.get("OTEL_TRACES_EXPORTER", "")
    if not wanted.startswith("otlp") or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    named = {"otlp_proto_http": "http/protobuf", "otlp_proto_grpc": "grpc"}.get(wanted)
    protocol = named or variable(environ, "PROTOCOL") or "http/protobuf"
    try:
        # Heavy, and only one of the two is wanted, if any.
        match protocol:
            case "http/protobuf":
                from iu_listen.telemetry.otlp_http import HttpCollector  # noqa: PLC0415

                return HttpCollector(environ)
            case "grpc":
                from iu_listen.telemetry.otlp_grpc import GrpcCollector  # noqa: PLC0415

                return GrpcCollector(environ)
    except ImportError as missing:
        extra = "otlp-grpc" if protocol == "grpc" else "otlp"
        raise ConfigurationError(
            f"OTEL_TRACES_EXPORTER={wanted} needs {missing.name}", f"pip install 'iu-listen[{extra}]'"
        ) from missing
    raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf or grpc, not {protocol}")
