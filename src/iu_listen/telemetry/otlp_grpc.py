"""OTLP over gRPC. Our bytes go out as they are, so the generated stub, which would make them anew, is not used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.trace import Answer, Verdict
from iu_listen.telemetry.collector import OtlpCollector, accepted, quoted

#: Answers that may be about what was sent.
KINDS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: Answer.MALFORMED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Answer.TOO_LARGE,
}
METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class GrpcCollector(OtlpCollector):
    """A collector that is reached over gRPC; without TLS where the endpoint says http."""

    default = "http://localhost:4317"

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        parts = urlsplit(self.url)
        # It keeps the connection, and makes it again; how often it tries is ours to say.
        options = [("grpc.max_reconnect_backoff_ms", 5000), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
        host = parts.netloc.rpartition("@")[2]
        if parts.scheme == "http":
            self._channel = grpc.insecure_channel(host, options)
        else:
            self._channel = grpc.secure_channel(host, self._credentials(), options)
        self._export: Any = self._channel.unary_unary(
            METHOD, request_serializer=None, response_deserializer=ExportTraceServiceResponse.FromString
        )
        self._compression = grpc.Compression.Gzip if self.zipped else grpc.Compression.NoCompression
        self._call: Any = None

    def _credentials(self) -> Any:
        root, key, chain = (
            Path(file).read_bytes() if file else None
            for file in (self.certificate, self.client_key, self.client_certificate)
        )
        # The library ends the process over one without the other.
        if (key is None) != (chain is None):
            raise ConfigurationError(
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY go together over gRPC",
                "Set both, or neither.",
            )
        return grpc.ssl_channel_credentials(root, key, chain)

    def post(self, body: bytes) -> Verdict:
        """Send a request, and wait for what comes of it."""
        try:
            self._call = self._export.future(
                body, timeout=self.timeout, metadata=tuple(self.headers.items()), compression=self._compression
            )
            return accepted(self._call.result())
        except grpc.RpcError as error:
            return verdict(error)

    def hang_up(self) -> None:
        """Cancel the call."""
        if self._call is not None:
            self._call.cancel()

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self._channel.close()


def verdict(error: Any) -> Verdict:
    """What an error means."""
    code = error.code()
    details = quoted(error.details() or "")
    why = f"the collector answered {code.name}" + (f": {details}" if details else "")
    kind, delay = KINDS.get(code, Answer.AGAIN), _delay(error)
    # Who says when to come again is busy; who does not may mean the size of the request.
    return Verdict(Answer.AGAIN if kind is Answer.TOO_LARGE and delay is not None else kind, why, delay)


def _delay(error: Any) -> float | None:
    """RetryInfo, in seconds; None: there is none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                details = Status.FromString(value).details
            except DecodeError:
                return None
            for detail in details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return None
