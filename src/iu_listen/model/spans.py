"""Spans of the trace export, built from rows of the audit. Ids are pure functions of a row (sql/functions/trace_ids).

The spans follow the semantic conventions of OpenTelemetry for messaging and HTTP, v1.44 (docs/reference/spans.md):

* An event is the span ``send`` of its producer.
* An attempt is a span ``process``, child of the event.
* The call of a target outside of this process is a span, child of its attempt.
* A dead letter is a settlement span, child of the attempt that gave up.
* The attempt of a replay is a child of the dead letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple
from uuid import UUID

from iu_listen.model.called import callee, destination_of, in_process

#: Name of the outbox as a messaging destination.
DESTINATION: Final = "event_outbox"
#: A W3C trace context of version 00 whose ids are not all zeros.
_CONTEXT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
#: Failure code of an HTTP response, with its status.
_STATUS: Final = re.compile(r"http_([1-5][0-9]{2})")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class SpanKind(IntEnum):
    """Span kinds, by their numbers in OTLP."""

    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class SpanLink(NamedTuple):
    """A link to a related span, with both ids in hexadecimal."""

    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Common:
    """Attributes that are equal in many spans. The spans share one object, which is encoded once."""

    values: Mapping[str, str | int]


class Span(NamedTuple):
    """One complete span. It is a tuple, because the export builds tens of thousands in a second.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        parent_id: 16 hexadecimal digits; empty: the span is a root.
        name: Name of the span.
        kind: Kind of the span.
        start: Start, in nanoseconds since 1970.
        end: End, in nanoseconds since 1970, not before ``start``.
        common: Attributes that are shared with other spans.
        own: Attributes of this span only; those with the value None are left out.
        error: Description of the error; None: there was none.
        links: Links to related spans.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: SpanKind
    start: int
    end: int
    common: Common
    own: Mapping[str, str | None]
    error: str | None = None
    links: tuple[SpanLink, ...] = ()

    @property
    def attributes(self) -> dict[str, str | int]:
        """All attributes of the span, without those that are None."""
        return dict(self.common.values) | {key: value for key, value in self.own.items() if value is not None}


# -- identity ----------------------------------------------------------------------------------------------------


def context(traceparent: str | None) -> str | None:
    """The trace context if it is valid by W3C version 00, else None. Equal to fn_iu_trace_context in SQL."""
    return traceparent if traceparent is not None and _CONTEXT.fullmatch(traceparent) else None


def trace_id(event: UUID, traceparent: str | None) -> str:
    """The trace id for all spans of an event. Equal to fn_iu_trace_id in SQL."""
    if valid := context(traceparent):
        return valid[3:35]
    return event.hex if event.int else "f" * 32


def span_id(what: str, key: str) -> str:
    """The span id of an ``attempt``, a ``call``, a ``dead_letter`` or an ``event``. Equal to fn_iu_span_id in SQL."""
    digits = sha256(f"{what} {key}".encode()).hexdigest()[:16]
    return digits if digits.strip("0") else "f" * 16


def attempt_span_id(idempotency_key: str, attempt_no: int) -> str:
    """The span id of an attempt."""
    return span_id("attempt", f"{idempotency_key} {attempt_no}")


def call_span_id(idempotency_key: str, attempt_no: int) -> str:
    """The span id of the call of an attempt. It is the parent of the target's own spans."""
    return span_id("call", f"{idempotency_key} {attempt_no}")


def target_context(event: UUID, traceparent: str | None, what: str, idempotency_key: str, attempt_no: int) -> str:
    """W3C trace context for a target.

    It has the trace of the event, the span of the ``attempt`` or of the ``call`` (``what``), and the flags of the
    producer, by default ``01``.
    """
    valid = context(traceparent)
    trace, flags = (valid[3:35], valid[-2:]) if valid else (trace_id(event, None), "01")
    return f"00-{trace}-{span_id(what, f'{idempotency_key} {attempt_no}')}-{flags}"


def starting_context(event: UUID, traceparent: str | None) -> str:
    """W3C trace context of an event: that of its producer, else one of its own span. It is the same in every hop."""
    return context(traceparent) or f"00-{trace_id(event, None)}-{span_id('event', str(event))}-01"


@lru_cache(maxsize=64)
def batch_link(lineage: UUID | str, xact_id: int) -> SpanLink:
    """Link to the span of a batch, by its transaction. A batch is a trace of its own, to which its attempts link."""
    digits = sha256(f"batch {lineage} {xact_id}".encode()).hexdigest()
    return SpanLink(digits[:32], digits[32:48])


# -- from rows to spans ------------------------------------------------------------------------------------------


def _ns(moment: datetime) -> int:
    """Nanoseconds since 1970, with the microsecond precision of PostgreSQL."""
    passed = moment - _EPOCH
    return (passed.days * 86_400_000_000 + passed.seconds * 1_000_000 + passed.microseconds) * 1000


@lru_cache(maxsize=4096)
def _common(operation: str, kind: str, *more: tuple[str, str | int | None]) -> Common:
    """The common attributes of spans: those of OpenTelemetry for every message, and further ones (``more``)."""
    found = {
        "messaging.system": "postgresql",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": DESTINATION,
    }
    return Common(found | {key: value for key, value in more if value is not None})


def _message(row: Any) -> dict[str, str | None]:
    """The attributes of a span that identify the message."""
    return {
        "messaging.message.id": str(row["event_ref"]),
        "messaging.message.conversation_id": row["correlation_id"],
        "iu.event.subject": row["subject"],
    }


def _committed(row: Any) -> datetime | None:
    """Commit time of an event; None: unknown.

    A commit time after the end of the attempt belongs to another history of the database, and counts as unknown.
    """
    moment: datetime | None = row["commit_at"]
    return moment if moment is not None and moment <= row["finished_at"] else None


def event_span(row: Any, message: Mapping[str, str | None] | None = None) -> Span:
    """The span of an event, from its creation to its commit. If the commit time is unknown, its duration is 0.

    The start of an attempt cannot be its end, because another route may have started an attempt earlier.

    Args:
        row: A row of v_iu_trace_attempt whose event still exists, or of the query trace/event.
        message: Result of _message() for this row; None: it is computed here.
    """
    message = message or _message(row)
    given, sent = context(row["traceparent"]), row["event_at"]
    return Span(
        trace_id(row["event_ref"], given), span_id("event", str(message["messaging.message.id"])),
        given[36:52] if given else "", f"send {DESTINATION}", SpanKind.PRODUCER,
        _ns(sent), _ns(max(sent, _committed(row) or sent)),
        _common("send", "send", ("iu.event.domain", row["event_domain"]), ("iu.event.type", row["event_type"])),
        message,
    )  # fmt: skip


def attempt_span(row: Any, lineage: str, message: Mapping[str, str | None] | None = None) -> Span:
    """The span of an attempt.

    Args:
        row: A row of v_iu_trace_attempt.
        lineage: Id of the history of this database, for the link to the batch; empty: make no link to the batch.
        message: Result of _message() for this row; None: it is computed here.
    """
    message = message or _message(row)
    number, key = row["attempt_no"], row["idempotency_key"]
    trace = trace_id(row["event_ref"], context(row["traceparent"]))
    parent = span_id("event", str(message["messaging.message.id"]))
    # A batch that waited for another one may have started before the event existed.
    start, committed, finished = max(row["created_at"], row["event_at"] or _EPOCH), row["commit_at"], row["finished_at"]
    if committed is not None and start < committed <= finished:
        start = committed
    sent = SpanLink(trace, parent)
    links: tuple[SpanLink, ...]
    if number > 1:
        # A later attempt does not run in a batch, so it links to the former attempt.
        former = row["former_no"]
        links = (sent, SpanLink(trace, attempt_span_id(key, former))) if former is not None else (sent,)
        if row["replayed_id"]:
            parent = span_id("dead_letter", str(row["replayed_id"]))
    else:
        # The settlement of a delivery is not the transaction of the batch that queued it; this links to the batch.
        links = (sent, batch_link(lineage, row["batch_xact_id"])) if lineage and row["own_history"] else (sent,)
    status, target = row["status"], row["target"]
    failed = row["failure_code"] if status == "failed" else None
    common = _common(
        "process", "process", ("iu.event.domain", row["event_domain"]), ("iu.event.type", row["event_type"]),
        ("messaging.consumer.group.name", row["worker_name"]), ("error.type", failed),
        ("iu.route.code", row["route_code"]), ("iu.route.kind", row["route_kind"]),
        ("iu.attempt.status", status), ("iu.attempt.decision", row["decision"]), ("iu.attempt.number", number),
        ("iu.target", target if target is not None and in_process(target) else None),
    )  # fmt: skip
    return Span(
        trace, attempt_span_id(key, number), parent, f"process {DESTINATION}", SpanKind.CONSUMER,
        _ns(start), _ns(max(start, finished)), common, {**message, "iu.idempotency_key": key},
        (row["failure_detail"] or failed or "failed") if status == "failed" else None, links,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _call(target: str, route: str, number: int, failure: str | None) -> tuple[SpanKind, str, Common]:
    """Kind, name and common attributes of the span of a call, which are equal for many calls."""
    found = callee(target)
    more: dict[str, str | int] = {"iu.route.code": route, "iu.attempt.number": number}
    if failure is not None:
        more["error.type"] = failure
        # The conventions for HTTP require the status as error.type.
        if "http.request.method" in found.attributes and (status := _STATUS.fullmatch(failure)):
            more |= {"error.type": status[1], "http.response.status_code": int(status[1])}
    return SpanKind[found.kind.upper()], found.name, Common({**found.attributes, **more})


def call_span(row: Any, attempt: Span) -> Span | None:
    """The span of the call of an attempt. None: the target is a coroutine, or no target was called.

    Args:
        row: A row of v_iu_trace_attempt.
        attempt: The span of that attempt.
    """
    number, target = row["attempt_no"], row["target"]
    if target is None or in_process(target):
        return None
    kind, name, common = _call(target, row["route_code"], number, row["failure_code"])
    own = {"iu.idempotency_key": row["idempotency_key"]}
    if destination := callee(target).destination:
        own |= {
            "messaging.message.id": attempt.own["messaging.message.id"],
            "messaging.message.conversation_id": attempt.own["messaging.message.conversation_id"],
            "messaging.destination.name": destination_of(destination, row["event_domain"], row["event_type"]),
        }
    return Span(
        attempt.trace_id, call_span_id(row["idempotency_key"], number), attempt.span_id, name, kind,
        attempt.start, attempt.end, common, own, attempt.error,
    )  # fmt: skip


def attempt_spans(rows: Iterable[Any], lineage: str) -> Iterator[Span]:
    """The spans of attempts and of their calls. The first attempt of an event is preceded by the span of the event."""
    former = None
    for row in rows:
        message = _message(row)
        if row["attempt_no"] == 1 and row["event_at"] is not None and row["event_ref"] != former:
            yield event_span(row, message)
        former = row["event_ref"]
        attempt = attempt_span(row, lineage, message)
        yield attempt
        if call := call_span(row, attempt):
            yield call


def letter_span(row: Any) -> Span:
    """The span of a dead letter. Its duration is 0, and its time is the end of the attempt that gave up.

    Args:
        row: A row of fn_iu_trace_dead_letters.
    """
    event = row["event_ref"]
    trace = trace_id(event, row["traceparent"])
    at = _ns(row["created_at"])
    parent = span_id("event", str(event))
    if row["gave_up_at"] is not None:
        at = max(at, _ns(row["gave_up_at"]))
        parent = attempt_span_id(row["idempotency_key"], row["gave_up_no"])
    common = _common(
        "dead_letter", "settle", ("iu.event.domain", row["event_domain"]), ("iu.event.type", row["event_type"]),
        ("messaging.consumer.group.name", row["worker_name"]), ("error.type", row["failure_code"]),
        ("iu.route.code", row["route_code"]), ("iu.route.kind", row["route_kind"]),
    )  # fmt: skip
    return Span(
        trace, span_id("dead_letter", str(row["id"])), parent, f"dead_letter {DESTINATION}", SpanKind.CLIENT, at, at,
        common, _message(row)
        | {"iu.dead_letter.id": str(row["id"]), "iu.idempotency_key": row["idempotency_key"]},
        error=row["failure_detail"] or row["failure_code"],
    )  # fmt: skip


# -- export ------------------------------------------------------------------------------------------------------


class CollectorAnswer(IntEnum):
    """Classes of answers of a collector to a request."""

    ACCEPTED = 0
    #: The collector does not accept spans at present, or is misconfigured: send the same spans again.
    AGAIN = 1
    #: The spans are invalid, so sending them again does not help.
    MALFORMED = 2
    #: The request may be too large: send fewer spans at once.
    TOO_LARGE = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """A collector's answer.

    Attributes:
        answer: Class of the answer.
        why: Text of the collector; empty: all spans were accepted.
        retry_after: Delay before the next request that the collector asks for, in seconds; None: it asks for none.
        rejected: Number of spans of an accepted request that the collector rejected (OTLP's partial success).
    """

    answer: CollectorAnswer
    why: str = ""
    retry_after: float | None = None
    rejected: int = 0


@dataclass(slots=True)
class Place:
    """Position of the export in a tick, which contains the rows that are visible in ``tick`` and not in ``prev``.

    Attributes:
        prev: Snapshot at the beginning of the tick.
        tick: Snapshot at the end of the tick.
        lineage: Id of the history of the database.
        attempt: Transaction id and row id of the last accepted attempt.
        letter: Transaction id and row id of the last accepted dead letter.
    """

    prev: str
    tick: str
    lineage: str
    attempt: tuple[str, int]
    letter: tuple[str, UUID]


@dataclass(slots=True)
class Page:
    """Spans of the next rows, and the position after them.

    Attributes:
        spans: Spans in the order of their rows.
        place: Position to store when the spans are accepted.
        ignored: Number of events on the page whose trace context was malformed.
        last: True: this is the last page of the tick.
    """

    spans: list[Span]
    place: Place
    ignored: int
    last: bool
