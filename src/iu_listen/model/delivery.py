"""Deliveries: the input of a target, the possible outcomes, and the exceptions by which a target reports them.

A target returns when it has accepted the event, and raises otherwise:

    Reject        the target will never accept this event     dead letter at once
    Unavailable   the target accepts no event at present      an outage: the route waits, no attempt is spent
    Failed        the target did not accept the event         attempted again, by the retry policy of the route

Every other exception counts as Failed, with one exception: errors that mean that the target cannot be reached (a
ConnectionError, a name that does not resolve, an unreachable host) count as Unavailable. A call that exceeds its
deadline has failed. So has a call that raises a cancellation which the consumer did not request: its own, or that of a
task for which it waited. A call that ignores its cancellation is abandoned and counts as Failed, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, ClassVar, Final
from uuid import UUID

from iu_listen.model.spans import target_context

#: Reasons of a pause during which one trial delivery at a time is attempted (half-open).
TRIAL_PAUSES: Final = frozenset({"breaker_open", "dead_letter_budget"})


class Result(StrEnum):
    """The result of an attempt.

    Attributes:
        SENT: The target has accepted the event.
        FAILED: The target did not accept the event this time.
        REJECTED: The target will never accept the event.
        UNAVAILABLE: The target accepts no event at present.
    """

    SENT = "sent"
    FAILED = "failed"
    REJECTED = "rejected"
    UNAVAILABLE = "unavailable"


class DeliveryError(Exception):
    """Base of the exceptions that a target raises on purpose.

    Args:
        reason: Readable reason, without secrets. It is stored in the dead letter.
        code: Machine-readable reason: lower case, digits and ``_``, for example ``http_503``. Default: the name of the
            class in lower case.
        retry_after: Shortest time until the next call of this route's target, in seconds; None: by the retry policy.
    """

    result: ClassVar[Result]

    def __init__(self, reason: str = "", *, code: str = "", retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code: str = code or type(self).__name__.lower()
        self.retry_after = retry_after


class Reject(DeliveryError):
    """The target will never accept this event. The event becomes a dead letter at once."""

    result = Result.REJECTED


class Unavailable(DeliveryError):
    """The target accepts no event at present: an outage that the event did not cause. No attempt is spent."""

    result = Result.UNAVAILABLE


class Failed(DeliveryError):
    """The target did not accept the event this time. It is attempted again, by the retry policy of the route."""

    result = Result.FAILED


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event as a target receives it: one row of ``event_outbox``.

    Attributes:
        id: Id of the event, the same in every attempt.
        domain: ``event_domain``.
        type: ``event_type``.
        stream: ``event_stream``.
        subject: The object that the event is about: ``event_subject_ref``, else ``canonical_address``; None: none.
        subject_table: Name of the table that holds the subject.
        source: ``source_system``.
        actor: ``actor_ref``.
        correlation_id: ``correlation_id``, as the producer set it.
        occurred_at: Time at which the event happened, as the producer set it.
        created_at: Time at which the row was written, as the producer set it.
        traceparent: Trace context of the producer; None: the producer set none, or an invalid one.
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
    """One attempt to deliver one event to a target.

    Attributes:
        id: Id of the row of ``iu_route_delivery``; negative if the row did not exist yet when the call began.
        route: Code of the route.
        idempotency_key: ``outbound:<route>:<event id>``, the same in every attempt and every replay.
        attempt: Number of this attempt, from 1.
        event: The event.
        deadline: Longest duration of this attempt, in seconds.
        span: The span that is the parent of the target's own spans: ``attempt`` for a coroutine, because its work is
            the attempt, and ``call`` for every other target.
        called_ahead: True: the call began before the routing decision was committed (the setting ``call_ahead``).
    """

    id: int
    route: str
    idempotency_key: str
    attempt: int
    event: Event
    deadline: float = 30.0
    span: str = "call"
    called_ahead: bool = False

    @cached_property
    def traceparent(self) -> str:
        """W3C trace context for the target. It names the parent of the target's own spans."""
        return target_context(self.event.id, self.event.traceparent, self.span, self.idempotency_key, self.attempt)


@dataclass(slots=True)
class TakenDelivery:
    """A delivery that the consumer has taken.

    Attributes:
        delivery: The delivery.
        subject_key: Hash of its subject on an ordered route; None: the delivery waits for no other delivery.
        alone: True: the delivery is in quarantine, because it may end the process. It is attempted while no other
            delivery is in flight.
        problem: Failure code that says why the delivery cannot be given to a target; empty: it can.
        group_failed: True: the call of a group that contained it has failed.
    """

    delivery: Delivery
    subject_key: int | None = None
    alone: bool = False
    problem: str = ""
    group_failed: bool = False

    @property
    def bytes(self) -> int:
        """Estimated memory of the delivery, in bytes: the length of its payload plus 500."""
        return len(self.delivery.event.payload or "") + 500

    @property
    def key(self) -> tuple[str, UUID]:
        """Route and event id. A delivery that is called ahead has no other identity until its batch has ended."""
        return self.delivery.route, self.delivery.event.id

    @property
    def unconfirmed(self) -> bool:
        """Whether it was called ahead, and the database has no row of it, as far as this consumer knows."""
        return self.delivery.id < 0

    @property
    def groupable(self) -> bool:
        """Whether it may be called in a group: in its first attempt, unless a group with it has failed."""
        return self.delivery.attempt == 1 and not self.alone and not self.group_failed


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedCall:
    """The decision about an event that was called ahead.

    Attributes:
        id: Id of its delivery; None: it has none, because the event was decided otherwise.
        attempt: Number of the attempt of the delivery.
        subject_key: Hash of its subject on an ordered route; None: it waits for no other delivery.
    """

    id: int | None
    attempt: int
    subject_key: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteState:
    """The state of a route in the database at one moment.

    Attributes:
        route: Code of the route.
        kind: ``target_kind``.
        reference: ``target_ref``.
        policy: Delivery policy of the route, with defaults filled in (fn_iu_delivery_policy).
        paused_by: Reason why the route is paused; empty: it is not paused.
        position: Deliveries of the route that were never attempted have been read up to this id.
        skipped_after: The position moved past the deliveries after this id without reading them; None: it skipped none.
        kept_back: True: some deliveries that may go on were left out, because their payloads exceed the byte limit.
        due_in: Seconds until the next waiting delivery is due; None: no delivery waits for its time.
        failure: The last failure, if the circuit breaker is open; empty otherwise.
        trial_id: Id of the trial delivery that is in flight; None: there is none.
    """

    route: str
    kind: str
    reference: str
    policy: Mapping[str, Any]
    paused_by: str = ""
    position: int = 0
    skipped_after: int | None = None
    kept_back: bool = False
    due_in: float | None = None
    failure: str = ""
    trial_id: int | None = None

    @property
    def span(self) -> str:
        """The span that is the parent of the target's own spans (Delivery.span)."""
        return "attempt" if self.kind == "workflow" else "call"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeRequest:
    """How many deliveries of a route the dispatcher can accept.

    Attributes:
        route: Code of the route.
        capacity: Most deliveries.
        position: Deliveries that were never attempted are read after this id.
        deadline: Longest duration of an attempt by the last known policy, in seconds.
        span: Delivery.span of the deliveries.
        max_bytes: Most bytes of all payloads together. If this is positive, at least one delivery is taken, whatever
            its size.
    """

    route: str
    capacity: int
    position: int
    deadline: float
    span: str = "call"
    max_bytes: int = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One part of a sweep: a search for deliveries of a route that lie before its position.

    Attributes:
        route: Code of the route.
        from_key: Search subjects from this key on; None: search no subjects.
        after_id: Search deliveries without a subject after this id; None: search none.
        position: Position of the route.
    """

    route: str
    from_key: int | None
    after_id: int | None
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The result of a Search: the deliveries that may go on in the part that was searched.

    Attributes:
        route: Code of the route.
        keys: Keys of subjects of which the first delivery may go on, unless it is in flight.
        next_key: The next search begins at this subject key; None: all subjects were searched.
        first_id: Id of the first delivery without a subject; None: none was found.
        after_id: The next search for deliveries without a subject begins after this id; None: all were searched, or one
            was found.
    """

    route: str
    keys: Sequence[int]
    next_key: int | None
    first_id: int | None
    after_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The result of a try to take the delivery lease.

    Attributes:
        held: True: this consumer holds the delivery lease.
        continuous: True: this consumer has held the lease without a break, so the deliveries that it has taken are
            still its own.
        holder: Id of the other consumer that holds the lease; empty: there is none.
        holder_gone: True: the database session of ``holder`` has ended.
        unclean: True: the previous lease ended without being given back: a delivery may have ended the process of its
            holder.
    """

    held: bool
    continuous: bool = False
    holder: str = ""
    holder_gone: bool = False
    unclean: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeResult:
    """The answer of a take query.

    Attributes:
        taken: The next deliveries.
        routes: State of each route.
        seconds: Shortest possible time from the start of the statement until it read the switches, in seconds.
    """

    taken: Sequence[TakenDelivery]
    routes: Sequence[RouteState]
    seconds: float = 0.0


@dataclass(slots=True)
class Outcome:
    """The outcome of one attempt.

    Attributes:
        taken: The delivery.
        result: The result.
        began: Start of the attempt, by the monotonic clock of the consumer, in seconds.
        ended: End of the attempt, by the same clock, in seconds.
        code: Machine-readable reason of a failure; empty: there was none.
        detail: Readable reason of a failure; empty: there was none.
        retry_after: Shortest time until the next attempt, in seconds; None: by the retry policy.
        near_success: True: another delivery of the route succeeded while this attempt was in flight, or shortly before.
        called: Text of the target that was called, as made by called(); empty: no target was called.
        dead_letter: True: the delivery became a dead letter; known after the settlement.
    """

    taken: TakenDelivery
    result: Result
    began: float
    ended: float
    code: str = ""
    detail: str = ""
    retry_after: float | None = None
    near_success: bool = False
    called: str = ""
    dead_letter: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """New dead letters of one route with one failure code.

    Attributes:
        route: Code of the route.
        code: Failure code.
        count: Number of the dead letters.
        event: Id of the event of one of them.
        why: Reason of that one; empty: none is known.
    """

    route: str
    code: str
    count: int
    event: str
    why: str

    @classmethod
    def among(cls, outcomes: Iterable[Outcome]) -> list[DeadLetters]:
        """The dead letters among settled outcomes, in groups, with the event and the reason of the first of each."""
        groups: dict[tuple[str, str], list[Outcome]] = {}
        for outcome in outcomes:
            if outcome.dead_letter:
                groups.setdefault((outcome.taken.delivery.route, outcome.code), []).append(outcome)
        return [
            cls(route, code, len(group), str(group[0].taken.delivery.event.id), group[0].detail)
            for (route, code), group in groups.items()
        ]
