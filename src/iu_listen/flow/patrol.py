"""The patrol, beside the work: who is in the way, is the work still alive, and is there anything to deliver.

It has a session of its own and makes its rounds while the consumer works:

* Every cadence it asks who delays or threatens us (v_iu_culprit), and tells each once: when it begins and when it ends.
* A batch whose answer was lost on the way would be waited for until its deadline, which is as long as the longest
  honest batch. So when one has been waited for longer than SUSPICIOUS, the patrol asks the server whether that
  session is still at work. Twice no, or a server that cannot be reached any more, and the session is abandoned.
* Where no route delivers nobody has a session for that. What changes it may come without an event: a route that goes
  live, a replay. So each round asks for it, while nobody has one.

A patrol that cannot do its rounds harms nobody: it says so once and tries again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import anyio

from iu_listen.flow.backoff import backoff
from iu_listen.flow.ports import Courier, Lookout, Outbox, Sessions, Watcher
from iu_listen.model.errors import NoAnswer, Refused, SessionLost
from iu_listen.model.facts import Culprit, WorkerName
from iu_listen.model.observation import CulpritGone, CulpritNamed, SessionFailed

#: Pause between rounds, in seconds.
ROUND: Final = 2.0
#: From here on a batch is asked after, in seconds.
SUSPICIOUS: Final = 3.0


class Patrol:
    """Makes the rounds for one worker session.

    Args:
        sessions: Where the patrol's own session comes from.
        outbox: The worker session to look after.
        waiting_since: Since when the running batch is waited for, on the clock; None: there is none.
        watcher: Who is told.
        worker: The worker's name.
        courier: Who is told that there is something to deliver; None: nobody delivers here.
        cadence: How often culprits are asked for, in seconds.
        reconnect_max: Longest pause between two tries to connect, in seconds.
        clock: Monotonic clock, in seconds.
        jitter: Source of randomness.
    """

    def __init__(
        self,
        sessions: Sessions,
        outbox: Outbox,
        waiting_since: Callable[[], float | None],
        watcher: Watcher,
        worker: WorkerName,
        courier: Courier | None,
        *,
        cadence: float,
        reconnect_max: float,
        clock: Callable[[], float],
        jitter: random.Random,
    ) -> None:
        self._sessions = sessions
        self._outbox = outbox
        self._waiting_since = waiting_since
        self._watcher = watcher
        self._worker = worker
        self._courier = courier
        self._cadence = cadence
        self._reconnect_max = reconnect_max
        self._clock = clock
        self._jitter = jitter
        self._known: dict[tuple[str, str], Culprit] = {}
        self._asked_at = float("-inf")
        self._suspect: float | None = None

    async def run(self) -> None:
        """Make rounds for ever, through every loss of the patrol's own session."""
        tries, told = 0, ""
        while True:
            try:
                async with self._sessions.lookout() as lookout:
                    while True:
                        await self._round(lookout)
                        tries, told = 0, ""
                        await anyio.sleep(ROUND)
            except (SessionLost, Refused) as lost:
                tries += 1
                # It could not be opened again either: nothing comes through, also not what the batch waits for.
                if isinstance(lost, NoAnswer) and tries > 1 and self._overdue():
                    self._outbox.abandon("the server does not answer, neither here nor to a new session")
                if told != lost.message:
                    told = lost.message
                    self._watcher.note(SessionFailed("patrol", told, 0.0))
                # After the first loss at once: only the second one tells something.
                await anyio.sleep(0 if tries == 1 else backoff(tries, self._reconnect_max, self._jitter))

    async def _round(self, lookout: Lookout) -> None:
        await self._look_after_the_batch(lookout)
        if self._courier is not None and not self._courier.delivering and await lookout.deliverable():
            self._courier.work()
        if self._clock() - self._asked_at >= self._cadence:
            self._asked_at = self._clock()
            self._tell(await lookout.culprits())

    def _overdue(self) -> bool:
        since = self._waiting_since()
        return since is not None and self._clock() - since > SUSPICIOUS

    async def _look_after_the_batch(self, lookout: Lookout) -> None:
        since, backend = self._waiting_since(), self._outbox.backend
        if backend is None or not self._overdue():
            return
        if await lookout.works(backend) or since != self._waiting_since():
            self._suspect = None
        elif self._suspect == since:
            self._outbox.abandon("the answer to a batch was lost on the way")
        else:
            self._suspect = since

    def _tell(self, culprits: list[Culprit]) -> None:
        """Say what began and what ended since the last round."""
        now = {c.key: c for c in culprits}
        for key, culprit in now.items():
            if key not in self._known:
                self._watcher.note(CulpritNamed(self._worker, culprit))
        for key, culprit in self._known.items():
            if key not in now:
                self._watcher.note(CulpritGone(self._worker, culprit))
        self._known = now
