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
from collections.abc import Callable, Collection, Sequence
from typing import Final

import anyio

from iu_listen.flow.backoff import backoff
from iu_listen.flow.call_executor import FRESH, PATIENCE, CallExecutor
from iu_listen.flow.detached import within
from iu_listen.flow.freed_subjects import FreedSubjects
from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.pauses import PauseReporter
from iu_listen.flow.ports import DeliveryStore, Observer, Sessions, TargetProvider
from iu_listen.flow.quarantine import Quarantine
from iu_listen.flow.route import Route, due_in, handed_over, split, unchanged, wants
from iu_listen.flow.sweep import Sweeper
from iu_listen.flow.unusable import Unusable, find_target
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import PROBED, Delivery, Result, RouteState, TakenDelivery, TakeRequest, TakeResult
from iu_listen.model.errors import words
from iu_listen.model.observation import CallAbandoned, DeliveriesSettled, SessionFailed
from iu_listen.model.routing import WorkerName
from iu_listen.model.settings import Settings

#: Longest pause between two take queries, in seconds. A replay and a change of a switch cause no wake-up.
TICK: Final = 1.0
#: Age from which an answer of the database is no longer evidence that the switches are open, in seconds.
LATE: Final = 0.5
#: Pause before a target that was not found is looked up again, in seconds.
NOT_FOUND: Final = 10.0


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
    ) -> None:
        self._settings = settings
        self._worker = WorkerName(settings.worker)
        self._sessions = sessions
        self._targets = targets
        self._observer = observer
        self._clock = clock
        self._jitter = jitter or random.Random()
        #: Wakes the task that takes deliveries.
        self._ring = WakeEvent()
        #: Wakes the task that settles outcomes.
        self._ended = WakeEvent()
        self._calls = CallExecutor(self._ended, clock, activate, self._abandoned)
        self._routes: dict[str, Route] = {}
        #: Deliveries that were taken and are not settled yet.
        self._ledger = InFlightLedger()
        self._quarantine = Quarantine(self._calls, self._ledger)
        self._unusable = Unusable()
        self._holds = PauseReporter(self._worker, observer)
        self._freed = FreedSubjects()
        self._sweeper = Sweeper(clock, self._freed, self._ledger, self._ring)
        #: True while this consumer holds the delivery lease; the dispatcher then runs take queries by itself.
        self.delivering = False
        self._working = False
        self._stopping = False
        self._losses = 0
        self._failed_takes = 0

    def work(self) -> None:
        """Start to deliver: this consumer holds the worker's lease. Also called when new deliveries are queued."""
        self._working = True
        self._ring.set()

    def rest(self) -> None:
        """Another consumer holds the worker's lease: finish in-flight deliveries and give the delivery lease back."""
        self._working = False
        self._ring.set()

    def stop(self) -> None:
        """Start no further delivery; run() returns when all in-flight deliveries are settled."""
        self._stopping = True
        self._ring.set()

    def _wake(self) -> None:
        """Wake both tasks, because the session has ended. The settling task sees the loss when it renews the lease."""
        self._ring.set()
        self._ended.set()

    def _abandoned(self, delivery: Delivery, called: str, running: int) -> None:
        self._observer.observe(CallAbandoned(self._worker, delivery.route, called, running))

    async def run(self) -> None:
        """Deliver until stop() is called. After any error, including a lost session, wait for a backoff and go on."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._guard)
                self._calls.watch(tasks)
                while not self._stopping or self._ledger:
                    self._ring.clear()
                    try:
                        if self._working or self._ledger:
                            await self._session()
                        if not self._stopping:
                            await self._ring.wait(math.inf)
                    except Exception as failed:  # noqa: BLE001 no error may end the dispatcher
                        self._forget(ordered=True)
                        self._losses += 1
                        pause = backoff(self._losses, self._settings.reconnect_max, self._jitter)
                        self._observer.observe(SessionFailed("delivery", words(failed), pause))
                        await anyio.sleep(pause)
                tasks.cancel_scope.cancel()
        finally:
            await within(self._settings.deadline, PATIENCE, self._targets.aclose)

    async def _session(self) -> None:
        """Deliver in one session. Returns when there is nothing to deliver; new deliveries set the ring."""
        async with self._sessions.deliveries(self._wake) as session:
            gone = ""
            while not (lease := await session.take_lease(gone)).held:
                self._forget()
                if self._stopping or not self._working:
                    return
                self._ring.clear()
                pause = TICK * self._jitter.uniform(0.5, 1)
                if lease.gone:
                    # The holder's session ended, but its process may run: wait until it has noticed the loss.
                    gone = lease.holder
                    await anyio.sleep(pause)
                else:
                    await self._ring.wait(pause)
            if not lease.again:
                self._forget()
            if lease.unclean:
                self._quarantine.start(self._clock())
            # A new session may reach another history: a copy that is behind has the same lease holder and lower ids.
            for route in self._routes.values():
                route.restart()
            self._trust(self._clock())
            self.delivering = True
            try:
                await self._both(session)
            finally:
                ours, self.delivering = self.delivering, False
            if ours:
                await session.release()

    async def _both(self, session: DeliveryStore) -> None:
        """Run the taking task and the settling task until there is nothing to deliver or the lease is lost."""
        async with anyio.create_task_group() as tasks:
            over = anyio.Event()
            tasks.start_soon(self._settle_all, session, over)
            await self._take_all(session)
            over.set()
            self._ended.set()

    async def _settle_all(self, session: DeliveryStore, over: anyio.Event) -> None:
        """Settle ended calls and renew the delivery lease, until the lease is lost or ``over`` is set."""
        while not over.is_set():
            self._ended.clear()
            asked = self._clock()
            done, self._calls.done = self._calls.done, []
            try:
                dead = await session.settle(done)
            except BaseException:
                self._calls.done = [o for o in done if o.taken.delivery.id in self._ledger] + self._calls.done
                raise
            if dead is None:
                self.delivering = False
                self._forget()
                self._ring.set()
                return
            self._losses = 0
            # The renewed lease counts from the start of the statement, so use the time before it.
            self._trust(asked)
            for outcome in done:
                route = self._ledger.remove(outcome.taken.delivery.id)
                if route is not None and outcome.result is not Result.SENT:
                    route.failing = max(0, route.failing - 1)
                if outcome.taken.subject_key is not None:
                    self._freed.add(outcome.taken.delivery.route, [outcome.taken.subject_key])
            if done:
                self._observer.observe(DeliveriesSettled(self._worker, done, dead))
                self._ring.set()
            await self._ended.wait(TICK)

    async def _take_all(self, session: DeliveryStore) -> None:
        """Take deliveries and start their calls. Returns when there is nothing to deliver, or the lease is lost."""
        while self.delivering:
            self._ring.clear()
            asked = self._clock()
            wants = [] if self._stopping or not self._working else self._wants(asked)
            freed = self._freed.next(wants)
            self._ledger.passed.clear()
            try:
                supply = await session.take(wants, self._ledger.busy(self._routes.values()), freed)
                if not await self._quarantine.write(session, self._clock(), supply.taken, self._routes):
                    self.delivering = False
                    self._forget()
                self._failed_takes = 0
            except BaseException:
                self._failed_takes += 1
                self._freed.put_back(freed)
                raise
            if not self.delivering:
                return
            self._learn(supply, self._clock() - asked, wants, freed)
            await self._sweeper.turn(session, self._routes.values())
            await self._unusable.tell(session, self._routes.values())
            if not self._ledger and (self._stopping or not self._working or not self._routes):
                return
            await self._ring.wait(self._pause())

    # -- taken deliveries and routes -----------------------------------------------------------------------------

    def wants(self) -> Sequence[TakeRequest]:
        """Deliveries that a batch may hand over. Empty if one is in flight: take queries are frequent enough then."""
        self._ledger.passed_beside.clear()
        now = self._clock()
        idle = not self._ledger and not self._quarantine.cautious(now)
        if not idle or self._stopping or not (self._working and self.delivering):
            return []
        return [w for w in self._wants(now) if w.room]

    def hand_over(self, wants: Sequence[TakeRequest], given: Sequence[TakenDelivery], seconds: float) -> None:
        """Accept the deliveries of a batch (ports.DispatcherPort). A take query may have settled some meanwhile."""
        kept_back = False
        if self.delivering and not self._quarantine.cautious(self._clock()):
            self._hear(seconds)
            handed, kept_back = handed_over(given)
            new = self._ledger.new(handed, unchanged(wants, self._routes), self._ledger.passed_beside)
            # The batch read the switches before its commit. A take query may have read newer values meanwhile.
            new = [t for t in new if not self._routes[t.delivery.route].state.held]
            for taken in new:
                route = self._routes[taken.delivery.route]
                route.after = max(route.after, taken.delivery.id)
            self._take_over(new)
        if kept_back or len(self._ledger) < len(given) or not self.delivering or math.isinf(self._calls.answered):
            # Some deliveries were not accepted, or may not begin yet: run a take query at once.
            self._ring.set()

    def _wants(self, now: float) -> list[TakeRequest]:
        if now >= self._calls.trusted:
            # A delivery that was given up may be part of a running settlement: it looks due, but will be settled.
            return []
        left = self._settings.prefetch_bytes - self._ledger.bytes
        return wants(list(self._routes.values()), left, self._quarantine.room(now), self._failed_takes)

    def _learn(
        self, supply: TakeResult, seconds: float, wants: Sequence[TakeRequest], freed: Sequence[tuple[str, int]]
    ) -> None:
        """Process the answer of a take query: update the routes and start the calls of the new deliveries.

        Args:
            supply: The answer.
            seconds: Time from the query to its answer.
            wants: The wants that the query contained.
            freed: Routes and subject keys that the query contained.
        """
        self._hear(seconds - supply.seconds)
        counts = unchanged(wants, self._routes)
        self._know(supply.routes, counts)
        self._freed.answered(freed, supply.routes, counts)
        self._take_over(self._ledger.new(supply.taken, counts, self._ledger.passed))

    def _hear(self, seconds: float) -> None:
        """The switches were read at most ``seconds`` seconds ago. The reading is void if that is more than LATE."""
        self._calls.answered = self._clock() if seconds < LATE else -math.inf

    def _take_over(self, new: Sequence[TakenDelivery]) -> None:
        """Add new deliveries to the ledger and to the queues, and start calls on all routes."""
        for taken in new:
            route = self._routes[taken.delivery.route]
            self._ledger.add(taken, route)
            if taken.problem:
                self._calls.refuse(route, taken)
            elif taken.alone:
                self._quarantine.add(taken)
                self._ring.set()
            else:
                route.queue.append(taken)
        for route in self._routes.values():
            if self._stopping:
                self._drop(route)
            self._calls.begin(route)

    def _know(self, states: Sequence[RouteState], counts: Collection[str]) -> None:
        """Update the routes; for those in ``counts``, the position, too. A known route without a state has gone."""
        known = {state.route for state in states}
        for code in [c for c, r in self._routes.items() if c not in known and not r.workers]:
            self._drop(self._routes[code])
            self._freed.forget(code)
            self._calls.leave(self._routes.pop(code))
        for state in states:
            new = state.route not in self._routes
            route = self._routes.setdefault(state.route, Route.of(state))
            if state.held != route.state.held:
                # Deliveries may have been cancelled while the route was paused, and parked deliveries may go on.
                route.sweep.start()
            changed = route.becomes(state) or new
            if state.route in counts:
                route.reaches(state)
            if state.held:
                # A trial delivery waits until it may begin, a quarantined one until no other one is in flight.
                self._drop(route, alone=state.held not in PROBED)
            self._find_target(route, changed)
            self._holds.tell(route)
        self._calls.expect(route.deadline for route in self._routes.values())

    def _find_target(self, route: Route, changed: bool) -> None:
        now = self._clock()
        crowded = self._calls.crowded(route)
        if changed or crowded:
            route.target = None
            self._drop(route)
        elif route.target or now - route.looked_at < NOT_FOUND:
            return
        # While a target has too many abandoned calls, the route is checked again after every take query.
        route.looked_at = -math.inf if crowded else now
        if find_target(self._targets, route, crowded=crowded):
            # The route can take deliveries now: run a take query at once.
            self._ring.set()

    def _drop(self, route: Route, *, alone: bool = True) -> None:
        """Give back queued deliveries; False for ``alone`` keeps the trial delivery and quarantined deliveries."""
        given, route.queue = split(route.queue, keep=not alone, probe=route.state.probing)
        for taken in [*given, *(self._quarantine.drop(route.state.route) if alone else [])]:
            if route.ordered and taken.subject_key is not None:
                self._freed.add(route.state.route, [taken.subject_key])
            else:
                route.after = min(route.after, taken.delivery.id - 1)
            self._ledger.remove(taken.delivery.id)

    def _forget(self, *, ordered: bool = False) -> None:
        """Give up taken deliveries, as another consumer may hold the lease; ``ordered``: only of ordered routes."""
        for taken in self._calls.under_way():
            if not ordered or taken.subject_key is not None:
                self._calls.give_up(taken)
                self._ledger.remove(taken.delivery.id)
        for route in self._routes.values():
            if not ordered or route.ordered:
                self._drop(route)
                route.restart()
        if not ordered:
            for taken in self._ledger:
                self._ledger.remove(taken.delivery.id)
            self._quarantine.forget()
            for route in self._routes.values():
                route.failing = 0
            self._calls.done.clear()
            self._freed.forget()

    # -- time ----------------------------------------------------------------------------------------------------

    def _pause(self) -> float:
        """Seconds until the next take query, if the ring is not set before."""
        routes = self._routes.values()
        waits = any(route.queue for route in routes)
        return FRESH / 4 if waits else min(TICK, due_in(routes), self._sweeper.pause(routes))

    def _trust(self, since: float) -> None:
        """The lease was valid at ``since``: set the time until which no other consumer can hold it."""
        self._calls.trusted = since + self._settings.session_timeout * 0.75

    async def _guard(self) -> None:
        """Give up all taken deliveries before the delivery lease expires, if it could not be renewed."""
        while True:
            left = self._calls.trusted - self._clock() if self._ledger else math.inf
            await anyio.sleep(max(0.05, min(left, self._settings.session_timeout / 4)))
            if self._clock() >= self._calls.trusted and self._ledger:
                self._forget()
