"""The way to an OTLP collector, by the standard OTEL_EXPORTER_OTLP_* variables; over HTTP or gRPC.

What an answer means: https://opentelemetry.io/docs/specs/otlp/#otlphttp-response. There a client drops what a server
does not want. Ours does not: the spans can be had again at any time, and a collector that says 404 or 401 is one that
somebody will mend. Only what the server calls malformed may be wrong whenever it is sent.
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

from iu_listen.model.errors import ConfigurationError, words
from iu_listen.model.trace import Answer, Span, Verdict
from iu_listen.telemetry.exporters import exporter_names, otlp_protocol, otlp_timeout, otlp_variable, resource
from iu_listen.telemetry.otlp import encode_spans, request

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

#: Spans that are encoded at a stretch: a third of a millisecond, in which the consumer beside us cannot wake.
SLICE: Final = 32
#: Most bytes of a request: gRPC's servers take 4 MiB unless they are told otherwise.
MOST: Final = 3 * 2**20
#: How much of a collector's words is repeated.
WORDS: Final = 200
#: Names of the exporter in OTEL_TRACES_EXPORTER, and the protocol that each one means; empty: as a variable says.
PROTOCOLS: Final = {"otlp": "", "otlp_proto_http": "http/protobuf", "otlp_proto_grpc": "grpc"}
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e\t]*")


def headers(text: str) -> dict[str, str]:
    """``key=value,key=value``, the values percent-encoded (W3C Baggage).

    Raises:
        ConfigurationError: a pair without ``=``, or characters that HTTP and gRPC do not allow (RFC 9110, 5.5). No
            value is repeated: it may hold a token.
    """
    hint = "As in authorization=Bearer%20…,x-tenant=7"
    found = {}
    for pair in filter(str.strip, text.split(",")):
        key, separator, value = pair.partition("=")
        name, value = key.strip().lower(), unquote(value.strip())
        if not separator or not _NAME.fullmatch(name):
            raise ConfigurationError("OTEL_EXPORTER_OTLP_HEADERS: a header has no name, an odd one, or no =", hint)
        if not _VALUE.fullmatch(value):
            raise ConfigurationError(f"OTEL_EXPORTER_OTLP_HEADERS: {name} has characters that no header may have", hint)
        found[name] = value
    return found


def _readable(files: Mapping[str, str]) -> None:
    """Whether certificates and keys are what they ought to be.

    Raises:
        ConfigurationError: a file cannot be read, or holds something else.
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


def address(url: str, example: str) -> str:
    """An endpoint, if it is one.

    Raises:
        ConfigurationError: it is no http address, or has no host, or no port that there is.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        # Name, password and query may be secrets.
        told = url.partition("?")[0]
        told = f"…@{told.rpartition('@')[2]}" if "@" in told else told
        raise ConfigurationError(f"the OTLP endpoint {told} is no http address", f"As in {example}")
    return url


def quoted(text: str) -> str:
    """The beginning of what a collector says, in a line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:WORDS]).split())


def accepted(answer: ExportTraceServiceResponse) -> Verdict:
    """Accepted; perhaps not all of it. The protocol forbids to send the rest again."""
    partial = answer.partial_success
    return Verdict(Answer.ACCEPTED, quoted(partial.error_message), rejected=partial.rejected_spans)


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
        self.url = address(self.endpoint(environ), self.default)
        self.timeout = otlp_timeout(environ)
        compression = otlp_variable(environ, "COMPRESSION").strip().lower() or "none"
        if compression not in ("none", "gzip"):
            raise ConfigurationError(f"OTEL_EXPORTER_OTLP_COMPRESSION must be none or gzip, not {compression}")
        self.zipped = compression == "gzip"
        self.headers = headers(otlp_variable(environ, "HEADERS"))
        files = {name: otlp_variable(environ, name) for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")}
        _readable(files)
        self.certificate, self.client_certificate, self.client_key = files.values()
        self._aside: _Aside | None = None
        self._resource: dict[str, Any] = dict(resource(environ).attributes)
        try:
            request(b"", self._resource)
        except UnicodeEncodeError:
            raise ConfigurationError("OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES is not UTF-8") from None

    @classmethod
    def endpoint(cls, environ: Mapping[str, str]) -> str:
        """Where traces go."""
        return otlp_variable(environ, "ENDPOINT") or cls.default

    async def send(self, spans: Sequence[Span]) -> Verdict:
        """Send spans, in bounded time."""
        parts = []
        for begin in range(0, len(spans), SLICE):
            parts.append(encode_spans(spans[begin : begin + SLICE]))
            await anyio.lowlevel.checkpoint()
        body = request(b"".join(parts), self._resource)
        if len(body) > MOST and len(spans) > 1:
            return Verdict(Answer.TOO_LARGE)
        # No library's timeout is trusted: they begin anew with each byte. So the way is cut, the thread left behind.
        try:
            with anyio.fail_after(self.timeout):
                self._aside = self._aside or _Aside()
                verdict = await self._aside.do(lambda: self.post(body))
        except TimeoutError:
            self._leave()
            return Verdict(Answer.AGAIN, f"no answer within {self.timeout:g} s (OTEL_EXPORTER_OTLP_TIMEOUT)")
        except anyio.get_cancelled_exc_class():
            self._leave()
            raise
        except Exception as error:  # noqa: BLE001 whatever it is, the spans are sent again
            return Verdict(Answer.AGAIN, f"no way to the collector: {words(error)}")
        # It is counted, so it must be a count.
        return replace(verdict, rejected=min(max(verdict.rejected, 0), len(spans)))

    def _leave(self) -> None:
        """Wait no longer for what is under way."""
        self.hang_up()
        if self._aside is not None:
            self._aside.end()
            self._aside = None

    @abstractmethod
    def post(self, body: bytes) -> Verdict:
        """Send a request, and wait for what comes of it."""

    @abstractmethod
    def hang_up(self) -> None:
        """Let a post() that is under way fail, soon. Called from another thread than that."""

    def close(self) -> None:
        """Close the connections."""
        self._leave()


class _Aside:
    """A thread that does one thing after the other, and that nobody waits for, the interpreter's end included.

    One that is kept: to start a thread takes as long as it takes to be given the interpreter, and the consumer waits.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        Thread(target=self._work, name="iu-listen collector", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def end(self) -> None:
        """Let it go when it has done what it is at."""
        self._jobs.put(None)

    async def do(self, work: Callable[[], Verdict]) -> Verdict:
        """Wait until something is done; raises what it raises."""
        token, over = anyio.lowlevel.current_token(), anyio.Event()
        outcome: list[Verdict | Exception] = []

        def run() -> None:
            try:
                outcome.append(work())
            except Exception as error:  # noqa: BLE001 it is raised where it is waited for
                outcome.append(error)
            # The loop may be over by now.
            with suppress(RuntimeError):
                anyio.from_thread.run_sync(over.set, token=token)

        self._jobs.put(run)
        await over.wait()
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]


def collector(environ: Mapping[str, str]) -> OtlpCollector | None:
    """The collector that ``otlp`` in OTEL_TRACES_EXPORTER asks for; None where it does not ask for one.

    Raises:
        ConfigurationError: what it needs is not installed, or a variable holds what cannot work.
    """
    wanted = next((name for name in exporter_names(environ, "traces") if name in PROTOCOLS), None)
    if wanted is None:
        return None
    protocol = PROTOCOLS[wanted] or otlp_protocol(environ)
    try:
        # Heavy, and only one of the two is wanted, if any.
        if protocol == "grpc":
            from iu_listen.telemetry.otlp_grpc import GrpcCollector  # noqa: PLC0415

            return GrpcCollector(environ)
        from iu_listen.telemetry.otlp_http import HttpCollector  # noqa: PLC0415

        return HttpCollector(environ)
    except ImportError as missing:
        extra = "otlp-grpc" if protocol == "grpc" else "otlp"
        raise ConfigurationError(
            f"OTEL_TRACES_EXPORTER={wanted} needs the extra {extra}, which is not installed",
            f"pip install 'iu-listen[{extra}]'",
        ) from missing
