"""The HTTP endpoint: /livez, /readyz and /metrics show the real progress of a consumer."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request

import pytest

from cli.command import execute, holding, on_one_server, refused, running, seen
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.observation import BatchRan, HeartbeatWritten, SessionFailed, StandingBy
from iu_listen.model.routing import Batch, State, Wake, WorkerName
from iu_listen.model.settings import Settings
from iu_listen.telemetry.health_endpoint import ProgressObserver, health_endpoint, parse_address

WORKER = WorkerName("w")
BATCH = BatchRan(WORKER, Wake.NOTIFY, Batch(status="ran"))
EVENT = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
    values ('iu', 'version_applied', 'update', 'immediate')
"""


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and body of an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(clock: Clock) -> ProgressObserver:
    return ProgressObserver(Settings(dsn="", catch_up=5.0, batch_deadline=20.0), clock)


@pytest.mark.parametrize(
    "observation",
    [BATCH, StandingBy(WORKER, "another"), HeartbeatWritten(WORKER, State.IDLE)],
    ids=lambda o: type(o).__name__,
)
def test_progress_makes_it_ready_for_three_heartbeat_intervals(clock, progress, observation):
    """A consumer is ready after its first progress, and no longer after three intervals without progress.

    Fails when: a consumer is ready before it has worked, or stays ready although it hangs.
    """
    assert not progress.ready()
    progress.observe(observation)
    clock.now = 14.9
    assert progress.ready()
    clock.now = 15.1
    assert not progress.ready()


def test_a_lost_database_is_no_reason_to_restart(clock, progress):
    """While the consumer tries to reconnect it is alive and not ready; without any sign of life it is not alive.

    Fails when: an outage of the database restarts the pods, or a process that hangs is never restarted.
    """
    progress.observe(BATCH)
    for clock.now in range(0, 300, 30):
        progress.observe(SessionFailed("worker", "the server is down", 1.0))
    assert progress.live()
    assert not progress.ready()
    assert progress.report()["state"] == "reconnecting"
    clock.now += 34.9
    assert progress.live()
    clock.now += 0.2
    assert not progress.live()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9465", ("127.0.0.1", 9465)),
        (":9465", ("127.0.0.1", 9465)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:9465", ("::1", 9465)),
    ],
)
def test_a_port_alone_means_loopback(text, address):
    """Nothing listens on other addresses unless the setting names them."""
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", "host:", "host:http", "1:65536", "-1", "٣"])
def test_other_texts_are_refused(text):
    """A text that is no address is refused with an example."""
    with pytest.raises(ConfigurationError, match="http must be PORT or HOST:PORT"):
        parse_address(text)


def test_the_paths_and_their_statuses(clock, progress):
    """Each path has its status; unknown paths name the known ones; without Prometheus there are no metrics."""
    with health_endpoint("0", progress, None) as port:
        assert get(port, "/readyz")[0] == 503
        assert get(port, "/livez")[0] == 200
        progress.observe(BATCH)
        status, body = get(port, "/readyz?verbose=1")
        assert (status, json.loads(body)["ok"], json.loads(body)["worker"]) == (200, True, "iu_outbound_default")
        assert get(port, "/readyz", "HEAD") == (200, "")
        status, body = get(port, "/metrics")
        assert status == 404
        assert "OTEL_METRICS_EXPORTER=prometheus" in body
        assert get(port, "/") == (404, "Paths: /livez, /readyz, /metrics\n")
        assert get(port, "/readyz", "POST")[0] == 501
    with health_endpoint("0", progress, lambda: b"iu_wakes_total 1\n") as port:
        assert get(port, "/metrics") == (200, "iu_wakes_total 1\n")


def test_a_client_that_sends_nothing_delays_no_other(progress):
    """An open connection without a request does not delay the answers to others, nor the end of the endpoint."""
    with health_endpoint("0", progress, None) as port:
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        assert get(port, "/livez")[0] == 200
    for connection in silent:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(port: int, path: str, status: int) -> None:
    """Wait until a path has a status."""
    give_up = time.monotonic() + 15
    while get(port, path)[0] != status:
        assert time.monotonic() < give_up, get(port, path)
        time.sleep(0.05)


@on_one_server
def test_readiness_is_the_progress_of_the_consumer(live):
    """A consumer is ready while it works, and not while its batch waits for a lock; then it is ready again.

    Fails when: the answer is a constant, or depends only on the process.
    """
    port = free_port()
    environ = {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(free_port())}
    with running("run", "--http", str(port), "--catch-up", "0.2", dsn=live.dsn, env=environ) as consumer:
        seen(live.dsn, "select count(*) = 1 from iu_consumer_heartbeat where state = 'idle'")
        until(port, "/readyz", 200)
        assert "iu_wakes_total" in get(port, "/metrics")[1]
        with holding(live.dsn, "select from iu_route_worker_cursor for update"):
            execute(live.dsn, EVENT)
            until(port, "/readyz", 503)
            assert get(port, "/livez")[0] == 200
        until(port, "/readyz", 200)
        assert consumer.end() == 0


@on_one_server
def test_an_address_in_use_is_an_error(live):
    """`run` ends with exit code 2 and names the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(2, f"http={taken.getsockname()[1]}: ")("run", "--http", str(taken.getsockname()[1]), dsn=live.dsn)
