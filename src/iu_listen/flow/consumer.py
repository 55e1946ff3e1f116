"""The consumer: a loop of wake-up, batch and pause that survives the loss of every session.

One task runs batches in the worker session, which holds the lease. Further tasks run concurrently: the listener
session, the monitor, the completeness check and, if metrics are enabled, the measurement. The loss of the worker
session ends all of them, because it is the loss of the lease. After the loss of the listener session the consumer polls
until it has a new one.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import anyio
import anyio.lowlevel

from iu_listen.flow.backoff import backoff
from iu_listen.flow.completeness import keep_checking
from iu_listen.flow.dispatcher import Dispatcher
from iu_listen.flow.metrics import keep_measuring
from iu_listen.flow.monitor import Monitor
from iu_listen.flow.ports import BatchRunner, Listener, ListenUnavailable, Observer, Sessions
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.flow.wake_policy import Act, WakePolicy
from iu_listen.model.delivery import DeadLetters
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
from iu_listen.model.routing import STATE_OF_STATUS, WORKING_STATES, Batch, BatchFailure, State, Tally, Wake, WorkerName
from iu_listen.model.settings import Settings

#: Longest pause of a standby between two tries to take the lease, in seconds.
STANDBY_PAUSE = 0.5
#: Longest time that a notification may arrive after the catch-up poll that found its event, in seconds.
LATE_NOTIFICATION = 0.25
#: Pause before the next try to LISTEN if LISTEN is not available, in seconds.
LISTEN_RETRY_PAUSE = 60.0


class ConsumerLoop:
    """Runs one worker until it is asked to stop.

    Args:
        settings: Durations, limits, and the name of the worker.
        sessions: Opens sessions.
        observer: Observer that receives observations.
        measuring: True: measure the database for metrics.
        dispatcher: The dispatcher; None: this consumer delivers nothing.
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
        dispatcher: Dispatcher | None = None,
        clock: Callable[[], float] = anyio.current_time,
        jitter: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._observer = observer
        self._measuring = measuring
        self._dispatcher = dispatcher
        self._clock = clock
        self._jitter = jitter or random.Random()
        self._worker = WorkerName(settings.worker)
        self._wake = WakeEvent()
        self._asleep = False
        self._wake_policy = WakePolicy(settings.linger, settings.busy_interval, settings.poll_interval)
        self._listener: Listener | None = None
        self._polling_why = "the listener session is not open yet"
        self._waiting_since: float | None = None
        self._tally = Tally()
        self._state = State.STARTING
        self._why = ""
        self._heartbeat_at = float("-inf")
        self._failures = 0
        self._failure: BatchFailure | None = None
        self._stopping = ""

    def stop(self, why: str) -> None:
        """Ask the consumer to stop after the running batch. Returns at once; ``why`` is logged."""
        if not self._stopping:
            self._stopping = why
            self._observer.observe(Stopping(why))
        self._wake.set()

    async def run(self, database: str = "") -> None:
        """Work until stop() is called. ``database`` is the name of the database in the log."""
        self._observer.observe(Started(self._worker, database))
        wake = Wake.START_UP
        while not self._stopping:
            try:
                async with self._sessions.worker() as session:
                    if await self._wait_for_lease(session):
                        await self._serve(session, wake)
                    await self._write_heartbeat(session, State.STOPPED, self._stopping)
            except (SessionLost, Refused) as lost:
                wake = Wake.RECONNECT
                self._failures += 1
                await self._pause_after("worker", lost.message, self._failures)
        self._observer.observe(Stopped(self._worker, self._tally.events))

    # -- lease ---------------------------------------------------------------------------------------------------

    async def _wait_for_lease(self, session: BatchRunner) -> bool:
        """Wait as a standby until this consumer holds the worker's lease. False: it was asked to stop before that."""
        last_reported = ""
        while not self._stopping:
            self._wake.clear()
            holder = await session.take_lease()
            if holder is None:
                # After a failure LeaseTaken is reported only when a batch has succeeded.
                if not self._failures:
                    self._observer.observe(LeaseTaken(self._worker))
                if self._dispatcher is not None:
                    self._dispatcher.work()
                return True
            if holder != last_reported:
                last_reported = holder
                self._observer.observe(StandingBy(self._worker, holder))
                if self._dispatcher is not None:
                    self._dispatcher.rest()
            await self._write_heartbeat(session, State.STANDING_BY, holder)
            await self._wake.wait(STANDBY_PAUSE * self._jitter.uniform(0.5, 1))
        return False

    async def _serve(self, session: BatchRunner, wake: Wake) -> None:
        lost: SessionLost | Refused | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_listening)
            tasks.start_soon(self._monitor(session).run)
            tasks.start_soon(keep_checking, self._settings, self._sessions, self._observer)
            if self._measuring:
                tasks.start_soon(keep_measuring, self._sessions, self._observer, self._worker)
            # The task group would wrap these errors in an ExceptionGroup.
            try:
                await self._run_batches(session, wake)
            except (SessionLost, Refused) as error:
                lost = error
            tasks.cancel_scope.cancel()
        if lost is not None:
            raise lost

    # -- work ----------------------------------------------------------------------------------------------------

    async def _run_batches(self, session: BatchRunner, wake: Wake) -> None:
        """Run batches and pauses until the consumer is asked to stop."""
        first = True
        if self._failure is not None:
            await self._note_failure(session, self._failure)
        while not self._stopping:
            delay = self._wake.age if wake is Wake.NOTIFY else 0.0
            # Clear before the batch: an event of a later notification may be invisible to this batch.
            self._wake.clear()
            self._waiting_since = self._clock()
            try:
                batch = await self._run_batch(session, wake)
            except (SessionLost, Refused):
                self._failure = session.failure
                raise
            finally:
                self._waiting_since = None
            self._count(wake, batch, delay, await self._dead_letters(session, batch))
            self._wake_policy.batch_ran(batch.seen, self._clock())
            await self._report_state(session, batch)
            if self._failures:
                self._failures = 0
                self._observer.observe(LeaseTaken(self._worker))
            # Check only the first page, because one notification announces all pages.
            if first and wake is Wake.CATCH_UP and batch.seen and self._wake_policy.armed:
                await self._check_missed_notification(batch)
            first = not batch.more
            if first:
                wake = await self._pause(wake)

    async def _run_batch(self, session: BatchRunner, wake: Wake) -> Batch:
        """Run one batch, and pass the deliveries that it hands over to the dispatcher.

        The answer is parsed after that, and the observations of the batch are reported even later, so that the calls
        begin as early as possible.
        """
        limit, dispatcher = self._settings.batch_limit, self._dispatcher
        if dispatcher is None:
            return (await session.run_batch(limit)).parse()
        with dispatcher.batch() as hand_over:
            if wake is Wake.NOTIFY:
                await dispatcher.peeked()
            answer = await session.run_batch(limit, hand_over.requests)
            if answer.deliveries:
                dispatcher.hand_over(hand_over, answer.deliveries, answer.seconds)
        if answer.deliveries:
            # Let the calls begin.
            await anyio.lowlevel.checkpoint()
        batch = answer.parse()
        if batch.handed_over < batch.queued:
            dispatcher.work()
        return batch

    async def _dead_letters(self, session: BatchRunner, batch: Batch) -> Sequence[DeadLetters]:
        """The kinds of the dead letters of a batch. They are for the log only, so an error leaves them unknown."""
        if batch.dead_lettered:
            with contextlib.suppress(SessionLost, Refused):
                return await session.dead_letters(batch)
        return ()

    async def _note_failure(self, session: BatchRunner, failure: BatchFailure) -> None:
        """Record the failure at the cursor and in the heartbeat. If that is refused, the next batch still runs."""
        with contextlib.suppress(Refused):
            await session.note_failure(self._settings.batch_limit, failure)
        self._failure = None
        with contextlib.suppress(Refused):
            await self._write_heartbeat(session, State.FAILING, failure.why)

    async def _pause(self, wake: Wake) -> Wake:
        """Pause or sleep as the wake policy decides. Returns the reason of the next batch."""
        while not self._stopping:
            act, seconds = self._wake_policy.next(self._clock())
            if act is Act.PAUSE:
                await self._wake.wait(seconds)
                return Wake.LINGER if self._wake_policy.listening else Wake.POLL
            if act is Act.SLEEP:
                # The heartbeat may be due before the catch-up poll, as the last batch may have come too early to write
                # it.
                due = max(0.0, self._heartbeat_at + self._settings.catch_up - self._clock())
                self._asleep = True
                try:
                    rung = await self._wake.wait(min(due, self._settings.catch_up * self._jitter.uniform(0.8, 1)))
                finally:
                    self._asleep = False
                return Wake.NOTIFY if rung else Wake.CATCH_UP
            if await self._arm_or_disarm(act):
                # Events that were committed before arming caused no notification: run one more batch, then sleep.
                return wake
        return wake

    async def _arm_or_disarm(self, act: Act) -> bool:
        """Arm or disarm the bell. Returns whether it is armed; after a lost listener session it is not."""
        listener = self._listener
        try:
            if listener is None:
                self._wake_policy.listener_changed(False)
            elif act is Act.DISARM:
                await listener.disarm()
                self._wake_policy.disarmed()
            else:
                self._wake_policy.arm_result(await listener.arm())
        except SessionLost:
            # _keep_listening notices the loss by itself, reports it and opens a new session.
            self._wake_policy.listener_changed(False)
        return self._wake_policy.armed

    async def _check_missed_notification(self, batch: Batch) -> None:
        """Report a missed notification: an armed consumer found events by its catch-up poll.

        The notification may only be late, so wait LATE_NOTIFICATION seconds for it first.
        """
        if not await self._wake.wait(LATE_NOTIFICATION) and not self._stopping:
            self._tally.count("lost")
            self._observer.observe(NotificationMissed(self._worker, batch.seen))

    def _count(self, wake: Wake, batch: Batch, delay: float, kinds: Sequence[DeadLetters]) -> None:
        self._tally.count(wake)
        self._tally.last_wake, self._tally.last_wake_at = wake, datetime.now(UTC)
        self._tally.events += batch.seen
        self._observer.observe(BatchRan(self._worker, wake, batch, delay, kinds))

    def _notified(self, changed: bool) -> None:
        """Called at each notification. The peek begins here, because the batch begins some steps later.

        Args:
            changed: Whether something else than new events may have changed.
        """
        if self._dispatcher is not None:
            if changed:
                self._dispatcher.refresh()
            elif self._asleep:
                self._dispatcher.peek()
        self._wake.set()

    # -- listener ------------------------------------------------------------------------------------------------

    async def _keep_listening(self) -> None:
        """Keep a listener session open: open a new one after each loss. Without one, the consumer polls."""
        tries, last_reported = 0, ""
        while True:
            try:
                async with self._sessions.listener(self._notified) as listener:
                    tries, last_reported = 0, ""
                    await self._listen(listener)
            except ListenUnavailable as unavailable:
                if last_reported != str(unavailable):
                    last_reported = self._polling_why = str(unavailable)
                    self._observer.observe(Polling(last_reported))
                await anyio.sleep(LISTEN_RETRY_PAUSE)
            except (SessionLost, Refused) as lost:
                tries += 1
                self._polling_why = f"the listener session was lost: {lost.message}"
                retry_in = backoff(tries, self._settings.reconnect_max, self._jitter)
                self._observer.observe(SessionFailed("listener", lost.message, retry_in))
                await anyio.sleep(retry_in)

    async def _listen(self, listener: Listener) -> None:
        self._listener = listener
        self._wake_policy.listener_changed(True)
        if self._dispatcher is not None:
            self._dispatcher.hears_changes = True
            # Changes from before LISTEN caused no notification.
            self._dispatcher.refresh()
        self._observer.observe(Listening(listener.slot))
        # The heartbeat tells whether the consumer listens. The next batch writes it.
        self._heartbeat_at = float("-inf")
        # Events that were committed before LISTEN caused no notification: run a batch now.
        self._wake.set()
        try:
            await listener.watch()
        finally:
            self._listener = None
            self._wake_policy.listener_changed(False)
            if self._dispatcher is not None:
                self._dispatcher.hears_changes = False
                self._dispatcher.refresh()

    # -- monitor -------------------------------------------------------------------------------------------------

    def _monitor(self, session: BatchRunner) -> Monitor:
        return Monitor(
            self._sessions,
            session,
            lambda: self._waiting_since,
            self._observer,
            self._worker,
            self._dispatcher,
            cadence=2 * self._settings.catch_up,
            reconnect_max=self._settings.reconnect_max,
            clock=self._clock,
            jitter=self._jitter,
        )

    # -- state and heartbeat -------------------------------------------------------------------------------------

    async def _report_state(self, session: BatchRunner, batch: Batch) -> None:
        state = STATE_OF_STATUS.get(batch.status, State.REFUSING)
        why = "" if state is State.IDLE else batch.reason or batch.status
        if (state, why) != (self._state, self._why):
            self._observer.observe(StateChanged(self._worker, state, why))
            self._heartbeat_at = float("-inf")
        self._state, self._why = state, why
        await self._write_heartbeat(session, State.BUSY if batch.more else state, why)

    async def _write_heartbeat(self, session: BatchRunner, state: State, why: str) -> None:
        """Write the heartbeat if it is due. A changed state and STOPPED make it due at once."""
        now = self._clock()
        if now - self._heartbeat_at < self._settings.catch_up / 2 and state is not State.STOPPED:
            return
        self._heartbeat_at = now
        listening, polling_why = False, ""
        if state in WORKING_STATES:
            # Without a slot the session receives notifications, but cannot arm the bell. Then the consumer polls.
            listening = self._listener is not None and self._listener.slot is not None
            if not listening:
                polling_why = "every listener slot is taken" if self._listener else self._polling_why
        await session.beat(state, why, listening, polling_why, self._tally)
        # HeartbeatWritten feeds the watchdog of systemd, and a failure is no progress.
        if state is not State.FAILING:
            self._observer.observe(HeartbeatWritten(self._worker, state))

    async def _pause_after(self, session: str, why: str, tries: int) -> None:
        if self._stopping:
            return
        retry_in = backoff(tries, self._settings.reconnect_max, self._jitter)
        self._observer.observe(SessionFailed(session, why, retry_in))
        self._state, self._heartbeat_at = State.STARTING, float("-inf")
        self._wake.clear()
        await self._wake.wait(retry_in)
