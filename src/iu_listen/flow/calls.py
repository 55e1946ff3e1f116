"""Calls of targets: begun while the database's word is fresh, ended when they take too long, and what came of them.

A call runs code of a user. At its deadline it is cancelled, and that code may ignore it: it catches the cancellation
or waits behind a shield for a thread. PATIENCE later such a call is abandoned. It is recorded as a failed attempt, its
place is free for the next delivery, and nothing waits for it any more, also not the end of the process. How many
abandoned calls of one target may still run is bounded; at that bound the target is called no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.abc

from iu_listen.flow.loose import AGAIN
from iu_listen.flow.ports import Target
from iu_listen.flow.ring import Ring
from iu_listen.flow.workers import Lane, Worker, Workers
from iu_listen.model.delivery import Delivery, Failed, Outcome, Result, Taken
from iu_listen.model.outcome import outcome_of

#: How old the database's word on the locks may be when a delivery begins, in seconds.
FRESH: Final = 0.05
#: How long after a success of its route an attempt that begins and fails is that delivery's own fault, in seconds.
BESIDE: Final = 1.0
#: How long after its cancellation a call that goes on is abandoned, in seconds.
PATIENCE: Final = 1.0
#: A target of which so many abandoned calls still run is called no more.
MOST_ABANDONED: Final = 100
#: Why a delivery cannot be given to a target, by its failure code.
PROBLEMS: Final = {
    "event_missing": "The event is not in event_outbox any more.",
    "payload_too_large": "The payload is larger than the setting payload_max allows.",
    "event_out_of_range": "occurred_at or created_at of the event is outside the years 1 to 9999.",
}
_CANCELLED: Final = "the target was cancelled, by itself or by what it waited for"


@dataclass(slots=True, eq=False)
class _Call:
    """A delivery that was begun, and the worker that makes the call."""

    worker: Worker
    taken: Taken
    began: float
    called: str

    @property
    def until(self) -> float:
        return self.began + self.taken.delivery.deadline

    @property
    def late(self) -> TimeoutError:
        return TimeoutError(f"no answer within {self.taken.delivery.deadline:g} s")

    @property
    def ignored(self) -> Failed:
        why = f"{self.late}, and {PATIENCE:g} s after its cancellation it still ran"
        return Failed(why, code="target_ignores_cancellation")


class Calls:
    """The calls of one consumer, of all lanes.

    Args:
        ring: Rung when a call has ended.
        clock: Monotonic clock, in seconds.
        activate: Called in the task that is about to call a target, with the delivery.
        told: Called when a call was abandoned: its delivery, what was called, how many such calls of it still run.

    Attributes:
        done: What came of calls that have ended, in that order. Whoever settles it takes it out.
        answered: When the database last told that the locks are open.
        trusted: Until when nobody else can have our lease.
        only: Id of the one delivery that may begin, while no other one is in flight; NONE: none may; None: all may.
    """

    NONE: Final = -1

    def __init__(
        self,
        ring: Ring,
        clock: Callable[[], float],
        activate: Callable[[Delivery], None] = lambda _: None,
        told: Callable[[Delivery, str, int], None] = lambda *_: None,
    ) -> None:
        self._ring = ring
        self._clock = clock
        self._activate = activate
        self._told = told
        self._alarm = Ring()
        self._shortest = math.inf
        self._workers = Workers(self._serve, self._broken)
        self._under_way: dict[int, _Call] = {}
        #: Calls that were cancelled and have not ended, and when they are abandoned.
        self._ending: dict[_Call, float] = {}
        self._fault: Exception | None = None
        self.done: list[Outcome] = []
        self.answered = -math.inf
        self.trusted = -math.inf
        self.only: int | None = None

    def watch(self, tasks: anyio.abc.TaskGroup) -> None:
        """See to deadlines in this task group. When it is cancelled, all calls are, and none begins any more."""
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
        self._cancel(self._under_way.pop(taken.delivery.id))

    def begin(self, lane: Lane) -> None:
        """Begin what waits in this lane, as far as that may be."""
        self._workers.begin(lane)

    def leave(self, lane: Lane) -> None:
        """There will be no more for this lane."""
        self._workers.leave(lane)

    def crowded(self, lane: Lane) -> bool:
        """Whether so many abandoned calls of its target still run that it is called no more."""
        return self._workers.running(lane.called) >= MOST_ABANDONED

    async def _serve(self, worker: Worker) -> None:
        """Deliver one after the other, as long as that may be."""
        lane = worker.lane
        while self._may_begin(lane) and not worker.task.cancelled:
            taken = lane.queue.popleft()
            self._workers.begin(lane)
            call = _Call(worker, taken, self._clock(), lane.called)
            self._under_way[taken.delivery.id] = call
            await self._deliver(call, lane.target)  # type: ignore[arg-type]

    def _broken(self, fault: Exception) -> None:
        """A worker has ended by a fault of ours: so does the task that watches, and with it the consumer."""
        self._fault = fault
        self._alarm.set()

    def _may_begin(self, lane: Lane) -> bool:
        # An answer may be from long ago when it is read: whoever was asleep asks again before he begins.
        now = self._clock()
        known = now - self.answered < FRESH and now < self.trusted and lane.failing < lane.most_failing
        if not lane.queue or lane.target is None or not known or self.crowded(lane):
            return False
        return self.only is None or (lane.queue[0].delivery.id == self.only and not self._under_way)

    async def _deliver(self, call: _Call, target: Target) -> None:
        try:
            self._activate(call.taken.delivery)
            await target.deliver(call.taken.delivery)
        except anyio.get_cancelled_exc_class():
            # Also where its deadline was over and somebody else has cancelled it, too.
            late = call.worker.task.cancelled
            self._over(call, call.late if late else Failed(_CANCELLED, code="target_cancelled"))
            raise
        except BaseException as raised:
            # Every exception is the outcome of this delivery: also SystemExit, which would end the process and all
            # other deliveries with it. Only where this task itself is being closed is there nothing to record.
            if isinstance(raised, GeneratorExit) and not _in_a_task():
                raise
            self._over(call, raised)
        else:
            self._over(call, None)
        finally:
            self._ending.pop(call, None)

    def _over(self, call: _Call, error: BaseException | None) -> None:
        # It may have been given up meanwhile, and somebody else delivers it; or it was abandoned, and is recorded.
        if self._under_way.get(call.taken.delivery.id) is call:
            del self._under_way[call.taken.delivery.id]
            result, code, detail, retry_after = outcome_of(error)
            ended, lane = self._clock(), call.worker.lane
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

    # -- deadlines -----------------------------------------------------------------------------------------------

    def _cancel(self, call: _Call) -> None:
        """Ask a call to end."""
        if call not in self._ending:
            self._ending[call] = self._clock() + PATIENCE
            call.worker.task.cancel()
            self._alarm.set()

    def _abandon(self, call: _Call) -> None:
        """Go on without a call that ignores its cancellation."""
        del self._ending[call]
        running = self._workers.abandon(call.worker, call.called)
        self._over(call, call.ignored)
        self._told(call.taken.delivery, call.called, running)
        self._workers.begin(call.worker.lane)

    async def _watch(self) -> None:
        """End calls that take longer than they may. One task for all: a timer each would cost more than a call."""
        try:
            while True:
                pause = self._look()
                self._alarm.clear()
                await self._alarm.wait_rung(pause)
        finally:
            await self._close()

    def _look(self) -> float:
        """Cancel calls that are late, again and again, then abandon them; in how many seconds to look again."""
        if self._fault is not None:
            raise self._fault
        now = self._clock()
        for call in list(self._under_way.values()):
            if call.until <= now:
                self._cancel(call)
        for call, until in list(self._ending.items()):
            if until <= now:
                self._abandon(call)
            else:
                call.worker.task.cancel()
        due = [call.until for call in self._under_way.values() if call not in self._ending]
        left = min(due, default=math.inf) - now
        # What begins meanwhile does not end before its deadline.
        return max(0.001, min(left, self._shortest, AGAIN if self._ending else math.inf))

    async def _close(self) -> None:
        """Cancel all calls, and wait for them as long as for one that is late. Nothing is recorded of them."""
        for call in self._under_way.values():
            self._cancel(call)
        self._under_way.clear()
        await self._workers.close(PATIENCE)
        for call in list(self._ending):
            self._abandon(call)


def _in_a_task() -> bool:
    """Whether an event loop runs this code. A coroutine that is closed from outside is not run by one."""
    try:
        anyio.get_current_task()
    except RuntimeError:
        return False
    return True
