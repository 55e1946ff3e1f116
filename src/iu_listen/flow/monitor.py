"""The monitor, concurrent with routing: finds blockers, lost answers of batches, and deliveries without a dispatcher.

It has its own session and checks three things every MONITOR_INTERVAL seconds while the consumer holds the lease:

* Blockers: every ``cadence`` seconds it reads v_iu_blocker, and reports each blocker when it begins and when it ends.
* The running batch: if the answer of a batch is lost in the network, the consumer would wait until the batch deadline,
  which is long. So when a batch takes longer than OVERDUE_AFTER, the monitor asks the server whether that session
  executes a statement. The worker session is abandoned if the answer is no twice in a row, or if the server cannot be
  reached.
* Deliveries: while no route is live the dispatcher has no session. A route that goes live and a replay start deliveries
  without an event. So each round checks for deliveries while the dispatcher does not deliver.

If the monitor loses its session, the consumer goes on; the loss is reported once, and a new session is opened.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import anyio

from iu_listen.flow.backoff import backoff
from iu_listen.flow.dispatcher import Dispatcher
from iu_listen.flow.ports import BatchRunner, BlockerSource, Observer, Sessions
from iu_listen.model.errors import NoAnswer, Refused, SessionLost
from iu_listen.model.monitoring import Blocker
from iu_listen.model.observation import BlockerCleared, BlockerFound, SessionFailed
from iu_listen.model.routing import WorkerName

#: Pause before the first round, in seconds. A consumer that ends before needs no session for its monitor.
FIRST_ROUND_DELAY: Final = 0.3
#: Pause between rounds, in seconds.
MONITOR_INTERVAL: Final = 2.0
#: Duration from which a batch is checked, in seconds.
OVERDUE_AFTER: Final = 3.0


class Monitor:
    """The monitor of one worker session.

    Args:
        sessions: Opens the session of the monitor.
        worker_session: The worker session that is monitored.
        waiting_since: Returns the start time of the running batch, by ``clock``; None: no batch is running.
        observer: Observer that receives observations.
        worker: Name of the worker.
        dispatcher: The dispatcher, which is woken if there are deliveries; None: this consumer delivers nothing.
        cadence: Interval between two searches for blockers, in seconds.
        reconnect_max: Longest pause between two tries to connect, in seconds.
        clock: Monotonic clock, in seconds.
        jitter: Source of randomness.
    """

    def __init__(
        self,
        sessions: Sessions,
        worker_session: BatchRunner,
        waiting_since: Callable[[], float | None],
        observer: Observer,
        worker: WorkerName,
        dispatcher: Dispatcher | None,
        *,
        cadence: float,
        reconnect_max: float,
        clock: Callable[[], float],
        jitter: random.Random,
    ) -> None:
        self._sessions = sessions
        self._worker_session = worker_session
        self._waiting_since = waiting_since
        self._observer = observer
        self._worker = worker
        self._dispatcher = dispatcher
        self._cadence = cadence
        self._reconnect_max = reconnect_max
        self._clock = clock
        self._jitter = jitter
        self._known: dict[tuple[str, str], Blocker] = {}
        self._asked_at = float("-inf")
        self._suspect: float | None = None

    async def run(self) -> None:
        """Run the checks until cancelled. After a loss of the session, open a new one after a backoff."""
        tries, last_reported = 0, ""
        await anyio.sleep(FIRST_ROUND_DELAY)
        while True:
            try:
                async with self._sessions.monitor() as session:
                    while True:
                        await self._round(session)
                        tries, last_reported = 0, ""
                        await anyio.sleep(MONITOR_INTERVAL)
            except (SessionLost, Refused) as lost:
                tries += 1
                # A new session could not be opened either, so the answer of the running batch will not arrive.
                if isinstance(lost, NoAnswer) and tries > 1 and self._overdue():
                    self._worker_session.abandon(
                        "the server does not answer a batch, and no new session could be opened"
                    )
                if last_reported != lost.message:
                    last_reported = lost.message
                    self._observer.observe(SessionFailed("monitor", last_reported, 0.0))
                # Reconnect at once after the first loss: only a second one shows that the server does not answer.
                await anyio.sleep(0 if tries == 1 else backoff(tries, self._reconnect_max, self._jitter))

    async def _round(self, session: BlockerSource) -> None:
        await self._check_batch(session)
        if self._dispatcher is not None and not self._dispatcher.delivering and await session.deliverable():
            self._dispatcher.work()
        if self._clock() - self._asked_at >= self._cadence:
            self._asked_at = self._clock()
            self._report(await session.blockers())

    def _overdue(self) -> bool:
        since = self._waiting_since()
        return since is not None and self._clock() - since > OVERDUE_AFTER

    async def _check_batch(self, session: BlockerSource) -> None:
        since, backend = self._waiting_since(), self._worker_session.backend
        if backend is None or not self._overdue():
            return
        if await session.works(backend) or since != self._waiting_since():
            self._suspect = None
        elif self._suspect == since:
            self._worker_session.abandon("the answer to a batch was lost in the network")
        else:
            self._suspect = since

    def _report(self, blockers: list[Blocker]) -> None:
        """Report the blockers that began or ended since the last search."""
        now = {blocker.key: blocker for blocker in blockers}
        for key, blocker in now.items():
            if key not in self._known:
                self._observer.observe(BlockerFound(self._worker, blocker))
        for key, blocker in self._known.items():
            if key not in now:
                self._observer.observe(BlockerCleared(self._worker, blocker))
        self._known = now
