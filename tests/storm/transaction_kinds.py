"""The kinds of transactions in a storm: a table of coroutines that report to the model the events that they write.

To add one, write a coroutine under @kind(pace, weight) that begins, writes and ends one transaction with the recorder
that it gets. ``recorder.write()`` and the other methods that add rows report to the model; ``recorder.commit()`` reports the outcome.
A kind does not handle errors: Writers repeats the transaction after a serialization failure, looks for its rows when a
fault has cut the session, and records every other error, which fails the storm.
"""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from storm.environment import Session
from storm.model import PlannedOutcome, Transaction, TransactionState
from storm.planned_outcomes import INVALID_OUTCOMES, POISON
from support import WORKER

if TYPE_CHECKING:
    from storm.producers import Producers

#: Subjects that are locked briefly, and subjects that slow transactions lock for long.
QUICK_SUBJECTS, SLOW_SUBJECTS = range(64), range(64, 100)
#: Shortest and longest time that a slow transaction stays open, in seconds.
SLOW = (0.2, 3.0)

#: Name of the kind that writes in bulk, and canonical_address of its events.
BULK = "bulk"

INSERT = """
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane, event_subject_ref)
    values ($1, $2, 'version_applied', 'update', 'immediate', $3)
"""
#: INSERT with a payload that tells the target how to behave.
INSERT_PLANNED = """
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane, event_subject_ref, safe_payload)
    values ($1, $2, 'version_applied', 'update', 'immediate', $3, storm.payload($4))
"""
MANY = """
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane, canonical_address)
    select storm.event($1, n), 'iu', 'version_applied', 'update', 'immediate', $4 || '/' || n
      from generate_series($2::int, $3::int) n
"""
INVENTED = """
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane, xact_id, event_seq)
    values ($1, 'iu', 'version_applied', 'update', 'immediate', $2::text::xid8, $3)
"""
COLUMNS = ("id", "event_domain", "event_type", "event_stream", "delivery_lane")


@dataclass(frozen=True)
class Kind:
    """One row of the table of kinds; the fields are as the arguments of ``kind``, and ``write`` is the coroutine."""

    name: str
    pace: str
    weight: int
    write: Callable[[TransactionRecorder], Awaitable[None]]


KINDS: dict[str, Kind] = {}


def kind(pace: str, weight: int) -> Callable[[Callable[[TransactionRecorder], Awaitable[None]]], Any]:
    """Enter a kind into the table, under the name of its function.

    Args:
        pace: quick, slow or bulk.
        weight: Relative frequency among the kinds of the same pace.
    """

    def enter(write: Callable[[TransactionRecorder], Awaitable[None]]) -> Any:
        name = write.__name__.replace("_", " ")
        KINDS[name] = Kind(name, pace, weight, write)
        return write

    return enter


class ClientDisconnected(Exception):
    """The client of the transaction has disconnected, and its outcome is unknown."""


class TransactionRecorder:
    """The interface of a kind: a session, and the transaction's entry in the model."""

    def __init__(self, producers: Producers, session: Session, tx: Transaction, rng: random.Random) -> None:
        self.producers = producers
        self.session = session
        self.tx = tx
        self.rng = rng

    async def begin(self, how: str = "") -> None:
        """Begin a transaction, with an isolation level if one is given."""
        await self.session.execute(f"begin {how}")

    async def turn(self, subjects: range = QUICK_SUBJECTS) -> tuple[int, int]:
        """Lock a subject and draw its next turn."""
        subject = self.rng.choice(subjects)
        turn = await self.session.fetchval(
            "update storm.subject set turn = turn + 1 where id = $1 returning turn", subject
        )
        return subject, turn

    async def write(
        self, turn: tuple[int, int] | None = None, domain: str = "iu", planned: PlannedOutcome | None = None
    ) -> int:
        """Write one event; with a subject if a turn was drawn, with a planned outcome if one is given. Return its row number."""
        (row,) = self.tx.add()
        if turn:
            self.tx.turns += ((row, *turn),)
        values = self.tx.event(row), domain, UUID(int=turn[0] + 1) if turn else None
        if planned:
            self.tx.planned[row] = planned
            await self.session.execute(INSERT_PLANNED, *values, planned.name)
        else:
            await self.session.execute(INSERT, *values)
        return row

    async def write_many(self, count: int, address: str | None = None) -> None:
        """Write many events in one statement."""
        rows = self.tx.add(count)
        await self.session.execute(MANY, self.tx.key, rows[0], rows[-1], address)

    async def idle(self, low: float = SLOW[0], high: float = SLOW[1]) -> None:
        """Wait for a random time, in seconds; return early when the producers are told to finish early."""
        await self.producers.pause(self.rng.uniform(low, high))

    async def commit(self) -> None:
        """Commit, and report it to the model."""
        await self.session.execute("commit")
        self.tx.committed()

    async def rollback(self) -> None:
        """Roll back, and report it to the model."""
        await self.session.execute("rollback")
        self.tx.state = TransactionState.ROLLED_BACK


@dataclass
class PreparedTransaction:
    """A transaction that the resolver will end.

    Attributes:
        tx: The transaction.
        due: When to end it, by the monotonic clock.
        commit: Whether to commit it; False: roll back.
        is_prepared: Whether PREPARE TRANSACTION has succeeded.
        end_requested: Whether the resolver has begun to end it.
    """

    tx: Transaction
    due: float
    commit: bool
    is_prepared: bool = False
    end_requested: bool = False


# -- quick -------------------------------------------------------------------------------------------------------


@kind("quick", 30)
async def short(recorder: TransactionRecorder) -> None:
    """Lock and update the row of a subject, and write the event."""
    await recorder.begin()
    await recorder.write(await recorder.turn())
    await recorder.commit()


@kind("quick", 10)
async def single_statement(recorder: TransactionRecorder) -> None:
    """Insert without BEGIN: the statement commits itself."""
    await recorder.write()
    recorder.tx.committed()


@kind("quick", 6)
async def several_events(recorder: TransactionRecorder) -> None:
    """Write several events of one subject, and several without a subject."""
    await recorder.begin()
    turn = await recorder.turn()
    for _ in range(recorder.rng.randint(2, 5)):
        await recorder.write(turn)
    await recorder.write_many(recorder.rng.randint(1, 20))
    await recorder.commit()


@kind("quick", 4)
async def two_subjects(recorder: TransactionRecorder) -> None:
    """Lock two subjects in any order, which causes deadlocks: PostgreSQL cancels one of the two transactions."""
    await recorder.begin()
    await recorder.write(await recorder.turn(QUICK_SUBJECTS[:6]))
    await recorder.write(await recorder.turn(QUICK_SUBJECTS[:6]))
    await recorder.commit()


@kind("quick", 6)
async def savepoints(recorder: TransactionRecorder) -> None:
    """Savepoints are rolled back and released, also nested ones."""
    await recorder.begin()
    turn = await recorder.turn()
    await recorder.session.execute("savepoint a")
    recorder.tx.undo([await recorder.write(turn)])
    await recorder.session.execute("rollback to savepoint a")
    await recorder.write(turn)
    await recorder.session.execute("savepoint b")
    await recorder.write(turn)
    await recorder.session.execute("savepoint c")
    recorder.tx.undo([await recorder.write(turn)])
    await recorder.session.execute("rollback to savepoint c")
    await recorder.session.execute("release savepoint b")
    await recorder.commit()


@kind("quick", 2)
async def subtransactions(recorder: TransactionRecorder) -> None:
    """More than 64 subtransactions, so that the cache in shared memory overflows; a third of them is rolled back."""
    await recorder.begin()
    rows = recorder.tx.add(90)
    recorder.tx.undo(row for row in rows if row % 3 == 0)
    await recorder.session.execute("select storm.subtransactions($1, $2, $3)", recorder.tx.key, rows[0], rows[-1])
    await recorder.idle(0, 0.05)
    await recorder.commit()


@kind("quick", 6)
async def repeatable_read(recorder: TransactionRecorder) -> None:
    """The snapshot is older than the row lock, so the transaction may fail and be repeated."""
    await recorder.begin("isolation level repeatable read")
    await recorder.session.fetchval("select count(*) from storm.subject")
    await recorder.write(await recorder.turn())
    await recorder.commit()


@kind("quick", 6)
async def serializable(recorder: TransactionRecorder) -> None:
    """The transaction also reads, so it may fail because of read dependencies, and be repeated."""
    await recorder.begin("isolation level serializable")
    await recorder.session.fetchval(
        "select sum(turn) from storm.subject where id = $1", recorder.rng.choice(QUICK_SUBJECTS)
    )
    await recorder.write(await recorder.turn())
    await recorder.commit()


@kind("quick", 8)
async def aborted(recorder: TransactionRecorder) -> None:
    """Events are written, and the transaction is rolled back."""
    await recorder.begin()
    await recorder.write(await recorder.turn())
    await recorder.write_many(recorder.rng.randint(1, 5))
    await recorder.rollback()


@kind("quick", 3)
async def copy(recorder: TransactionRecorder) -> None:
    """Write by COPY, in half of the cases with an explicit position."""
    await recorder.begin()
    turn, rows = await recorder.turn(), recorder.tx.add(recorder.rng.randint(1, 30))
    recorder.tx.turns = tuple((row, *turn) for row in rows)
    invented = recorder.rng.random() < 0.5
    columns = [*COLUMNS, "event_subject_ref", *(["xact_id", "event_seq"] if invented else [])]
    text = "".join(
        f"{recorder.tx.event(row)}\tiu\tversion_applied\tupdate\timmediate\t{UUID(int=turn[0] + 1)}"
        + (f"\t{recorder.rng.randint(3, 500)}\t{recorder.rng.randint(-(10**6), 10**9)}" if invented else "")
        + "\n"
        for row in rows
    )
    await recorder.session.copy_to_table("event_outbox", source=io.BytesIO(text.encode()), columns=columns)
    await recorder.commit()


@kind("quick", 4)
async def invented_position(recorder: TransactionRecorder) -> None:
    """Write with an explicit xact_id and event_seq, lower or higher than the real ones."""
    await recorder.begin()
    xact_id = recorder.rng.choice(["3", "700", "999999999999"])
    await recorder.session.execute(
        INVENTED, recorder.tx.event(*recorder.tx.add()), xact_id, recorder.rng.randint(-(10**9), 10**12)
    )
    await recorder.commit()


@kind("quick", 3)
async def replica_role(recorder: TransactionRecorder) -> None:
    """Ordinary triggers do not fire, as in a session that applies logical replication."""
    await recorder.begin()
    await recorder.session.execute("set local session_replication_role = replica")
    await recorder.session.execute(
        INVENTED, recorder.tx.event(*recorder.tx.add()), "5", recorder.rng.randint(-(10**6), 10**9)
    )
    await recorder.commit()


@kind("quick", 4)
async def moved_into_the_domain(recorder: TransactionRecorder) -> None:
    """An event is committed in another domain, and counts from its move to this domain on."""
    (row,) = recorder.tx.add()
    await recorder.session.execute(INSERT, recorder.tx.event(row), "system", None)
    await recorder.idle(0, 0.2)
    await recorder.begin()
    turn = await recorder.turn()
    recorder.tx.turns = ((row, *turn),)
    done = await recorder.session.execute(
        "update event_outbox set event_domain = 'iu', event_subject_ref = $2 where id = $1",
        recorder.tx.event(row),
        UUID(int=turn[0] + 1),
    )
    assert done == "UPDATE 1", "an event of another domain is gone"
    await recorder.commit()


@kind("quick", 2)
async def another_domain(recorder: TransactionRecorder) -> None:
    """Write an event of another domain, which no worker of the storm may route."""
    await recorder.begin()
    recorder.tx.undo([await recorder.write(domain="system")])
    await recorder.commit()


@kind("quick", 2)
async def client_disconnects(recorder: TransactionRecorder) -> None:
    """The client disconnects during COMMIT: the server may or may not have received it, and the answer is lost."""
    await recorder.begin()
    await recorder.write(await recorder.turn())
    commit = asyncio.create_task(recorder.session.execute("commit"))
    await asyncio.sleep(recorder.rng.choice([0, 0, 0.0002, 0.001]))
    recorder.session.terminate()
    await asyncio.gather(commit, return_exceptions=True)
    raise ClientDisconnected


@kind("quick", 1)
async def emits_and_runs(recorder: TransactionRecorder) -> None:
    """Emit, run the worker, and emit again in one transaction, as the probe does, or an operator in psql."""
    await recorder.begin()
    turn = await recorder.turn()
    await recorder.write(turn)
    if not recorder.producers.environment.measuring:
        await recorder.session.fetchval(
            "select fn_iu_route_worker_run($1, $2)::text", WORKER, recorder.rng.choice([5, 500])
        )
    await recorder.write(turn)
    await (recorder.commit() if recorder.rng.random() < 0.8 else recorder.rollback())


@kind("quick", 1)
async def poison_event(recorder: TransactionRecorder) -> None:
    """The delivery of the second event fails at every attempt; its subject's events before and after it succeed."""
    await recorder.begin()
    turn = await recorder.turn()
    await recorder.write(turn)
    await recorder.write(turn, planned=recorder.rng.choice((*POISON, *INVALID_OUTCOMES)))
    await recorder.write(turn)
    await recorder.commit()


# -- slow --------------------------------------------------------------------------------------------------------


@kind("slow", 5)
async def long(recorder: TransactionRecorder) -> None:
    """Write, and then stay idle in the transaction."""
    await recorder.begin()
    await recorder.write(await recorder.turn(SLOW_SUBJECTS))
    await recorder.write_many(recorder.rng.randint(1, 40))
    await recorder.idle()
    await recorder.commit()


@kind("slow", 2)
async def long_and_aborted(recorder: TransactionRecorder) -> None:
    """Write, stay idle in the transaction, and roll back."""
    await recorder.begin()
    await recorder.write(await recorder.turn(SLOW_SUBJECTS))
    await recorder.write_many(recorder.rng.randint(1, 40))
    await recorder.idle()
    await recorder.rollback()


@kind("slow", 4)
async def early_xid(recorder: TransactionRecorder) -> None:
    """The transaction gets its id long before it locks its subject: ids do not follow the order of a subject."""
    await recorder.begin()
    await recorder.session.fetchval("select pg_current_xact_id()::text")
    await recorder.idle()
    await recorder.write(await recorder.turn())
    await recorder.commit()


@kind("slow", 4)
async def late_xid(recorder: TransactionRecorder) -> None:
    """Draw an event_seq first, wait, and then insert: the transaction gets its id late."""
    await recorder.begin()
    drawn = await recorder.session.fetchval("select nextval('event_outbox_event_seq')")
    await recorder.idle()
    await recorder.session.execute(INVENTED, recorder.tx.event(*recorder.tx.add()), "4", drawn)
    await recorder.idle(0, 0.3)
    await recorder.commit()


@kind("slow", 3)
async def old_snapshot(recorder: TransactionRecorder) -> None:
    """REPEATABLE READ with a snapshot that is much older than the insert."""
    await recorder.begin("isolation level repeatable read")
    await recorder.session.fetchval("select count(*) from storm.subject")
    await recorder.idle()
    await recorder.write_many(recorder.rng.randint(1, 40))
    await recorder.idle(0, 0.5)
    await recorder.commit()


@kind("slow", 4)
async def prepared(recorder: TransactionRecorder) -> None:
    """PREPARE TRANSACTION; the resolver commits it later, or rolls it back. The server may be restarted in between."""
    await recorder.begin()
    await recorder.write(await recorder.turn(SLOW_SUBJECTS))
    await recorder.write_many(recorder.rng.randint(1, 40))
    recorder.tx.gid = f"storm-{recorder.tx.key}"
    waiting = PreparedTransaction(
        recorder.tx, time.monotonic() + recorder.rng.uniform(*SLOW), commit=recorder.rng.random() < 0.75
    )
    # Registered before the statement: if the session is cut during it, the transaction may have been prepared.
    recorder.producers.prepared.append(waiting)
    await recorder.session.execute(f"prepare transaction '{recorder.tx.gid}'")
    waiting.is_prepared = True


# -- bulk --------------------------------------------------------------------------------------------------------


@kind("bulk", 1)
async def bulk(recorder: TransactionRecorder) -> None:
    """Write a very large number of events in one transaction."""
    await recorder.begin()
    await recorder.write_many(recorder.producers.bulk_rows, BULK)
    await recorder.commit()
