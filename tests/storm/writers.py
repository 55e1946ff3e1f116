"""The writers of the storm: many sessions that run the kinds of kinds.py, and a notary that ends prepared transactions.

The pace of quick writers follows the weather (calm, breeze, wind, gale), slow writers keep transactions open for
seconds, and one writer writes in bulk. Quick and bulk writers pause while very many deliveries wait: otherwise, on a
machine that delivers more slowly than they write, the backlog would only grow, and every delivery would be late for
that reason alone. If a fault cuts a session, the outcome of its transaction is unknown until its rows are looked for.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg

from storm.ground import LOST, PATIENCE, Ground, Session
from storm.kinds import KINDS, Kind, Pen, Prepared, Vanished
from storm.model import Fate, Model, Transaction

#: Number of writers of each pace.
CREW = {"quick": 14, "slow": 16, "bulk": 1}
#: Each weather: relative frequency, range of its duration in s, range of a quick writer's pause in s.
WEATHER = {
    "calm": (1, (0.3, 1.0), (10.0, 10.0)),
    "breeze": (2, (0.5, 3.0), (0.05, 0.6)),
    "wind": (3, (1.0, 4.0), (0.005, 0.08)),
    "gale": (2, (0.5, 3.0), (0.0, 0.01)),
}


@dataclass
class Writers:
    """All writers, and the notary of the prepared transactions.

    Args:
        ground: The environment in which they write.
        model: The record of their transactions.
        seed: Seed of the random numbers; each writer has its own generator.
        bulk_rows: Events in a bulk transaction.
        bulk_every: Pause between two bulk transactions, in seconds.

    Attributes:
        weather: The present pace of quick writers.
        flooded: Whether so many deliveries wait that quick and bulk writers pause.
    """

    ground: Ground
    model: Model
    seed: int
    bulk_rows: int = 100_000
    bulk_every: float = 20.0
    prepared: list[Prepared] = field(default_factory=list)
    weather: str = "breeze"
    flooded: bool = False
    _looking: int = 0
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _road: asyncio.Event = field(default_factory=asyncio.Event)
    _stills: int = 0
    _stopping: bool = False
    _under_way: int = 0
    _sessions: int = 0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Start all writers and the notary."""
        self._road.set()
        for pace, crew in CREW.items():
            for number in range(crew):
                self._tasks.append(
                    asyncio.create_task(self._write(pace, random.Random(f"{self.seed} {pace} {number}")))
                )
        self._weatherman = asyncio.create_task(self._change_weather(random.Random(f"{self.seed} weather")))
        self._notary = asyncio.create_task(self._notarise())

    async def stop(self) -> None:
        """Let all writers complete their transactions, prepared ones included, and stop."""
        self._stopping = True
        self._weatherman.cancel()
        self._hurry.set()
        self._road.set()
        await asyncio.gather(*self._tasks)
        await self._all_finished()
        self._notary.cancel()
        await asyncio.gather(self._notary, self._weatherman, return_exceptions=True)

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Stop all writing for the length of a block: no transaction is open, none is prepared."""
        self._stills += 1
        self._road.clear()
        self._hurry.set()
        try:
            await self._all_finished()
            yield
        finally:
            self._stills -= 1
            if not self._stills:
                self._hurry.clear()
                self._road.set()

    async def _all_finished(self) -> None:
        async with asyncio.timeout(2 * PATIENCE):
            while self._under_way or self.prepared:
                await asyncio.sleep(0.02)

    async def pause(self, seconds: float) -> None:
        """Wait, unless the writers are told to hurry."""
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            pass

    @property
    def looking(self) -> bool:
        """Whether a writer looks for the rows of a transaction, or may have to: its events must not be removed."""
        return self._looking > 0 or any(p.asked for p in self.prepared)

    def check(self) -> None:
        """Raise the unexpected exception of a writer."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and task.exception():
                raise task.exception()

    # -- one writer ----------------------------------------------------------------------------------------------

    async def _write(self, pace: str, dice: random.Random) -> None:
        kinds = [k for k in KINDS.values() if k.pace == pace]
        weights = [k.weight for k in kinds]
        if pace == "bulk":
            await self.pause(self.bulk_every / 2)
        session: Session | None = None
        while not self._stopping:
            await self._road.wait()
            if self._stopping:
                break
            if self.flooded and pace != "slow":
                await self.pause(0.5)
                continue
            chosen = dice.choices(kinds, weights)[0]
            self._under_way += 1
            try:
                session = await self._perform(chosen, session, dice)
            finally:
                self._under_way -= 1
            if session and dice.random() < 0.01:
                session.terminate()
                session = None
            await self._rest(pace, dice)
        if session:
            session.terminate()

    async def _rest(self, pace: str, dice: random.Random) -> None:
        if pace == "bulk":
            await self.pause(self.bulk_every * dice.uniform(0.7, 1.3))
        elif pace == "quick":
            until = time.monotonic() + dice.uniform(*WEATHER[self.weather][2])
            # The pause is in small steps, because the weather may change.
            while (left := until - time.monotonic()) > 0 and not self._hurry.is_set():
                await self.pause(min(left, 0.1))
                until = min(until, time.monotonic() + WEATHER[self.weather][2][1])

    async def _perform(self, chosen: Kind, session: Session | None, dice: random.Random) -> Session | None:
        """Run one transaction until it has an outcome; return the session for the next one, or None."""
        while True:
            if session is None and (session := await self._open()) is None:
                return None
            tx = self.model.begin(chosen.name)
            try:
                await chosen.write(Pen(self, session, tx, dice))
                return session
            except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError) as again:
                self.model.retried[again.sqlstate] += 1
                tx.fate = Fate.ROLLED_BACK
                session = await self._clear(session)
            except Vanished:
                await self._settle(tx, session)
                return None
            except LOST as lost:
                self._count_cut(session, lost)
                await self._settle(tx, session)
                return None
            except asyncpg.PostgresError as error:
                # COMMIT may have raised the error, so the rows show the outcome.
                self._record(chosen.name, error)
                await self._settle(tx, session)
                return None

    async def _open(self) -> Session | None:
        self._sessions += 1
        name = f"storm writer {self._sessions}"
        try:
            session = await self.ground.connect(name)
        except LOST as lost:
            self._count_cut(None, lost)
            await asyncio.sleep(0.1)
            return None
        except asyncpg.PostgresError as error:
            self._record("connect", error)
            await asyncio.sleep(0.1)
            return None
        return session

    async def _clear(self, session: Session) -> Session | None:
        try:
            await session.execute("rollback")
            return session
        except LOST as lost:
            self._count_cut(session, lost)
            session.terminate()
            return None

    def _count_cut(self, session: Session | None, lost: BaseException) -> None:
        opened = session.opened if session else time.monotonic()
        # A second of grace: a statement that fails now may have begun before the fault ended.
        if self.ground.cutting or opened < self.ground.healed_at + 1:
            self.model.cut += 1
        else:
            self._record("session", lost)

    def _record(self, what: str, error: BaseException) -> None:
        if not self.ground.forgiving:
            self.model.errors.append(f"{what}: {type(error).__name__}: {error}")

    async def _settle(self, tx: Transaction, session: Session) -> None:
        """Find out the outcome of a transaction whose session was cut."""
        session.terminate()
        tx.fate = Fate.UNKNOWN
        self._looking += 1
        try:
            await self._look_for(tx, session)
        finally:
            self._looking -= 1

    async def _look_for(self, tx: Transaction, session: Session) -> None:
        # A backend may live longer than its connection, and may still be committing.
        await self.ground.until(
            "select not exists (select from pg_stat_activity where application_name = $1)", session.name
        )
        mine = [p for p in self.prepared if p.tx is tx]
        if mine and await self.ground.value("select exists (select from pg_prepared_xacts where gid = $1)", tx.gid):
            mine[0].certain = True
            return
        tx.settle(await self.count(tx))
        for waiting in mine:
            self.prepared.remove(waiting)

    async def count(self, tx: Transaction) -> int:
        """Number of a transaction's events that are in the outbox."""
        return await self.ground.value(
            "select count(*) from event_outbox where id between $1 and $2 and event_domain = 'iu'",
            tx.event(0),
            tx.event(2**64 - 1),
        )

    # -- the notary ----------------------------------------------------------------------------------------------

    async def _notarise(self) -> None:
        while True:
            for waiting in list(self.prepared):
                if waiting.certain and (waiting.due < time.monotonic() or self._hurry.is_set()):
                    await self._finish(waiting)
            await asyncio.sleep(0.02)

    async def _finish(self, waiting: Prepared) -> None:
        """COMMIT PREPARED or ROLLBACK PREPARED, also while the server is restarted."""
        tx = waiting.tx
        session: Session | None = None
        try:
            session = await self.ground.connect("storm notary")
            waiting.asked = True
            await session.execute(f"{'commit' if waiting.commit else 'rollback'} prepared '{tx.gid}'")
        except LOST:
            # The next try finds out whether it was done.
            await asyncio.sleep(0.05)
            return
        except asyncpg.UndefinedObjectError:
            # An earlier try did it, and its answer was lost.
            tx.settle(await self.count(tx))
        else:
            tx.fate = Fate.COMMITTED if waiting.commit else Fate.ROLLED_BACK
        finally:
            if session:
                session.terminate()
        self.prepared.remove(waiting)

    # -- weather -------------------------------------------------------------------------------------------------

    async def _change_weather(self, dice: random.Random) -> None:
        while True:
            self.weather = dice.choices(list(WEATHER), [share for share, _, _ in WEATHER.values()])[0]
            await asyncio.sleep(dice.uniform(*WEATHER[self.weather][1]))

    def kinds(self) -> dict[str, Counter[Fate]]:
        """Number of transactions by kind and fate."""
        found: dict[str, Counter[Fate]] = {name: Counter() for name in KINDS}
        for tx in self.model.transactions.values():
            found.setdefault(tx.kind, Counter())[tx.fate] += 1
        return found
