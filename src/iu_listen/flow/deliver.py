"""Deliveries: what there is room for is taken and begun, what has ended is settled; each for ever, beside the other.

The more there is to do, the more a round trip carries. Where nothing is under way, a batch hands over what it has just
queued. Deliveries outlive the sessions: the database may restart while a target answers, and the attempt is settled
afterwards, unless somebody else had the lease meanwhile.

Whoever cannot renew his lease gives up what is under way before another one can begin with it. Where a subject has an
order that is so as soon as the session is lost, because somebody else may have the lease a moment later.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

import anyio

from iu_listen.flow.backoff import backoff
from iu_listen.flow.calls import FRESH, PATIENCE, Calls
from iu_listen.flow.freed import Freed
from iu_listen.flow.holds import Holds
from iu_listen.flow.ledger import Ledger
from iu_listen.flow.loose import within
from iu_listen.flow.ports import Deliveries, Sessions, Targets, Watcher
from iu_listen.flow.quarantine import Quarantine
from iu_listen.flow.ring import Ring
from iu_listen.flow.route import Route, due_in, handed_over, split, unchanged, wants
from iu_listen.flow.sweep import Sweeper
from iu_listen.flow.unusable import Unusable, find_target
from iu_listen.model.delivery import PROBED, Delivery, Result, RouteState, Supply, Taken, Want
from iu_listen.model.errors import words
from iu_listen.model.facts import WorkerName
from iu_listen.model.observation import CallAbandoned, DeliveriesSettled, SessionFailed
from iu_listen.model.settings import Settings

#: Longest pause between two questions, in seconds: replays and locks ring no bell.
TICK: Final = 1.0
#: How long the database's answer may be on its way before it says nothing of the locks any more, in seconds.
LATE: Final = 0.5
#: How long a target that could not be found is not looked for again, in seconds.
NOT_FOUND: Final = 10.0


class Deliverer:
    """Delivers what one worker has routed, while its consumer works.

    Args:
        settings: Durations, and the worker's name.
        sessions: Where the delivery session comes from.
        targets: Where targets are found.
        watcher: Who sees what happens.
        jitter: Source of randomness for backoff.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        targets: Targets,
        watcher: Watcher,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: random.Random | None = None,
        activate: Callable[[Delivery], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._worker = WorkerName(settings.worker)
        self._sessions = sessions
        self._targets = targets
        self._watcher = watcher
        self._clock = clock
        self._jitter = jitter or random.Random()
        #: Something may have to be taken; something has to be settled.
        self._ring = Ring()
        self._ended = Ring()
        self._calls = Calls(self._ended, clock, activate, self._abandoned)
        self._routes: dict[str, Route] = {}
        #: What was taken and is not settled yet.
        self._ledger = Ledger()
        self._quarantine = Quarantine(self._calls, self._ledger)
        self._unusable = Unusable()
        self._holds = Holds(self._worker, watcher)
        self._freed = Freed()
        self._sweeper = Sweeper(clock, self._freed, self._ledger, self._ring)
        #: The lease is ours: it looks by itself for what there is to deliver.
        self.delivering = False
        self._working = False
        self._stopping = False
        self._losses = 0
        self._failed_takes = 0

    def work(self) -> None:
        """The worker is ours: deliver. Also called when there is something new to deliver."""
        self._working = True
        self._ring.set()

    def rest(self) -> None:
        """The worker is somebody else's: what is under way ends, and the lease is given back."""
        self._working = False
        self._ring.set()

    def stop(self) -> None:
        """Begin no delivery any more; run() returns when those under way have ended and are settled."""
        self._stopping = True
        self._ring.set()

    def _wake(self) -> None:
        """A session has ended. Whoever waits finds out: the one that settles has the lease."""
        self._ring.set()
        self._ended.set()

    def _abandoned(self, delivery: Delivery, called: str, running: int) -> None:
        self._watcher.note(CallAbandoned(self._worker, delivery.route, called, running))

    async def run(self) -> None:
        """Deliver until stop() is called, through every loss of the session. Nothing that happens ends the work."""
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
                            await self._ring.wait_rung(math.inf)
                    except Exception as failed:  # noqa: BLE001 whatever it is, the work goes on
                        self._forget(ordered=True)
                        self._losses += 1
                        pause = backoff(self._losses, self._settings.reconnect_max, self._jitter)
                        self._watcher.note(SessionFailed("delivery", words(failed), pause))
                        await anyio.sleep(pause)
                tasks.cancel_scope.cancel()
        finally:
            await within(self._settings.deadline, PATIENCE, self._targets.aclose)

    async def _session(self) -> None:
        """Deliver by one session. Returns when there is nothing to deliver: what comes next rings."""
        async with self._sessions.deliveries(self._wake) as session:
            gone = ""
            while not (lease := await session.take_lease(gone)).held:
                self._forget()
                if self._stopping or not self._working:
                    return
                self._ring.clear()
                pause = TICK * self._jitter.uniform(0.5, 1)
                if lease.gone:
                    # He may live, and is to hear of it before we begin.
                    gone = lease.holder
                    await anyio.sleep(pause)
                else:
                    await self._ring.wait_rung(pause)
            if not lease.again:
                self._forget()
            if lease.unclean:
                self._quarantine.start(self._clock())
            # A new session may lead to another history: a copy that is behind has the same owner and lower ids.
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

    async def _both(self, session: Deliveries) -> None:
        """Take and settle, until there is nothing to deliver, or the lease is lost."""
        async with anyio.create_task_group() as tasks:
            over = anyio.Event()
            tasks.start_soon(self._settle_all, session, over)
            await self._take_all(session)
            over.set()
            self._ended.set()

    async def _settle_all(self, session: Deliveries, over: anyio.Event) -> None:
        """What has ended is settled, and the lease renewed, until it is lost or all is over."""
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
            # What it began with is what counts for the lease.
            self._trust(asked)
            for outcome in done:
                route = self._ledger.remove(outcome.taken.delivery.id)
                if route is not None and outcome.result is not Result.SENT:
                    route.failing = max(0, route.failing - 1)
                if outcome.taken.subject_key is not None:
                    self._freed.add(outcome.taken.delivery.route, [outcome.taken.subject_key])
            if done:
                self._watcher.note(DeliveriesSettled(self._worker, done, dead))
                self._ring.set()
            await self._ended.wait_rung(TICK)

    async def _take_all(self, session: Deliveries) -> None:
        """What there is room for is taken and begun, for ever. Returns when there is nothing, or the lease is lost."""
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
            await self._ring.wait_rung(self._pause())

    # -- what there is -------------------------------------------------------------------------------------------

    def wants(self) -> Sequence[Want]:
        """What a batch may hand over: something only where nothing is under way, else we ask often enough."""
        self._ledger.passed_beside.clear()
        now = self._clock()
        idle = not self._ledger and not self._quarantine.cautious(now)
        if not idle or self._stopping or not (self._working and self.delivering):
            return []
        return [w for w in self._wants(now) if w.room]

    def hand_over(self, wants: Sequence[Want], given: Sequence[Taken], seconds: float) -> None:
        """What a batch has queued and taken for us. We may have taken it ourselves meanwhile, and settled it."""
        kept_back = False
        if self.delivering and not self._quarantine.cautious(self._clock()):
            self._hear(seconds)
            handed, kept_back = handed_over(given)
            new = self._ledger.new(handed, unchanged(wants, self._routes), self._ledger.passed_beside)
            # The batch read the locks before its commit, which may have taken long; the taker may know better.
            new = [t for t in new if not self._routes[t.delivery.route].state.held]
            for taken in new:
                route = self._routes[taken.delivery.route]
                route.after = max(route.after, taken.delivery.id)
            self._take_over(new)
        if kept_back or len(self._ledger) < len(given) or not self.delivering or math.isinf(self._calls.answered):
            # Not all of it was taken over, or may begin.
            self._ring.set()

    def _wants(self, now: float) -> list[Want]:
        if now >= self._calls.trusted:
            # What was given up may be in the middle of being settled: it is still there, and will not be.
            return []
        left = self._settings.prefetch_bytes - self._ledger.bytes
        return wants(list(self._routes.values()), left, self._quarantine.room(now), self._failed_takes)

    def _learn(self, supply: Supply, seconds: float, wants: Sequence[Want], freed: Sequence[tuple[str, int]]) -> None:
        """What the database said of each route, and what it gave; begin it.

        Args:
            supply: Its answer.
            seconds: How long we have waited for it.
            wants: What it was asked for.
            freed: Which subjects it was asked for.
        """
        self._hear(seconds - supply.seconds)
        counts = unchanged(wants, self._routes)
        self._know(supply.routes, counts)
        self._freed.answered(freed, supply.routes, counts)
        self._take_over(self._ledger.new(supply.taken, counts, self._ledger.passed))

    def _hear(self, seconds: float) -> None:
        """The locks were read so many seconds ago, at most. Whoever slept since then asks again."""
        self._calls.answered = self._clock() if seconds < LATE else -math.inf

    def _take_over(self, new: Sequence[Taken]) -> None:
        """Begin it, and what has waited."""
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
        """What the database said of each route; where the answer counts, also where it has come to."""
        known = {state.route for state in states}
        for code in [c for c, r in self._routes.items() if c not in known and not r.workers]:
            self._drop(self._routes[code])
            self._freed.forget(code)
            self._calls.leave(self._routes.pop(code))
        for state in states:
            new = state.route not in self._routes
            route = self._routes.setdefault(state.route, Route.of(state))
            if state.held != route.state.held:
                # While it was held its deliveries may have been cancelled, which frees others.
                route.sweep.start()
            changed = route.becomes(state) or new
            if state.route in counts:
                route.reaches(state)
            if state.held:
                # A probe waits until it may begin, and one that is attempted alone until nothing else is in flight.
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
        # A route whose target is called no more for now is looked at again at every question.
        route.looked_at = -math.inf if crowded else now
        if find_target(self._targets, route, crowded=crowded):
            # There is room now; ask again at once.
            self._ring.set()

    def _drop(self, route: Route, *, alone: bool = True) -> None:
        """Give back what was taken and not begun; unless ``alone``, not the probe and what is attempted alone."""
        given, route.queue = split(route.queue, keep=not alone, probe=route.state.probing)
        for taken in [*given, *(self._quarantine.drop(route.state.route) if alone else [])]:
            if route.ordered and taken.subject_key is not None:
                self._freed.add(route.state.route, [taken.subject_key])
            else:
                route.after = min(route.after, taken.delivery.id - 1)
            self._ledger.remove(taken.delivery.id)

    def _forget(self, *, ordered: bool = False) -> None:
        """Nothing that was taken is ours any more; or: what is ``ordered`` may be somebody else's now."""
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
        """Until the next question for more, if nothing rings."""
        routes = self._routes.values()
        waits = any(route.queue for route in routes)
        return FRESH / 4 if waits else min(TICK, due_in(routes), self._sweeper.pause(routes))

    def _trust(self, since: float) -> None:
        """Our lease was good then: until when nobody else can have it, however late it is renewed."""
        self._calls.trusted = since + self._settings.lease * 0.75

    async def _guard(self) -> None:
        """Give up what is under way before the lease ends, if it cannot be renewed."""
        while True:
            left = self._calls.trusted - self._clock() if self._ledger else math.inf
            await anyio.sleep(max(0.05, min(left, self._settings.lease / 4)))
            if self._clock() >= self._calls.trusted and self._ledger:
                self._forget()
