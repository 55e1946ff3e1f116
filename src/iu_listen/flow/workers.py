"""Workers: the tasks that deliver for a lane, one call after the other, and wait where there is nothing to deliver.

A new task costs more than a call that does nothing, so a worker that has nothing to do waits for the next delivery.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import anyio

from iu_listen.flow.loose import Loose, end
from iu_listen.flow.ports import Target
from iu_listen.model.delivery import Taken


@dataclass(slots=True, kw_only=True)
class Lane:
    """What waits for one target, and how many may be under way at once.

    Attributes:
        target: Who takes it; None: nobody, for now.
        called: What that is, as the audit keeps it.
        concurrency: Most calls at once.
        queue: What was taken and has not begun.
        workers: How many workers deliver. One whose call was abandoned does not count.
        starting: The one of them that was started, or called, and has not begun yet.
        failing: Calls that failed and are not settled: whether that stops the target is not known yet.
        most_failing: None begins while so many are.
        idle: The worker that waits for more to do; None: none does.
        left: There will be no more.
        succeeded_at: When a call of this lane last succeeded, or was refused for good, by the clock of the consumer.
    """

    concurrency: int
    target: Target | None = None
    called: str = ""
    queue: deque[Taken] = field(default_factory=deque)
    workers: int = 0
    starting: Worker | None = None
    failing: int = 0
    most_failing: int = 1
    idle: Worker | None = None
    left: bool = False
    succeeded_at: float = -math.inf


class Worker:
    """A task that delivers for a lane.

    Attributes:
        lane: That lane.
        task: The task.
        counted: It is one of those that the lane counts.
        called: Set when there is more to do.
    """

    __slots__ = ("called", "counted", "lane", "task")

    task: Loose

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.counted = True
        self.called = anyio.Event()


class Workers:
    """The workers of all lanes.

    Args:
        serve: Delivers what waits in the lane of a worker, as long as that may be.
        broken: Called with what ``serve`` raised, which nothing in it should.
    """

    def __init__(self, serve: Callable[[Worker], Awaitable[None]], broken: Callable[[Exception], None]) -> None:
        self._serve = serve
        self._broken = broken
        self._all: set[Worker] = set()
        #: Those whose call was abandoned and still runs, and what it calls.
        self._abandoned: dict[Worker, str] = {}
        self._closed = False

    def begin(self, lane: Lane) -> None:
        """Start or call a worker, if there is something to deliver. It calls the next one when it begins.

        So a target that never waits is served by one worker, and one that does by as many as there may be.
        """
        if lane.queue and lane.starting is None and lane.workers < lane.concurrency and not self._closed:
            lane.workers += 1
            worker, lane.idle = lane.idle, None
            if worker is None:
                worker = Worker(lane)
                self._all.add(worker)
                worker.task = Loose(partial(self._work, worker), partial(self._ended, worker))
            else:
                worker.counted = True
                worker.called.set()
            lane.starting = worker

    def leave(self, lane: Lane) -> None:
        """There will be no more work for this lane: none of its workers is to wait for it."""
        lane.left = True
        if lane.idle is not None:
            lane.idle.called.set()
            lane.idle = None

    def abandon(self, worker: Worker, called: str) -> int:
        """Go on without a worker that ignores its cancellation; how many such calls of that target still run."""
        worker.task.leave()
        self._all.discard(worker)
        self._abandoned[worker] = called
        self._release(worker)
        return self.running(called)

    def running(self, called: str) -> int:
        """How many abandoned calls of a target still run."""
        return sum(1 for other in self._abandoned.values() if other == called) if self._abandoned else 0

    async def close(self, seconds: float) -> None:
        """Cancel all workers, and wait for them for so many seconds at most. None begins any more."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            await end([worker.task for worker in self._all], seconds)

    async def _work(self, worker: Worker) -> None:
        """Serve its lane, and wait until there is more to do, unless another worker does.

        A target may let out a cancellation that was meant for what it waited for, or leave something behind that
        cancels its task later. It must not end the work of all others: such a task ends, another one takes its place.
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

    def _ended(self, worker: Worker) -> None:
        """Its task has ended, perhaps before it began: its place is free for another one."""
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

    def _release(self, worker: Worker) -> None:
        worker.lane.workers -= worker.counted
        worker.counted = False
