"""Deliveries: what a target is given, what may come of it, and how a target says so.

A target returns when the event has arrived, and raises otherwise:

    Reject        it will never take this event         dead letter, at once
    Unavailable   it takes nothing now                  an outage: the route waits, no attempt is spent
    Failed        it did not take it this time          tried again, as the policy of the route says

Anything else that it raises counts as Failed, but for what says that nobody is there (a ConnectionError, a name that
does not resolve, a host that cannot be reached), which counts as Unavailable. Running into the deadline is Failed, and
so is a cancellation of its own, or of what it waited for, that it lets out. A target that goes on after it was
cancelled is left behind, and that is Failed, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, ClassVar, Final
from uuid import UUID

from iu_listen.model.trace import target_context

#: What holds a route while one delivery at a time is attempted all the same (half-open).
PROBED: Final = frozenset({"breaker_open", "dead_letter_budget"})


class Result(StrEnum):
    """What came of an attempt to deliver."""

    SENT = "sent"
    FAILED = "failed"
    REJECTED = "rejected"
    UNAVAILABLE = "unavailable"


class DeliveryError(Exception):
    """Base of what a target raises on purpose.

    Args:
        reason: What happened, for a person; without secrets. It is kept in the dead letter.
        code: The same for a machine: lower case, digits and ``_``, as in ``http_503``.
        retry_after: Do not try this route's target again before so many seconds; None: as the policy says.
    """

    result: ClassVar[Result]

    def __init__(self, reason: str = "", *, code: str = "", retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code or type(self).__name__.lower()
        self.retry_after = retry_after


class Reject(DeliveryError):
    """The target will never take this event. It becomes a dead letter at once."""

    result = Result.REJECTED


class Unavailable(DeliveryError):
    """The target takes nothing now: an outage, not this event's fault. No attempt is spent."""

    result = Result.UNAVAILABLE


class Failed(DeliveryError):
    """The target did not take the event this time. It is tried again, as often as the policy of the route says."""

    result = Result.FAILED


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event, as a target sees it: the row of ``event_outbox``.

    Attributes:
        id: Its identity, the same in every attempt.
        domain: ``event_domain``.
        type: ``event_type``.
        stream: ``event_stream``.
        subject: What it is about: ``event_subject_ref``, else ``canonical_address``; None: nothing in particular.
        subject_table: Where that is kept.
        source: ``source_system``.
        actor: ``actor_ref``.
        correlation_id: As the writer gave it.
        occurred_at: When it happened, as the writer says.
        created_at: When it was written, as the writer says.
        traceparent: Trace context of the producer, if he gave one that is valid.
        payload: ``safe_payload``, as JSON text.
    """

    id: UUID
    domain: str
    type: str
    stream: str
    subject: str | None = None
    subject_table: str | None = None
    source: str | None = None
    actor: str | None = None
    correlation_id: str | None = None
    occurred_at: datetime | None = None
    created_at: datetime | None = None
    traceparent: str | None = None
    payload: str = "{}"

    @cached_property
    def data(self) -> Any:
        """``safe_payload``, parsed."""
        return json.loads(self.payload)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """An event on its way to a target, and which attempt this is.

    Attributes:
        id: Row of ``iu_route_delivery``.
        route: Code of the route.
        idempotency_key: ``outbound:<route>:<event id>``, the same in every attempt and every replay.
        attempt: Number of this attempt, from 1.
        event: The event.
        deadline: How long this attempt may take, in seconds.
        span: Which span is the parent of what the target does: that of the ``attempt`` for a coroutine, whose work that
            is, and that of its ``call`` for everything else.
    """

    id: int
    route: str
    idempotency_key: str
    attempt: int
    event: Event
    deadline: float = 30.0
    span: str = "call"

    @cached_property
    def traceparent(self) -> str:
        """W3C trace context for the target: it names the span that is the parent of what the target does."""
        return target_context(self.event.id, self.event.traceparent, self.span, self.idempotency_key, self.attempt)


@dataclass(slots=True)
class Taken:
    """A delivery that the consumer has taken.

    Attributes:
        delivery: The delivery.
        subject_key: Its subject, where the route keeps the order of one; None: it waits for no other delivery.
        alone: True: it is attempted while no other delivery is in flight, because it may end the process.
        problem: Why no target can be given this delivery (a failure code); empty: nothing is wrong with it.
    """

    delivery: Delivery
    subject_key: int | None = None
    alone: bool = False
    problem: str = ""

    @property
    def bytes(self) -> int:
        """How much memory it takes at least, in bytes: its payload, and about 500 bytes besides."""
        return len(self.delivery.event.payload or "") + 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteState:
    """A route, as the database has it at this moment.

    Attributes:
        route: Its code.
        kind: ``target_kind``.
        reference: ``target_ref``.
        policy: Its delivery policy, with the defaults (fn_iu_delivery_policy).
        held: What holds it back; empty: nothing.
        after: The last id that was taken, of those that were never tried.
        passed: ``after`` has passed the deliveries beyond this id without a look at them; None: it has not.
        kept_back: Not all deliveries that may go on were given: there was no room for the bytes of their payloads.
        due_in: Seconds until the next delivery is due that waits for its time; None: none does.
        why: The last failure, where the breaker is open.
        probing: Id of the delivery that is the probe in flight, where one is.
    """

    route: str
    kind: str
    reference: str
    policy: Mapping[str, Any]
    held: str = ""
    after: int = 0
    passed: int | None = None
    kept_back: bool = False
    due_in: float | None = None
    why: str = ""
    probing: int | None = None

    @property
    def span(self) -> str:
        """Which span is the parent of what its target does (Delivery.span)."""
        return "attempt" if self.kind == "workflow" else "call"


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What is wanted of a route.

    Attributes:
        route: Its code.
        room: How many deliveries there is room for.
        after: Beyond which id, of those that were never tried.
        deadline: How long an attempt may take, as far as is known, in seconds.
        span: Delivery.span of what is given.
        bytes: How many bytes of payload there is room for; of one delivery at least where this is positive.
    """

    route: str
    room: int
    after: int
    deadline: float
    span: str = "call"
    bytes: int = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A question for deliveries of a route that its position has passed.

    Attributes:
        route: Its code.
        key: Subjects from this key on; None: no subject.
        behind: Deliveries without a subject beyond this id; None: none.
        after: The position.
    """

    route: str
    key: int | None
    behind: int | None
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer: what may go on in the part that was searched.

    Attributes:
        route: Code of the route.
        keys: Keys of subjects whose first delivery may go on, unless it is in flight.
        key: Subjects from this key on are searched next; None: all were.
        first: The first delivery without a subject; None: none was found.
        behind: Deliveries without a subject are searched next beyond this id; None: all were, or one was found.
    """

    route: str
    keys: Sequence[int]
    key: int | None
    first: int | None
    behind: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Whether a consumer may deliver.

    Attributes:
        held: It may.
        again: It could all the time, so what it has taken is still its own.
        holder: Who may instead.
        gone: That one has no session any more.
        unclean: The lease ended before without being given back: a delivery may have ended the process of its holder.
    """

    held: bool
    again: bool = False
    holder: str = ""
    gone: bool = False
    unclean: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """What the database answered.

    Attributes:
        taken: The next deliveries.
        routes: What it has to say of each route.
        seconds: How long the statement had taken when it looked at the locks, at least.
    """

    taken: Sequence[Taken]
    routes: Sequence[RouteState]
    seconds: float = 0.0


@dataclass(slots=True)
class Outcome:
    """What came of one attempt.

    Attributes:
        taken: Which delivery.
        result: What came of it.
        began: When it began, by the clock of the consumer, in seconds.
        ended: When it ended, by the same.
        code: Machine-readable reason of a failure.
        detail: The same for a person.
        retry_after: Not again before so many seconds; None: as the policy says.
        beside: Another delivery of the route succeeded while this attempt was in flight, or shortly before it.
        called: What was called, as called() has it; empty: nothing was.
    """

    taken: Taken
    result: Result
    began: float
    ended: float
    code: str = ""
    detail: str = ""
    retry_after: float | None = None
    beside: bool = False
    called: str = ""
