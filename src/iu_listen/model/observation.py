"""Observations: the closed list of facts that a consumer reports to logs, metrics, live spans and systemd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iu_listen.model.delivery import DeadLetters, Outcome
from iu_listen.model.monitoring import Blocker, MetricsSnapshot
from iu_listen.model.routing import Batch, State, Wake, WorkerName


@dataclass(frozen=True, slots=True)
class Started:
    """The consumer has started and has run no batch yet.

    Attributes:
        worker: Name of the worker.
        database: Name of the database and version of the server; empty: the program gave none.
    """

    worker: WorkerName
    database: str


@dataclass(frozen=True, slots=True)
class StandingBy:
    """Another consumer holds the worker's lease, so this one is a standby. Reported once for each lease holder.

    Attributes:
        worker: Name of the worker.
        holder: Description of the consumer that holds the lease.
    """

    worker: WorkerName
    holder: str


@dataclass(frozen=True, slots=True)
class LeaseTaken:
    """The consumer that reports this has become the holder of the worker's lease.

    Attributes:
        worker: Name of the worker.
    """

    worker: WorkerName


@dataclass(frozen=True, slots=True)
class Listening:
    """The bell works: a notification that was sent from another session arrived.

    Attributes:
        slot: Number of the slot; None: every slot is taken, so the consumer polls.
    """

    slot: int | None


@dataclass(frozen=True, slots=True)
class Polling:
    """LISTEN is not available, so the consumer polls. Reported once for each reason.

    Attributes:
        why: The reason.
    """

    why: str


@dataclass(frozen=True, slots=True)
class BatchRan:
    """A batch was run, with or without events.

    Attributes:
        worker: Name of the worker.
        wake: Why the consumer looked at the outbox.
        batch: Result of the batch.
        delay: Time from the notification that caused the batch to its start, in seconds; 0: no notification caused it.
        dead_letters: The most frequent kinds of the dead letters that the batch made; empty if they are not known.
    """

    worker: WorkerName
    wake: Wake
    batch: Batch
    delay: float = 0.0
    dead_letters: Sequence[DeadLetters] = ()


@dataclass(frozen=True, slots=True)
class HeartbeatWritten:
    """The heartbeat was written: the worker session works, in an active consumer or in a standby.

    Reported at least once in each interval of the catch-up poll.

    Attributes:
        worker: Name of the worker.
        state: State of the consumer.
    """

    worker: WorkerName
    state: State


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The state of the worker changed, for example because a gate was opened. IDLE and BUSY count as one state.

    Attributes:
        worker: Name of the worker.
        state: The new state.
        why: The reason, for example ``worker_gate_closed``; empty: the state is IDLE.
    """

    worker: WorkerName
    state: State
    why: str


@dataclass(frozen=True, slots=True)
class NotificationMissed:
    """A catch-up poll found events that were committed while the consumer was idle, without a notification.

    Attributes:
        worker: Name of the worker.
        events: Number of these events.
    """

    worker: WorkerName
    events: int


@dataclass(frozen=True, slots=True)
class BlockerFound:
    """A blocker began to delay or threaten the consumer. Reported once until it ends.

    Attributes:
        worker: Name of the worker.
        blocker: The blocker.
    """

    worker: WorkerName
    blocker: Blocker


@dataclass(frozen=True, slots=True)
class BlockerCleared:
    """A blocker has ended.

    Attributes:
        worker: Name of the worker.
        blocker: Its last known state.
    """

    worker: WorkerName
    blocker: Blocker


@dataclass(frozen=True, slots=True)
class CompletenessChecked:
    """A pass of the completeness check ended: all events before the cursor were checked.

    Attributes:
        worker: Name of the worker.
        checked: Number of events that were checked.
        missing: Number of these events that lack attempts.
        seconds: Duration of the pass, in seconds.
    """

    worker: WorkerName
    checked: int
    missing: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MetricsTaken:
    """The database was measured for metrics. Reported only if metrics are enabled.

    Attributes:
        worker: Name of the worker.
        survey: The measurements.
    """

    worker: WorkerName
    survey: MetricsSnapshot


@dataclass(frozen=True, slots=True)
class MetricsFailed:
    """The database could not be measured.

    Reported for each failure. The first of several equal failures in a row is also reported as SessionFailed.

    Attributes:
        worker: Name of the worker.
        kind: Class name of the error.
    """

    worker: WorkerName
    kind: str


@dataclass(frozen=True, slots=True)
class DeliveriesSettled:
    """Outcomes were settled in one transaction.

    Attributes:
        worker: Name of the worker.
        outcomes: The outcomes.
        dead: Number of these deliveries that became dead letters.
        dead_letters: These dead letters, by route and failure code; empty if they are not known.
    """

    worker: WorkerName
    outcomes: Sequence[Outcome]
    dead: int = 0
    dead_letters: Sequence[DeadLetters] = ()


@dataclass(frozen=True, slots=True)
class CallAbandoned:
    """A call ignored its cancellation and was abandoned.

    Attributes:
        worker: Name of the worker.
        route: Code of the route.
        called: Text of the target, as made by called().
        running: Number of abandoned calls of this target that still run.
    """

    worker: WorkerName
    route: str
    called: str
    running: int


@dataclass(frozen=True, slots=True)
class GroupFailed:
    """A call with several deliveries failed, so each of them is attempted in a call of its own.

    Attributes:
        worker: Name of the worker.
        route: Code of the route.
        called: Text of the target, as made by called().
        deliveries: Number of deliveries of the call.
        why: The reason.
    """

    worker: WorkerName
    route: str
    called: str
    deliveries: int
    why: str


@dataclass(frozen=True, slots=True)
class RoutePaused:
    """A route is paused by a closed switch, the circuit breaker, the budget of dead letters, or a missing target.

    Reported once for each reason, until the reason changes or the route is free.

    Attributes:
        worker: Name of the worker.
        route: Code of the route.
        paused_by: ``route_disabled``, ``dry_run``, the name of a closed switch, ``dead_letter_budget``,
            ``breaker_open`` or ``no_target``.
        why: The last failure, or the reason why there is no target; empty: there is none.
        hint: Advice for the operator; empty: there is none.
    """

    worker: WorkerName
    route: str
    paused_by: str
    why: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class RouteResumed:
    """A route is not paused any more.

    Attributes:
        worker: Name of the worker.
        route: Code of the route.
        paused_by: The last reason of the pause.
    """

    worker: WorkerName
    route: str
    paused_by: str


@dataclass(frozen=True, slots=True)
class SpansExported:
    """A collector accepted spans.

    Attributes:
        spans: Number of spans that the collector accepted.
        rejected: Number of spans that the collector rejected for good.
        ignored: Number of malformed trace contexts, which were ignored.
        why: Reason of the rejections; empty: there were none.
    """

    spans: int
    rejected: int
    ignored: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class ExportDelayed:
    """A collector did not accept spans.

    Attributes:
        why: The reason, without secrets.
        retry_in: Pause until the spans are sent again, in seconds.
        poison: Id of a malformed span that is left out for good; None: the spans are sent again.
    """

    why: str
    retry_in: float
    poison: str | None


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """A session was lost or could not be opened.

    Attributes:
        session: ``worker``, ``listener``, ``monitor``, ``completeness``, ``delivery``, ``traces`` or ``metrics``.
        why: The reason, without secrets.
        retry_in: Pause until the next try, in seconds.
    """

    session: str
    why: str
    retry_in: float


@dataclass(frozen=True, slots=True)
class Stopping:
    """The consumer was asked to stop. It completes the running batch first.

    Attributes:
        why: The reason, for example the name of a signal.
    """

    why: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The consumer has stopped.

    Attributes:
        worker: Name of the worker.
        events: Number of events that it read since it started.
    """

    worker: WorkerName
    events: int


Observation = (
    Started
    | StandingBy
    | LeaseTaken
    | Listening
    | Polling
    | BatchRan
    | HeartbeatWritten
    | StateChanged
    | NotificationMissed
    | BlockerFound
    | BlockerCleared
    | CompletenessChecked
    | MetricsTaken
    | MetricsFailed
    | DeliveriesSettled
    | CallAbandoned
    | GroupFailed
    | RoutePaused
    | RouteResumed
    | SpansExported
    | ExportDelayed
    | SessionFailed
    | Stopping
    | Stopped
)
