"""The closed list of everything that can be seen happening. Logs, metrics, spans and systemd are readers of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iu_listen.model.delivery import Outcome
from iu_listen.model.facts import Batch, Culprit, State, Survey, Wake, WorkerName


@dataclass(frozen=True, slots=True)
class Started:
    """The consumer process is up and has not looked yet."""

    worker: WorkerName
    database: str


@dataclass(frozen=True, slots=True)
class StandingBy:
    """Another consumer holds the worker's lease. Said once an episode."""

    worker: WorkerName
    holder: str


@dataclass(frozen=True, slots=True)
class LeaseTaken:
    """We are the consumer that works."""

    worker: WorkerName


@dataclass(frozen=True, slots=True)
class Listening:
    """The bell works: a notification sent from another session arrived."""

    slot: int | None


@dataclass(frozen=True, slots=True)
class Polling:
    """There is no bell; the consumer polls, and this is why. Said once an episode."""

    why: str


@dataclass(frozen=True, slots=True)
class BatchRan:
    """A batch was run, whatever it found; ``delay`` seconds after the ring that caused it, if one did."""

    worker: WorkerName
    wake: Wake
    batch: Batch
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Beaten:
    """The heartbeat was written, at least once a cadence: the worker session works, active or standing by."""

    worker: WorkerName
    state: State


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The worker went from one state to another: a gate opened, a refusal began. IDLE and BUSY count as one."""

    worker: WorkerName
    state: State
    why: str


@dataclass(frozen=True, slots=True)
class WakeLost:
    """A catch-up found events that were committed while the consumer slept, and nobody had rung."""

    worker: WorkerName
    events: int


@dataclass(frozen=True, slots=True)
class CulpritNamed:
    """Somebody began to delay or threaten us. Said once an episode."""

    worker: WorkerName
    culprit: Culprit


@dataclass(frozen=True, slots=True)
class CulpritGone:
    """That ended; ``culprit`` is as it was last seen."""

    worker: WorkerName
    culprit: Culprit


@dataclass(frozen=True, slots=True)
class AuditPassed:
    """Every event behind the cursor was looked at: so many, of which so many lack attempts."""

    worker: WorkerName
    checked: int
    missing: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """The database was measured for metrics. Only where somebody asked for metrics."""

    worker: WorkerName
    survey: Survey


@dataclass(frozen=True, slots=True)
class MeasureFailed:
    """The database could not be measured, by the name of the error. Said each time; its episode is a SessionFailed."""

    worker: WorkerName
    kind: str


@dataclass(frozen=True, slots=True)
class DeliveriesSettled:
    """Attempts to deliver were settled in one transaction; so many of them became dead letters."""

    worker: WorkerName
    outcomes: Sequence[Outcome]
    dead: int = 0


@dataclass(frozen=True, slots=True)
class CallAbandoned:
    """A call went on after its cancellation and was left behind; so many such calls of that target still run."""

    worker: WorkerName
    route: str
    called: str
    running: int


@dataclass(frozen=True, slots=True)
class RouteHeld:
    """A route delivers no more: a lock, its breaker, its budget of dead letters, no target. Said once an episode."""

    worker: WorkerName
    route: str
    held_by: str
    why: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class RouteFree:
    """That ended."""

    worker: WorkerName
    route: str
    held_by: str


@dataclass(frozen=True, slots=True)
class SpansExported:
    """A collector has so many more spans; some it refused for good (``why``), some trace contexts were malformed."""

    spans: int
    rejected: int
    ignored: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class SpansHeld:
    """A collector did not take spans: they are sent again in ``retry_in`` seconds, or ``poison`` is left out."""

    why: str
    retry_in: float
    poison: str | None


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """A session was lost or could not be had; another one is tried in ``retry_in`` seconds."""

    session: str
    why: str
    retry_in: float


@dataclass(frozen=True, slots=True)
class Stopping:
    """The consumer was asked to stop; the running batch ends, then it leaves."""

    why: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The consumer has left."""

    worker: WorkerName
    events: int


Observation = (
    Started
    | StandingBy
    | LeaseTaken
    | Listening
    | Polling
    | BatchRan
    | Beaten
    | StateChanged
    | WakeLost
    | CulpritNamed
    | CulpritGone
    | AuditPassed
    | Measured
    | MeasureFailed
    | DeliveriesSettled
    | CallAbandoned
    | RouteHeld
    | RouteFree
    | SpansExported
    | SpansHeld
    | SessionFailed
    | Stopping
    | Stopped
)
