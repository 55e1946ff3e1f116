"""The intake of the dispatcher: what a take query or a batch is asked for, and how its answer is accepted."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from iu_listen.flow.call_ahead import CallAhead
from iu_listen.flow.call_executor import CallExecutor
from iu_listen.flow.delivery_lease import DeliveryLease
from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.pauses import PauseReporter
from iu_listen.flow.ports import DeliveryStore
from iu_listen.flow.quarantine import Quarantine
from iu_listen.flow.route import without_problems
from iu_listen.flow.route_targets import RouteTargets
from iu_listen.flow.routes import RouteTable
from iu_listen.flow.taken_deliveries import TakenDeliveries
from iu_listen.flow.unblocked_subjects import UnblockedSubjects
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import TRIAL_PAUSES, RouteState, TakenDelivery, TakeRequest

#: Age from which an answer of the database is no longer evidence that the switches are open, in seconds.
MAX_ANSWER_AGE: Final = 0.5


@dataclass(slots=True)
class HandOver:
    """The deliveries that a batch may hand over.

    Attributes:
        requests: The routes with free capacity.
        mark: The mark of the ledger from before the batch.
    """

    requests: Sequence[TakeRequest]
    mark: int


@dataclass(slots=True, kw_only=True)
class Intake:
    """Accepts deliveries from the two sources that return them: take queries, and batches.

    Both may return the same delivery, because they run at the same time.

    Attributes:
        prefetch_bytes: Limit of the size of all in-flight deliveries, in bytes.
        ledger: The in-flight deliveries.
        routes: The routes.
        calls: The calls of the consumer.
        lease: The delivery lease.
        quarantine: Decides how many deliveries may be taken, and which are attempted alone.
        ahead: The deliveries that were called ahead.
        unblocked: Subjects for which the next delivery is requested.
        taken: Accepts deliveries, and gives them back.
        targets: The targets of routes.
        pauses: Reports paused routes.
        wake: Wakes the task that runs take queries.
        clock: Monotonic clock, in seconds.
        draining: True: the consumer stops, so all queued deliveries are given back.
    """

    prefetch_bytes: int
    ledger: InFlightLedger
    routes: RouteTable
    calls: CallExecutor
    lease: DeliveryLease
    quarantine: Quarantine
    ahead: CallAhead
    unblocked: UnblockedSubjects
    taken: TakenDeliveries
    targets: RouteTargets
    pauses: PauseReporter
    wake: WakeEvent
    clock: Callable[[], float]
    draining: bool = False
    _failed_takes: int = 0

    # -- take queries --------------------------------------------------------------------------------------------

    async def take(self, session: DeliveryStore, *, accepting: bool) -> None:
        """Run one take query, and process its answer. The answer is ignored if the lease was lost meanwhile.

        Args:
            session: The delivery session.
            accepting: False: request no deliveries, and only read the states of the routes.
        """
        started = self.clock()
        requests = self._requests(started) if accepting else []
        unblocked = self.unblocked.next(requests)
        with self.ledger.mark() as mark:
            try:
                answer = await session.take(requests, self.ledger.retried_ids(self.routes.trial_ids()), unblocked)
                if not await self.quarantine.write(session, self.clock(), answer.taken, self.routes):
                    self.lease.lost()
                self._failed_takes = 0
            except BaseException:
                self._failed_takes += 1
                self.unblocked.put_back(unblocked)
                raise
            if not self.lease.held:
                return
            self._switches_read(self.clock() - started - answer.seconds)
            valid_routes = self.routes.unchanged(requests)
            self._learn(answer.routes, valid_routes)
            self.unblocked.answered(unblocked, answer.routes, valid_routes)
            self._accept(self.ledger.new_since(mark, answer.taken, valid_routes))

    def _requests(self, now: float) -> list[TakeRequest]:
        if now >= self.calls.lease_valid_until:
            # A delivery that was given up may be part of a running settlement: it looks due, but will be settled.
            return []
        free_bytes = self.prefetch_bytes - self.ledger.bytes
        return self.routes.requests(free_bytes, self.quarantine.take_limit(now), self._failed_takes)

    def _learn(self, states: Sequence[RouteState], valid_routes: Collection[str]) -> None:
        """Update the routes, their targets and the reports of their pauses."""
        changes = self.routes.learn(states, valid_routes)
        for route in changes.gone:
            self.taken.remove_route(route)
        for route, target_changed in changes.known:
            if route.state.paused_by:
                # A trial delivery waits until it may begin, a quarantined one until no other one is in flight.
                self.taken.give_back(route, keep_trials=route.state.paused_by in TRIAL_PAUSES)
            if self.targets.invalidate(route, target_changed):
                self.taken.give_back(route)
            if self.targets.find(route):
                # The route can take deliveries now: run a take query at once.
                self.wake.set()
            self.pauses.report(route)
        self.calls.set_deadlines(route.deadline for route in self.routes)

    # -- batches -------------------------------------------------------------------------------------------------

    @contextmanager
    def batch(self, *, accepting: bool) -> Iterator[HandOver]:
        """The context of one batch: yields the deliveries that the batch may hand over.

        While a delivery is in flight these are none, because take queries are frequent enough then.

        Args:
            accepting: False: request no deliveries.
        """
        requests = self._requests_if_idle() if accepting else []
        self.ahead.batch_runs = True
        try:
            with self.ledger.mark() as mark:
                yield HandOver(requests, mark)
        finally:
            self.ahead.batch_ended()
            if self.ledger.unconfirmed:
                self.wake.set()

    def _requests_if_idle(self) -> list[TakeRequest]:
        """The routes with free capacity, if nothing is in flight but unconfirmed deliveries; otherwise empty."""
        now = self.clock()
        if len(self.ledger) > len(self.ledger.unconfirmed) or self.quarantine.cautious(now) or not self.lease.held:
            return []
        return [request for request in self._requests(now) if request.capacity]

    async def call_ahead(self, session: DeliveryStore, *, accepting: bool) -> None:
        """Call the target of a single new event, unless a batch ends before the event is known.

        Nothing may be in flight: with a backlog, the batch is the faster way.

        Args:
            session: The delivery session.
            accepting: False: call nothing.
        """
        started, batches = self.clock(), self.ahead.batches
        requests = self._requests_if_idle() if accepting and not self.ledger else []
        if not requests:
            return
        found = await session.peek(requests)
        # The position of the peek may lie before a batch that has ended: that batch has handed the event over.
        if batches != self.ahead.batches or not self.lease.held or self.draining:
            return
        usable = [
            t for t in found if t.delivery.route in self.routes and not self.routes[t.delivery.route].state.paused_by
        ]
        if usable and not self.quarantine.cautious(self.clock()):
            self._switches_read(self.clock() - started)
            self.taken.accept(self.ahead.admitted(usable))
            self.taken.begin()

    def hand_over(self, batch: HandOver, deliveries: Sequence[TakenDelivery], seconds: float) -> bool:
        """Accept deliveries that a batch has queued and taken.

        Args:
            batch: The context of the batch.
            deliveries: The deliveries. A take query may have settled some of them meanwhile.
            seconds: Duration of the batch, in seconds.

        Returns:
            Whether all deliveries were accepted, and may begin.
        """
        if not self.lease.held or self.quarantine.cautious(self.clock()):
            return False
        self._switches_read(seconds)
        usable, some_left_out = without_problems(deliveries)
        new = self.ledger.new_since(batch.mark, usable, self.routes.unchanged(batch.requests))
        # The batch read the switches before its commit. A take query may have read newer values meanwhile.
        new = [taken for taken in new if not self.routes[taken.delivery.route].state.paused_by]
        for taken in new:
            route = self.routes[taken.delivery.route]
            route.position = max(route.position, taken.delivery.id)
        self._accept(new)
        now = self.clock()
        may_begin = self.calls.switches_checked_at > -math.inf and not any(route.waits(now) for route in self.routes)
        return may_begin and not some_left_out and len(self.ledger) >= len(deliveries)

    # -- both ----------------------------------------------------------------------------------------------------

    def _switches_read(self, age: float) -> None:
        """Note that the switches were read at most ``age`` seconds ago. An older reading proves nothing."""
        self.calls.switches_checked_at = self.clock() if age < MAX_ANSWER_AGE else -math.inf

    def _accept(self, new: Sequence[TakenDelivery]) -> None:
        """Add new deliveries, and start calls on all routes."""
        if self.taken.accept(self.ahead.confirm(new)):
            self.wake.set()
        if self.draining:
            for route in self.routes:
                self.taken.give_back(route)
        self.taken.begin()
