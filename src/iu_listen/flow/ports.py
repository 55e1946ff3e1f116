"""What the flow needs from outside. Each port is as small as that need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol

from iu_listen.model.delivery import Delivery, Found, Lease, Outcome, Search, Supply, Taken, Want
from iu_listen.model.facts import AuditPage, Batch, BatchFailure, Culprit, State, Survey, Tally
from iu_listen.model.observation import Observation
from iu_listen.model.trace import Page, Place, Span, Verdict


class Watcher(Protocol):
    """Somebody who sees what happens. It must neither raise nor wait."""

    def note(self, observation: Observation, /) -> None:
        """Take notice of what just happened."""


class Outbox(Protocol):
    """The worker session: the lease, and the batches that run under it.

    Every method raises SessionLost when the session ended or did not answer within its deadline, and Refused when
    the database answered with an error: a missing table, a full disk, a missing privilege.
    """

    @property
    def backend(self) -> int | None:
        """Its server process; None where a pooler hides it."""

    @property
    def failure(self) -> BatchFailure | None:
        """How the last batch failed, where it raised."""

    def abandon(self, why: str) -> None:
        """End the session at once, without a word to the server: whoever waits for it gets SessionLost."""

    async def take_lease(self) -> str | None:
        """Become the worker's one active consumer. None: done. Else: who is it already."""

    async def run_batch(
        self, limit: int, wants: Sequence[Want] = (), give: Callable[[Sequence[Taken], float], None] | None = None
    ) -> Batch:
        """Route at most ``limit`` events in one transaction, and hand over what it queued that somebody wants.

        ``give`` is called once at most, before this returns, with what was taken and how many seconds that took; it
        neither raises nor waits.
        """

    async def note_failure(self, limit: int, failure: BatchFailure) -> None:
        """Note that a batch of at most ``limit`` events failed, so that the next ones look for its cause."""

    async def beat(self, state: State, why: str, listening: bool, polling_why: str, tally: Tally) -> None:
        """Write the heartbeat. ``polling_why`` is empty where it need not poll."""


class Bell(Protocol):
    """The bell session: LISTEN, and the lock that says "asleep".

    Every method raises SessionLost when the session ended or did not answer within its deadline.
    """

    slot: int | None

    async def arm(self) -> bool:
        """Say "asleep" to all writers. False: a writer is about to become visible without ringing; look again."""

    async def disarm(self) -> None:
        """Say "awake": writers need not notify."""

    async def watch(self) -> None:
        """Prove again and again that the session is alive and listening. Ends only by raising."""


class Lookout(Protocol):
    """The patrol's session. Every method raises as those of Outbox do, and NoAnswer when nothing came back in time."""

    async def culprits(self) -> list[Culprit]:
        """Who delays or threatens us now."""

    async def works(self, backend: int) -> bool:
        """Whether this server process is executing something."""

    async def deliverable(self) -> bool:
        """Whether a route of the worker delivers, or has deliveries that wait."""


class Auditor(Protocol):
    """The audit session: whether every event behind the cursor has its attempts, a page at a time.

    Every method raises SessionLost or Refused, as those of the worker session do.
    """

    async def due(self) -> float:
        """In how many seconds the next pass is due; 0 or less: now."""

    async def page(self, limit: int, number: int | None) -> AuditPage:
        """Look at the next ``limit`` events of this pass; None: of the one that is running, else of a new one."""


class Surveyor(Protocol):
    """The session that measures for metrics. Raises as Outbox does."""

    async def measure(self) -> Survey:
        """Everything that is measured now, and how late the decisions since the last time were."""


class TraceSource(Protocol):
    """The session of the trace reader. Every method raises SessionLost or Refused, as those of Outbox do."""

    async def take_lease(self) -> str | None:
        """Become the one reader of the export. None: done. Else: who is it already."""

    async def tick(self) -> Place | None:
        """Where the open tick was accepted up to; None: there is nothing to export."""

    async def again(self, since: datetime) -> Place:
        """Where a repetition of all since then begins."""

    async def beyond(self, place: Place) -> Sequence[Span]:
        """The youngest of the attempts that follow a place, in this tick or after it; none: there are none."""

    async def alive(self) -> None:
        """Use the session, so that the server does not take it for a dead one."""

    async def page(self, place: Place, limit: int) -> Page:
        """The spans of the next ``limit`` rows."""

    async def accepted(self, page: Page, rejected: int) -> bool:
        """Note that the collector has a page, ``rejected`` of its spans aside. True: routing is behind, give way."""


class Collector(Protocol):
    """Where spans go. It does not raise: whatever happens on the way is a verdict."""

    async def send(self, spans: Sequence[Span]) -> Verdict:
        """Send spans, in bounded time."""


class Target(Protocol):
    """Where deliveries of one or more routes go. Made when it is first needed, inside the running loop."""

    async def deliver(self, delivery: Delivery, /) -> None:
        """Deliver one event. Called many times at once, up to the concurrency of the route.

        It returns when the target has the event, and raises as iu_listen.model.delivery says. It may be cancelled at
        any moment (the deadline, a stop); then the event is delivered again, with the same idempotency key.
        """

    async def aclose(self) -> None:
        """Let go of connections, in bounded time. Nothing is delivered any more."""


class Courier(Protocol):
    """Who delivers what is queued. It must neither raise nor wait."""

    @property
    def delivering(self) -> bool:
        """It looks by itself for what there is to deliver."""

    def work(self) -> None:
        """The worker is ours, or there is something new to deliver."""

    def wants(self) -> Sequence[Want]:
        """What a batch may hand over, of what it will queue."""

    def hand_over(self, wants: Sequence[Want], given: Sequence[Taken], seconds: float) -> None:
        """What a batch of so many seconds has queued and taken for us, which began when we had these wants."""

    def rest(self) -> None:
        """The worker is somebody else's."""


class Targets(Protocol):
    """Where targets are found."""

    def find(self, kind: str, reference: str, options: Mapping[str, Any]) -> Target:
        """The target of a route. Raises ConfigurationError where there is none."""

    async def aclose(self) -> None:
        """Close all that were found."""


class Deliveries(Protocol):
    """The delivery session. Every method raises SessionLost or Refused, as those of Outbox do."""

    async def take_lease(self, gone: str = "") -> Lease:
        """Become the one who delivers for the worker, if nobody is; ``gone`` had no session when we asked before."""

    async def settle(self, done: Sequence[Outcome]) -> int | None:
        """Write what came of deliveries, and renew the lease; how many became dead letters.

        None: the lease is lost, and nothing was written. May be called while take() is.
        """

    async def take(self, wants: Sequence[Want], again: Sequence[int], freed: Sequence[tuple[str, int]]) -> Supply:
        """The next deliveries that there is room for, and what holds each route.

        Args:
            wants: How many, of which route, from where.
            again: Ids that we have already, of deliveries that were tried before.
            freed: Routes and keys of the subjects that may go on now.
        """

    async def sweep(self, searches: Sequence[Search]) -> Sequence[Found]:
        """Search a bounded part of what the positions of these routes have passed."""

    async def in_flight(self, pairs: Sequence[tuple[str, int]]) -> bool:
        """Write routes and ids of the deliveries that are about to be in flight. False: the lease is lost."""

    async def note_unusable(self, routes: Mapping[str, tuple[str, str]]) -> None:
        """Write which routes have no usable target, why, and what to do about it; all others have one."""

    async def release(self) -> None:
        """Give the lease back."""


class Sessions(Protocol):
    """Where sessions come from. Each is a context manager that ends its session in bounded time, come what may.

    Entering raises SessionLost when no session can be had, and NoBell when LISTEN cannot work there.
    """

    def outbox(self) -> AbstractAsyncContextManager[Outbox]:
        """Open the worker session."""

    def bell(self, ring: Callable[[], None]) -> AbstractAsyncContextManager[Bell]:
        """Open the bell session; ``ring`` is called for every notification and when the session ends."""

    def lookout(self) -> AbstractAsyncContextManager[Lookout]:
        """Open the patrol's session."""

    def auditor(self) -> AbstractAsyncContextManager[Auditor]:
        """Open the audit session."""

    def surveyor(self) -> AbstractAsyncContextManager[Surveyor]:
        """Open the session that measures."""

    def tracer(self) -> AbstractAsyncContextManager[TraceSource]:
        """Open the session of the trace reader."""

    def deliveries(self, ring: Callable[[], None]) -> AbstractAsyncContextManager[Deliveries]:
        """Open the delivery session; ``ring`` is called when it is lost."""


class NoBell(Exception):
    """LISTEN cannot work here (a transaction pooler, or switched off): poll, and say why."""
