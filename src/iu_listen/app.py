"""Assembles a running consumer from settings. Only this module and the commands import all packages."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Self
from uuid import UUID, uuid4

import anyio
import anyio.abc

from iu_listen.flow.consumer import ConsumerLoop
from iu_listen.flow.dispatcher import Dispatcher
from iu_listen.flow.ports import (
    BatchRunner,
    BlockerSource,
    Collector,
    CompletenessChecker,
    DeliveryStore,
    Listener,
    MetricsSource,
    Observer,
    TraceSource,
)
from iu_listen.flow.trace_export import SMALL_PAGE_ROWS, TraceExport
from iu_listen.install import requirements
from iu_listen.model.errors import DatabaseUnreachable, SessionLost, safe_message
from iu_listen.model.observation import LeaseTaken, Observation, SessionFailed, StandingBy
from iu_listen.model.settings import Settings
from iu_listen.model.text import visible
from iu_listen.model.version import VERSION
from iu_listen.postgres.completeness import completeness_session
from iu_listen.postgres.delivery import delivery_session
from iu_listen.postgres.earlier_sessions import EarlierSessions
from iu_listen.postgres.listener import listener_session
from iu_listen.postgres.metrics import metrics_session
from iu_listen.postgres.monitor import monitor_session
from iu_listen.postgres.session import ask, session
from iu_listen.postgres.sqlfiles import query
from iu_listen.postgres.trace import trace_session
from iu_listen.postgres.worker import worker_session
from iu_listen.targets import Targets
from iu_listen.targets.python import PythonTarget
from iu_listen.telemetry.context import activate, activate_group
from iu_listen.telemetry.logs import LogObserver, StandardLog

#: Name of the trace export. There is only one.
TRACE_EXPORT_NAME: Final = "traces"
#: Interval at which drained() looks whether there is something to do, in seconds.
DRAIN_INTERVAL: Final = 0.01


class PostgresSessions:
    """Implements flow.ports.Sessions with PostgreSQL sessions of one consumer.

    Args:
        settings: The settings.
        batches: True: batches are exported as live spans, so the spans of attempts link to them.
    """

    def __init__(self, settings: Settings, *, batches: bool = True) -> None:
        self._settings = settings
        self.batches = batches
        self._consumer = uuid4()
        self._process = os.getpid()
        self._earlier = EarlierSessions()

    def worker(self) -> AbstractAsyncContextManager[BatchRunner]:
        """Open the worker session."""
        consumer, earlier = self._own
        return worker_session(self._settings, consumer, VERSION, earlier)

    def listener(self, wake: Callable[[bool], None]) -> AbstractAsyncContextManager[Listener]:
        """Open the listener session."""
        return listener_session(self._settings, self._own[1], wake)

    def monitor(self) -> AbstractAsyncContextManager[BlockerSource]:
        """Open the session of the monitor."""
        return monitor_session(self._settings, self._own[1])

    def completeness(self) -> AbstractAsyncContextManager[CompletenessChecker]:
        """Open the session of the completeness check."""
        return completeness_session(self._settings, self._own[1])

    def metrics(self) -> AbstractAsyncContextManager[MetricsSource]:
        """Open the session that measures for metrics."""
        return metrics_session(self._settings, self._own[1])

    def deliveries(self, wake: Callable[[], None]) -> AbstractAsyncContextManager[DeliveryStore]:
        """Open the delivery session."""
        consumer, earlier = self._own
        return delivery_session(self._settings, earlier, consumer, wake)

    def trace_source(self) -> AbstractAsyncContextManager[TraceSource]:
        """Open the session of the trace export."""
        return trace_session(self._settings, self._own[1], TRACE_EXPORT_NAME, batches=self.batches)

    @property
    def _own(self) -> tuple[UUID, EarlierSessions]:
        """The consumer id of this process, and its earlier sessions. After a fork both are new.

        Two processes with the same consumer id would share the delivery lease and end each other's sessions.
        """
        if self._process != os.getpid():
            self._process, self._consumer, self._earlier = os.getpid(), uuid4(), EarlierSessions()
        return self._consumer, self._earlier


class Observers:
    """An observer that passes observations to several observers. An observer that raises is removed.

    Args:
        observers: The observers, in the order in which they are called.
    """

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = list(observers)

    def observe(self, observation: Observation, /) -> None:
        """Pass the observation to each observer."""
        for observer in list(self._observers):
            try:
                observer.observe(observation)
            except Exception as error:  # noqa: BLE001 an observer must not stop the consumer
                self._observers.remove(observer)
                # The error of the observer may be that stderr is closed.
                with contextlib.suppress(OSError, ValueError):
                    why = visible(safe_message(error))
                    name = type(observer).__name__
                    sys.stderr.write(f"iu-listen: the observer {name} failed, and was removed: {why}\n")


class _StartObserver:
    """An observer that notes whether a consumer works or is a standby, and the last failure of a session."""

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.failure = ""

    def observe(self, observation: Observation, /) -> None:
        match observation:
            case LeaseTaken() | StandingBy():
                self.event.set()
            case SessionFailed(_, why, _):
                self.failure = why


class Consumer:
    """A consumer inside another program.

    ```python
    async with Consumer(Settings(dsn="postgresql://…"), targets=[to_crm], wait=30):
        await until_the_program_ends()
    ```

    The consumer works from the beginning of the block and reconnects after every loss of the database. At the end of
    the block it completes the running batch and the in-flight deliveries, within ``settings.grace_period`` seconds.

    By default the block begins without waiting for the database, so that a program starts while the database is
    unavailable. With ``wait`` it begins when the consumer works or is a standby, and raises the exceptions of ready().

    By default the consumer logs to the logger ``iu_listen`` of the standard ``logging`` module: INFO for progress,
    WARNING when a session fails, ERROR for dead letters. See docs/how-to/embed.md.

    Args:
        settings: The settings.
        targets: The targets and handlers of live routes, which target() and on() make. Default: none.
        observers: Observers instead of the log; None: only the log; an empty tuple: neither log nor observers.
        wait: Longest time that entering the block waits until the consumer works, in seconds; None: do not wait.
        measuring: True: measure the database repeatedly, for the observation MetricsTaken.

    Raises:
        ConfigurationError: Two targets have the same name.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        targets: Iterable[PythonTarget] | Targets = (),
        observers: Iterable[Observer] | None = None,
        wait: float | None = None,
        measuring: bool = False,
    ) -> None:
        self._start = _StartObserver()
        self._settings, self._wait = settings, wait
        given = [LogObserver(StandardLog())] if observers is None else observers
        self.observers: Observers = Observers([*given, self._start])
        self.sessions: PostgresSessions = PostgresSessions(settings)
        self._grace = settings.grace_period
        found = (
            targets
            if isinstance(targets, Targets)
            else Targets(targets, os.environ, secrets=settings.secrets, allow_private=settings.allow_private)
        )
        self._dispatcher = Dispatcher(
            settings, self.sessions, found, self.observers, activate=activate, activate_group=activate_group
        )
        self._loop = ConsumerLoop(
            settings, self.sessions, self.observers, measuring=measuring, dispatcher=self._dispatcher
        )

    def stop(self, why: str) -> None:
        """Ask the consumer to stop after the running batch and the in-flight deliveries. Returns at once.

        Args:
            why: The reason, for the log and the heartbeat.
        """
        self._dispatcher.stop()
        self._loop.stop(why)

    async def run(self, database: str = "") -> None:
        """Work until stop() is called, and reconnect after every loss of the database.

        ``async with`` runs it in a task; a program calls it only without the block.

        Args:
            database: Name of the database in the log.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._dispatcher.run)
            await self._loop.run(database)

    async def ready(self, seconds: float = 30.0) -> None:
        """Wait until the consumer works, or is a standby while another consumer works.

        Args:
            seconds: Longest wait, in seconds.

        Raises:
            ConfigurationError: The consumer cannot work on this database, and a retry will not help: the package is
                missing, the worker does not exist, or the server is read-only.
            DatabaseUnreachable: The consumer does not work after ``seconds`` seconds. It goes on trying.
        """
        with anyio.move_on_after(seconds):
            while True:
                try:
                    async with session(self._settings.dsn, name="iu-listen start", deadline=seconds) as connection:
                        await requirements.require_primary(connection)
                        await requirements.require_package(connection)
                        await requirements.require_worker(connection, self._settings.worker)
                    break
                except DatabaseUnreachable as error:
                    self._start.failure = error.message
                    await anyio.sleep(min(self._settings.reconnect_max, 0.2))
            await self._start.event.wait()
        if not self._start.event.is_set():
            why = self._start.failure or "the database did not answer"
            raise DatabaseUnreachable(
                f"the consumer does not work after {seconds:g} s: {why}",
                "The consumer goes on trying until the program stops it.",
            )

    async def drained(self, seconds: float = math.inf) -> None:
        """Wait until there is nothing to do now: every event is routed, and no delivery can begin.

        Deliveries that wait for a retry, for an earlier delivery of their subject, or for a paused route are left.

        Args:
            seconds: Longest wait, in seconds. Default: no limit.

        Raises:
            TimeoutError: There is still something to do after ``seconds`` seconds.
        """
        looks = query("is_drained")
        with anyio.fail_after(seconds):
            while True:
                try:
                    async with session(self._settings.dsn, name="iu-listen drained") as connection:
                        while not await ask(connection, self._settings.deadline, looks, self._settings.worker):  # noqa: ASYNC110
                            await anyio.sleep(DRAIN_INTERVAL)
                        return
                except (DatabaseUnreachable, SessionLost):
                    await anyio.sleep(min(self._settings.reconnect_max, 0.2))

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self.run)
        if self._wait is not None:
            try:
                await self.ready(self._wait)
            except BaseException:
                self._tasks.cancel_scope.cancel()
                await self._tasks.__aexit__(None, None, None)
                raise
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        self.stop("the program ends")
        # The grace period begins here. If this task is cancelled, it does not wait.
        self._tasks.cancel_scope.deadline = anyio.current_time() + self._grace
        return await self._tasks.__aexit__(*error)  # type: ignore[arg-type]


async def serve(
    settings: Settings,
    observers: Iterable[Observer],
    database: str = "",
    *,
    collector: Collector | None = None,
    measuring: bool = False,
    targets: Targets | None = None,
    batches: bool = True,
    until_idle: bool = False,
) -> None:
    """Run a consumer until SIGTERM, SIGINT or SIGHUP. Then shut it down within ``settings.grace_period`` seconds.

    A second signal ends it at once.

    Args:
        settings: The settings.
        observers: Observers that receive observations.
        database: Name of the database in the log.
        collector: Receiver of the spans of attempts and dead letters; None: no trace export.
        measuring: True: measure the database for the observers.
        targets: Targets of live routes; None: only targets that are not coroutines.
        batches: True: an observer exports a live span of each batch, so the spans of attempts link to it.
        until_idle: True: end also when there is nothing to do, as Consumer.drained() says.
    """
    consumer = Consumer(settings, targets=targets or (), observers=observers, measuring=measuring)
    consumer.sessions.batches = batches
    handlers_before = {number: signal.getsignal(number) for number in _stop_signals()}
    try:
        async with anyio.create_task_group() as tasks:
            if collector is not None:
                # By default, the thread that sends spans may delay the consumer by 5 ms at each switch.
                sys.setswitchinterval(0.0005)
                tasks.start_soon(TraceExport(consumer.sessions, collector, consumer.observers, SMALL_PAGE_ROWS).run)
            async with stopped_by_signals(tasks, consumer.stop, settings.grace_period):
                if until_idle:
                    tasks.start_soon(_stop_when_drained, consumer)
                await consumer.run(database)
            tasks.cancel_scope.cancel()
    finally:
        # The event loop resets the handlers to the defaults. Restore them, so that later code can be ended in order.
        for number, handler in handlers_before.items():
            signal.signal(number, handler)


async def _stop_when_drained(consumer: Consumer) -> None:
    await consumer.ready(math.inf)
    await consumer.drained()
    consumer.stop("there is nothing to do")


def _stop_signals() -> list[signal.Signals]:
    """The signals that start a graceful shutdown. SIGHUP is left out if it is ignored, as under nohup."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


@asynccontextmanager
async def stopped_by_signals(
    tasks: anyio.abc.TaskGroup, stop: Callable[[str], None], grace: float
) -> AsyncIterator[None]:
    """Context in which a first signal calls ``stop``, and a second one cancels ``tasks``.

    Args:
        tasks: The task group. It is also cancelled ``grace_period`` seconds after the first signal.
        stop: Called with the name of the signal.
        grace: Grace period, in seconds.
    """

    async def wait_for_signals(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*_stop_signals()) as signals:
            task_status.started()
            async for received in signals:
                stop(signal.Signals(received).name)
                break
            with anyio.move_on_after(grace):
                async for _ in signals:
                    break
        tasks.cancel_scope.cancel()

    await tasks.start(wait_for_signals)
    yield
