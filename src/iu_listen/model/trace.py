"""What a row of the audit is in a tracing backend. Identity is a pure function of the row, here and in SQL (017_trace).

Conventions: OpenTelemetry's for messaging and HTTP, v1.44 (docs/reference/spans.md). An event is the span ``send`` of
its producer, each attempt is a ``process`` below it, what an attempt has called outside of this process is a span below
that, a dead letter is the settlement of its first attempt, and a replay hangs below the dead letter.
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

#: The log, as a messaging destination.
DESTINATION: Final = "event_outbox"
#: A W3C trace context of version 00, and no identity that is all zeros.
_CONTEXT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
#: The failure code of an answer over HTTP.
_STATUS: Final = re.compile(r"http_([1-5][0-9]{2})")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Kind(IntEnum):
    """Span kinds, by their numbers in OTLP."""

    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Link(NamedTuple):
    """Another span that this one has to do with: both ids in hexadecimal."""

    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Common:
    """Attributes that many spans have with the same values. One object for all of them: it is encoded once."""

    values: Mapping[str, str | int]


class Span(NamedTuple):
    """One span, complete. A tuple: there are tens of thousands a second.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        parent_id: 16 hexadecimal digits; empty: a root.
        start: Nanoseconds since 1970.
        end: Nanoseconds since 1970, not before ``start``.
        common: Attributes that it shares with others.
        own: Its own ones; what is None is left out.
        error: What went wrong. None: nothing.
        links: Other spans that it has to do with.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: Kind
    start: int
    end: int
    common: Common
    own: Mapping[str, str | None]
    error: str | None = None
    links: tuple[Link, ...] = ()

    @property
    def attributes(self) -> dict[str, str | int]:
        """All that it has."""
        return dict(self.common.values) | {key: value for key, value in self.own.items() if value is not None}


# -- identity ----------------------------------------------------------------------------------------------------


def context(traceparent: str | None) -> str | None:
    """The trace context, if it is a valid one of W3C version 00; else None. Twin of fn_iu_trace_context."""
    return traceparent if traceparent is not None and _CONTEXT.fullmatch(traceparent) else None


def trace_id(event: UUID, traceparent: str | None) -> str:
    """The trace of all that happens to an event. Twin of fn_iu_trace_id."""
    if valid := context(traceparent):
        return valid[3:35]
    return event.hex if event.int else "f" * 32


def span_id(what: str, key: str) -> str:
    """The span of an ``attempt``, its ``call``, a ``dead_letter`` or an ``event``. Twin of fn_iu_span_id."""
    digits = sha256(f"{what} {key}".encode()).hexdigest()[:16]
    return digits if digits.strip("0") else "f" * 16


def attempt_span_id(idempotency_key: str, attempt_no: int) -> str:
    """The span of an attempt."""
    return span_id("attempt", f"{idempotency_key} {attempt_no}")


def call_span_id(idempotency_key: str, attempt_no: int) -> str:
    """The span of the call that an attempt makes: the parent of what the target does."""
    return span_id("call", f"{idempotency_key} {attempt_no}")


def target_context(event: UUID, traceparent: str | None, what: str, idempotency_key: str, attempt_no: int) -> str:
    """W3C trace context for a target: the trace, the span of the ``attempt`` or its ``call``, the producer's flags."""
    valid = context(traceparent)
    trace, flags = (valid[3:35], valid[-2:]) if valid else (trace_id(event, None), "01")
    return f"00-{trace}-{span_id(what, f'{idempotency_key} {attempt_no}')}-{flags}"


def starting_context(event: UUID, traceparent: str | None) -> str:
    """W3C trace context in which an event began: its producer's, else that of its own span. The same in every hop."""
    return context(traceparent) or f"00-{trace_id(event, None)}-{span_id('event', str(event))}-01"


@lru_cache(maxsize=64)
def batch_link(lineage: UUID | str, xact_id: int) -> Link:
    """The span of the batch that a transaction was: a trace of its own, which its attempts link to."""
    digits = sha256(f"batch {lineage} {xact_id}".encode()).hexdigest()
    return Link(digits[:32], digits[32:48])


# -- from rows to spans ------------------------------------------------------------------------------------------


def _ns(moment: datetime) -> int:
    """Nanoseconds since 1970, exact to PostgreSQL's microsecond."""
    passed = moment - _EPOCH
    return (passed.days * 86_400_000_000 + passed.seconds * 1_000_000 + passed.microseconds) * 1000


@lru_cache(maxsize=4096)
def _common(operation: str, kind: str, *more: tuple[str, str | int | None]) -> Common:
    """What OpenTelemetry wants to know of every message, and what more is the same for many."""
    found = {
        "messaging.system": "postgresql",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": DESTINATION,
    }
    return Common(found | {key: value for key, value in more if value is not None})


def _message(row: Any) -> dict[str, str | None]:
    """Which message, and of whom."""
    return {
        "messaging.message.id": str(row["event_ref"]),
        "messaging.message.conversation_id": row["correlation_id"],
        "iu.event.subject": row["subject"],
    }


def _committed(row: Any) -> datetime | None:
    """When an event was committed. None: nobody knows, as where its stamp is of another history: it came too late."""
    moment: datetime | None = row["commit_at"]
    return moment if moment is not None and moment <= row["finished_at"] else None


def event_span(row: Any, message: Mapping[str, str | None] | None = None) -> Span:
    """The span of an event: from its creation to its commit; without length where the commit is not known.

    No attempt says when it ended: another route may have begun earlier.

    Args:
        row: A row of v_iu_trace_attempt whose event is still there, or of the query trace/event.
        message: Which message, if somebody has asked already.
    """
    message = message or _message(row)
    given, sent = context(row["traceparent"]), row["event_at"]
    return Span(
        trace_id(row["event_ref"], given), span_id("event", str(message["messaging.message.id"])),
        given[36:52] if given else "", f"send {DESTINATION}", Kind.PRODUCER,
        _ns(sent), _ns(max(sent, _committed(row) or sent)),
        _common("send", "send", ("iu.event.domain", row["event_domain"]), ("iu.event.type", row["event_type"])),
        message,
    )  # fmt: skip


def attempt_span(row: Any, lineage: str, message: Mapping[str, str | None] | None = None) -> Span:
    """The span of an attempt.

    Args:
        row: A row of v_iu_trace_attempt.
        lineage: The history that its transaction belongs to, if it is one of our own history; empty: link to no batch.
        message: Which message, if somebody has asked already.
    """
    message = message or _message(row)
    number, key = row["attempt_no"], row["idempotency_key"]
    trace = trace_id(row["event_ref"], context(row["traceparent"]))
    parent = span_id("event", str(message["messaging.message.id"]))
    # A run that waited for another one began before the event was there.
    start, committed, finished = max(row["created_at"], row["event_at"] or _EPOCH), row["commit_at"], row["finished_at"]
    if committed is not None and start < committed <= finished:
        start = committed
    sent = Link(trace, parent)
    links: tuple[Link, ...]
    if number > 1:
        # A replay is no batch: what it repeats says more.
        former = row["former_no"]
        links = (sent, Link(trace, attempt_span_id(key, former))) if former is not None else (sent,)
        if row["replayed_id"]:
            parent = span_id("dead_letter", str(row["replayed_id"]))
    else:
        # A delivery is settled in another transaction than the batch that queued it.
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
        trace, attempt_span_id(key, number), parent, f"process {DESTINATION}", Kind.CONSUMER,
        _ns(start), _ns(max(start, finished)), common, {**message, "iu.idempotency_key": key},
        (row["failure_detail"] or failed or "failed") if status == "failed" else None, links,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _call(target: str, route: str, number: int, failure: str | None) -> tuple[Kind, str, Common]:
    """What is the same for many calls."""
    found = callee(target)
    more: dict[str, str | int] = {"iu.route.code": route, "iu.attempt.number": number}
    if failure is not None:
        more["error.type"] = failure
        # The conventions of HTTP want the status for a type.
        if "http.request.method" in found.attributes and (status := _STATUS.fullmatch(failure)):
            more |= {"error.type": status[1], "http.response.status_code": int(status[1])}
    return Kind[found.kind.upper()], found.name, Common({**found.attributes, **more})


def call_span(row: Any, attempt: Span) -> Span | None:
    """The span of what an attempt has called: the parent of what the target does. None: of a coroutine, and of nothing.

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
    """The spans of attempts, each with that of its call; before a first one, once, the span of its event."""
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
    """The span of a dead letter: a moment, at the end of the attempt that gave up.

    Args:
        row: A row of fn_iu_trace_letters.
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
        trace, span_id("dead_letter", str(row["id"])), parent, f"dead_letter {DESTINATION}", Kind.CLIENT, at, at,
        common, _message(row)
        | {"iu.dead_letter.id": str(row["id"]), "iu.idempotency_key": row["idempotency_key"]},
        error=row["failure_detail"] or row["failure_code"],
    )  # fmt: skip


# -- export ------------------------------------------------------------------------------------------------------


class Answer(IntEnum):
    """What a collector made of a request."""

    ACCEPTED = 0
    #: Not now, or not like this: the same spans are sent again, until somebody mends what is wrong.
    AGAIN = 1
    #: These spans are wrong, whenever they are sent.
    MALFORMED = 2
    #: Perhaps too many at once.
    TOO_LARGE = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """A collector's answer.

    Attributes:
        answer: What is to be done with the spans.
        why: Its words; empty where all are accepted.
        retry_after: Seconds that it wants to be left alone; None: it did not say.
        rejected: How many of the accepted ones it has thrown away (OTLP's partial success).
    """

    answer: Answer
    why: str = ""
    retry_after: float | None = None
    rejected: int = 0


@dataclass(slots=True)
class Place:
    """How far what is visible in ``tick`` and not in ``prev`` was accepted: transaction and id of the last ones."""

    prev: str
    tick: str
    lineage: str
    attempt: tuple[str, int]
    letter: tuple[str, UUID]


@dataclass(slots=True)
class Page:
    """Spans of the next rows, and where they end.

    Attributes:
        spans: In the order of their rows.
        place: What to note when they are accepted.
        ignored: Events among them whose trace context was malformed.
        last: Nothing of the tick comes after them.
    """

    spans: list[Span]
    place: Place
    ignored: int
    last: bool
