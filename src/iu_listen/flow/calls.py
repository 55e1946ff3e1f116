"""Calls of targets: begun while the database's word is fresh, ended when they take too long, and what came of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import anyio
import anyio.abc

from iu_listen.flow.ports import Target
from iu_listen.flow.ring import Ring
from iu_listen.model.delivery import Delivery, Failed, Outcome, Result, Taken
from iu_listen.model.outcome import outcome_of

#: How old the database's word on the locks may be when a delivery begins, in seconds.
FRESH: Final = 0.05
#: How long after a success of its route an attempt that begins and fails is that delivery's own fault, in seconds.
BESIDE: Final = 1.0
#: Why a delivery cannot be given to a target, by its failure code.
PROBLEMS: Final = {
    "event_missing": "The event is not in event_outbox any more.",
    "payload_too_large": "The payload is larger than the setting payload_max allows.",
    "event_out_of_range": "occurred_at or created_at of the event is outside the years 1 to 9999.",
}
_CANCELLED: Final = "the target was cancelled, by itself or by what it waited for"


@dataclass(slots=True, kw_only=True)
class Lane:
    """What waits for one target, and how many may be under way at once.

    Attributes:
        target: Who takes it; None: nobody, for now.
        called: What that is, as the audit keeps it.
        concurrency: Most calls at once.
        queue: What was taken and has not begun.
        workers: Tasks that deliver.
        starting: One of them was started, and has not begun yet.
        failing: Calls that failed and are not settled: whether that stops the target is not known yet.
        most_failing: None begins while so many are.
        idle: Wakes the task that waits for more to do; None: none does.
        left: There will be no more.
        succeeded_at: When a call of this lane last succeeded, or was refused for good, by the clock of the consumer.
    """

    concurrency: int
    target: Target | None = None
    called: str = ""
    queue: deque[Taken] = field(default_factory=deque)
    workers: int = 0
    starting: bool = False
    failing: int = 0
    most_failing: int = 1
    idle: anyio.Event | None = None
    left: bool = False
    succeeded_at: float = -math.inf


@dataclass(slots=True, eq=False)
class _Call:
    """A delivery that was begun, and what cancels it."""

    lane: Lane
    scope: anyio.CancelScope
    taken: Taken
    began: float
    called: str

    @property
    def until(self) -> float:
        return self.began + self.taken.delivery.deadline

    @property
    def late(self) -> TimeoutError:
        return TimeoutError(f"no answer within {self.taken.delivery.deadline:g} s")


class Calls:
    """The calls of one consumer, of all lanes.

    Args:
        ring: Rung when a call has ended.
        clock: Monotonic clock, in seconds.
        activate: Called in the task that is about to call a target, with the delivery.

    Attributes:
        done: What came of calls that have ended, in that order. Whoever settles it takes it out.
        answered: When the database last told that the locks are open.
        trusted: Until when nobody else can have our lease.
        only: Id of the one delivery that may begin, while no other one is in flight; NONE: none may; None: all may.
    """

    NONE: Final = -1

    def __init__(
        self, ring: Ring, clock: Callable[[], float], activate: Callable[[Delivery], None] = lambda _: None
    ) -> None:
        self._ring = ring
        self._clock = clock
        self._activate = activate
        self._alarm = Ring()
        self._shortest = math.inf
        self._under_way: dict[int, _Call] = {}
        self.done: list[Outcome] = []
        self.answered = -math.inf
        self.trusted = -math.inf
        self.only: int | None = None

    def watch(self, tasks: anyio.abc.TaskGroup) -> None:
        """Make calls in this task group from now on, and see to their deadlines."""
        self._tasks = tasks
        tasks.start_soon(self._watch)

    def expect(self, deadlines: Iterable[float]) -> None:
        """What begins from now on may take so many seconds."""
        before, self._shortest = self._shortest, min(deadlines, default=math.inf)
        if self._shortest < before:
            self._alarm.set()

    def under_way(self) -> Iterator[Taken]:
        """What has begun and not ended."""
        for call in list(self._under_way.values()):
            yield call.taken

    def give_up(self, taken: Taken) -> None:
        """End a call; nobody is told what came of it."""
        self._under_way.pop(taken.delivery.id).scope.cancel()

    def begin(self, lane: Lane) -> None:
        """Somebody who delivers, if there is work for him. He calls the next one when he begins.

        So a target that never waits is served by one, and one that does by as many as there may be.
        """
        if lane.queue and not lane.starting and lane.workers < lane.concurrency:
            lane.workers += 1
            lane.starting = True
            if lane.idle is None:
                self._tasks.start_soon(self._work, lane)
            else:
                lane.idle.set()
                lane.idle = None

    def leave(self, lane: Lane) -> None:
        """There will be no more work for this lane: nobody is to wait for it."""
        lane.left = True
        if lane.idle is not None:
            lane.idle.set()
            lane.idle = None

    async def _work(self, lane: Lane) -> None:
        """Serve this lane, and wait until there is more to do, if nobody else does: a new task costs more than a call.

        A target may let out a cancellation that was meant for what it waited for, or leave something behind that
        cancels its task later. It must not end the work of all others: such a task ends, another one takes its place.
        """
        while not lane.left:
            try:
                await self._serve(lane)
            except anyio.get_cancelled_exc_class():
                if _asked_for():
                    raise
                self.begin(lane)
                return
            if lane.idle is not None:
                return
            lane.idle = called = anyio.Event()
            try:
                await called.wait()
            except anyio.get_cancelled_exc_class():
                if lane.idle is called:
                    lane.idle = None
                if _asked_for():
                    raise
                if called.is_set():
                    self._tasks.start_soon(self._work, lane)
                return

    async def _serve(self, lane: Lane) -> None:
        """Deliver one after the other, as long as that may be."""
        call: _Call | None = None
        lane.starting = False
        try:
            while self._may_begin(lane):
                with anyio.CancelScope() as scope:
                    while self._may_begin(lane) and not scope.cancel_called:
                        taken = lane.queue.popleft()
                        self.begin(lane)
                        call = _Call(lane, scope, taken, self._clock(), lane.called)
                        self._under_way[taken.delivery.id] = call
                        await self._deliver(call, lane.target)  # type: ignore[arg-type]
                        call = None
                if call is not None:
                    self._over(call, call.late)
                    call = None
        except anyio.get_cancelled_exc_class():
            # Also where its deadline was over and somebody else has cancelled it, too: the scope leaves that to us.
            if call is not None and not _asked_for():
                self._over(call, call.late if call.scope.cancel_called else Failed(_CANCELLED, code="target_cancelled"))
            raise
        finally:
            lane.workers -= 1

    def _may_begin(self, lane: Lane) -> bool:
        # An answer may be from long ago when it is read: whoever was asleep asks again before he begins.
        now = self._clock()
        known = now - self.answered < FRESH and now < self.trusted and lane.failing < lane.most_failing
        if not lane.queue or lane.target is None or not known:
            return False
        return self.only is None or (lane.queue[0].delivery.id == self.only and not self._under_way)

    async def _deliver(self, call: _Call, target: Target) -> None:
        try:
            self._activate(call.taken.delivery)
            await target.deliver(call.taken.delivery)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as raised:
            # Every exception is the outcome of this delivery: also SystemExit, which would end the process and all
            # other deliveries with it. Only where this task itself is being closed is there nothing to record.
            if isinstance(raised, GeneratorExit) and not _in_a_task():
                raise
            self._over(call, raised)
        else:
            self._over(call, None)

    def _over(self, call: _Call, error: BaseException | None) -> None:
        # It may have been given up meanwhile: then somebody else delivers it.
        if self._under_way.get(call.taken.delivery.id) is call:
            del self._under_way[call.taken.delivery.id]
            result, code, detail, retry_after = outcome_of(error)
            ended, lane = self._clock(), call.lane
            beside = call.began - lane.succeeded_at < BESIDE
            if result is Result.SENT or result is Result.REJECTED:
                lane.succeeded_at = ended
            lane.failing += result is not Result.SENT
            self.done.append(
                Outcome(call.taken, result, call.began, ended, code, detail, retry_after, beside, call.called)
            )
            self._ring.set()

    def refuse(self, lane: Lane, taken: Taken) -> None:
        """Reject a delivery that no target can be given, for its problem."""
        now = self._clock()
        lane.failing += 1
        self.done.append(Outcome(taken, Result.REJECTED, now, now, taken.problem, PROBLEMS[taken.problem]))
        self._ring.set()

    async def _watch(self) -> None:
        """End calls that take longer than they may. One task for all: a timer each would cost more than a call."""
        while True:
            now = self._clock()
            for call in list(self._under_way.values()):
                if call.until <= now:
                    call.scope.cancel()
            # What begins meanwhile does not end before its deadline.
            left = min([call.until - now for call in self._under_way.values()], default=math.inf)
            self._alarm.clear()
            await self._alarm.wait_rung(max(0.001, min(left, self._shortest)))


def _in_a_task() -> bool:
    """Whether an event loop runs this code. A coroutine that is closed from outside is not run by one."""
    try:
        anyio.get_current_task()
    except RuntimeError:
        return False
    return True


def _asked_for() -> bool:
    """Whether one of the scopes that we are in was cancelled, by us or by whoever stops us."""
    return anyio.current_effective_deadline() == -math.inf
