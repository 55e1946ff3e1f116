"""The producers of the storm: many sessions that run transactions, and a task that ends prepared transactions.

The pace of quick producers follows the load level (idle, low, medium, high), slow producers keep transactions open for
seconds, and one producer writes in bulk. Quick and bulk producers pause while very many deliveries wait: otherwise, on a
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

from storm.environment import CONNECTION_ERRORS, WAIT_TIMEOUT, Environment, Session
from storm.model import Model, Transaction, TransactionState
from storm.transaction_kinds import KINDS, ClientDisconnected, Kind, PreparedTransaction, TransactionRecorder

#: Number of producers of each pace.
PRODUCERS_BY_PACE = {"quick": 14, "slow": 16, "bulk": 1}
#: Each load level: relative frequency, range of its duration in s, range of a quick producer's pause in s.
LOAD_LEVELS = {
    "idle": (1, (0.3, 1.0), (10.0, 10.0)),
    "low": (2, (0.5, 3.0), (0.05, 0.6)),
    "medium": (3, (1.0, 4.0), (0.005, 0.08)),
    "high": (2, (0.5, 3.0), (0.0, 0.01)),
}


@dataclass
class Producers:
    """All producers, and the resolver of prepared transactions.

    Args:
        environment: The environment in which they write.
        model: The record of their transactions.
        seed: Seed of the random numbers; each producer has its own generator.
        bulk_rows: Events in a bulk transaction.
        bulk_every: Pause between two bulk transactions, in seconds.

    Attributes:
        load_level: The present pace of quick producers.
        throttled: Whether so many deliveries wait that quick and bulk producers pause.
    """

    environment: Environment
    model: Model
    seed: int
    bulk_rows: int = 100_000
    bulk_every: float = 20.0
    prepared: list[PreparedTransaction] = field(default_factory=list)
    load_level: str = "low"
    throttled: bool = False
    _verifying: int = 0
    _finish_early: asyncio.Event = field(default_factory=asyncio.Event)
    _may_write: asyncio.Event = field(default_factory=asyncio.Event)
    _quiesced: int = 0
    _stopping: bool = False
    _open_transactions: int = 0
    _sessions: int = 0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Start all producers and the resolver."""
        self._may_write.set()
        for pace, count in PRODUCERS_BY_PACE.items():
            for number in range(count):
                self._tasks.append(
                    asyncio.create_task(self._write(pace, random.Random(f"{self.seed} {pace} {number}")))
                )
        self._load_task = asyncio.create_task(self._change_load(random.Random(f"{self.seed} load")))
        self._resolver = asyncio.create_task(self._resolve_prepared())

    async def stop(self) -> None:
        """Let all producers complete their transactions, prepared ones included, and stop."""
        self._stopping = True
        self._load_task.cancel()
        self._finish_early.set()
        self._may_write.set()
        await asyncio.gather(*self._tasks)
        await self._all_finished()
        self._resolver.cancel()
        await asyncio.gather(self._resolver, self._load_task, return_exceptions=True)

    @asynccontextmanager
    async def quiesced(self) -> AsyncIterator[None]:
        """Stop all writing for the length of a block: no transaction is open, none is prepared."""
        self._quiesced += 1
        self._may_write.clear()
        self._finish_early.set()
        try:
            await self._all_finished()
            yield
        finally:
            self._quiesced -= 1
            if not self._quiesced:
                self._finish_early.clear()
                self._may_write.set()

    async def _all_finished(self) -> None:
        async with asyncio.timeout(2 * WAIT_TIMEOUT):
            while self._open_transactions or self.prepared:
                await asyncio.sleep(0.02)

    async def pause(self, seconds: float) -> None:
        """Wait, unless the producers are told to finish early."""
        try:
            async with asyncio.timeout(seconds):
                await self._finish_early.wait()
        except TimeoutError:
            pass

    @property
    def verifying(self) -> bool:
        """Whether a producer verifies the rows of a transaction, or may have to: its events must not be removed."""
        return self._verifying > 0 or any(p.end_requested for p in self.prepared)

    def check(self) -> None:
        """Raise the unexpected exception of a producer."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and task.exception():
                raise task.exception()

    # -- one producer --------------------------------------------------------------------------------------------

    async def _write(self, pace: str, rng: random.Random) -> None:
        kinds = [k for k in KINDS.values() if k.pace == pace]
        weights = [k.weight for k in kinds]
        if pace == "bulk":
            await self.pause(self.bulk_every / 2)
        session: Session | None = None
        while not self._stopping:
            await self._may_write.wait()
            if self._stopping:
                break
            if self.throttled and pace != "slow":
                await self.pause(0.5)
                continue
            chosen = rng.choices(kinds, weights)[0]
            self._open_transactions += 1
            try:
                session = await self._run_transaction(chosen, session, rng)
            finally:
                self._open_transactions -= 1
            if session and rng.random() < 0.01:
                session.terminate()
                session = None
            await self._wait_between(pace, rng)
        if session:
            session.terminate()

    async def _wait_between(self, pace: str, rng: random.Random) -> None:
        if pace == "bulk":
            await self.pause(self.bulk_every * rng.uniform(0.7, 1.3))
        elif pace == "quick":
            until = time.monotonic() + rng.uniform(*LOAD_LEVELS[self.load_level][2])
            # The pause is in small steps, because the load level may change.
            while (left := until - time.monotonic()) > 0 and not self._finish_early.is_set():
                await self.pause(min(left, 0.1))
                until = min(until, time.monotonic() + LOAD_LEVELS[self.load_level][2][1])

    async def _run_transaction(self, chosen: Kind, session: Session | None, rng: random.Random) -> Session | None:
        """Run one transaction until it has an outcome; return the session for the next one, or None."""
        while True:
            if session is None and (session := await self._open()) is None:
                return None
            tx = self.model.begin(chosen.name)
            try:
                await chosen.write(TransactionRecorder(self, session, tx, rng))
                return session
            except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError) as again:
                self.model.retried[again.sqlstate] += 1
                tx.state = TransactionState.ROLLED_BACK
                session = await self._roll_back(session)
            except ClientDisconnected:
                await self._verify_outcome(tx, session)
                return None
            except CONNECTION_ERRORS as lost:
                self._count_lost_session(session, lost)
                await self._verify_outcome(tx, session)
                return None
            except asyncpg.PostgresError as error:
                # COMMIT may have raised the error, so the rows show the outcome.
                self._record_error(chosen.name, error)
                await self._verify_outcome(tx, session)
                return None

    async def _open(self) -> Session | None:
        self._sessions += 1
        name = f"storm producer {self._sessions}"
        try:
            session = await self.environment.connect(name)
        except CONNECTION_ERRORS as lost:
            self._count_lost_session(None, lost)
            await asyncio.sleep(0.1)
            return None
        except asyncpg.PostgresError as error:
            self._record_error("connect", error)
            await asyncio.sleep(0.1)
            return None
        return session

    async def _roll_back(self, session: Session) -> Session | None:
        try:
            await session.execute("rollback")
            return session
        except CONNECTION_ERRORS as lost:
            self._count_lost_session(session, lost)
            session.terminate()
            return None

    def _count_lost_session(self, session: Session | None, lost: BaseException) -> None:
        opened = session.opened if session else time.monotonic()
        # A second of grace: a statement that fails now may have begun before the fault ended.
        if self.environment.cuts_sessions or opened < self.environment.repaired_at + 1:
            self.model.sessions_cut += 1
        else:
            self._record_error("session", lost)

    def _record_error(self, what: str, error: BaseException) -> None:
        if not self.environment.errors_allowed:
            self.model.errors.append(f"{what}: {type(error).__name__}: {error}")

    async def _verify_outcome(self, tx: Transaction, session: Session) -> None:
        """Find out the outcome of a transaction whose session was cut."""
        session.terminate()
        tx.state = TransactionState.UNKNOWN
        self._verifying += 1
        try:
            await self._determine_outcome(tx, session)
        finally:
            self._verifying -= 1

    async def _determine_outcome(self, tx: Transaction, session: Session) -> None:
        # A backend may live longer than its connection, and may still be committing.
        await self.environment.until(
            "select not exists (select from pg_stat_activity where application_name = $1)", session.name
        )
        mine = [p for p in self.prepared if p.tx is tx]
        if mine and await self.environment.value(
            "select exists (select from pg_prepared_xacts where gid = $1)", tx.gid
        ):
            mine[0].is_prepared = True
            return
        tx.decide(await self.count(tx))
        for waiting in mine:
            self.prepared.remove(waiting)

    async def count(self, tx: Transaction) -> int:
        """Number of a transaction's events that are in the outbox."""
        return await self.environment.value(
            "select count(*) from event_outbox where id between $1 and $2 and event_domain = 'iu'",
            tx.event(0),
            tx.event(2**64 - 1),
        )

    # -- the resolver --------------------------------------------------------------------------------------------

    async def _resolve_prepared(self) -> None:
        while True:
            for waiting in list(self.prepared):
                if waiting.is_prepared and (waiting.due < time.monotonic() or self._finish_early.is_set()):
                    await self._end_prepared(waiting)
            await asyncio.sleep(0.02)

    async def _end_prepared(self, waiting: PreparedTransaction) -> None:
        """COMMIT PREPARED or ROLLBACK PREPARED, also while the server is restarted."""
        tx = waiting.tx
        session: Session | None = None
        try:
            session = await self.environment.connect("storm resolver")
            waiting.end_requested = True
            await session.execute(f"{'commit' if waiting.commit else 'rollback'} prepared '{tx.gid}'")
        except CONNECTION_ERRORS:
            # The next try finds out whether it was done.
            await asyncio.sleep(0.05)
            return
        except asyncpg.UndefinedObjectError:
            # An earlier try did it, and its answer was lost.
            tx.decide(await self.count(tx))
        else:
            tx.state = TransactionState.COMMITTED if waiting.commit else TransactionState.ROLLED_BACK
        finally:
            if session:
                session.terminate()
        self.prepared.remove(waiting)

    # -- load ----------------------------------------------------------------------------------------------------

    async def _change_load(self, rng: random.Random) -> None:
        while True:
            self.load_level = rng.choices(list(LOAD_LEVELS), [share for share, _, _ in LOAD_LEVELS.values()])[0]
            await asyncio.sleep(rng.uniform(*LOAD_LEVELS[self.load_level][1]))

    def counts_by_kind(self) -> dict[str, Counter[TransactionState]]:
        """Number of transactions by kind and state."""
        found: dict[str, Counter[TransactionState]] = {name: Counter() for name in KINDS}
        for tx in self.model.transactions.values():
            found.setdefault(tx.kind, Counter())[tx.state] += 1
        return found
