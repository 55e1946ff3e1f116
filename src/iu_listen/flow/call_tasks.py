"""Call tasks: each runs the calls of one target queue one after another, and waits while the queue is empty.

A call task is reused, because to create a task costs more than a trivial call.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import anyio

from iu_listen.flow.detached import DetachedTask, end
from iu_listen.flow.ports import Target
from iu_listen.model.delivery import TakenDelivery


@dataclass(slots=True, kw_only=True)
class TargetQueue:
    """The deliveries that wait for one target, its concurrency, and its call tasks.

    Attributes:
        target: The target; None: there is none at present.
        called: Text of the target as stored in the audit, made by called().
        concurrency: Most calls at the same time.
        waiting: Deliveries that were taken and whose calls have not begun.
        running: Number of call tasks at work. A task whose call was abandoned does not count.
        starting: The call task that was created or woken and has not begun yet; None: there is none.
        failing: Number of failed calls that are not settled. Their settlement may pause the route.
        max_failing: Value of ``failing`` at which no call begins.
        idle: The call task that waits for the next delivery; None: there is none.
        closed: True: the queue gets no further deliveries.
        last_success: Time of the last call of this queue that succeeded or was rejected, by the monotonic clock, in
            seconds.
        group: Most deliveries of one call.
        group_wait: Longest time for which a call waits for a full group, in seconds.
        wait_until: End of the present wait for a full group, by the monotonic clock; inf: there was none yet.
        held: True: deliveries of a failed group wait, and no call begins until the state of the route was read again.
    """

    concurrency: int
    target: Target | None = None
    called: str = ""
    waiting: deque[TakenDelivery] = field(default_factory=deque)
    running: int = 0
    starting: CallTask | None = None
    failing: int = 0
    max_failing: int = 1
    idle: CallTask | None = None
    closed: bool = False
    last_success: float = -math.inf
    group: int = 1
    group_wait: float = 0.0
    wait_until: float = math.inf
    held: bool = False

    def waits(self, now: float) -> float:
        """Seconds for which the next call waits for a full group; 0: it does not wait.

        Args:
            now: The time, by the monotonic clock, in seconds.
        """
        if not self.group_wait or not 0 < len(self.waiting) < self.group or not self.waiting[0].groupable:
            return 0.0
        self.wait_until = min(self.wait_until, now + self.group_wait)
        return max(0.0, self.wait_until - now)

    def take_others(self, first: TakenDelivery) -> Sequence[TakenDelivery]:
        """Remove the deliveries from the queue that form a group with ``first``, which has left it, and return them.

        They have the same deadline.
        """
        self.wait_until = math.inf
        others: list[TakenDelivery] = []
        most = self.group - 1 if first.groupable else 0
        while len(others) < most and self.waiting:
            other = self.waiting[0]
            if not other.groupable or other.delivery.deadline != first.delivery.deadline:
                break
            others.append(self.waiting.popleft())
        return others


class CallTask:
    """A task that runs the calls of one target queue.

    Attributes:
        queue: The target queue.
        task: The task.
        counted: Whether the task is included in ``queue.running``.
        wake: Event that wakes the task when there is a delivery for it.
    """

    __slots__ = ("counted", "queue", "task", "wake")

    task: DetachedTask

    def __init__(self, queue: TargetQueue) -> None:
        self.queue: TargetQueue = queue
        self.counted: bool = True
        self.wake: anyio.Event = anyio.Event()


class CallTasks:
    """The call tasks of all target queues.

    Args:
        serve: Runs the calls of the queue of a call task, while its deliveries may begin.
        task_failed: Called with the error that ``serve`` raised. Such an error is a fault of this program.
    """

    def __init__(self, serve: Callable[[CallTask], Awaitable[None]], task_failed: Callable[[Exception], None]) -> None:
        self._serve = serve
        self._task_failed = task_failed
        self._all: set[CallTask] = set()
        #: Call tasks whose abandoned call still runs, each with the text of its target.
        self._abandoned: dict[CallTask, str] = {}
        self._closed = False

    def begin(self, queue: TargetQueue) -> None:
        """Create or wake one call task, if the queue is not empty. The task wakes the next one when it begins.

        So a target that never waits is served by one task, and a target that waits by up to ``concurrency`` tasks.
        """
        if queue.waiting and queue.starting is None and queue.running < queue.concurrency and not self._closed:
            queue.running += 1
            call_task, queue.idle = queue.idle, None
            if call_task is None:
                call_task = CallTask(queue)
                self._all.add(call_task)
                call_task.task = DetachedTask(partial(self._work, call_task), partial(self._ended, call_task))
            else:
                call_task.counted = True
                call_task.wake.set()
            queue.starting = call_task

    def close_queue(self, queue: TargetQueue) -> None:
        """Note that this queue gets no further deliveries, so its call tasks end."""
        queue.closed = True
        if queue.idle is not None:
            queue.idle.wake.set()
            queue.idle = None

    def abandon(self, call_task: CallTask, called: str) -> int:
        """Abandon a task that ignores its cancellation. Returns the number of abandoned calls of its target."""
        call_task.task.abandon()
        self._all.discard(call_task)
        self._abandoned[call_task] = called
        self._free_place(call_task)
        return self.running(called)

    def running(self, called: str) -> int:
        """Number of abandoned calls of a target that still run."""
        return sum(1 for other in self._abandoned.values() if other == called) if self._abandoned else 0

    async def cancel_all(self, seconds: float) -> None:
        """Cancel all call tasks and wait at most ``seconds`` seconds for their ends. No task begins after this."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            await end([call_task.task for call_task in self._all], seconds)

    async def _work(self, call_task: CallTask) -> None:
        """Run the calls of the queue, then wait for more deliveries, unless another task of the queue waits already.

        A target may raise a cancellation that was meant for another task, or leave code behind that cancels this task
        later. Then only this task ends, and another one takes its place.
        """
        queue = call_task.queue
        while not queue.closed:
            queue.starting = None
            await self._serve(call_task)
            if call_task.task.cancelled:
                return
            self._free_place(call_task)
            if queue.idle is not None:
                return
            call_task.wake = anyio.Event()
            queue.idle = call_task
            await call_task.wake.wait()

    def _ended(self, call_task: CallTask) -> None:
        """Free the place of a task that has ended, possibly before it began."""
        queue = call_task.queue
        self._all.discard(call_task)
        self._abandoned.pop(call_task, None)
        self._free_place(call_task)
        if queue.idle is call_task:
            queue.idle = None
        if queue.starting is call_task:
            queue.starting = None
        if call_task.task.error is not None:
            self._task_failed(call_task.task.error)
        self.begin(queue)

    def _free_place(self, call_task: CallTask) -> None:
        call_task.queue.running -= call_task.counted
        call_task.counted = False
