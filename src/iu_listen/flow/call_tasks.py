"""Delivery tasks (`Worker`): each runs the calls of one lane one after another, and waits when the queue is empty.

A `Worker` is reused, because to create a task costs more than a trivial call. It is not a worker in the sense of the
glossary, which is a named reader of one event domain.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import anyio

from iu_listen.flow.detached import DetachedTask, end
from iu_listen.flow.ports import Target
from iu_listen.model.delivery import TakenDelivery


@dataclass(slots=True, kw_only=True)
class TargetQueue:
    """The queue of one target, its concurrency, and its delivery tasks.

    Attributes:
        target: The target; None: there is none at present.
        called: Text of the target as stored in the audit, made by called().
        concurrency: Most calls at the same time.
        queue: Deliveries that were taken and have not begun.
        workers: Number of delivery tasks at work. A task whose call was abandoned does not count.
        starting: The delivery task that was created or woken and has not begun yet; None: there is none.
        failing: Number of failed calls that are not settled. Their settlement may pause the route.
        most_failing: Value of ``failing`` at which no call begins.
        idle: The delivery task that waits for the next delivery; None: there is none.
        left: True: the lane gets no further deliveries.
        succeeded_at: Time of the last call of this lane that succeeded or was rejected, by the monotonic clock, in
            seconds.
    """

    concurrency: int
    target: Target | None = None
    called: str = ""
    queue: deque[TakenDelivery] = field(default_factory=deque)
    workers: int = 0
    starting: CallTask | None = None
    failing: int = 0
    most_failing: int = 1
    idle: CallTask | None = None
    left: bool = False
    succeeded_at: float = -math.inf


class CallTask:
    """A task that runs the calls of one lane.

    Attributes:
        lane: The lane.
        task: The task.
        counted: Whether the task is included in ``lane.workers``.
        called: Event that wakes the task when there is a delivery for it.
    """

    __slots__ = ("called", "counted", "lane", "task")

    task: DetachedTask

    def __init__(self, lane: TargetQueue) -> None:
        self.lane = lane
        self.counted = True
        self.called = anyio.Event()


class CallTasks:
    """The delivery tasks of all lanes.

    Args:
        serve: Runs the calls of the lane of a `Worker`, while its deliveries may begin.
        broken: Called with the error that ``serve`` raised. Such an error is a fault of this program.
    """

    def __init__(self, serve: Callable[[CallTask], Awaitable[None]], broken: Callable[[Exception], None]) -> None:
        self._serve = serve
        self._broken = broken
        self._all: set[CallTask] = set()
        #: Delivery tasks whose abandoned call still runs, each with the text of its target.
        self._abandoned: dict[CallTask, str] = {}
        self._closed = False

    def begin(self, lane: TargetQueue) -> None:
        """Create or wake one delivery task, if the queue is not empty. The task wakes the next one when it begins.

        So a target that never waits is served by one task, and a target that waits by up to ``concurrency`` tasks.
        """
        if lane.queue and lane.starting is None and lane.workers < lane.concurrency and not self._closed:
            lane.workers += 1
            worker, lane.idle = lane.idle, None
            if worker is None:
                worker = CallTask(lane)
                self._all.add(worker)
                worker.task = DetachedTask(partial(self._work, worker), partial(self._ended, worker))
            else:
                worker.counted = True
                worker.called.set()
            lane.starting = worker

    def leave(self, lane: TargetQueue) -> None:
        """Release this lane: it gets no further deliveries, so its delivery tasks end."""
        lane.left = True
        if lane.idle is not None:
            lane.idle.called.set()
            lane.idle = None

    def abandon(self, worker: CallTask, called: str) -> int:
        """Abandon a task that ignores its cancellation. Returns the number of abandoned calls of its target."""
        worker.task.leave()
        self._all.discard(worker)
        self._abandoned[worker] = called
        self._release(worker)
        return self.running(called)

    def running(self, called: str) -> int:
        """Number of abandoned calls of a target that still run."""
        return sum(1 for other in self._abandoned.values() if other == called) if self._abandoned else 0

    async def close(self, seconds: float) -> None:
        """Cancel all delivery tasks and wait at most ``seconds`` seconds for their ends. No task begins after this."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            await end([worker.task for worker in self._all], seconds)

    async def _work(self, worker: CallTask) -> None:
        """Run the calls of the lane, then wait for more deliveries, unless another task of the lane waits already.

        A target may raise a cancellation that was meant for another task, or leave code behind that cancels this task
        later. Then only this task ends, and another one takes its place.
        """
        lane = worker.lane
        while not lane.left:
            lane.starting = None
            await self._serve(worker)
            if worker.task.cancelled:
                return
            self._release(worker)
            if lane.idle is not None:
                return
            worker.called = anyio.Event()
            lane.idle = worker
            await worker.called.wait()

    def _ended(self, worker: CallTask) -> None:
        """Free the place of a task that has ended, possibly before it began."""
        lane = worker.lane
        self._all.discard(worker)
        self._abandoned.pop(worker, None)
        self._release(worker)
        if lane.idle is worker:
            lane.idle = None
        if lane.starting is worker:
            lane.starting = None
        if worker.task.error is not None:
            self._broken(worker.task.error)
        self.begin(lane)

    def _release(self, worker: CallTask) -> None:
        worker.lane.workers -= worker.counted
        worker.counted = False
