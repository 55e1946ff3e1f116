"""A database made of a few fields: what the consumer asks of it, on the test's own clock. Satisfies flow.ports."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from iu_listen.flow.consumer import Consumer
from iu_listen.flow.ports import NoBell
from iu_listen.model.errors import SessionLost
from iu_listen.model.facts import AuditPage, Batch, BatchFailure, Culprit
from iu_listen.model.observation import Observation, Stopped
from iu_listen.model.settings import Settings


@dataclass
class World:
    """What is the case. Tests set fields; sessions obey them at every call."""

    events: int = 0
    """Committed and not routed."""
    status: str = "ran"
    reason: str = ""
    holder: str | None = None
    """Who else holds the lease."""
    silent_writers: int = 0
    """Writers that stayed silent and are not visible yet: arming is refused."""
    deaf: bool = False
    """The trigger is disabled: nobody rings."""
    no_bell: str = ""
    lost: Exception | None = None
    """What every call of the worker session raises."""
    bell_lost: Exception | None = None
    batch_seconds: float = 0.001
    on_look: Callable[[], Any] = lambda: None
    """Called in the middle of every batch, after its snapshot."""
    on_arm: Callable[[], Any] = lambda: None
    """Called before every try to arm."""

    on_listen: Callable[[], Any] = lambda: None
    """Called when a bell session begins."""

    audit_due: float = 3600
    """In how many seconds an audit is due."""
    audit_pages: int = 3
    """How many pages a pass has."""
    audit_seconds: float = 0.01
    """How long a page takes."""
    audit_event_seconds: float = 0
    """How long each event of a page takes besides."""
    audit_limits: list[int] = field(default_factory=list)
    """How many events each page was to have."""
    audit_answer: AuditPage = field(default_factory=lambda: AuditPage(status="passed"))
    """What the last page of a pass answers."""
    audit_lost: Exception | None = None
    """What opening the audit session raises."""
    audits: list[tuple[float, str]] = field(default_factory=list)
    """When the auditor was asked what."""

    failures: list[tuple[int, BatchFailure]] = field(default_factory=list)
    """What was noted of batches that failed."""
    armed: bool = False
    rings: Callable[[], None] = lambda: None
    bell_broke: anyio.Event = field(default_factory=anyio.Event)
    calls: list[str] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    beats: list[tuple[float, str, str, bool, str]] = field(default_factory=list)
    culprits: list[Culprit] = field(default_factory=list)
    lookout_lost: Exception | None = None
    """What opening the patrol's session raises, and every call of it."""
    swallowed: bool = False
    """The answers to batches are lost on the way."""
    works: bool = True
    """Whether the server process of the batch is executing something."""

    def insert(self, events: int = 1) -> None:
        """Commit events. Writers ring if somebody sleeps."""
        self.events += events
        if self.armed and not self.deaf:
            self.rings()

    def lose_bell(self, why: str = "the connection was closed") -> None:
        """End the bell session, and let no other one be opened."""
        self.bell_lost = SessionLost(why)
        self.armed = False
        self.bell_broke.set()
        self.rings()

    @asynccontextmanager
    async def outbox(self) -> AsyncIterator[FakeOutbox]:
        self.calls.append("connect")
        if self.lost:
            raise self.lost
        yield FakeOutbox(self)

    @asynccontextmanager
    async def lookout(self) -> AsyncIterator[FakeLookout]:
        if self.lookout_lost:
            await anyio.sleep(0)
            raise self.lookout_lost
        yield FakeLookout(self)

    @asynccontextmanager
    async def bell(self, ring: Callable[[], None]) -> AsyncIterator[FakeBell]:
        self.calls.append("listen")
        if self.no_bell:
            raise NoBell(self.no_bell)
        if self.bell_lost:
            raise self.bell_lost
        self.rings, self.bell_broke = ring, anyio.Event()
        self.on_listen()
        try:
            yield FakeBell(self)
        finally:
            self.armed = False
            ring()

    @asynccontextmanager
    async def auditor(self) -> AsyncIterator[FakeAuditor]:
        self.audits.append((anyio.current_time(), "open"))
        if self.audit_lost:
            raise self.audit_lost
        try:
            yield FakeAuditor(self)
        finally:
            self.audits.append((anyio.current_time(), "close"))


class FakeAuditor:
    def __init__(self, world: World) -> None:
        self._world = world
        self._left = world.audit_pages

    async def due(self) -> float:
        return self._world.audit_due

    async def page(self, limit: int, number: int | None) -> AuditPage:
        self._world.audits.append((anyio.current_time(), f"page of {number}"))
        self._world.audit_limits.append(limit)
        await anyio.sleep(self._world.audit_seconds + limit * self._world.audit_event_seconds)
        self._left -= 1
        return self._world.audit_answer if self._left == 0 else AuditPage(status="walking", number=7)


class FakeOutbox:
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

    async def run_batch(self, limit: int, wants=(), give=None) -> Batch:
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
        return Batch(status=world.status, seen=seen, more=seen == limit, reason=world.reason)

    async def note_failure(self, limit, failure) -> None:
        self._world.calls.append("failure")
        self._world.failures.append((limit, failure))

    async def beat(self, state, why, listening, polling_why, tally) -> None:
        if self._world.lost:
            raise self._world.lost
        self._world.beats.append((anyio.current_time(), str(state), why, listening, polling_why))


class FakeLookout:
    def __init__(self, world: World) -> None:
        self._world = world

    async def _answer(self, answer: Any) -> Any:
        await anyio.sleep(0)
        if self._world.lookout_lost:
            raise self._world.lookout_lost
        return answer

    async def culprits(self) -> list[Culprit]:
        return await self._answer(list(self._world.culprits))

    async def works(self, backend: int) -> bool:
        self._world.calls.append(f"works {backend}")
        return await self._answer(self._world.works)


class FakeBell:
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
    """A Watcher that remembers what it saw and when, and can be waited for."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, Observation]] = []
        self._changed = anyio.Event()

    def note(self, observation: Observation, /) -> None:
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
    """Wait until something is the case, looking every ``step`` seconds of the test's clock; by default every 10 ms, or every
    0.1 ms where it is ``within`` 100 s.
    """
    step = step or (0.0001 if within < 100 else 0.01)
    with anyio.fail_after(within):
        while not condition():
            await anyio.sleep(step)


@asynccontextmanager
async def consuming(
    world: World, recorder: Recorder | None = None, seed: int = 1, **settings: Any
) -> AsyncIterator[Any]:
    """A consumer at work for the length of a block: yields it and its recorder."""
    recorder = recorder or Recorder()
    consumer = Consumer(Settings.load({}, settings), world, recorder, jitter=random.Random(seed))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        try:
            yield consumer, recorder
        finally:
            consumer.stop("end of test")
            with anyio.CancelScope(shield=True), anyio.move_on_after(100):
                await recorder.wait_for(Stopped)
            tasks.cancel_scope.cancel()
