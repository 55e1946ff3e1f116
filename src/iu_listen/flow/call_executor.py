"""Calls of targets: starts them while the last reading of the switches is fresh, enforces deadlines, keeps outcomes.

A call runs user code. At its deadline the call is cancelled. User code may ignore that: it may catch the cancellation,
or wait behind a shield for a thread. PATIENCE seconds later such a call is abandoned: it is recorded as a failed
attempt, its place is free for the next delivery, and nothing waits for it any more, not even the end of the process.
At most MOST_ABANDONED abandoned calls of one target may still run; at that bound the target is not called any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.abc

from iu_listen.flow.call_tasks import CallTask, CallTasks, TargetQueue
from iu_listen.flow.detached import AGAIN
from iu_listen.flow.ports import Target
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import Delivery, Failed, Outcome, Result, TakenDelivery
from iu_listen.model.outcome import outcome_of

#: Longest age of the last reading of the switches when a call starts, in seconds.
FRESH: Final = 0.05
#: An attempt that starts within this time after a success of its route and fails counts as a failure of that one
#: delivery, not of the target. In seconds.
BESIDE: Final = 1.0
#: Time from the cancellation of a call until the call is abandoned, in seconds.
PATIENCE: Final = 1.0
#: Number of abandoned calls of one target, still running, at which the target is not called any more.
MOST_ABANDONED: Final = 100
#: Reasons why a delivery cannot be given to a target, by failure code.
PROBLEMS: Final = {
    "event_missing": "The event is not in event_outbox any more.",
    "payload_too_large": "The payload is larger than the setting payload_max allows.",
    "event_out_of_range": "occurred_at or created_at of the event is outside the years 1 to 9999.",
}
_CANCELLED: Final = "the target was cancelled, by itself or by what it waited for"


@dataclass(slots=True, eq=False)
class _Call:
    """A running call: its delivery, the task (`Worker`) that runs it, its start time and the target's text."""

    worker: CallTask
    taken: TakenDelivery
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


class CallExecutor:
    """The calls of one consumer, for all lanes.

    Args:
        ring: Set when a call has ended.
        clock: Monotonic clock, in seconds.
        activate: Called with the delivery, in the task that is about to call a target.
        told: Called when a call was abandoned, with its delivery, the text of its target (called()), and the number of
            abandoned calls of that target that still run.

    Attributes:
        done: Outcomes of ended calls, in the order of their ends. The settling task removes them.
        answered: Time at which the switches were last read, by ``clock``; -inf: never, or too long ago.
        trusted: Time until which no other consumer can hold the delivery lease, by ``clock``.
        only: Id of the only delivery that may begin, and only while no other one is in flight. NONE: no delivery may
            begin. None: every delivery may.
    """

    NONE: Final = -1

    def __init__(
        self,
        ring: WakeEvent,
        clock: Callable[[], float],
        activate: Callable[[Delivery], None] = lambda _: None,
        told: Callable[[Delivery, str, int], None] = lambda *_: None,
    ) -> None:
        self._ring = ring
        self._clock = clock
        self._activate = activate
        self._told = told
        self._alarm = WakeEvent()
        self._shortest = math.inf
        self._workers = CallTasks(self._serve, self._broken)
        self._under_way: dict[int, _Call] = {}
        #: Calls that were cancelled and have not ended, with the time at which each is abandoned.
        self._ending: dict[_Call, float] = {}
        self._fault: Exception | None = None
        self.done: list[Outcome] = []
        self.answered = -math.inf
        self.trusted = -math.inf
        self.only: int | None = None

    def watch(self, tasks: anyio.abc.TaskGroup) -> None:
        """Enforce deadlines in a task of this group. When the group is cancelled, all calls are cancelled, too.

        After that no call begins.
        """
        tasks.start_soon(self._watch)

    def expect(self, deadlines: Iterable[float]) -> None:
        """Set the deadlines, in seconds, of the calls that begin from now on: one value for each route."""
        before, self._shortest = self._shortest, min(deadlines, default=math.inf)
        if self._shortest < before:
            self._alarm.set()

    def under_way(self) -> Iterator[TakenDelivery]:
        """Deliveries whose calls have begun and not ended."""
        for call in list(self._under_way.values()):
            yield call.taken

    def give_up(self, taken: TakenDelivery) -> None:
        """Cancel the call of a delivery. Its outcome is not recorded."""
        self._cancel(self._under_way.pop(taken.delivery.id))

    def begin(self, lane: TargetQueue) -> None:
        """Begin the queued deliveries of this lane, within its limits."""
        self._workers.begin(lane)

    def leave(self, lane: TargetQueue) -> None:
        """Release this lane: it gets no further deliveries."""
        self._workers.leave(lane)

    def crowded(self, lane: TargetQueue) -> bool:
        """Whether MOST_ABANDONED abandoned calls of the lane's target still run, so that it is not called any more."""
        return self._workers.running(lane.called) >= MOST_ABANDONED

    async def _serve(self, worker: CallTask) -> None:
        """Deliver the queued deliveries of the lane one after another, while they may begin."""
        lane = worker.lane
        while self._may_begin(lane) and not worker.task.cancelled:
            taken = lane.queue.popleft()
            self._workers.begin(lane)
            call = _Call(worker, taken, self._clock(), lane.called)
            self._under_way[taken.delivery.id] = call
            await self._deliver(call, lane.target)  # type: ignore[arg-type]

    def _broken(self, fault: Exception) -> None:
        """Keep an error of this program that ended a `Worker`; the watching task raises it and ends the consumer."""
        self._fault = fault
        self._alarm.set()

    def _may_begin(self, lane: TargetQueue) -> bool:
        # The process may have been suspended since the last answer. Then the switches are read again first.
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
            # A call that is past its deadline counts as late, even if other code has cancelled it as well.
            late = call.worker.task.cancelled
            self._over(call, call.late if late else Failed(_CANCELLED, code="target_cancelled"))
            raise
        except BaseException as raised:
            # Every exception is the outcome of this delivery, including SystemExit, which would end the process and all
            # other deliveries. The only exception: nothing is recorded while this task itself is being closed.
            if isinstance(raised, GeneratorExit) and not _in_a_task():
                raise
            self._over(call, raised)
        else:
            self._over(call, None)
        finally:
            self._ending.pop(call, None)

    def _over(self, call: _Call, error: BaseException | None) -> None:
        # Skip a call that was given up (another consumer may deliver it) or abandoned (its outcome is recorded).
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

    def refuse(self, lane: TargetQueue, taken: TakenDelivery) -> None:
        """Reject a delivery that cannot be given to a target; ``taken.problem`` is the failure code."""
        now = self._clock()
        lane.failing += 1
        self.done.append(Outcome(taken, Result.REJECTED, now, now, taken.problem, PROBLEMS[taken.problem]))
        self._ring.set()

    # -- deadlines -----------------------------------------------------------------------------------------------

    def _cancel(self, call: _Call) -> None:
        """Cancel a call, and set the time at which it is abandoned."""
        if call not in self._ending:
            self._ending[call] = self._clock() + PATIENCE
            call.worker.task.cancel()
            self._alarm.set()

    def _abandon(self, call: _Call) -> None:
        """Abandon a call that ignores its cancellation: record it as failed and free its place."""
        del self._ending[call]
        running = self._workers.abandon(call.worker, call.called)
        self._over(call, call.ignored)
        self._told(call.taken.delivery, call.called, running)
        self._workers.begin(call.worker.lane)

    async def _watch(self) -> None:
        """Cancel calls at their deadlines. One task serves all calls, because a timer costs more than a call."""
        try:
            while True:
                pause = self._look()
                self._alarm.clear()
                await self._alarm.wait(pause)
        finally:
            await self._close()

    def _look(self) -> float:
        """Cancel late calls, repeat the cancellation every AGAIN seconds, and abandon them after PATIENCE seconds.

        Returns:
            Seconds until the next check.

        Raises:
            Exception: the error of this program that ended a `Worker`.
        """
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
        # A call that begins during the pause is not late before the shortest deadline.
        return max(0.001, min(left, self._shortest, AGAIN if self._ending else math.inf))

    async def _close(self) -> None:
        """Cancel all calls and wait at most PATIENCE seconds for them. Their outcomes are not recorded."""
        for call in self._under_way.values():
            self._cancel(call)
        self._under_way.clear()
        await self._workers.close(PATIENCE)
        for call in list(self._ending):
            self._abandon(call)


def _in_a_task() -> bool:
    """Whether a task of an event loop runs this code. That is not so in a coroutine that is closed from outside."""
    try:
        anyio.get_current_task()
    except RuntimeError:
        return False
    return True
