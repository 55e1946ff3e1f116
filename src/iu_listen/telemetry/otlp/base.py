"""The client of an OTLP collector over HTTP or gRPC, configured by the standard OTEL_EXPORTER_OTLP_* variables.

The specification of the answers is https://opentelemetry.io/docs/specs/otlp/#otlphttp-response. It lets a client drop
spans that a server refuses. This client keeps them: the spans can be read again at any time, and an operator will
repair a collector that answers 404 or 401. Only spans that the server calls malformed may be refused at each attempt.
"""

from __future__ import annotations

import re
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import anyio
import anyio.from_thread
import anyio.lowlevel

from iu_listen.model.errors import ConfigurationError, safe_message
from iu_listen.model.spans import CollectorAnswer, Span, Verdict
from iu_listen.telemetry.otlp.encoding import encode_spans, request
from iu_listen.telemetry.sdk_exporters import otlp_timeout, otlp_variable, resource

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

#: Number of spans that are encoded without a pause for other tasks. It takes about 0.3 ms, in which the consumer in the
#: same process cannot run.
SPANS_PER_SLICE: Final = 32
#: Largest request, in bytes: by default a gRPC server accepts 4 MiB.
MAX_REQUEST_BYTES: Final = 3 * 2**20
#: Longest part of a collector's message that is shown, in characters.
MAX_MESSAGE_CHARS: Final = 200
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\t]*")


def read_headers(text: str) -> dict[str, str]:
    """Read headers from ``key=value,key=value``; the values are percent-encoded (W3C Baggage).

    Raises:
        ConfigurationError: A pair has no ``=``, or characters that HTTP and gRPC do not allow (RFC 9110, 5.5). The
            message contains no value, because it may be a token.
    """
    hint = "Example: authorization=Bearer%20…,x-tenant=7"
    found = {}
    for pair in filter(str.strip, text.split(",")):
        key, separator, value = pair.partition("=")
        name, value = key.strip().lower(), unquote(value.strip())
        if not separator or not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError("OTEL_EXPORTER_OTLP_HEADERS: a header has no name, an invalid name, or no =", hint)
        if not _HEADER_VALUE.fullmatch(value):
            raise ConfigurationError(
                f"OTEL_EXPORTER_OTLP_HEADERS: the value of {name} contains characters that are not allowed in a header",
                hint,
            )
        found[name] = value
    return found


def _check_files(files: Mapping[str, str]) -> None:
    """Check that the files of certificates and keys can be read.

    Raises:
        ConfigurationError: A file cannot be read, or does not contain a certificate or a key.
    """
    context = ssl.create_default_context()
    try:
        if files["CERTIFICATE"]:
            context.load_verify_locations(files["CERTIFICATE"])
        if files["CLIENT_CERTIFICATE"]:
            context.load_cert_chain(files["CLIENT_CERTIFICATE"], files["CLIENT_KEY"] or None)
    except OSError as error:
        names = ", ".join(f"OTEL_EXPORTER_OTLP_{name}={file}" for name, file in files.items() if file)
        why = error.strerror or type(error).__name__
        raise ConfigurationError(f"a certificate or key cannot be used: {why}", names) from error


def checked_endpoint(url: str, example: str) -> str:
    """Return the URL of an endpoint unchanged, if it is valid.

    Raises:
        ConfigurationError: It is not an http or https URL, has no host, or has an invalid port.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        # User name, password and query may contain secrets, so the message leaves them out.
        shown = url.partition("?")[0]
        shown = f"…@{shown.rpartition('@')[2]}" if "@" in shown else shown
        raise ConfigurationError(f"the OTLP endpoint {shown} is not an http or https URL", f"Example: {example}")
    return url


def shown_message(text: str) -> str:
    """The first MAX_MESSAGE_CHARS characters of a collector's message, in one line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:MAX_MESSAGE_CHARS]).split())


def accepted_verdict(answer: ExportTraceServiceResponse) -> Verdict:
    """The verdict for an accepted request; the protocol forbids to send its rejected spans again."""
    partial = answer.partial_success
    return Verdict(CollectorAnswer.ACCEPTED, shown_message(partial.error_message), rejected=partial.rejected_spans)


class OtlpCollector(ABC):
    """The common part of the collectors over HTTP and gRPC. Implements flow.ports.Collector.

    Args:
        environ: The OTEL_* variables.

    Raises:
        ConfigurationError: A variable has an invalid value.
    """

    #: The default endpoint of the specification.
    default: str

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.url: str = checked_endpoint(self.endpoint(environ), self.default)
        self.timeout: float = otlp_timeout(environ)
        compression = otlp_variable(environ, "COMPRESSION").strip().lower() or "none"
        if compression not in ("none", "gzip"):
            raise ConfigurationError(f"OTEL_EXPORTER_OTLP_COMPRESSION must be none or gzip, not {compression}")
        self.zipped: bool = compression == "gzip"
        self.headers: dict[str, str] = read_headers(otlp_variable(environ, "HEADERS"))
        files = {name: otlp_variable(environ, name) for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")}
        _check_files(files)
        self.certificate: str = files["CERTIFICATE"]
        self.client_certificate: str = files["CLIENT_CERTIFICATE"]
        self.client_key: str = files["CLIENT_KEY"]
        self._requests: _RequestThread | None = None
        self._resource: dict[str, Any] = dict(resource(environ).attributes)
        try:
            request(b"", self._resource)
        except UnicodeEncodeError:
            raise ConfigurationError("OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES is not UTF-8") from None

    @classmethod
    def endpoint(cls, environ: Mapping[str, str]) -> str:
        """The URL to which spans are sent."""
        return otlp_variable(environ, "ENDPOINT") or cls.default

    async def send(self, spans: Sequence[Span]) -> Verdict:
        """Send spans, and return the verdict within OTEL_EXPORTER_OTLP_TIMEOUT."""
        parts = []
        for begin in range(0, len(spans), SPANS_PER_SLICE):
            parts.append(encode_spans(spans[begin : begin + SPANS_PER_SLICE]))
            await anyio.lowlevel.checkpoint()
        body = request(b"".join(parts), self._resource)
        if len(body) > MAX_REQUEST_BYTES and len(spans) > 1:
            return Verdict(CollectorAnswer.TOO_LARGE)
        # The timeouts of the libraries start again with each byte. So after the timeout the connection is cut, and the
        # thread of the request is abandoned.
        try:
            with anyio.fail_after(self.timeout):
                self._requests = self._requests or _RequestThread()
                verdict = await self._requests.do(lambda: self.post(body))
        except TimeoutError:
            self._abandon()
            return Verdict(CollectorAnswer.AGAIN, f"no answer within {self.timeout:g} s (OTEL_EXPORTER_OTLP_TIMEOUT)")
        except anyio.get_cancelled_exc_class():
            self._abandon()
            raise
        except Exception as error:  # noqa: BLE001 after any error the spans are sent again
            return Verdict(CollectorAnswer.AGAIN, f"the collector cannot be reached: {safe_message(error)}")
        # The number is added to a counter, so it must be between 0 and the number of spans.
        return replace(verdict, rejected=min(max(verdict.rejected, 0), len(spans)))

    def _abandon(self) -> None:
        """Abandon the request that is running, if there is one."""
        self.hang_up()
        if self._requests is not None:
            self._requests.end()
            self._requests = None

    @abstractmethod
    def post(self, body: bytes) -> Verdict:
        """Send a request, wait for its answer, and return the verdict."""

    @abstractmethod
    def hang_up(self) -> None:
        """Make a running post() fail soon. This method is called from another thread than post()."""

    def close(self) -> None:
        """Close the connections."""
        self._abandon()


class _RequestThread:
    """A thread that executes calls one after another. Even the end of the interpreter does not wait for it.

    The thread is kept for many calls, because the start of a thread waits for the interpreter lock and delays the
    consumer.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        Thread(target=self._work, name="iu-listen collector", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def end(self) -> None:
        """End the thread after its current call."""
        self._jobs.put(None)

    async def do(self, work: Callable[[], Verdict]) -> Verdict:
        """Execute a call in the thread and wait for its result; raises the exception of the call."""
        token, over = anyio.lowlevel.current_token(), anyio.Event()
        outcome: list[Verdict | Exception] = []

        def run() -> None:
            try:
                outcome.append(work())
            except Exception as error:  # noqa: BLE001 do() raises it in the task that waits
                outcome.append(error)
            # The event loop may have ended meanwhile.
            with suppress(RuntimeError):
                anyio.from_thread.run_sync(over.set, token=token)

        self._jobs.put(run)
        await over.wait()
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]
