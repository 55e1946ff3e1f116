"""OTLP over HTTP, with protobuf."""

from __future__ import annotations

import gzip
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import requests
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from iu_listen.model.trace import Answer, Verdict
from iu_listen.telemetry.collector import OtlpCollector, accepted, words

#: The answers that are about the bytes, and would be the same tomorrow.
MALFORMED: Final = frozenset({400, 413, 422})


class HttpCollector(OtlpCollector):
    """A collector that is reached over HTTP."""

    default = "http://localhost:4318/v1/traces"

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self._session = requests.Session()
        # Neither .netrc nor proxies of the environment: headers with tokens go where they were meant to go.
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
        """A variable of their own is the whole address of traces, the common one is its beginning."""
        if own := environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
            return own
        common = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        return f"{common.rstrip('/')}/v1/traces" if common else cls.default

    def post(self, body: bytes) -> Verdict:
        """Send a request, and wait for what comes of it."""
        if self.zipped:
            body = gzip.compress(body, 1)
        try:
            # Not to where somebody else says: a redirect would take the headers along.
            answer = self._session.post(self.url, body, timeout=self.timeout, allow_redirects=False)
        except (requests.RequestException, ssl.SSLError, OSError) as error:
            return Verdict(Answer.AGAIN, _reason(error))
        return verdict(answer)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def verdict(answer: requests.Response) -> Verdict:
    """What an answer means."""
    if answer.status_code == requests.codes.ok:
        return _partial(answer.content)
    why = f"the collector answered {answer.status_code} {answer.reason}".rstrip()
    if said := _said(answer):
        why += f": {said}"
    kind = Answer.MALFORMED if answer.status_code in MALFORMED else Answer.AGAIN
    return Verdict(kind, why, seconds(answer.headers.get("retry-after")))


def seconds(retry_after: str | None) -> float | None:
    """Retry-After, in seconds: a number, or a date (RFC 9110, 10.2.3). None: there is none that makes sense."""
    if not retry_after:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (until.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _partial(content: bytes) -> Verdict:
    """What a 200 means."""
    try:
        return accepted(ExportTraceServiceResponse.FromString(content))
    except DecodeError:
        # A proxy says 200 and HTML; that it was taken is all that can be known.
        return Verdict(Answer.ACCEPTED)


def _said(answer: requests.Response) -> str:
    """What it says, if that is text."""
    if not answer.headers.get("content-type", "").startswith(("text/plain", "application/json")):
        return ""
    return words(answer.text)


def _reason(error: BaseException) -> str:
    """The innermost reason, in a line: requests wraps it several times, memory addresses included."""
    inner: Any = error
    while (cause := getattr(inner, "reason", None) or inner.__cause__ or inner.__context__) and cause is not inner:
        if not isinstance(cause, BaseException):
            break
        inner = cause
    return f"no way to the collector: {getattr(inner, 'strerror', None) or type(inner).__name__}"
