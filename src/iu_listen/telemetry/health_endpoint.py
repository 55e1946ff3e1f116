"""The HTTP endpoint for probes and scrapes: /livez, /readyz and /metrics, without a query and without a new process.

The server runs in threads of its own, so it answers also while the event loop of the consumer does not run. Then the
answer says so, because it is made of the time of the last progress. It is off unless the setting ``http`` names an
address.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.observation import (
    BatchRan,
    HeartbeatWritten,
    LeaseTaken,
    Observation,
    SessionFailed,
    StandingBy,
    StateChanged,
    Stopping,
)
from iu_listen.model.settings import Settings
from iu_listen.telemetry.sdk_exporters import exporter_names

#: Longest time for which the server waits for the rest of a request, in seconds.
REQUEST_TIMEOUT: Final = 5.0
#: A consumer without progress for this number of heartbeat intervals is not ready.
READY_INTERVALS: Final = 3
#: The content type of the text format of Prometheus.
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class ProgressObserver:
    """An observer that notes the progress of a consumer, for probes. Implements Observer.

    Progress is a batch, or a heartbeat in a state other than FAILING; a standby has progress, too. A failed try to
    reach the database is a sign of life and no progress: a restart of the process would not help.

    Args:
        settings: The worker, and the durations from which the limits follow.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._worker = settings.worker
        self._ready_limit = READY_INTERVALS * settings.catch_up
        # A batch and its answer may take this long, and nothing is observed meanwhile.
        self._live_limit = self._ready_limit + settings.batch_deadline
        self._clock = clock
        self._progress: float | None = None
        self._sign = clock()
        self._state, self._why = "starting", ""

    def observe(self, observation: Observation, /) -> None:
        """Note the observation, if it shows progress, a failure or a state."""
        match observation:
            case BatchRan() | HeartbeatWritten():
                self._progress = self._sign = self._clock()
            case LeaseTaken():
                self._state, self._why = "working", ""
            case StandingBy(_, holder):
                self._state, self._why = "standing_by", holder
                self._progress = self._sign = self._clock()
            case StateChanged(_, state, why):
                self._state, self._why = state.value, why
            case SessionFailed(session, why, _):
                self._sign = self._clock()
                if session == "worker":
                    self._state, self._why = "reconnecting", why
            case Stopping(why):
                self._state, self._why = "stopping", why

    def live(self) -> bool:
        """Whether the consumer has shown a sign of life lately; false: it hangs, and a restart helps."""
        return self._clock() - self._sign < self._live_limit

    def ready(self) -> bool:
        """Whether the consumer works or is a standby, and can reach its database."""
        return self._progress is not None and self._clock() - self._progress < self._ready_limit

    def report(self) -> dict[str, Any]:
        """The state for the body of an answer, without secrets."""
        since = None if self._progress is None else round(self._clock() - self._progress, 3)
        return {"worker": self._worker, "state": self._state, "why": self._why, "progress_seconds_ago": since}


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``9465``, ``127.0.0.1:9465`` or ``[::1]:9465``. A port alone means 127.0.0.1.

    Raises:
        ConfigurationError: The text has another form.
    """
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ConfigurationError(
            f"http must be PORT or HOST:PORT, not {text!r}", "Example: 9465, or 0.0.0.0:9465 for all addresses."
        )
    return host.strip("[]") or "127.0.0.1", int(port)


def prometheus_text(environ: Mapping[str, str]) -> Callable[[], bytes] | None:
    """The source of the text for /metrics; None: OTEL_METRICS_EXPORTER does not name prometheus."""
    if "prometheus" not in exporter_names(environ, "metrics"):
        return None
    # Imported here, because it belongs to the extra of the exporter.
    from prometheus_client import REGISTRY, generate_latest  # noqa: PLC0415

    return lambda: generate_latest(REGISTRY)


@contextmanager
def health_endpoint(address: str, progress: ProgressObserver, metrics: Callable[[], bytes] | None) -> Iterator[int]:
    """Serve the endpoint until the end of the block.

    Args:
        address: The setting ``http``.
        progress: The progress of the consumer.
        metrics: The text for /metrics; None: metrics are not exported to Prometheus.

    Yields:
        The port, which is another one if the setting is port 0.

    Raises:
        ConfigurationError: The setting is no address, or the address cannot be used.
    """
    host, port = parse_address(address)
    try:
        server = _Server((host, port), _handler(progress, metrics))
    except OSError as error:
        raise ConfigurationError(
            f"http={address}: {error.strerror or error}", "Use another port, or an address of this machine."
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="iu-listen http", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # The end of the process does not wait for a client that does not end its request.
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error: the client has closed the connection, or has sent no request in time."""


def _handler(progress: ProgressObserver, metrics: Callable[[], bytes] | None) -> type[BaseHTTPRequestHandler]:
    def probe(ok: bool) -> tuple[HTTPStatus, str, bytes]:
        status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
        return status, "application/json", json.dumps({"ok": ok, **progress.report()}).encode() + b"\n"

    def scrape() -> tuple[HTTPStatus, str, bytes]:
        if metrics is None:
            return HTTPStatus.NOT_FOUND, "text/plain", b"Set OTEL_METRICS_EXPORTER=prometheus to serve metrics.\n"
        return HTTPStatus.OK, _METRICS_TYPE, metrics()

    answers: dict[str, Callable[[], tuple[HTTPStatus, str, bytes]]] = {
        "/livez": lambda: probe(progress.live()),
        "/readyz": lambda: probe(progress.ready()),
        "/metrics": scrape,
    }

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT
        server_version, sys_version = "iu-listen", ""

        def do_GET(self) -> None:
            """Answer one of the paths."""
            answer = answers.get(self.path.partition("?")[0])
            status, kind, body = (
                answer() if answer else (HTTPStatus.NOT_FOUND, "text/plain", f"Paths: {', '.join(answers)}\n".encode())
            )
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 the name that the base class looks for

        def log_message(self, format: str, *args: Any) -> None:
            """Write no line: a probe every few seconds would fill the log."""

    return Handler
