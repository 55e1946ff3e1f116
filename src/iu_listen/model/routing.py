"""Routing: worker names, gates, wake-ups, batches, and the states of a consumer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NewType

from iu_listen.model.delivery import TakenDelivery

WorkerName = NewType("WorkerName", str)

#: The worker that sql/runtime/060 registers.
DEFAULT_WORKER = WorkerName("iu_outbound_default")
#: The domain that the default worker reads.
DEFAULT_DOMAIN = "iu"

#: Channel of the NOTIFY that the trigger of the bell sends. The payload is the domain; empty: it concerns every domain.
CHANNEL = "iu_event_outbox"

#: Gates, by the short names that commands accept.
GATES = {
    "master": "iu_core.routes_master_enabled",
    "worker": "iu_core.route_worker_enabled",
    "delivery": "iu_core.delivery_enabled",
}


class Wake(StrEnum):
    """Why the consumer looked at the outbox.

    Attributes:
        START_UP: The first batch of the process.
        RECONNECT: The first batch after a lost session.
        NOTIFY: A notification arrived while the consumer was idle.
        CATCH_UP: The catch-up poll of an idle consumer.
        LINGER: A batch of a busy consumer, or the batch before arming.
        POLL: A batch of a consumer that has no bell.
    """

    START_UP = "start_up"
    RECONNECT = "reconnect"
    NOTIFY = "notify"
    CATCH_UP = "catch_up"
    LINGER = "linger"
    POLL = "poll"


class State(StrEnum):
    """The state of a consumer, as its heartbeat reports it.

    Attributes:
        STARTING: It has run no batch yet.
        STANDING_BY: Another consumer holds the lease.
        GATE_CLOSED: A gate is closed.
        REFUSING: The cursor is not valid for this database, or the server is a standby.
        FAILING: The last batch failed.
        IDLE: It has read all events.
        BUSY: There are more events than one batch could read.
        STOPPED: It was asked to stop, and has stopped.
    """

    STARTING = "starting"
    STANDING_BY = "standing_by"
    GATE_CLOSED = "gate_closed"
    REFUSING = "refusing"
    FAILING = "failing"
    IDLE = "idle"
    BUSY = "busy"
    STOPPED = "stopped"


#: The states in which a consumer looks for events, by the bell or by polling.
WORKING_STATES = frozenset({State.GATE_CLOSED, State.REFUSING, State.IDLE, State.BUSY})

#: State of the consumer, by the status that fn_iu_route_worker_run returns.
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
        skipped: Attempts with the status ``skipped``.
        delivered: Attempts whose target was called in the transaction of the batch and succeeded.
        queued: Deliveries that the batch queued.
        dead_lettered: Dead letters that the batch wrote.
        more: True: the page was full, so the next batch has to run at once.
        reason: Reason why the worker refuses to run; empty otherwise.
        lineage: Id of the database history to which the transaction of the batch belongs; empty: it wrote nothing.
        xact_id: Transaction id of the batch; 0: it wrote nothing.
        seconds: Duration of the call, in seconds.
        began_ns: Start of the batch, in nanoseconds since 1970; 0: not measured.
        handed_over: Deliveries that were handed over to the dispatcher; older batches may have queued some of them.
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
    handed_over: int = 0

    @classmethod
    def from_answer(cls, answer: dict[str, Any], seconds: float, began_ns: int = 0, handed_over: int = 0) -> Batch:
        """Build a batch from the JSON answer of the function.

        Args:
            answer: The answer.
            seconds: Duration of the call, in seconds.
            began_ns: Start of the batch, in nanoseconds since 1970; 0: not measured.
            handed_over: Deliveries that were handed over to the dispatcher.
        """
        return cls(
            status=answer["status"],
            seen=answer.get("seen", 0),
            attempts=answer.get("attempts_written", 0),
            handed_over=handed_over,
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
class BatchAnswer:
    """The answer to a batch. It is parsed on demand, so that calls can begin before.

    Attributes:
        json: The JSON answer of fn_iu_route_worker_run.
        seconds: Duration of the call, in seconds.
        began_ns: Start of the batch, in nanoseconds since 1970.
        deliveries: Deliveries that the batch hands over to the dispatcher.
    """

    json: str
    seconds: float
    began_ns: int
    deliveries: Sequence[TakenDelivery] = ()

    def parse(self) -> Batch:
        """The batch."""
        return Batch.from_answer(json.loads(self.json), self.seconds, self.began_ns, len(self.deliveries))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFailure:
    """The failure of a batch, as the argument of fn_iu_route_worker_failed.

    Attributes:
        why: Text of the error.
        timed_out: True: the batch exceeded its deadline.
        event: Id of the event that caused the failure; empty: the error does not name one.
        route: Code of the route that caused the failure; empty: the error does not name one.
    """

    why: str
    timed_out: bool = False
    event: str = ""
    route: str = ""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counters of one consumer since its start; part of its heartbeat.

    Attributes:
        events: Number of events that were read.
        wakes: Number of batches by the name of their Wake, and of missed notifications by the name ``lost``.
        last_wake: Reason of the last batch; None: there was no batch.
        last_wake_at: Time of the last batch, in UTC; None: there was no batch.
    """

    events: int = 0
    wakes: dict[str, int] = field(default_factory=dict)
    last_wake: Wake | None = None
    last_wake_at: datetime | None = None

    def count(self, name: str) -> None:
        """Add one to the counter of this name in ``wakes``."""
        self.wakes[name] = self.wakes.get(name, 0) + 1
