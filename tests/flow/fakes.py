"""A simulated database on the clock of the test: the state that a consumer reads, as a few fields.

It implements flow.ports.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio

from iu_listen.flow.consumer import ConsumerLoop
from iu_listen.flow.ports import ListenUnavailable
from iu_listen.model.errors import SessionLost
from iu_listen.model.monitoring import Blocker, CompletenessPage
from iu_listen.model.observation import Observation, Stopped
from iu_listen.model.routing import BatchAnswer, BatchFailure
from iu_listen.model.settings import Settings


@dataclass
class World:
    """The state of the simulated database. Tests set fields; sessions use them at every call."""

    events: int = 0
    """The number of events that are committed and not routed."""
    status: str = "ran"
    reason: str = ""
    holder: str | None = None
    """The other consumer that holds the lease."""
    silent_writers: int = 0
    """The number of producers that sent no NOTIFY and are not visible yet: arming is refused."""
    deaf: bool = False
    """The trigger is disabled: no notification is sent."""
    no_bell: str = ""
    lost: Exception | None = None
    """The exception that every call of the worker session raises."""
    beat_lost: Exception | None = None
    """The exception that every heartbeat raises."""
    bell_lost: Exception | None = None
    batch_seconds: float = 0.001
    on_look: Callable[[], Any] = lambda: None
    """Called in the middle of every batch, after its snapshot."""
    on_arm: Callable[[], Any] = lambda: None
    """Called before every attempt to arm."""

    on_listen: Callable[[], Any] = lambda: None
    """Called when a listener session begins."""

    completeness_due: float = 3600
    """Seconds until a completeness check is due."""
    check_pages: int = 3
    """The number of pages of a pass."""
    check_seconds: float = 0.01
    """The duration of a page, in seconds."""
    check_event_seconds: float = 0
    """The additional duration of a page for each of its events, in seconds."""
    check_limits: list[int] = field(default_factory=list)
    """The limit of each page, in events."""
    check_answer: CompletenessPage = field(default_factory=lambda: CompletenessPage(status="passed"))
    """The answer of the last page of a pass."""
    check_lost: Exception | None = None
    """The exception that opening the session of the completeness check raises."""
    audits: list[tuple[float, str]] = field(default_factory=list)
    """The calls of that session, with their times."""

    failures: list[tuple[int, BatchFailure]] = field(default_factory=list)
    """The failures of batches that were recorded."""
    armed: bool = False
    rings: Callable[[], None] = lambda: None
    bell_broke: anyio.Event = field(default_factory=anyio.Event)
    calls: list[str] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    beats: list[tuple[float, str, str, bool, str]] = field(default_factory=list)
    blockers: list[Blocker] = field(default_factory=list)
    monitor_lost: Exception | None = None
    """The exception that opening the session of the monitor, and every call of it, raises."""
    swallowed: bool = False
    """The answers to batches are lost."""
    works: bool = True
    """Whether the server process of the batch is executing a statement."""

    def insert(self, events: int = 1) -> None:
        """Commit events. Producers notify an armed consumer."""
        self.events += events
        if self.armed and not self.deaf:
            self.rings()

    def lose_bell(self, why: str = "the connection was closed") -> None:
        """End the listener session, and let no other one be opened."""
        self.bell_lost = SessionLost(why)
        self.armed = False
        self.bell_broke.set()
        self.rings()

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[FakeWorkerSession]:
        self.calls.append("connect")
        if self.lost:
            raise self.lost
        yield FakeWorkerSession(self)

    @asynccontextmanager
    async def monitor(self) -> AsyncIterator[FakeMonitorSession]:
        if self.monitor_lost:
            await anyio.sleep(0)
            raise self.monitor_lost
        yield FakeMonitorSession(self)

    @asynccontextmanager
    async def listener(self, wake: Callable[[bool], None]) -> AsyncIterator[FakeListener]:
        self.calls.append("listen")
        if self.no_bell:
            raise ListenUnavailable(self.no_bell)
        if self.bell_lost:
            raise self.bell_lost
        self.rings, self.bell_broke = partial(wake, False), anyio.Event()
        self.on_listen()
        try:
            yield FakeListener(self)
        finally:
            self.armed = False
            wake(True)

    @asynccontextmanager
    async def completeness(self) -> AsyncIterator[FakeCompletenessChecker]:
        self.audits.append((anyio.current_time(), "open"))
        if self.check_lost:
            raise self.check_lost
        try:
            yield FakeCompletenessChecker(self)
        finally:
            self.audits.append((anyio.current_time(), "close"))


class FakeCompletenessChecker:
    def __init__(self, world: World) -> None:
        self._world = world
        self._left = world.check_pages

    async def due(self) -> float:
        return self._world.completeness_due

    async def page(self, limit: int, number: int | None) -> CompletenessPage:
        self._world.audits.append((anyio.current_time(), f"page of {number}"))
        self._world.check_limits.append(limit)
        await anyio.sleep(self._world.check_seconds + limit * self._world.check_event_seconds)
        self._left -= 1
        return self._world.check_answer if self._left == 0 else CompletenessPage(status="walking", number=7)


class FakeWorkerSession:
    backend = 4711
    failure = BatchFailure(why="the batch failed")

    def __init__(self, world: World) -> None:
        self._world = world
        self._abandoned, self._why = anyio.Event(), ""

    def abandon(self, why: str) -> None:
        self._world.calls.append("abandon")
        self._why = why
        self._abandoned.set()

    async def take_lease(self) -> str | None:
        self._world.calls.append("lease")
        await anyio.sleep(0)
        if self._world.lost:
            raise self._world.lost
        return self._world.holder

    async def run_batch(self, limit: int, requests=()) -> BatchAnswer:
        world = self._world
        world.calls.append("batch")
        world.looks.append(anyio.current_time())
        seen = min(limit, world.events) if world.status == "ran" else 0
        world.on_look()
        if world.swallowed:
            await self._abandoned.wait()
            raise SessionLost(self._why)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(world.batch_seconds)
        if world.lost:
            raise world.lost
        world.events -= seen
        answer = {"status": world.status, "seen": seen, "more": seen == limit, "reason": world.reason}
        return BatchAnswer(json=json.dumps(answer), seconds=world.batch_seconds, began_ns=0)

    async def note_failure(self, limit, failure) -> None:
        self._world.calls.append("failure")
        self._world.failures.append((limit, failure))

    async def beat(self, state, why, listening, polling_why, tally) -> None:
        if lost := self._world.lost or self._world.beat_lost:
            raise lost
        self._world.beats.append((anyio.current_time(), str(state), why, listening, polling_why))


class FakeMonitorSession:
    def __init__(self, world: World) -> None:
        self._world = world

    async def _answer(self, answer: Any) -> Any:
        await anyio.sleep(0)
        if self._world.monitor_lost:
            raise self._world.monitor_lost
        return answer

    async def blockers(self) -> list[Blocker]:
        return await self._answer(list(self._world.blockers))

    async def works(self, backend: int) -> bool:
        self._world.calls.append(f"works {backend}")
        return await self._answer(self._world.works)


class FakeListener:
    slot: int | None = 1

    def __init__(self, world: World) -> None:
        self._world = world

    async def arm(self) -> bool:
        world = self._world
        world.calls.append("arm")
        await anyio.sleep(0)
        world.on_arm()
        if world.bell_lost:
            raise world.bell_lost
        world.armed = not world.silent_writers
        return world.armed

    async def disarm(self) -> None:
        self._world.calls.append("disarm")
        await anyio.sleep(0)
        self._world.armed = False

    async def watch(self) -> None:
        await self._world.bell_broke.wait()
        raise self._world.bell_lost or SessionLost("the session does not listen any more")


class Recorder:
    """An observer that records observations with their times, and can be waited for."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, Observation]] = []
        self._changed = anyio.Event()

    def observe(self, observation: Observation, /) -> None:
        self.seen.append((anyio.current_time(), observation))
        self._changed.set()

    def of(self, kind: type) -> list[Any]:
        return [o for _, o in self.seen if isinstance(o, kind)]

    async def wait_for(self, kind: type, fits: Callable[[Any], bool] = lambda _: True, after: int = 0) -> Any:
        """The first fitting observation, not counting the first ``after`` ones of any kind."""
        with anyio.fail_after(10_000):
            while True:
                for _, observation in self.seen[after:]:
                    if isinstance(observation, kind) and fits(observation):
                        return observation
                self._changed = anyio.Event()
                await self._changed.wait()


async def until(condition: Callable[[], Any], within: float = 10_000, step: float | None = None) -> None:
    """Wait until a condition is true.

    It is evaluated every ``step`` seconds of the test's clock; the default is 10 ms, or 0.1 ms if ``within`` is less
    than 100 s. After ``within`` seconds TimeoutError is raised.
    """
    step = step or (0.0001 if within < 100 else 0.01)
    with anyio.fail_after(within):
        while not condition():
            await anyio.sleep(step)


@asynccontextmanager
async def consuming(
    world: World, recorder: Recorder | None = None, seed: int = 1, **settings: Any
) -> AsyncIterator[Any]:
    """A consumer that runs for the length of a block: yields it and its recorder."""
    recorder = recorder or Recorder()
    consumer = ConsumerLoop(Settings.load({}, settings), world, recorder, jitter=random.Random(seed))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        try:
            yield consumer, recorder
        finally:
            consumer.stop("end of test")
            with anyio.CancelScope(shield=True), anyio.move_on_after(100):
                await recorder.wait_for(Stopped)
            tasks.cancel_scope.cancel()
