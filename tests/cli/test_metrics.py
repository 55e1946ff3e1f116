"""Metrics of a running consumer, read from its scrape endpoint."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from urllib.parse import urlsplit

import pytest

from cli.command import POISON, execute, on_one_server, refused, rows, running, seen
from iu_listen.model.routing import DEFAULT_WORKER
from telemetry.receiver import Receiver

pytestmark = on_one_server

EVENTS = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, canonical_address)
    select 'iu', 'version_applied', 'update', 'immediate', case when n = 1 then 'poison' else 'kb/' || n end
      from generate_series(1, 20) n
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def scraping(port: int) -> dict[str, str]:
    return {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(port)}


def exposed(port: int) -> list[tuple[str, str, str]]:
    """Name, labels and value of each line."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", answer.read().decode(), re.MULTILINE)


def databases(port: int) -> set[str]:
    """The names of the databases to which the project's metrics belong."""
    labels = [found for name, found, _ in exposed(port) if name.startswith(("iu_", "messaging_"))]
    return {database for found in labels for database in re.findall(r'db_namespace="([^"]*)"', found) or [""]}


def scrape(port: int) -> dict[tuple[str, ...], float]:
    """Values by metric name and the values of labels that begin with iu_."""
    found = {}
    for name, labels, value in exposed(port):
        ours = sorted(label for label in re.findall(r'(iu_\w+)="([^"]*)"', labels))
        found[name, *(value for _, value in ours)] = float(value)
    return found


def test_a_running_consumer_can_be_scraped(live, port):
    """Events, attempts, gates, lags and latencies are at the endpoint, all with the name of the database.

    The endpoint is on the loopback address only.
    """
    execute(live.dsn, POISON)
    with running("run", dsn=live.dsn, env=scraping(port)) as consumer:
        consumer.until_it_says("listening")
        execute(live.dsn, EVENTS)
        seen(live.dsn, "select count(*) = 20 from iu_route_attempt")
        deadline = time.monotonic() + 40
        while "iu_decision_latency_seconds_count" not in {key[0] for key in scrape(port)}:
            assert time.monotonic() < deadline, scrape(port)
            execute(live.dsn, EVENTS.replace("20", "2"))
            time.sleep(0.5)
        # Writing has ended, but the last measurement may be older than the last attempt.
        deadline = time.monotonic() + 40
        while (found := scrape(port))["iu_lag_items", "backlog", DEFAULT_WORKER] != 0:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        assert found["iu_attempts_total", "dead_letter", DEFAULT_WORKER] >= 1
        assert found["iu_attempts_total", "dry_run", DEFAULT_WORKER] >= 19
        assert found["iu_measurements_total", DEFAULT_WORKER] >= 1
        assert found["iu_gate_open", "worker"] == found["iu_gate_open", "master"] == 1
        assert found["iu_lag_items", "dead_letter", DEFAULT_WORKER] >= 1
        assert found["iu_lag_duration_seconds", "dead_letter", DEFAULT_WORKER] > 0
        assert found["iu_notification_queue_usage",] < 0.5
        assert databases(port) == {urlsplit(live.dsn).path[1:]}
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), 1):
            pass
        assert consumer.end() == 0


def test_an_export_of_its_own_can_be_scraped(live, port):
    """`trace-export --follow` counts the exported spans at its own scrape endpoint."""
    receiver = Receiver()
    env = scraping(port) | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
    with running("trace-export", "--follow", dsn=live.dsn, env=env) as export:
        seen(live.dsn, "select count(*) = 1 from iu_trace_cursor")
        execute(live.dsn, EVENTS + "; select fn_iu_route_worker_run('iu_outbound_default', 100)")
        deadline = time.monotonic() + 20
        while scrape(port).get(("iu_traces_exported_total",)) != 40:
            assert time.monotonic() < deadline, export.said
            time.sleep(0.1)
        assert databases(port) == {urlsplit(live.dsn).path[1:]}
        export.end()
    receiver.stop()


def test_a_port_in_use_is_reported(live, port):
    """If the port is in use, the consumer does not start, and names the variable for another port."""
    with socket.create_server(("127.0.0.1", port)):
        refused(2, "OTEL_EXPORTER_PROMETHEUS_PORT", dsn=live.dsn, env=scraping(port))("run")


def test_a_consumer_without_the_variable_exports_no_metrics(live):
    """A consumer without metrics has no session for measurements."""
    with running("run", dsn=live.dsn) as consumer:
        consumer.until_it_says("listening")
        sessions = rows(live.dsn, "select application_name from pg_stat_activity where datname = current_database()")
        assert not any("metrics" in session[0] for session in sessions)
        assert consumer.end() == 0
