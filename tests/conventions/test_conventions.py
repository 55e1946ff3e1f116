"""Names of spans, attributes and metrics are documented, used, and those of OpenTelemetry's conventions."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import opentelemetry.semconv._incubating.attributes.db_attributes as db
import opentelemetry.semconv._incubating.attributes.messaging_attributes as messaging
import opentelemetry.semconv.attributes.error_attributes as error
import opentelemetry.semconv.attributes.http_attributes as http
import opentelemetry.semconv.attributes.server_attributes as server
import opentelemetry.semconv.attributes.url_attributes as url
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.metrics import messaging_metrics
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanKind

from iu_listen.model.observation import BatchRan, LeaseTaken, Listening, SessionFailed, StandingBy
from iu_listen.model.routing import DEFAULT_WORKER, Batch, Wake
from iu_listen.model.spans import attempt_spans, letter_span
from iu_listen.telemetry.live_spans import SpanObserver
from iu_listen.telemetry.otlp.encoding import SCHEMA_URL

REFERENCE = Path(__file__).parents[2] / "docs/reference"
#: A target of each kind, as the audit stores it.
TARGETS = ("workflow crm", "POST https://example.com", "nats://one/orders", "kafka://one/orders.{type}", "other://one")
NOW = datetime.now(UTC)
ROW = {
    "xact_id": 7, "id": 7, "event_ref": uuid4(), "route_kind": "outbound", "route_code": "r", "status": "failed",
    "decision": "dead_letter", "failure_code": "worker_process_error", "idempotency_key": "k", "attempt_no": 1,
    "created_at": NOW, "finished_at": NOW, "traceparent": None, "event_at": NOW, "commit_at": NOW, "event_domain": "iu",
    "event_type": "t", "subject": "s", "correlation_id": "c", "replayed_id": None, "failure_detail": "why",
    "own_history": True, "batch_xact_id": 7, "worker_name": "w", "target": None, "former_no": None,
}  # fmt: skip


@pytest.fixture
def made() -> dict[str, tuple[str, set[str], str]]:
    """Every possible span by name: its kind, its attributes, its type of operation."""
    found: dict[str, tuple[str, set[str], str]] = {}
    letter = ROW | {"id": uuid4(), "worker_name": "w", "gave_up_at": NOW, "gave_up_no": 1}
    rows = [ROW, *(ROW | {"target": target, "failure_code": "http_503"} for target in TARGETS)]
    for span in [*attempt_spans(rows, "l"), letter_span(letter)]:
        name = span.name.replace(".{type}", "")
        _, attributes, _ = found.get(name, ("", set(), ""))
        operation = str(span.attributes.get("messaging.operation.type", ""))
        found[name] = span.kind.name, attributes | set(span.attributes), operation
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer = SpanObserver(provider)
    for session in ("worker", "listener"):
        observer.observe(SessionFailed(session, "why", 1.0))
    observer.observe(StandingBy(DEFAULT_WORKER, "other"))
    observer.observe(LeaseTaken(DEFAULT_WORKER))
    observer.observe(Listening(1))
    observer.observe(BatchRan(DEFAULT_WORKER, Wake.NOTIFY, Batch(status="ran", seen=1)))
    for live in exporter.get_finished_spans():
        kind, attributes, operation = found.get(live.name, (SpanKind(live.kind).name, set(), ""))
        assert kind == SpanKind(live.kind).name
        operation = str((live.attributes or {}).get("messaging.operation.type", operation))
        found[live.name] = kind, attributes | set(live.attributes or {}), operation
    return found


def table(name: str, columns: int) -> list[list[str]]:
    """Rows, without headings, of the tables of a page that have this number of columns."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (REFERENCE / name).read_text().splitlines()
            if line.startswith("| `")]  # fmt: skip
    return [row for row in rows if len(row) == columns]


def constants(module: ModuleType) -> set[str]:
    return {value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)}


def test_every_span_is_documented(made):
    """spans.md has every span with its kind, and no other."""
    documented = {}
    for row in table("spans.md", 5):
        for name in re.findall(r"`([^`]+)`", row[0]):
            documented[name] = row[1].upper()

    assert documented == {name: kind for name, (kind, *_) in made.items()}


def test_every_attribute_is_documented(made):
    """spans.md has every attribute of every span, and no other."""
    documented = {row[0].strip("`") for row in table("spans.md", 3)}

    assert documented == set().union(*(attributes for _, attributes, _ in made.values()))


def test_names_are_those_of_the_conventions(made):
    """Every name that does not begin with iu. is in OpenTelemetry's conventions, of the stated schema version.

    Fails when: the conventions rename an attribute, or a name is used that they do not have.
    """
    known = set().union(*map(constants, (messaging, db, error, http, server, url)))
    used = set().union(*(attributes for _, attributes, _ in made.values()))

    assert {name for name in used if not name.startswith("iu.")} <= known
    assert {value.value for value in Schemas if value.value == SCHEMA_URL} == {SCHEMA_URL}


#: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/#span-kind
KINDS = {"send": {"PRODUCER", "CLIENT"}, "receive": {"CLIENT"}, "process": {"CONSUMER"}, "settle": {"CLIENT"}}


def test_kinds_and_names_are_those_of_the_conventions(made):
    """A messaging span has the name of its operation and destination, the right kind, and the required attributes."""
    types = {value.value for value in messaging.MessagingOperationTypeValues}
    required = {
        messaging.MESSAGING_SYSTEM, messaging.MESSAGING_OPERATION_NAME, messaging.MESSAGING_OPERATION_TYPE,
        messaging.MESSAGING_DESTINATION_NAME,
    }  # fmt: skip
    messages = {name: found for name, found in made.items() if found[2]}

    ours = {f"{n} event_outbox" for n in ("send", "receive", "process", "dead_letter")}
    assert set(messages) == ours | {"send orders"}
    for kind, attributes, operation in messages.values():
        assert operation in types
        assert kind in KINDS[operation]
        assert required <= attributes


def test_a_call_over_http_is_named_as_the_conventions_say(made):
    """A call over HTTP is a client span with the name of its method and all required attributes.

    Fails when: a path or a route is in its name, or a required attribute is missing.
    """
    kind, attributes, _ = made["POST"]

    assert kind == "CLIENT"
    assert {http.HTTP_REQUEST_METHOD, http.HTTP_RESPONSE_STATUS_CODE, error.ERROR_TYPE} <= attributes
    assert {server.SERVER_ADDRESS, server.SERVER_PORT, url.URL_FULL} <= attributes


def test_metrics_are_those_of_the_conventions():
    """A metric whose name does not begin with iu. has a name of OpenTelemetry's conventions."""
    names = {row[0].strip("`") for row in table("metrics.md", 5)}

    assert {name for name in names if not name.startswith("iu.")} <= constants(messaging_metrics)
    assert len(names) >= 16
