"""What the consumer deals in: worker names, wakes, batches, states."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NewType

WorkerName = NewType("WorkerName", str)

#: The worker that runtime/060 registers.
DEFAULT_WORKER = WorkerName("iu_outbound_default")

#: The channel that the bell trigger notifies, always with an empty payload.
CHANNEL = "iu_event_outbox"

#: Gates by the short name that people type.
GATES = {
    "master": "iu_core.routes_master_enabled",
    "worker": "iu_core.route_worker_enabled",
    "delivery": "iu_core.delivery_enabled",
}


class Wake(StrEnum):
    """Why the consumer looked at the outbox."""

    START_UP = "start_up"
    RECONNECT = "reconnect"
    NOTIFY = "notify"
    CATCH_UP = "catch_up"
    LINGER = "linger"
    POLL = "poll"


class State(StrEnum):
    """What a consumer says of itself in its heartbeat."""

    STARTING = "starting"
    STANDING_BY = "standing_by"
    GATE_CLOSED = "gate_closed"
    REFUSING = "refusing"
    FAILING = "failing"
    IDLE = "idle"
    BUSY = "busy"
    STOPPED = "stopped"


#: The states in which a consumer looks for events, by the bell or by polling.
WORKING = frozenset({State.GATE_CLOSED, State.REFUSING, State.IDLE, State.BUSY})

#: What a status that fn_iu_route_worker_run answers means for the consumer.
STATE_OF_STATUS = {
    "ran": State.IDLE,
    "master_gate_closed": State.GATE_CLOSED,
    "worker_gate_closed": State.GATE_CLOSED,
    "foreign_history": State.REFUSING,
    "standby": State.REFUSING,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The answer of fn_iu_route_worker_run.

    Attributes:
        status: ``ran``, ``master_gate_closed``, ``worker_gate_closed``, ``foreign_history`` or ``standby``.
        seen: Events read.
        attempts: Attempts written; suppressed duplicates do not count.
        skipped: Of these, skipped.
        delivered: Of the attempts, how many really left.
        queued: Deliveries that were queued.
        dead_lettered: Dead letters written.
        more: True when the page was full: run again at once.
        reason: Why a worker refuses; empty otherwise.
        lineage: The history that its transaction belongs to; empty where it wrote nothing.
        xact_id: Its transaction; 0 where it wrote nothing.
        seconds: How long the call took.
        began_ns: When it began, in nanoseconds since 1970; 0: nobody looked at the clock.
        handed: Deliveries that were handed over at once; they may be older.
    """

    status: str
    seen: int = 0
    attempts: int = 0
    skipped: int = 0
    delivered: int = 0
    queued: int = 0
    dead_lettered: int = 0
    more: bool = False
    reason: str = ""
    lineage: str = ""
    xact_id: int = 0
    seconds: float = 0.0
    began_ns: int = 0
    handed: int = 0

    @classmethod
    def from_answer(cls, answer: dict[str, Any], seconds: float, began_ns: int = 0, handed: int = 0) -> Batch:
        """Read the JSON answer of the function; ``seconds`` is how long it took, ``began_ns`` when it began."""
        return cls(
            status=answer["status"],
            seen=answer.get("seen", 0),
            attempts=answer.get("attempts_written", 0),
            handed=handed,
            skipped=answer.get("skipped", 0),
            delivered=answer.get("delivered", 0),
            queued=answer.get("queued", 0),
            dead_lettered=answer.get("dead_lettered", 0),
            more=answer.get("more", False),
            reason=answer.get("reason", ""),
            lineage=answer.get("lineage", ""),
            xact_id=int(answer.get("xact_id", 0)),
            seconds=seconds,
            began_ns=began_ns,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFailure:
    """How a batch failed, for fn_iu_route_worker_failed.

    Attributes:
        why: The error.
        timed_out: It took longer than its deadline.
        event: Id of the event that made it fail; empty where the error does not say.
        route: The route that did; empty where the error does not say.
    """

    why: str
    timed_out: bool = False
    event: str = ""
    route: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """Somebody or something that delays or threatens us: a row of v_iu_culprit.

    Attributes:
        what: late_event, vacuum, notify_queue, lease, bell_key or trigger.
        who: The session, prepared transaction, slot or trigger.
        effect: What follows from it.
        pid: Its server process, if it is a session.
        application: Its application_name.
        database: The database that it is connected to.
        state: As pg_stat_activity says it; prepared, disabled, ... where that cannot.
        seconds: Since when, as an age; None where nobody knows.
        xids: How many transactions vacuum is held back; None elsewhere.
    """

    what: str
    who: str
    effect: str
    pid: int | None = None
    application: str | None = None
    database: str | None = None
    state: str | None = None
    seconds: float | None = None
    xids: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same one in the next round. The NOTIFY queue has suspects, and they change."""
        return self.what, "" if self.what == "notify_queue" else self.who


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """The answer of fn_iu_audit_page.

    Attributes:
        status: ``walking``, ``confirming``, ``passed`` (the pass has ended), ``superseded`` or ``refused``.
        number: Which pass.
        checked: Events that the pass has looked at so far.
        missing: Of these, how many lack attempts, or seem to.
        share: Part of the log that it has walked, from 0 to 1.
        seconds: How long the pass has taken so far.
        reason: Why the cursor is not believed; empty otherwise.
    """

    status: str
    number: int = 0
    checked: int = 0
    missing: int = 0
    share: float = 0.0
    seconds: float = 0.0
    reason: str = ""

    @classmethod
    def from_answer(cls, answer: dict[str, Any]) -> AuditPage:
        """Read the JSON answer of the function."""
        return cls(
            status=answer["status"],
            number=answer.get("pass", 0),
            checked=answer.get("checked", 0),
            missing=answer.get("missing", 0),
            share=answer.get("share", 0.0),
            seconds=answer.get("seconds", 0.0),
            reason=answer.get("reason", ""),
        )

    @property
    def over(self) -> bool:
        """Whether there is no next page of this pass."""
        return self.status not in ("walking", "confirming")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure of the database: a row of fn_iu_measure.

    Attributes:
        what: ``gate`` and ``healthy`` (0 or 1), ``notification_queue`` (0 to 1), ``lag_items`` or ``lag_seconds``.
        part: Which gate, or what is waited for; None where there are no parts.
        figure: The figure.
        worker: Whose; None: of all.
    """

    what: str
    part: str | None
    figure: float
    worker: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was measured at one time.

    Attributes:
        measures: Figures of the database.
        latencies: How late decisions since the last time were, in seconds; a sample of the youngest.
        since_commit: They count from commit to commit; False: from insert to decision.
    """

    measures: tuple[Measure, ...]
    latencies: tuple[float, ...]
    since_commit: bool


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one consumer has done since it started; part of its heartbeat."""

    events: int = 0
    wakes: dict[str, int] = field(default_factory=dict)
    last_wake: Wake | None = None
    last_wake_at: datetime | None = None

    def count(self, name: str) -> None:
        """Add one to the wakes of this name."""
        self.wakes[name] = self.wakes.get(name, 0) + 1
