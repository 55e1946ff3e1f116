"""Deliveries: turn after turn, what is done is settled and what there is room for is taken, for ever.

A turn is one round trip. While it is under way deliveries go on, and what they come to is settled by the next one: the
more there is to do, the more a turn carries. Deliveries outlive the session: the database may restart while a target
answers, and the attempt is settled afterwards, unless somebody else had the lease meanwhile.

Whoever cannot renew his lease gives up what is under way before another one can begin with it. Where a subject has an
order that is so as soon as the session is lost, because somebody else may have the lease a moment later.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import anyio
import anyio.abc

from iu_listen.flow.backoff import backoff
from iu_listen.flow.ports import Deliveries, Sessions, Target, Targets, Watcher
from iu_listen.flow.ring import Ring
from iu_listen.model.delivery import Outcome, RouteState, Taken, Turn, Want, outcome_of
from iu_listen.model.errors import ConfigurationError, words
from iu_listen.model.facts import WorkerName
from iu_listen.model.observation import DeliveriesSettled, RouteFree, RouteHeld, SessionFailed
from iu_listen.model.settings import Settings

#: How old the database's word on the locks may be when a delivery begins, in seconds.
FRESH: Final = 0.05
#: Longest pause between two turns, in seconds: replays and locks ring no bell.
TICK: Final = 1.0
#: How many deliveries of a route are taken beyond those under way, as a multiple of its concurrency.
AHEAD: Final = 3
#: Most deliveries that are taken and not begun, of one route.
MOST_AHEAD: Final = 1000
#: How often a subject is looked for that nobody freed, in seconds.
RESCAN: Final = 30.0
#: How long a target that could not be found is not looked for again, in seconds.
NOT_FOUND: Final = 10.0


@dataclass(slots=True)
class _Route:
    """What the consumer knows of a route."""

    state: RouteState
    target: Target | None = None
    no_target: str = ""
    looked_at: float = -math.inf
    after: int = 0
    workers: int = 0
    queue: deque[Taken] = field(default_factory=deque)
    told: str = ""

    @property
    def concurrency(self) -> int:
        return int(self.state.policy["concurrency"])

    @property
    def key(self) -> tuple[str, str, str]:
        """What its target depends on."""
        return self.state.kind, self.state.reference, repr(self.state.policy["target"])

    @property
    def room(self) -> int:
        ahead = min(self.concurrency * AHEAD, MOST_AHEAD)
        return max(0, self.concurrency + ahead - self.workers - len(self.queue)) if self.target else 0


@dataclass(slots=True, eq=False)
class _Call:
    """A delivery that was begun, and what cancels it."""

    scope: anyio.CancelScope
    taken: Taken
    began: float


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
    ) -> None:
        self._settings = settings
        self._worker = WorkerName(settings.worker)
        self._sessions = sessions
        self._targets = targets
        self._watcher = watcher
        self._clock = clock
        self._jitter = jitter or random.Random()
        self._ring = Ring()
        self._routes: dict[str, _Route] = {}
        #: Taken, and not settled yet, by id; and of these, those that are begun, and those that were tried before.
        self._busy: set[int] = set()
        self._calls: dict[int, _Call] = {}
        self._again: set[int] = set()
        self._done: list[Outcome] = []
        self._working = False
        self._stopping = False
        self._answered = -math.inf
        self._trusted = -math.inf
        self._rescanned = -math.inf
        self._losses = 0

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

    async def run(self) -> None:
        """Deliver until stop() is called, through every loss of the session. Nothing that happens ends the work."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._guard)
                while not self._stopping or self._busy:
                    try:
                        if self._working or self._busy:
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
            with anyio.move_on_after(self._settings.deadline, shield=True):
                await self._targets.aclose()

    async def _session(self) -> None:
        """Deliver by one session. Returns when there is nothing to deliver: what comes next rings."""
        async with self._sessions.deliveries(self._ring.set) as session:
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
            self._trust(self._clock())
            if await self._turns(session):
                await session.release()

    async def _turns(self, session: Deliveries) -> bool:
        """Turn after turn, until there is nothing to deliver. False: the lease is lost."""
        while True:
            self._ring.clear()
            if not await self._turn(session):
                self._ring.set()
                return False
            if not self._busy and (self._stopping or not self._working or not self._routes):
                return True
            await self._ring.wait_rung(self._pause())

    async def _turn(self, session: Deliveries) -> bool:
        """One turn. False: the lease is lost, and all that was taken with it."""
        asked = self._clock()
        done, self._done = self._done, []
        wants = [] if self._stopping or not self._working else self._wants(asked)
        try:
            turn = await session.turn(done, wants, list(self._again))
        except BaseException:
            self._done = done + self._done
            raise
        if turn is None:
            self._forget()
            return False
        self._losses = 0
        # The locks were read at the end of the turn; what it began with is what counts for the lease.
        self._answered = self._clock()
        self._trust(asked)
        for outcome in done:
            self._let_go(outcome.taken.delivery.id)
        if done:
            self._watcher.note(DeliveriesSettled(self._worker, done, turn.dead))
        self._learn(turn)
        self._begin()
        return True

    def _wants(self, now: float) -> list[Want]:
        if now - self._rescanned > RESCAN:
            # What somebody cancelled freed nobody.
            self._rescanned = now
            for route in self._routes.values():
                if route.state.policy["order"] == "subject":
                    route.after = 0
        return [Want(route=code, room=route.room, after=route.after) for code, route in self._routes.items()]

    def _learn(self, turn: Turn) -> None:
        """What the database said of each route, and what it gave."""
        known = {state.route for state in turn.routes}
        for code in [c for c, r in self._routes.items() if c not in known and not r.workers]:
            self._drop(self._routes.pop(code))
        for state in turn.routes:
            route = self._routes.setdefault(state.route, _Route(state))
            before, route.state = route.key, state
            route.after = max(route.after, state.after)
            if state.held:
                self._drop(route)
            if state.more:
                self._ring.set()
            self._find_target(route, before)
            self._tell(route)
        for taken in turn.taken:
            delivery = taken.delivery
            if delivery.id in self._busy:
                continue
            self._busy.add(delivery.id)
            if delivery.attempt > 1:
                self._again.add(delivery.id)
            self._routes[delivery.route].queue.append(taken)

    def _find_target(self, route: _Route, before: tuple[str, str, str]) -> None:
        now = self._clock()
        if before != route.key:
            route.target = None
            self._drop(route)
        elif route.target or now - route.looked_at < NOT_FOUND:
            return
        route.looked_at = now
        try:
            route.target = self._targets.find(route.state.kind, route.state.reference, route.state.policy["target"])
            route.no_target = ""
            # There is room now; ask again at once.
            self._ring.set()
        except ConfigurationError as error:
            route.no_target = error.message

    def _tell(self, route: _Route) -> None:
        held, why = route.state.held, route.state.why
        if not held and route.no_target:
            held, why = "no_target", route.no_target
        if held != route.told:
            code = route.state.route
            self._watcher.note(
                RouteHeld(self._worker, code, held, why) if held else RouteFree(self._worker, code, route.told)
            )
            route.told = held

    def _drop(self, route: _Route) -> None:
        """Give back what was taken and not begun."""
        while route.queue:
            taken = route.queue.pop()
            route.after = min(route.after, taken.delivery.id - 1)
            self._let_go(taken.delivery.id)

    def _let_go(self, id: int) -> None:
        self._busy.discard(id)
        self._calls.pop(id, None)
        self._again.discard(id)

    def _forget(self, *, ordered: bool = False) -> None:
        """Nothing that was taken is ours any more; or: what is ``ordered`` may be somebody else's now."""
        for call in list(self._calls.values()):
            if not ordered or call.taken.subject_key is not None:
                call.scope.cancel()
                self._let_go(call.taken.delivery.id)
        for route in self._routes.values():
            if not ordered or route.state.policy["order"] == "subject":
                self._drop(route)
                route.after = 0
        if not ordered:
            self._busy.clear()
            self._again.clear()
            self._done.clear()

    # -- delivering ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        for route in self._routes.values():
            if self._stopping:
                self._drop(route)
            self._one_more(route)

    def _one_more(self, route: _Route) -> None:
        """Somebody who delivers, if there is work for him. He calls the next one before he begins.

        So a target that never waits is served by one, and one that does by as many as there may be.
        """
        if route.queue and route.workers < route.concurrency:
            route.workers += 1
            self._tasks.start_soon(self._deliver_some, route)

    async def _deliver_some(self, route: _Route) -> None:
        """Deliver one after the other, as long as the word of the database on the locks is fresh."""
        call: _Call | None = None
        try:
            while self._may_begin(route):
                with anyio.CancelScope() as scope:
                    while self._may_begin(route) and not scope.cancel_called:
                        taken = route.queue.popleft()
                        self._one_more(route)
                        call = self._calls[taken.delivery.id] = _Call(scope, taken, self._clock())
                        scope.deadline = anyio.current_time() + taken.delivery.deadline
                        await self._deliver(call, route.target)  # type: ignore[arg-type]
                        call = None
                if call is not None:
                    self._over(call, TimeoutError(f"no answer within {call.taken.delivery.deadline:g} s"))
                    call = None
        finally:
            route.workers -= 1

    def _may_begin(self, route: _Route) -> bool:
        # An answer may be from long ago when it is read: whoever was asleep asks again before he begins.
        now = self._clock()
        fresh = now - self._answered < FRESH and now < self._trusted
        return bool(route.queue) and route.target is not None and fresh

    async def _deliver(self, call: _Call, target: Target) -> None:
        try:
            await target.deliver(call.taken.delivery)
        except Exception as raised:  # noqa: BLE001 whatever it raises is about this delivery
            self._over(call, raised)
        else:
            self._over(call, None)

    def _over(self, call: _Call, error: Exception | None) -> None:
        # It may have been forgotten meanwhile: then somebody else delivers it.
        if self._calls.get(call.taken.delivery.id) is call:
            result, code, detail, retry_after = outcome_of(error)
            self._done.append(
                Outcome(
                    taken=call.taken, result=result, began=call.began, ended=self._clock(),
                    code=code, detail=detail, retry_after=retry_after,
                )
            )  # fmt: skip
            self._ring.set()

    # -- time ----------------------------------------------------------------------------------------------------

    def _pause(self) -> float:
        """Until the next turn, if nothing rings."""
        if any(route.queue for route in self._routes.values()):
            return FRESH / 4
        due = [r.state.due_in for r in self._routes.values() if r.state.due_in is not None and r.room]
        return min(TICK, max(0.01, *due)) if due else TICK

    def _trust(self, since: float) -> None:
        """Our lease was good in a turn that began then: until when nobody else can have it (a turn may renew late)."""
        self._trusted = since + self._settings.lease * 0.75

    async def _guard(self) -> None:
        """Give up what is under way before the lease ends, if it cannot be renewed."""
        while True:
            left = self._trusted - self._clock() if self._busy else math.inf
            await anyio.sleep(max(0.05, min(left, self._settings.lease / 4)))
            if self._clock() >= self._trusted and self._busy:
                self._forget()
