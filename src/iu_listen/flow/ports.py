"""Ports: the interfaces through which the flow uses sessions, targets and observers. Each port is minimal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from iu_listen.model.delivery import (
    DeadLetters,
    DecidedCall,
    Delivery,
    Lease,
    Outcome,
    Search,
    SearchResult,
    TakenDelivery,
    TakeRequest,
    TakeResult,
)
from iu_listen.model.monitoring import Blocker, CompletenessPage, MetricsSnapshot
from iu_listen.model.observation import Observation
from iu_listen.model.routing import Batch, BatchAnswer, BatchFailure, State, Tally
from iu_listen.model.spans import Page, Place, Span, Verdict


class Observer(Protocol):
    """An observer: receives observations. It must neither raise nor wait; one that raises is removed."""

    def observe(self, observation: Observation, /) -> None:
        """Receive one observation.

        Args:
            observation: An object of one of the classes of ``iu_listen.model.observation``.
        """


class BatchRunner(Protocol):
    """The worker session: the lease, and the batches that run under it.

    Every method raises SessionLost when the session ended or did not answer within its deadline, and Refused when
    the database answered with an error: a missing table, a full disk, a missing privilege.
    """

    @property
    def backend(self) -> int | None:
        """Process id of the session on the server; None if a pooler hides it."""

    @property
    def failure(self) -> BatchFailure | None:
        """How the last batch failed; None if it did not raise."""

    def abandon(self, why: str) -> None:
        """Close the session at once without telling the server; a method that waits for it raises SessionLost."""

    async def take_lease(self) -> str | None:
        """Try to take the worker's lease. Returns None on success, else a description of the lease holder."""

    async def run_batch(self, limit: int, requests: Sequence[TakeRequest] = ()) -> BatchAnswer:
        """Route at most ``limit`` events in one transaction, and hand over new deliveries.

        Args:
            limit: Most events.
            requests: The deliveries that the dispatcher accepts, by route.
        """

    async def dead_letters(self, batch: Batch) -> Sequence[DeadLetters]:
        """The most frequent kinds of the dead letters that a batch has made."""

    async def note_failure(self, limit: int, failure: BatchFailure) -> None:
        """Record that a batch of at most ``limit`` events failed, so that the next batches search for the cause."""

    async def beat(self, state: State, why: str, listening: bool, polling_why: str, tally: Tally) -> None:
        """Write the heartbeat. ``polling_why`` is empty if the consumer does not have to poll."""


class Listener(Protocol):
    """The listener session: it executes LISTEN and holds the armed lock.

    Every method raises SessionLost when the session ended or did not answer within its deadline.

    Attributes:
        slot: Number of the advisory lock that this session can hold; None: all slots are taken.
    """

    slot: int | None

    async def arm(self) -> bool:
        """Tell all producers to send NOTIFY.

        Returns:
            False: not armed, because the events of a running transaction will become visible without NOTIFY, or because
            there is no free slot. The caller has to look at the outbox again.
        """

    async def disarm(self) -> None:
        """Tell all producers not to send NOTIFY."""

    async def watch(self) -> None:
        """Check repeatedly that the session is alive and receives notifications. Ends only by raising."""


class BlockerSource(Protocol):
    """The session of the monitor.

    Every method raises as those of BatchRunner do, and NoAnswer when no answer came within the deadline.
    """

    async def blockers(self) -> list[Blocker]:
        """The present blockers: everything that delays or threatens the consumer now."""

    async def works(self, backend: int) -> bool:
        """Whether the server process with this id executes a statement."""

    async def deliverable(self) -> bool:
        """Whether a route of the worker is live, or has deliveries that wait."""


class CompletenessChecker(Protocol):
    """The session of the completeness check: it searches, page by page, for events before the cursor without attempts.

    Every method raises SessionLost or Refused, as those of the worker session do.
    """

    async def due(self) -> float:
        """Seconds until the next pass is due; 0 or less: now."""

    async def page(self, limit: int, number: int | None) -> CompletenessPage:
        """Check the next ``limit`` events of a pass.

        Args:
            limit: Most events.
            number: Number of the pass; None: the running pass, or a new one if none is running.
        """


class MetricsSource(Protocol):
    """The session that measures the database for metrics. It raises as BatchRunner does."""

    async def measure(self) -> MetricsSnapshot:
        """All figures of this moment, and the latencies of the decisions since the last call."""


class TraceSource(Protocol):
    """The session of the trace export. Every method raises SessionLost or Refused, as those of BatchRunner do."""

    async def take_lease(self) -> str | None:
        """Try to become the only reader of the export. Returns None on success, else a description of the reader."""

    async def tick(self) -> Place | None:
        """The place up to which the collector accepted the open tick; None: there is nothing to export."""

    async def place_since(self, since: datetime) -> Place:
        """The place from which all rows since this time are exported again."""

    async def spans_after(self, place: Place) -> Sequence[Span]:
        """Spans of the newest attempts after a place, in its tick or in later ones; empty: there are none."""

    async def keep_alive(self) -> None:
        """Execute a statement, so that the session timeout does not end the session."""

    async def page(self, place: Place, limit: int) -> Page:
        """The spans of the next ``limit`` rows."""

    async def accepted(self, page: Page, rejected: int) -> bool:
        """Record that the collector accepted a page, except ``rejected`` of its spans.

        Returns:
            True: routing is behind, so the export has to slow down.
        """


class Collector(Protocol):
    """The receiver of spans. It does not raise: every error becomes a verdict."""

    async def send(self, spans: Sequence[Span]) -> Verdict:
        """Send spans, in bounded time."""


class Target(Protocol):
    """The target of one or more routes. It is created at its first use, inside the running event loop."""

    async def deliver(self, delivery: Delivery, /) -> None:
        """Deliver one event. Calls run concurrently, up to the concurrency of the route.

        It returns when the target has accepted the event, and raises as documented in iu_listen.model.delivery. It may
        be cancelled at any moment (deadline, shutdown). Then the event is delivered again with the same idempotency
        key.
        """

    async def aclose(self) -> None:
        """Close all connections, in bounded time. deliver() is not called after this."""


@runtime_checkable
class GroupTarget(Target, Protocol):
    """A target that may take several deliveries of one route in one call.

    Attributes:
        group: Most deliveries of a call; 1: it takes no groups.
        group_wait: Longest time for which a call waits for further deliveries, in seconds.
    """

    group: int
    group_wait: float

    async def deliver_group(self, deliveries: Sequence[Delivery], /) -> Mapping[Delivery, BaseException]:
        """Deliver the events of at least two deliveries, in the order of the list.

        If it raises, or is cancelled, each of the deliveries is passed to deliver() afterwards.

        Returns:
            The deliveries that failed, each with its exception. All others succeeded.
        """


class TargetProvider(Protocol):
    """The registry of targets."""

    def find(self, kind: str, reference: str, options: Mapping[str, Any]) -> Target:
        """The target of a route.

        Args:
            kind: ``target_kind`` of the route.
            reference: ``target_ref`` of the route.
            options: ``target`` of its delivery policy.

        Raises:
            ConfigurationError: the target does not exist.
        """

    async def aclose(self) -> None:
        """Close all targets that find() has returned, in bounded time."""


class DeliveryStore(Protocol):
    """The delivery session. Every method raises SessionLost or Refused, as those of BatchRunner do.

    Attributes:
        announces_changes: Whether the database sends a notification when a route or a switch is changed and when
            deliveries are queued again, which schema 1.0 does not.
    """

    announces_changes: bool

    async def take_lease(self, gone_holder: str = "") -> Lease:
        """Try to take the delivery lease of the worker.

        Args:
            gone_holder: A lease holder that had no session at the previous try, so that its lease can be taken over;
                empty: there was none.
        """

    async def settle(self, outcomes: Sequence[Outcome]) -> int | None:
        """Write outcomes and renew the delivery lease. It may run at the same time as take().

        It sets ``dead_letter`` of the outcomes.

        Returns:
            The number of new dead letters. None: the lease is lost, and nothing was written.
        """

    async def take(
        self, requests: Sequence[TakeRequest], retried_ids: Sequence[int], unblocked: Sequence[tuple[str, int]]
    ) -> TakeResult:
        """Take the next deliveries, and read the state of each route.

        Args:
            requests: Number of deliveries, and the position to start from, for each route.
            retried_ids: Ids of deliveries that the dispatcher holds and that were attempted before.
            unblocked: Routes and keys of subjects of which the next delivery may go on.
        """

    async def peek(self, requests: Sequence[TakeRequest]) -> Sequence[TakenDelivery]:
        """The deliveries of a single new event that the next batch will queue; none if that is not certain.

        Their ids are 0.
        """

    async def of_call(self, route: str, event: UUID, *, sent: bool) -> DecidedCall | None:
        """The decision about an event that was called ahead; None: it is not decided yet, or the lease is lost.

        Args:
            route: Code of the route.
            event: Id of the event.
            sent: True: the call has succeeded. If the event was decided otherwise, its delivery is queued now.
        """

    async def sweep(self, searches: Sequence[Search]) -> Sequence[SearchResult]:
        """Search a bounded part of the deliveries that lie before the positions of their routes."""

    async def record_in_flight(self, pairs: Sequence[tuple[str, int]]) -> bool:
        """Write the routes and ids of the deliveries that are about to be in flight. False: the lease is lost."""

    async def note_unusable(self, routes: Mapping[str, tuple[str, str]]) -> None:
        """Write the routes without a usable target, with reason and hint. All other routes are marked as usable."""

    async def release(self) -> None:
        """Give the delivery lease back."""


class Sessions(Protocol):
    """Opens sessions. Each method returns a context manager that always closes its session in bounded time.

    Entering the context raises SessionLost when no session can be opened, and ListenUnavailable when LISTEN cannot
    work.
    """

    def worker(self) -> AbstractAsyncContextManager[BatchRunner]:
        """Open the worker session."""

    def listener(self, wake: Callable[[bool], None]) -> AbstractAsyncContextManager[Listener]:
        """Open the listener session; ``wake`` is called for every notification and when the session ends.

        Its argument says whether something else than new events may have changed: a gate, a route, a switch, or the
        deliveries that are queued again.
        """

    def monitor(self) -> AbstractAsyncContextManager[BlockerSource]:
        """Open the session of the monitor."""

    def completeness(self) -> AbstractAsyncContextManager[CompletenessChecker]:
        """Open the session of the completeness check."""

    def metrics(self) -> AbstractAsyncContextManager[MetricsSource]:
        """Open the session that measures for metrics."""

    def trace_source(self) -> AbstractAsyncContextManager[TraceSource]:
        """Open the session of the trace export."""

    def deliveries(self, wake: Callable[[], None]) -> AbstractAsyncContextManager[DeliveryStore]:
        """Open the delivery session; ``wake`` is called when it is lost."""


class ListenUnavailable(Exception):
    """LISTEN cannot work (a transaction pooler, or switched off). The message is the reason for polling."""
