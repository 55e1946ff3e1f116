"""OTLP over gRPC. Requests are already encoded, so the generated stub, which would encode them again, is not used."""

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
from iu_listen.model.spans import CollectorAnswer, Verdict
from iu_listen.telemetry.otlp.base import OtlpCollector, accepted_verdict, shown_message

#: The status codes that may be caused by the content of a request.
STATUS_ANSWERS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: CollectorAnswer.MALFORMED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: CollectorAnswer.TOO_LARGE,
}
EXPORT_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class GrpcCollector(OtlpCollector):
    """A collector that is reached over gRPC; without TLS if the scheme of the endpoint is http."""

    default = "http://localhost:4317"

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        parts = urlsplit(self.url)
        # The channel reconnects by itself. Requests are not repeated by the library: the trace export repeats them.
        options = [("grpc.max_reconnect_backoff_ms", 5000), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
        host = parts.netloc.rpartition("@")[2]
        if parts.scheme == "http":
            self._channel = grpc.insecure_channel(host, options)
        else:
            self._channel = grpc.secure_channel(host, self._credentials(), options)
        self._export: Any = self._channel.unary_unary(
            EXPORT_METHOD, request_serializer=None, response_deserializer=ExportTraceServiceResponse.FromString
        )
        self._compression = grpc.Compression.Gzip if self.zipped else grpc.Compression.NoCompression
        self._call: Any = None

    def _credentials(self) -> Any:
        root, key, chain = (
            Path(file).read_bytes() if file else None
            for file in (self.certificate, self.client_key, self.client_certificate)
        )
        # gRPC aborts the process if there is a certificate without a key, or a key without a certificate.
        if (key is None) != (chain is None):
            raise ConfigurationError(
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY must be set together for gRPC",
                "Set both, or neither.",
            )
        return grpc.ssl_channel_credentials(root, key, chain)

    def post(self, body: bytes) -> Verdict:
        """Send a request, wait for its answer, and return the verdict."""
        try:
            self._call = self._export.future(
                body, timeout=self.timeout, metadata=tuple(self.headers.items()), compression=self._compression
            )
            return accepted_verdict(self._call.result())
        except grpc.RpcError as error:
            return verdict(error)

    def hang_up(self) -> None:
        """Cancel the running call, if there is one."""
        if self._call is not None:
            self._call.cancel()

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self._channel.close()


def verdict(error: Any) -> Verdict:
    """The verdict for a failed call."""
    code = error.code()
    details = shown_message(error.details() or "")
    why = f"the collector answered {code.name}" + (f": {details}" if details else "")
    kind, delay = STATUS_ANSWERS.get(code, CollectorAnswer.AGAIN), _delay(error)
    # RESOURCE_EXHAUSTED with a delay means that the collector is busy. Without a delay the request may be too large.
    return Verdict(
        CollectorAnswer.AGAIN if kind is CollectorAnswer.TOO_LARGE and delay is not None else kind, why, delay
    )


def _delay(error: Any) -> float | None:
    """The delay of RetryInfo, in seconds; None: the answer has none."""
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
