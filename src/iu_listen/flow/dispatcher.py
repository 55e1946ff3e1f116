"""The dispatcher: one task takes deliveries and starts their calls, another task settles the calls that have ended.

The number of deliveries per round trip grows with the load. While no delivery is in flight, a batch hands over the
deliveries that it has just queued. An in-flight delivery survives the loss of the session: if the database restarts
during a call, the outcome is settled in the next session, unless another consumer held the delivery lease meanwhile.

A dispatcher that cannot renew its delivery lease gives up all in-flight deliveries before the lease expires, so that
another consumer cannot run the same calls at the same time. In-flight deliveries of ordered routes are given up as soon
as the session is lost, because another consumer may get the lease immediately.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import anyio
import anyio.abc

from iu_listen.flow.backoff import backoff
from iu_listen.flow.call_ahead import CallAhead, Peeks, settleable
from iu_listen.flow.call_executor import ABANDON_AFTER, SWITCHES_VALID_FOR, CallExecutor
from iu_listen.flow.delivery_lease import DeliveryLease
from iu_listen.flow.detached import within
from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.intake import HandOver, Intake
from iu_listen.flow.pauses import PauseReporter
from iu_listen.flow.ports import DeliveryStore, Observer, Sessions, TargetProvider
from iu_listen.flow.quarantine import Quarantine
from iu_listen.flow.route_targets import RouteTargets
from iu_listen.flow.routes import RouteTable
from iu_listen.flow.sweep import Sweeper
from iu_listen.flow.taken_deliveries import TakenDeliveries
from iu_listen.flow.unblocked_subjects import UnblockedSubjects
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import DeadLetters, Delivery, TakenDelivery
from iu_listen.model.errors import safe_message
from iu_listen.model.observation import CallAbandoned, DeliveriesSettled, GroupFailed, SessionFailed
from iu_listen.model.routing import WorkerName
from iu_listen.model.settings import Settings

#: Longest pause between two take queries, and between two settlements, which renew the lease, while a delivery is in
#: flight. In seconds. Also the pause of an idle consumer that does not hear of changes.
DISPATCH_INTERVAL: Final = 1.0
#: The same pauses of an idle consumer, in parts of the session timeout: the server ends a session that sends no
#: statement for that time, and the lease is considered valid for three quarters of it.
IDLE_TAKE_SHARE: Final = 2 / 3
IDLE_RENEWAL_SHARE: Final = 1 / 3


class Dispatcher:
    """Delivers the events that one worker has routed, while the consumer of that worker runs.

    Args:
        settings: Durations, limits, and the name of the worker.
        sessions: Opens the delivery session.
        targets: Finds the target of a route.
        observer: Observer that receives observations.
        clock: Monotonic clock, in seconds.
        jitter: Source of randomness for backoff.
        activate: Called with the delivery, in the task that is about to call its target.
        activate_group: The context of the call of a group, made of its deliveries.

    Attributes:
        hears_changes: Whether this consumer receives notifications, among them those about changes of a switch or a
            route and about replays (refresh()).
    """

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        targets: TargetProvider,
        observer: Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: random.Random | None = None,
        activate: Callable[[Delivery], None] = lambda _: None,
        activate_group: Callable[[Sequence[Delivery]], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._settings = settings
        self._worker = WorkerName(settings.worker)
        self._sessions = sessions
        self._targets = targets
        self._observer = observer
        self._clock = clock
        self._jitter = jitter or random.Random()
        #: Wakes the task that takes deliveries.
        self._take_wake = WakeEvent()
        #: Wakes the task that settles outcomes.
        self._settle_wake = WakeEvent()
        self._ledger = InFlightLedger()
        self._routes = RouteTable(self._ledger)
        self._calls = CallExecutor(
            self._settle_wake, clock, activate, self._report_abandoned, activate_group, self._report_group_failed
        )
        quarantine, unblocked = Quarantine(self._calls, self._ledger), UnblockedSubjects()
        self._taken = TakenDeliveries(self._ledger, self._routes, self._calls, quarantine, unblocked)
        self._lease = DeliveryLease(
            settings.session_timeout, self._calls, self._taken, self._ledger, quarantine, self._take_wake, clock,
            self._jitter,
        )  # fmt: skip
        self._route_targets = RouteTargets(targets, self._calls, clock)
        self._sweeper = Sweeper(clock, unblocked, self._ledger, self._take_wake)
        self._ahead = CallAhead(self._ledger, self._calls, self._taken, self._settle_wake)
        self._intake = Intake(
            prefetch_bytes=settings.prefetch_bytes, ledger=self._ledger, routes=self._routes, calls=self._calls,
            lease=self._lease, quarantine=quarantine, ahead=self._ahead, unblocked=unblocked, taken=self._taken,
            targets=self._route_targets, pauses=PauseReporter(self._worker, observer), wake=self._take_wake,
            clock=clock,
        )  # fmt: skip
        self._peeks = Peeks(lambda session: self._intake.call_ahead(session, accepting=self._accepting()))
        self.hears_changes = False
        self._working = False
        self._stopping = False
        self._failures = 0

    def work(self) -> None:
        """Start to deliver: this consumer holds the worker's lease. Also called when new deliveries are queued."""
        self._working = True
        self._take_wake.set()

    def refresh(self) -> None:
        """Read the queue and the states of the routes soon, because something may have changed."""
        self._take_wake.set()

    def rest(self) -> None:
        """Another consumer holds the worker's lease: finish in-flight deliveries and give the delivery lease back."""
        self._working = False
        self._take_wake.set()

    def stop(self) -> None:
        """Start no further delivery; run() returns when all in-flight deliveries are settled."""
        self._stopping = self._intake.draining = True
        self._take_wake.set()

    @property
    def delivering(self) -> bool:
        """True while this consumer holds the delivery lease; the dispatcher then runs take queries by itself."""
        return self._lease.held

    def batch(self) -> AbstractContextManager[HandOver]:
        """The context of one batch: yields the deliveries that the batch may hand over."""
        return self._intake.batch(accepting=self._accepting())

    def hand_over(self, batch: HandOver, deliveries: Sequence[TakenDelivery], seconds: float) -> None:
        """Accept deliveries that a batch has queued and taken for the dispatcher. This neither raises nor waits.

        Args:
            batch: The context of the batch.
            deliveries: The deliveries.
            seconds: Duration of the batch, in seconds.
        """
        if not self._intake.hand_over(batch, deliveries, seconds):
            # Some deliveries were not accepted, or may not begin yet: run a take query at once.
            self._take_wake.set()

    def peek(self) -> None:
        """Search for a single new event whose target can be called before its batch. Neither raises nor waits.

        Called at a notification, while no batch runs.
        """
        self._peeks.ask()

    async def peeked(self) -> None:
        """Wait for a running peek, for a limited time. The calls that it has found begin.

        A batch does not run at the same time, because the WAL that it writes would look like a commit that is not
        durable.
        """
        await self._peeks.answered()

    def _accepting(self) -> bool:
        """Whether new deliveries may be taken."""
        return self._working and not self._stopping

    # -- session and lease ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver until stop() is called. After any error, including a lost session, wait for a backoff and go on."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._lease.give_up_before_expiry)
                self._calls.watch(tasks)
                while not self._stopping or self._ledger:
                    self._take_wake.clear()
                    try:
                        if self._working or self._ledger:
                            await self._run_session()
                        if not self._stopping:
                            await self._take_wake.wait(math.inf)
                    except Exception as error:  # noqa: BLE001 no error may end the dispatcher
                        await self._pause_after(error)
                tasks.cancel_scope.cancel()
        finally:
            await within(self._settings.deadline, ABANDON_AFTER, self._targets.aclose)

    async def _pause_after(self, error: Exception) -> None:
        self._taken.give_up_ordered()
        self._failures += 1
        pause = backoff(self._failures, self._settings.reconnect_max, self._jitter)
        self._observer.observe(SessionFailed("delivery", safe_message(error), pause))
        await anyio.sleep(pause)

    async def _run_session(self) -> None:
        """Deliver in one session. Returns when there is nothing to deliver; new deliveries wake the dispatcher."""
        async with self._sessions.deliveries(self._session_ended) as session:
            if not await self._lease.wait(session, self._accepting):
                return
            # A new session may reach another history: a copy that is behind has the same lease holder and lower ids.
            self._routes.restart()
            try:
                await self._take_and_settle(session)
            finally:
                still_held, self._lease.held = self._lease.held, False
            if still_held:
                await session.release()

    def _session_ended(self) -> None:
        """Wake both tasks. The settling task sees the loss of the session when it renews the lease."""
        self._take_wake.set()
        self._settle_wake.set()

    async def _take_and_settle(self, session: DeliveryStore) -> None:
        """Run the taking task and the settling task until there is nothing to deliver or the lease is lost."""
        async with anyio.create_task_group() as tasks:
            over = anyio.Event()
            tasks.start_soon(self._settle_loop, session, over)
            tasks.start_soon(self._peeks.serve, session, over)
            await self._take_loop(session)
            over.set()
            self._settle_wake.set()
            self._peeks.end()

    # -- settlement ----------------------------------------------------------------------------------------------

    async def _settle_loop(self, session: DeliveryStore, over: anyio.Event) -> None:
        """Settle ended calls and renew the delivery lease, until the lease is lost or ``over`` is set."""
        while not over.is_set():
            self._settle_wake.clear()
            # The renewed lease counts from the start of the statement, so use the time before it.
            started = self._clock()
            outcomes, self._calls.done = settleable(self._calls.done)
            try:
                dead_letters = await session.settle(outcomes)
            except BaseException:
                self._calls.done = [o for o in outcomes if o.taken.delivery.id in self._ledger] + self._calls.done
                raise
            if dead_letters is None:
                self._lease.lost()
                self._take_wake.set()
                return
            self._failures = 0
            self._lease.renewed(started)
            for outcome in outcomes:
                self._taken.settled(outcome)
            if outcomes:
                self._observer.observe(
                    DeliveriesSettled(self._worker, outcomes, dead_letters, DeadLetters.among(outcomes))
                )
                self._take_wake.set()
            # In steps, because the long pause ends when a call begins.
            while not await self._settle_wake.wait(DISPATCH_INTERVAL):
                if self._clock() - started >= self._longest_pause(session, IDLE_RENEWAL_SHARE):
                    break

    def _report_abandoned(self, delivery: Delivery, called: str, running: int) -> None:
        self._observer.observe(CallAbandoned(self._worker, delivery.route, called, running))

    def _report_group_failed(self, delivery: Delivery, called: str, deliveries: int, why: str) -> None:
        self._observer.observe(GroupFailed(self._worker, delivery.route, called, deliveries, why))
        # Its deliveries wait for the next take query.
        self._take_wake.set()

    # -- take queries --------------------------------------------------------------------------------------------

    async def _take_loop(self, session: DeliveryStore) -> None:
        """Take deliveries and start their calls. Returns when there is nothing to deliver, or the lease is lost."""
        while self._lease.held:
            self._take_wake.clear()
            await self._intake.take(session, accepting=self._accepting())
            if not self._lease.held:
                return
            await self._ahead.ask(session, draining=self._stopping)
            await self._sweeper.search(session, self._routes)
            await self._route_targets.write_unusable(session, self._routes)
            if not self._ledger and not (self._accepting() and self._routes):
                return
            await self._take_wake.wait(self._pause(session))

    def _longest_pause(self, session: DeliveryStore, share: float) -> float:
        """Longest pause between two statements, in seconds; ``share``: that of an idle consumer."""
        idle = not self._ledger and self.hears_changes and session.announces_changes
        return max(DISPATCH_INTERVAL, share * self._settings.session_timeout) if idle else DISPATCH_INTERVAL

    def _pause(self, session: DeliveryStore) -> float:
        """Seconds until the next take query, if nothing wakes the taking task before."""
        now = self._clock()
        waits = [route.waits(now) for route in self._routes if route.waiting]
        if 0.0 in waits:
            return SWITCHES_VALID_FOR / 4
        longest = self._longest_pause(session, IDLE_TAKE_SHARE)
        return min(longest, self._routes.due_in(), self._sweeper.pause(self._routes), *waits)
