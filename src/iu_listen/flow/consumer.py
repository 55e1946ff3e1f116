"""The consumer: a loop of wake-up, batch and pause that survives the loss of every session.

One task runs batches in the worker session, which holds the lease. Further tasks run concurrently: the listener
session, the monitor, the completeness check and, if metrics are enabled, the measurement. The loss of the worker
session ends all of them, because it is the loss of the lease. After the loss of the listener session the consumer polls
until it has a new one.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import anyio

from iu_listen.flow.backoff import backoff
from iu_listen.flow.completeness import keep_auditing
from iu_listen.flow.metrics import keep_measuring
from iu_listen.flow.monitor import Monitor
from iu_listen.flow.ports import BatchRunner, DispatcherPort, Listener, ListenUnavailable, Observer, Sessions
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.flow.wake_policy import Act, WakePolicy
from iu_listen.model.errors import Refused, SessionLost
from iu_listen.model.observation import (
    BatchRan,
    HeartbeatWritten,
    LeaseTaken,
    Listening,
    NotificationMissed,
    Polling,
    SessionFailed,
    StandingBy,
    Started,
    StateChanged,
    Stopped,
    Stopping,
)
from iu_listen.model.routing import STATE_OF_STATUS, WORKING, Batch, BatchFailure, State, Tally, Wake, WorkerName
from iu_listen.model.settings import Settings

#: Longest pause of a standby between two tries to take the lease, in seconds.
STANDBY_PAUSE = 0.5
#: Longest time that a notification may arrive after the catch-up poll that found its event, in seconds.
LATE_RING = 0.25
#: Pause before the next try to LISTEN if LISTEN is not available, in seconds.
NO_BELL_PAUSE = 60.0


class ConsumerLoop:
    """Runs one worker until it is asked to stop.

    Args:
        settings: Durations, limits, and the name of the worker.
        sessions: Opens sessions.
        observer: Observer that receives observations.
        measuring: True: measure the database for metrics.
        courier: The dispatcher; None: this consumer delivers nothing.
        clock: Monotonic clock, in seconds.
        jitter: Source of randomness for backoff and timers.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        observer: Observer,
        *,
        measuring: bool = False,
        courier: DispatcherPort | None = None,
        clock: Callable[[], float] = anyio.current_time,
        jitter: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._observer = observer
        self._measuring = measuring
        self._courier = courier
        self._clock = clock
        self._jitter = jitter or random.Random()
        self._worker = WorkerName(settings.worker)
        self._ring = WakeEvent()
        self._rhythm = WakePolicy(settings.linger, settings.busy_interval, settings.poll_interval)
        self._bell: Listener | None = None
        self._no_bell = "there is no bell session yet"
        self._waiting_since: float | None = None
        self._tally = Tally()
        self._state = State.STARTING
        self._why = ""
        self._beat_at = float("-inf")
        self._losses = 0
        self._failure: BatchFailure | None = None
        self._stopping = ""

    def stop(self, why: str) -> None:
        """Ask the consumer to stop after the running batch. Returns at once; ``why`` is logged."""
        if not self._stopping:
            self._stopping = why
            self._observer.observe(Stopping(why))
        self._ring.set()

    async def run(self, database: str = "") -> None:
        """Work until stop() is called. ``database`` is the name of the database in the log."""
        self._observer.observe(Started(self._worker, database))
        wake = Wake.START_UP
        while not self._stopping:
            try:
                async with self._sessions.worker() as outbox:
                    if await self._wait_for_lease(outbox):
                        await self._serve(outbox, wake)
                    await self._say(outbox, State.STOPPED, self._stopping)
            except (SessionLost, Refused) as lost:
                wake = Wake.RECONNECT
                self._losses += 1
                await self._pause_after("worker", lost.message, self._losses)
        self._observer.observe(Stopped(self._worker, self._tally.events))

    # -- lease ---------------------------------------------------------------------------------------------------

    async def _wait_for_lease(self, outbox: BatchRunner) -> bool:
        """Wait as a standby until this consumer holds the worker's lease. False: it was asked to stop before that."""
        told = ""
        while not self._stopping:
            self._ring.clear()
            holder = await outbox.take_lease()
            if holder is None:
                # After a failure LeaseTaken is reported only when a batch has succeeded.
                if not self._losses:
                    self._observer.observe(LeaseTaken(self._worker))
                if self._courier is not None:
                    self._courier.work()
                return True
            if holder != told:
                told = holder
                self._observer.observe(StandingBy(self._worker, holder))
                if self._courier is not None:
                    self._courier.rest()
            await self._say(outbox, State.STANDING_BY, holder)
            await self._ring.wait(STANDBY_PAUSE * self._jitter.uniform(0.5, 1))
        return False

    async def _serve(self, outbox: BatchRunner, wake: Wake) -> None:
        lost: SessionLost | Refused | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_bell)
            tasks.start_soon(self._patrol(outbox).run)
            tasks.start_soon(keep_auditing, self._settings, self._sessions, self._observer)
            if self._measuring:
                tasks.start_soon(keep_measuring, self._sessions, self._observer, self._worker)
            # The task group would wrap these errors in an ExceptionGroup.
            try:
                await self._work(outbox, wake)
            except (SessionLost, Refused) as error:
                lost = error
            tasks.cancel_scope.cancel()
        if lost is not None:
            raise lost

    # -- work ----------------------------------------------------------------------------------------------------

    async def _work(self, outbox: BatchRunner, wake: Wake) -> None:
        """Run batches and pauses until the consumer is asked to stop."""
        first = True
        if self._failure is not None:
            await self._note_failure(outbox, self._failure)
        while not self._stopping:
            delay = self._ring.age if wake is Wake.NOTIFY else 0.0
            # Clear before the batch: an event of a later notification may be invisible to this batch.
            self._ring.clear()
            self._waiting_since = self._clock()
            try:
                wants = self._courier.wants() if self._courier is not None else ()
                give = None if self._courier is None else partial(self._courier.hand_over, wants)
                batch = await outbox.run_batch(self._settings.batch_limit, wants, give)
            except (SessionLost, Refused):
                self._failure = outbox.failure
                raise
            finally:
                self._waiting_since = None
            if self._courier is not None and batch.handed < batch.queued:
                self._courier.work()
            self._count(wake, batch, delay)
            self._rhythm.looked(batch.seen, self._clock())
            await self._say_state(outbox, batch)
            if self._losses:
                self._losses = 0
                self._observer.observe(LeaseTaken(self._worker))
            # Check only the first page, because one notification announces all pages.
            if first and wake is Wake.CATCH_UP and batch.seen and self._rhythm.armed:
                await self._suspect_lost_wake(batch)
            first = not batch.more
            if first:
                wake = await self._rest(wake)

    async def _note_failure(self, outbox: BatchRunner, failure: BatchFailure) -> None:
        """Record the failure at the cursor and in the heartbeat. If that is refused, the next batch still runs."""
        with contextlib.suppress(Refused):
            await outbox.note_failure(self._settings.batch_limit, failure)
        self._failure = None
        with contextlib.suppress(Refused):
            await self._say(outbox, State.FAILING, failure.why)

    async def _rest(self, wake: Wake) -> Wake:
        """Pause or sleep as `Rhythm` decides. Returns the reason of the next batch."""
        while not self._stopping:
            act, seconds = self._rhythm.next(self._clock())
            if act is Act.PAUSE:
                await self._ring.wait(seconds)
                return Wake.LINGER if self._rhythm.bell else Wake.POLL
            if act is Act.SLEEP:
                # The heartbeat may be due before the catch-up poll, as the last batch may have come too early to write
                # it.
                due = max(0.0, self._beat_at + self._settings.catch_up - self._clock())
                rung = await self._ring.wait(min(due, self._settings.catch_up * self._jitter.uniform(0.8, 1)))
                return Wake.NOTIFY if rung else Wake.CATCH_UP
            if await self._turn_bell(act):
                # Events that were committed before arming caused no notification: run one more batch, then sleep.
                return wake
        return wake

    async def _turn_bell(self, act: Act) -> bool:
        """Arm or disarm the bell. Returns whether it is armed; after a lost listener session it is not."""
        bell = self._bell
        try:
            if bell is None:
                self._rhythm.bell_changed(False)
            elif act is Act.DISARM:
                await bell.disarm()
                self._rhythm.disarmed()
            else:
                self._rhythm.arm_tried(await bell.arm())
        except SessionLost:
            # _keep_bell notices the loss by itself, reports it and opens a new session.
            self._rhythm.bell_changed(False)
        return self._rhythm.armed

    async def _suspect_lost_wake(self, batch: Batch) -> None:
        """Report a lost wake-up: an armed consumer found events by its catch-up poll.

        The notification may only be late, so wait LATE_RING seconds for it first.
        """
        if not await self._ring.wait(LATE_RING) and not self._stopping:
            self._tally.count("lost")
            self._observer.observe(NotificationMissed(self._worker, batch.seen))

    def _count(self, wake: Wake, batch: Batch, delay: float) -> None:
        self._tally.count(wake)
        self._tally.last_wake, self._tally.last_wake_at = wake, datetime.now(UTC)
        self._tally.events += batch.seen
        self._observer.observe(BatchRan(self._worker, wake, batch, delay))

    # -- bell ----------------------------------------------------------------------------------------------------

    async def _keep_bell(self) -> None:
        """Keep a listener session open: open a new one after each loss. Without one, the consumer polls."""
        tries, told = 0, ""
        while True:
            try:
                async with self._sessions.listener(self._ring.set) as bell:
                    tries, told = 0, ""
                    await self._live_by(bell)
            except ListenUnavailable as no_bell:
                if told != str(no_bell):
                    told = self._no_bell = str(no_bell)
                    self._observer.observe(Polling(told))
                await anyio.sleep(NO_BELL_PAUSE)
            except (SessionLost, Refused) as lost:
                tries += 1
                self._no_bell = f"the bell session was lost: {lost.message}"
                retry_in = backoff(tries, self._settings.reconnect_max, self._jitter)
                self._observer.observe(SessionFailed("listener", lost.message, retry_in))
                await anyio.sleep(retry_in)

    async def _live_by(self, bell: Listener) -> None:
        self._bell = bell
        self._rhythm.bell_changed(True)
        self._observer.observe(Listening(bell.slot))
        # The heartbeat tells whether the consumer listens. The next batch writes it.
        self._beat_at = float("-inf")
        # Events that were committed before LISTEN caused no notification: run a batch now.
        self._ring.set()
        try:
            await bell.watch()
        finally:
            self._bell = None
            self._rhythm.bell_changed(False)

    # -- monitor -------------------------------------------------------------------------------------------------

    def _patrol(self, outbox: BatchRunner) -> Monitor:
        return Monitor(
            self._sessions,
            outbox,
            lambda: self._waiting_since,
            self._observer,
            self._worker,
            self._courier,
            cadence=self._settings.catch_up,
            reconnect_max=self._settings.reconnect_max,
            clock=self._clock,
            jitter=self._jitter,
        )

    # -- state and heartbeat -------------------------------------------------------------------------------------

    async def _say_state(self, outbox: BatchRunner, batch: Batch) -> None:
        state = STATE_OF_STATUS.get(batch.status, State.REFUSING)
        why = "" if state is State.IDLE else batch.reason or batch.status
        if (state, why) != (self._state, self._why):
            self._observer.observe(StateChanged(self._worker, state, why))
            self._beat_at = float("-inf")
        self._state, self._why = state, why
        await self._say(outbox, State.BUSY if batch.more else state, why)

    async def _say(self, outbox: BatchRunner, state: State, why: str) -> None:
        """Write the heartbeat if it is due. A changed state and STOPPED make it due at once."""
        now = self._clock()
        if now - self._beat_at < self._settings.catch_up / 2 and state is not State.STOPPED:
            return
        self._beat_at = now
        listening, polling_why = False, ""
        if state in WORKING:
            # Without a slot the session receives notifications, but cannot arm the bell. Then the consumer polls.
            listening = self._bell is not None and self._bell.slot is not None
            polling_why = "" if listening else "every bell slot is taken" if self._bell else self._no_bell
        await outbox.beat(state, why, listening, polling_why, self._tally)
        # Beaten feeds the watchdog of systemd, and a failure is no progress.
        if state is not State.FAILING:
            self._observer.observe(HeartbeatWritten(self._worker, state))

    async def _pause_after(self, session: str, why: str, tries: int) -> None:
        if self._stopping:
            return
        retry_in = backoff(tries, self._settings.reconnect_max, self._jitter)
        self._observer.observe(SessionFailed(session, why, retry_in))
        self._state, self._beat_at = State.STARTING, float("-inf")
        self._ring.clear()
        await self._ring.wait(retry_in)
