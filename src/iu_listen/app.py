"""The hall: settings in, a running service out. The only place where the rooms meet."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Self
from uuid import UUID, uuid4

import anyio
import anyio.abc

from iu_listen.flow.consumer import Consumer as Worker
from iu_listen.flow.deliver import Deliverer
from iu_listen.flow.export import SMALL_PAGE, Export
from iu_listen.flow.ports import Auditor, Bell, Collector, Deliveries, Lookout, Outbox, Surveyor, TraceSource, Watcher
from iu_listen.model.errors import DatabaseUnreachable, words
from iu_listen.model.observation import LeaseTaken, Observation, SessionFailed, StandingBy
from iu_listen.model.settings import Settings
from iu_listen.model.text import visible
from iu_listen.model.version import VERSION
from iu_listen.postgres import census
from iu_listen.postgres.audit import audit_session
from iu_listen.postgres.bell import bell_session
from iu_listen.postgres.delivery import delivery_session
from iu_listen.postgres.former import Former
from iu_listen.postgres.measure import surveyor_session
from iu_listen.postgres.patrol import lookout_session
from iu_listen.postgres.session import session
from iu_listen.postgres.trace import trace_session
from iu_listen.postgres.worker import worker_session
from iu_listen.targets import Targets
from iu_listen.targets.python import PythonTarget
from iu_listen.telemetry.context import activate
from iu_listen.telemetry.logs import LogWatcher, StandardLog

#: Name of the export of traces; there is one.
EXPORT: Final = "traces"


class PostgresSessions:
    """Satisfies flow.ports.Sessions with real sessions, all of one consumer.

    Args:
        settings: How to run.
        batches: Whether batches are spans, so that attempts that are exported link to them.
    """

    def __init__(self, settings: Settings, *, batches: bool = True) -> None:
        self._settings = settings
        self.batches = batches
        self._consumer = uuid4()
        self._process = os.getpid()
        self._former = Former()

    def outbox(self) -> AbstractAsyncContextManager[Outbox]:
        """Open the worker session."""
        consumer, former = self._mine
        return worker_session(self._settings, consumer, VERSION, former)

    def bell(self, ring: Callable[[], None]) -> AbstractAsyncContextManager[Bell]:
        """Open the bell session."""
        return bell_session(self._settings, self._mine[1], ring)

    def lookout(self) -> AbstractAsyncContextManager[Lookout]:
        """Open the patrol's session."""
        return lookout_session(self._settings, self._mine[1])

    def auditor(self) -> AbstractAsyncContextManager[Auditor]:
        """Open the audit session."""
        return audit_session(self._settings, self._mine[1])

    def surveyor(self) -> AbstractAsyncContextManager[Surveyor]:
        """Open the session that measures."""
        return surveyor_session(self._settings, self._mine[1])

    def deliveries(self, ring: Callable[[], None]) -> AbstractAsyncContextManager[Deliveries]:
        """Open the delivery session."""
        consumer, former = self._mine
        return delivery_session(self._settings, former, consumer, ring)

    def tracer(self) -> AbstractAsyncContextManager[TraceSource]:
        """Open the session of the trace reader."""
        return trace_session(self._settings, self._mine[1], EXPORT, batches=self.batches)

    @property
    def _mine(self) -> tuple[UUID, Former]:
        """The identity of this process, and its former sessions; new ones after a fork.

        Two processes of one identity would share the lease of deliveries, and end each other's sessions.
        """
        if self._process != os.getpid():
            self._process, self._consumer, self._former = os.getpid(), uuid4(), Former()
        return self._consumer, self._former


class Watchers:
    """One Watcher that tells many. A broken one is told no more and stops nothing.

    Args:
        watchers: Whom to tell, in this order.
    """

    def __init__(self, watchers: Iterable[Watcher]) -> None:
        self._watchers = list(watchers)

    def note(self, observation: Observation, /) -> None:
        """Tell everybody."""
        for watcher in list(self._watchers):
            try:
                watcher.note(observation)
            except Exception as error:  # noqa: BLE001 watching must never stop the work
                self._watchers.remove(watcher)
                # It may have broken because stderr is gone.
                with contextlib.suppress(OSError, ValueError):
                    why = visible(words(error))
                    sys.stderr.write(f"iu-listen: {type(watcher).__name__} broke and is told no more: {why}\n")


class _Begun:
    """A Watcher that knows whether a consumer has begun to work, or to stand by, and what has failed until then."""

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.failure = ""

    def note(self, observation: Observation, /) -> None:
        match observation:
            case LeaseTaken() | StandingBy():
                self.event.set()
            case SessionFailed(_, why, _):
                self.failure = why


class Consumer:
    """A consumer inside a program of your own.

    ::

        async with Consumer(Settings(dsn="postgresql://…"), targets=[to_crm], wait=30):
            await until_the_program_ends()

    It works from the beginning of the block, through every loss of the database, and at its end finishes the running
    batch and the deliveries under way, at most ``settings.grace`` seconds long.

    Entering waits for no database, so that a program starts while the database is away. With ``wait`` it returns when
    the consumer works or stands by for another one, and raises when it cannot: at once where trying again will not help
    (no package, no such worker, a standby), and after so many seconds where it may. ready() does the same later.

    What happens is logged to the logger ``iu_listen`` of the standard ``logging`` module: INFO when it works, WARNING
    when a session fails, ERROR for dead letters. docs/how-to/embed.md has the rest.

    Args:
        settings: How to run.
        targets: Where live routes deliver to: coroutines that were made targets, or a Targets.
        watchers: Who sees what happens, in the place of the log; an empty tuple: nothing does.
        wait: How many seconds entering waits until it works; None: it does not wait.
        measuring: Whether a watcher wants to see what the database is like; False: it is not asked.

    Raises:
        ConfigurationError: two targets have the same name.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        targets: Iterable[PythonTarget] | Targets = (),
        watchers: Iterable[Watcher] | None = None,
        wait: float | None = None,
        measuring: bool = False,
    ) -> None:
        self._begun = _Begun()
        self._settings, self._wait = settings, wait
        self.told = Watchers([*([LogWatcher(StandardLog())] if watchers is None else watchers), self._begun])
        self.sessions = PostgresSessions(settings)
        self._grace = settings.grace
        found = (
            targets
            if isinstance(targets, Targets)
            else Targets(targets, os.environ, secrets=settings.secrets, allow_private=settings.allow_private)
        )
        self._deliverer = Deliverer(settings, self.sessions, found, self.told, activate=activate)
        self._consumer = Worker(settings, self.sessions, self.told, measuring=measuring, courier=self._deliverer)

    def stop(self, why: str) -> None:
        """Ask it to leave after the running batch and the deliveries under way. Returns at once."""
        self._deliverer.stop()
        self._consumer.stop(why)

    async def run(self, database: str = "") -> None:
        """Work until stop() is called. ``database`` is what to call it in the log."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._deliverer.run)
            await self._consumer.run(database)

    async def ready(self, seconds: float = 30.0) -> None:
        """Return when it works, or stands by while another consumer works.

        Args:
            seconds: How long to wait at most.

        Raises:
            ConfigurationError: it cannot work on this database, and trying again will not help.
            DatabaseUnreachable: it does not work yet.
        """
        with anyio.move_on_after(seconds):
            while True:
                try:
                    async with session(self._settings.dsn, name="iu-listen start", deadline=seconds) as connection:
                        await census.require_primary(connection)
                        await census.require_package(connection)
                        await census.require_worker(connection, self._settings.worker)
                    break
                except DatabaseUnreachable as error:
                    self._begun.failure = error.message
                    await anyio.sleep(min(self._settings.reconnect_max, 0.2))
            await self._begun.event.wait()
        if not self._begun.event.is_set():
            raise DatabaseUnreachable(
                f"the consumer does not work after {seconds:g} s: {self._begun.failure or 'no answer'}",
                "It goes on trying as long as the program lets it.",
            )

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
        # The clock runs from here on; whoever is cancelled himself waits for nobody.
        self._tasks.cancel_scope.deadline = anyio.current_time() + self._grace
        return await self._tasks.__aexit__(*error)  # type: ignore[arg-type]


async def serve(
    settings: Settings,
    watchers: Iterable[Watcher],
    database: str = "",
    *,
    collector: Collector | None = None,
    measuring: bool = False,
    targets: Targets | None = None,
    batches: bool = True,
) -> None:
    """Run a consumer until SIGTERM, SIGINT or SIGHUP; then end the batch, at most ``settings.grace`` seconds long.

    A second signal leaves at once.

    Args:
        settings: How to run.
        watchers: Who sees what happens.
        database: What to call it in the log.
        collector: Where the spans of attempts and dead letters go; None: nowhere, and nothing is read for it.
        measuring: Whether a watcher wants to see what the database is like; False: it is not asked.
        targets: Where live routes deliver to; None: to what needs no coroutine.
        batches: Whether a watcher exports a span of each batch, so that attempts link to it.
    """
    consumer = Consumer(settings, targets=targets or (), watchers=watchers, measuring=measuring)
    consumer.sessions.batches = batches
    before = {number: signal.getsignal(number) for number in _stopping()}
    try:
        async with anyio.create_task_group() as tasks:
            if collector is not None:
                # The thread that sends must not keep the consumer waiting: by default it may for 5 ms.
                sys.setswitchinterval(0.0005)
                tasks.start_soon(Export(consumer.sessions, collector, consumer.told, SMALL_PAGE).run)
            async with stopped_by_signals(tasks, consumer.stop, settings.grace):
                await consumer.run(database)
            tasks.cancel_scope.cancel()
    finally:
        # The loop leaves the default actions behind; what comes after us is to be ended in order too.
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopping() -> list[signal.Signals]:
    """The signals that ask for an orderly end. Under nohup, which ignores SIGHUP, a closed terminal ends nothing."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


@asynccontextmanager
async def stopped_by_signals(
    tasks: anyio.abc.TaskGroup, stop: Callable[[str], None], grace: float
) -> AsyncIterator[None]:
    """While inside: the first of these signals calls ``stop``; the second, or ``grace`` seconds later, cancels."""

    async def obey(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*_stopping()) as signals:
            task_status.started()
            async for received in signals:
                stop(signal.Signals(received).name)
                break
            with anyio.move_on_after(grace):
                async for _ in signals:
                    break
        tasks.cancel_scope.cancel()

    await tasks.start(obey)
    yield
