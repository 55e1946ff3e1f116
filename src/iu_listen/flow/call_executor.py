"""Calls of targets: starts them while the last reading of the switches is fresh, enforces deadlines, keeps outcomes.

A call runs user code. At its deadline the call is cancelled. User code may ignore that: it may catch the cancellation,
or wait behind a shield for a thread. ABANDON_AFTER seconds later such a call is abandoned: it is recorded as a failed
attempt, its place is free for the next delivery, and nothing waits for it any more, not even the end of the process.
At most MAX_ABANDONED abandoned calls of one target may still run; at that bound the target is not called any more.

A call of a GroupTarget has several deliveries, if several are waiting. A group that fails gives its deliveries no
outcomes: they return to the head of the queue, and each of them is attempted in a call of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, cast

import anyio
import anyio.abc

from iu_listen.flow.call_tasks import CallTask, CallTasks, TargetQueue
from iu_listen.flow.detached import CANCEL_INTERVAL
from iu_listen.flow.ports import GroupTarget, Target
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import Delivery, Failed, Outcome, Result, TakenDelivery
from iu_listen.model.outcome import outcome_of

#: Longest age of the last reading of the switches when a call starts, in seconds.
SWITCHES_VALID_FOR: Final = 0.05
#: An attempt that starts within this time after a success of its route and fails counts as a failure of that one
#: delivery, not of the target. In seconds.
RECENT_SUCCESS: Final = 1.0
#: Time from the cancellation of a call until the call is abandoned, in seconds.
ABANDON_AFTER: Final = 1.0
#: Number of abandoned calls of one target, still running, at which the target is not called any more.
MAX_ABANDONED: Final = 100
#: Texts for deliveries that cannot be given to a target, by failure code (TakenDelivery.problem).
PROBLEM_TEXTS: Final = {
    "event_missing": "The event is not in event_outbox any more.",
    "payload_too_large": "The payload is larger than the setting payload_max allows.",
    "event_out_of_range": "occurred_at or created_at of the event is outside the years 1 to 9999.",
}
_CANCELLED_TEXT: Final = "The call was cancelled by the target itself, or by a task for which it waited."


@dataclass(slots=True, eq=False)
class _Call:
    """A running call: the task that runs it, its delivery, its start time, and the text of its target.

    ``others`` are the deliveries that a group has besides ``taken``, its first one.
    """

    call_task: CallTask
    taken: TakenDelivery
    began: float
    called: str
    others: Sequence[TakenDelivery] = ()

    @property
    def group(self) -> Sequence[TakenDelivery]:
        """All deliveries of the call."""
        return (self.taken, *self.others)

    @property
    def ends_by(self) -> float:
        """Time of the deadline, by the monotonic clock."""
        return self.began + self.taken.delivery.deadline

    @property
    def timeout_error(self) -> TimeoutError:
        return TimeoutError(f"no answer within {self.taken.delivery.deadline:g} s")

    @property
    def abandoned_error(self) -> Failed:
        why = f"{self.timeout_error}, and {ABANDON_AFTER:g} s after its cancellation the call still ran"
        return Failed(why, code="target_ignores_cancellation")


class CallExecutor:
    """The calls of one consumer, for all target queues.

    Args:
        wake: Set when a call has ended.
        clock: Monotonic clock, in seconds.
        activate: Called with the delivery, in the task that is about to call a target.
        report_abandoned: Called when a call was abandoned, with its delivery, the text of its target (called()), and
            the number of abandoned calls of that target that still run.
        activate_group: The context of the call of a group, made of its deliveries.
        report_group_failed: Called when a group failed, with its first delivery, the text of its target, the number of
            its deliveries, and the reason.

    Attributes:
        done: Outcomes of ended calls, in the order of their ends. The settling task removes them.
        switches_checked_at: Time at which the switches were last read, by ``clock``; -inf: never, or too long ago.
        lease_valid_until: Time until which no other consumer can hold the delivery lease, by ``clock``.
        only_id: Id of the only delivery that may begin, and only while no other call runs. NO_DELIVERY: no delivery
            may begin. None: every delivery may begin.
    """

    NO_DELIVERY: Final = -1

    def __init__(
        self,
        wake: WakeEvent,
        clock: Callable[[], float],
        activate: Callable[[Delivery], None] = lambda _: None,
        report_abandoned: Callable[[Delivery, str, int], None] = lambda *_: None,
        activate_group: Callable[[Sequence[Delivery]], AbstractContextManager[object]] = nullcontext,
        report_group_failed: Callable[[Delivery, str, int, str], None] = lambda *_: None,
    ) -> None:
        self._wake = wake
        self._clock = clock
        self._activate = activate
        self._report_abandoned = report_abandoned
        self._activate_group = activate_group
        self._report_group_failed = report_group_failed
        self._deadline_wake = WakeEvent()
        self._shortest_deadline = math.inf
        self._tasks = CallTasks(self._serve, self._task_failed)
        self._running: dict[int, _Call] = {}
        #: Calls that were cancelled and have not ended, with the time at which each is abandoned.
        self._ending: dict[_Call, float] = {}
        self._fault: Exception | None = None
        self.done: list[Outcome] = []
        self.switches_checked_at: float = -math.inf
        self.lease_valid_until: float = -math.inf
        self.only_id: int | None = None

    def watch(self, tasks: anyio.abc.TaskGroup) -> None:
        """Enforce deadlines in a task of this group. When the group is cancelled, all calls are cancelled, too.

        After that no call begins.
        """
        tasks.start_soon(self._watch)

    def set_deadlines(self, deadlines: Iterable[float]) -> None:
        """Set the deadlines of the calls that begin from now on: one value for each route, in seconds."""
        before, self._shortest_deadline = self._shortest_deadline, min(deadlines, default=math.inf)
        if self._shortest_deadline < before:
            self._deadline_wake.set()

    def running(self) -> Iterator[TakenDelivery]:
        """Deliveries whose calls have begun and not ended."""
        for call in dict.fromkeys(self._running.values()):
            yield from (taken for taken in call.group if self._running.get(taken.delivery.id) is call)

    def give_up(self, taken: TakenDelivery) -> None:
        """Cancel the call of a delivery. Its outcome is not recorded, and it does not return to the queue."""
        self._cancel(self._running.pop(taken.delivery.id))

    def renumber(self, before: int, after: int) -> None:
        """Note that a delivery has another id, because it was called ahead and is confirmed now."""
        if call := self._running.pop(before, None):
            self._running[after] = call

    def begin(self, queue: TargetQueue) -> None:
        """Begin the waiting deliveries of this queue, within its limits."""
        self._tasks.begin(queue)

    def close_queue(self, queue: TargetQueue) -> None:
        """Note that this queue gets no further deliveries."""
        self._tasks.close_queue(queue)

    def too_many_abandoned(self, queue: TargetQueue) -> bool:
        """Whether MAX_ABANDONED abandoned calls of the queue's target still run, so that it is not called any more."""
        return self._tasks.running(queue.called) >= MAX_ABANDONED

    async def _serve(self, call_task: CallTask) -> None:
        """Deliver the waiting deliveries of the queue one after another, while they may begin."""
        queue = call_task.queue
        while self._may_begin(queue) and not call_task.task.cancelled:
            taken = queue.waiting.popleft()
            others = queue.take_others(taken) if queue.group > 1 else ()
            self._tasks.begin(queue)
            call = _Call(call_task, taken, self._clock(), queue.called, others)
            self._running[taken.delivery.id] = call
            if others:
                self._running |= {other.delivery.id: call for other in others}
            await self._deliver(call, queue.target)  # type: ignore[arg-type]

    def _task_failed(self, fault: Exception) -> None:
        """Keep an error of this program that ended a call task; the watching task raises it and ends the consumer."""
        self._fault = fault
        self._deadline_wake.set()

    def _may_begin(self, queue: TargetQueue) -> bool:
        # The process may have been suspended since the last answer. Then the switches are read again first.
        now = self._clock()
        known = (
            now - self.switches_checked_at < SWITCHES_VALID_FOR
            and now < self.lease_valid_until
            and queue.failing < queue.max_failing
        )
        if not queue.waiting or queue.target is None or not known or self.too_many_abandoned(queue):
            return False
        if queue.held or (queue.group_wait and queue.waits(now)):
            return False
        return self.only_id is None or (queue.waiting[0].delivery.id == self.only_id and not self._running)

    async def _deliver(self, call: _Call, target: Target) -> None:
        try:
            if call.others:
                await self._deliver_group(call, cast(GroupTarget, target))
            else:
                self._activate(call.taken.delivery)
                await target.deliver(call.taken.delivery)
        except anyio.get_cancelled_exc_class():
            # A call that is past its deadline counts as late, even if other code has cancelled it as well.
            late = call.call_task.task.cancelled
            self._failed(call, call.timeout_error if late else Failed(_CANCELLED_TEXT, code="target_cancelled"))
            raise
        except BaseException as raised:
            # Every exception is the outcome of this call, including SystemExit, which would end the process and all
            # other deliveries. The only exception: nothing is recorded while this task itself is being closed.
            if isinstance(raised, GeneratorExit) and not _in_a_task():
                raise
            self._failed(call, raised)
        else:
            if not call.others:
                self._record(call, call.taken, None)
        finally:
            self._ending.pop(call, None)

    async def _deliver_group(self, call: _Call, target: GroupTarget) -> None:
        deliveries = [taken.delivery for taken in call.group]
        with self._activate_group(deliveries):
            failed = await target.deliver_group(deliveries)
        # Successes come first: a failure beside a success of its route is that of one delivery.
        for taken in sorted(call.group, key=lambda taken: taken.delivery in failed) if failed else call.group:
            self._record(call, taken, failed.get(taken.delivery))

    def _failed(self, call: _Call, error: BaseException) -> None:
        """Record the failure of a call. The deliveries of a group return to the queue, for calls of their own.

        Those calls begin after the next take query, because the route may have been paused meanwhile.
        """
        if not call.others:
            self._record(call, call.taken, error)
        elif returned := [taken for taken in call.group if self._running.get(taken.delivery.id) is call]:
            for taken in returned:
                del self._running[taken.delivery.id]
                taken.group_failed = True
            queue = call.call_task.queue
            queue.held = True
            queue.waiting.extendleft(reversed(returned))
            _, code, detail, _ = outcome_of(error)
            why = f"{code}: {detail}" if detail else code
            self._report_group_failed(call.taken.delivery, call.called, len(call.group), why)

    def _record(self, call: _Call, taken: TakenDelivery, error: BaseException | None) -> None:
        # Skip a call that was given up (another consumer may deliver it) or abandoned (its outcome is recorded).
        if self._running.get(taken.delivery.id) is call:
            del self._running[taken.delivery.id]
            result, code, detail, retry_after = outcome_of(error)
            ended, queue = self._clock(), call.call_task.queue
            near_success = call.began - queue.last_success < RECENT_SUCCESS
            if result is Result.SENT or result is Result.REJECTED:
                queue.last_success = ended
            queue.failing += result is not Result.SENT
            self.done.append(
                Outcome(taken, result, call.began, ended, code, detail, retry_after, near_success, call.called)
            )
            self._wake.set()

    def reject(self, queue: TargetQueue, taken: TakenDelivery) -> None:
        """Reject a delivery that cannot be given to a target; ``taken.problem`` is the failure code."""
        now = self._clock()
        queue.failing += 1
        self.done.append(Outcome(taken, Result.REJECTED, now, now, taken.problem, PROBLEM_TEXTS[taken.problem]))
        self._wake.set()

    # -- deadlines -----------------------------------------------------------------------------------------------

    def _cancel(self, call: _Call) -> None:
        """Cancel a call, and set the time at which it is abandoned."""
        if call not in self._ending:
            self._ending[call] = self._clock() + ABANDON_AFTER
            call.call_task.task.cancel()
            self._deadline_wake.set()

    def _abandon(self, call: _Call) -> None:
        """Abandon a call that ignores its cancellation: record it as failed and free its place."""
        del self._ending[call]
        running = self._tasks.abandon(call.call_task, call.called)
        self._failed(call, call.abandoned_error)
        self._report_abandoned(call.taken.delivery, call.called, running)
        self._tasks.begin(call.call_task.queue)

    async def _watch(self) -> None:
        """Cancel calls at their deadlines. One task serves all calls, because a timer costs more than a call."""
        try:
            while True:
                pause = self._enforce_deadlines()
                self._deadline_wake.clear()
                await self._deadline_wake.wait(pause)
        finally:
            await self._cancel_all()

    def _enforce_deadlines(self) -> float:
        """Cancel calls at their deadlines, repeat the cancellations, and abandon the calls that ignore them.

        Returns:
            Seconds until the next check.

        Raises:
            Exception: the error of this program that ended a call task.
        """
        if self._fault is not None:
            raise self._fault
        now = self._clock()
        for call in list(self._running.values()):
            if call.ends_by <= now:
                self._cancel(call)
        for call, until in list(self._ending.items()):
            if until <= now:
                self._abandon(call)
            else:
                call.call_task.task.cancel()
        due = [call.ends_by for call in self._running.values() if call not in self._ending]
        remaining = min(due, default=math.inf) - now
        # A call that begins during the pause is not late before the shortest deadline.
        return max(0.001, min(remaining, self._shortest_deadline, CANCEL_INTERVAL if self._ending else math.inf))

    async def _cancel_all(self) -> None:
        """Cancel all calls and wait at most ABANDON_AFTER seconds for them. Their outcomes are not recorded."""
        for call in self._running.values():
            self._cancel(call)
        self._running.clear()
        await self._tasks.cancel_all(ABANDON_AFTER)
        for call in list(self._ending):
            self._abandon(call)


def _in_a_task() -> bool:
    """Whether a task of an event loop runs this code. That is not so in a coroutine that is closed from outside."""
    try:
        anyio.get_current_task()
    except RuntimeError:
        return False
    return True
