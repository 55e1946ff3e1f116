"""OTLP over HTTP, with protobuf."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import requests
import urllib3
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

from iu_listen.model.retry_after import parse_retry_after
from iu_listen.model.spans import CollectorAnswer, Verdict
from iu_listen.telemetry.otlp.base import OtlpCollector, accepted_verdict, shown_message

#: The statuses that may be caused by the content of a request, so that they would be the same at each attempt.
MALFORMED_STATUSES: Final = frozenset({400, 413, 422})
#: Largest part of an answer that is read, in bytes.
MAX_ANSWER_BYTES: Final = 2**16


class _Adapter(HTTPAdapter):
    """An adapter that reports each socket that it opens, so that another thread can cut the connection.

    The timeouts of urllib3 start again with each received byte, and urllib3 has no other way to end a request.
    """

    def __init__(self, tell: Callable[[socket.socket], None]) -> None:
        self._tell = tell
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        tell = self._tell

        class Telling:
            def connect(self) -> None:
                super().connect()  # type: ignore[misc]
                tell(self.sock)  # type: ignore[attr-defined]

        class Http(HTTPConnectionPool):
            ConnectionCls = type("Connection", (Telling, HTTPConnectionPool.ConnectionCls), {})

        class Https(HTTPSConnectionPool):
            ConnectionCls = type("Connection", (Telling, HTTPSConnectionPool.ConnectionCls), {})

        self.poolmanager.pool_classes_by_scheme = {"http": Http, "https": Https}


class HttpCollector(OtlpCollector):
    """A collector that is reached over HTTP."""

    default = "http://localhost:4318/v1/traces"

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self._thread: int | None = None
        self._socket: socket.socket | None = None
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(self._note))
        # Ignore .netrc and the proxies of the environment, so that headers with tokens reach only the endpoint.
        self._session.trust_env = False
        self._session.headers.update(self.headers)
        self._session.headers["content-type"] = "application/x-protobuf"
        if self.zipped:
            self._session.headers["content-encoding"] = "gzip"
        self._session.verify = self.certificate or True
        if self.client_certificate:
            key = self.client_key
            self._session.cert = (self.client_certificate, key) if key else self.client_certificate

    @classmethod
    def endpoint(cls, environ: Mapping[str, str]) -> str:
        """The URL for traces: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT as it is, else the common endpoint with /v1/traces."""
        if own := environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
            return own
        common = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        return f"{common.rstrip('/')}/v1/traces" if common else cls.default

    def post(self, body: bytes) -> Verdict:
        """Send a request, wait for its answer, and return the verdict."""
        self._thread = threading.get_ident()
        if self.zipped:
            body = gzip.compress(body, 1)
        try:
            # Redirects are not followed: the headers, which may contain a token, would be sent to another host.
            with self._session.post(self.url, body, timeout=self.timeout, allow_redirects=False, stream=True) as answer:
                content = answer.raw.read(MAX_ANSWER_BYTES, decode_content=True)
                return verdict(answer, content)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            return Verdict(CollectorAnswer.AGAIN, _reason(error))

    def _note(self, made: socket.socket) -> None:
        if threading.get_ident() == self._thread:
            self._socket = made
        else:
            # The socket belongs to an abandoned thread, which was still connecting.
            _cut(made)

    def hang_up(self) -> None:
        """Shut down the socket, so that a thread that reads from it gets an end of file."""
        self._thread = None
        if self._socket is not None:
            _cut(self._socket)

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self._session.close()


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def verdict(answer: requests.Response, content: bytes) -> Verdict:
    """The verdict for an answer."""
    # The protocol requires 200; some collectors answer 202.
    if 200 <= answer.status_code < 300:
        return _partial(content)
    why = f"the collector answered {answer.status_code} {shown_message(answer.reason or '')}".rstrip()
    if said := _message_of(answer.headers.get("content-type", "text/plain"), content):
        why += f": {said}"
    kind = CollectorAnswer.MALFORMED if answer.status_code in MALFORMED_STATUSES else CollectorAnswer.AGAIN
    return Verdict(kind, why, parse_retry_after(answer.headers.get("retry-after"), time.time()))


def _partial(content: bytes) -> Verdict:
    """The verdict for a successful answer."""
    try:
        return accepted_verdict(ExportTraceServiceResponse.FromString(content))
    except DecodeError:
        # For example a proxy that answers 200 with HTML. The spans then count as accepted.
        return Verdict(CollectorAnswer.ACCEPTED)


def _message_of(kind: str, content: bytes) -> str:
    """The message of an answer that is a Status of OTLP or a text; otherwise empty.

    The caller treats a missing content type as text: a port that expects TLS answers without one.
    """
    if kind.startswith("application/x-protobuf"):
        with suppress(DecodeError):
            return shown_message(Status.FromString(content).message)
    if kind.startswith(("text/plain", "application/json")):
        return shown_message(content.decode(errors="replace"))
    return ""


def _reason(error: BaseException) -> str:
    """The innermost cause of an error, in one line: requests wraps it several times, with memory addresses."""
    inner: Any = error
    while (cause := getattr(inner, "reason", None) or inner.__cause__ or inner.__context__) and cause is not inner:
        if not isinstance(cause, BaseException):
            break
        inner = cause
    return f"the collector cannot be reached: {getattr(inner, 'strerror', None) or type(inner).__name__}"
