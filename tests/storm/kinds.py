"""The kinds of transactions in a storm: a table of coroutines that report to the model the events that they write.

To add one, write a coroutine under @kind(pace, weight) that begins, writes and ends one transaction with the pen that
it gets. ``pen.write()`` and the other methods that add rows report to the model; ``pen.commit()`` reports the outcome.
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

from storm.dooms import ODD, POISON
from storm.ground import Session
from storm.model import Doom, Fate, Transaction
from support import WORKER

if TYPE_CHECKING:
    from storm.writers import Writers

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
DOOMED = """
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
    write: Callable[[Pen], Awaitable[None]]


KINDS: dict[str, Kind] = {}


def kind(pace: str, weight: int) -> Callable[[Callable[[Pen], Awaitable[None]]], Any]:
    """Enter a kind into the table, under the name of its function.

    Args:
        pace: quick, slow or bulk.
        weight: Relative frequency among the kinds of the same pace.
    """

    def enter(write: Callable[[Pen], Awaitable[None]]) -> Any:
        name = write.__name__.replace("_", " ")
        KINDS[name] = Kind(name, pace, weight, write)
        return write

    return enter


class Vanished(Exception):
    """The client of the transaction has disconnected, and its outcome is unknown."""


class Pen:
    """The interface of a kind: a session, and the transaction's entry in the model."""

    def __init__(self, writers: Writers, session: Session, tx: Transaction, dice: random.Random) -> None:
        self.writers = writers
        self.session = session
        self.tx = tx
        self.dice = dice

    async def begin(self, how: str = "") -> None:
        """Begin a transaction, with an isolation level if one is given."""
        await self.session.execute(f"begin {how}")

    async def turn(self, subjects: range = QUICK_SUBJECTS) -> tuple[int, int]:
        """Lock a subject and draw its next turn."""
        subject = self.dice.choice(subjects)
        turn = await self.session.fetchval(
            "update storm.subject set turn = turn + 1 where id = $1 returning turn", subject
        )
        return subject, turn

    async def write(self, turn: tuple[int, int] | None = None, domain: str = "iu", doom: Doom | None = None) -> int:
        """Write one event; with a subject if a turn was drawn, with a doom if one is given. Return its row number."""
        (row,) = self.tx.add()
        if turn:
            self.tx.turns += ((row, *turn),)
        values = self.tx.event(row), domain, UUID(int=turn[0] + 1) if turn else None
        if doom:
            self.tx.dooms[row] = doom
            await self.session.execute(DOOMED, *values, doom.name)
        else:
            await self.session.execute(INSERT, *values)
        return row

    async def write_many(self, count: int, address: str | None = None) -> None:
        """Write many events in one statement."""
        rows = self.tx.add(count)
        await self.session.execute(MANY, self.tx.key, rows[0], rows[-1], address)

    async def idle(self, low: float = SLOW[0], high: float = SLOW[1]) -> None:
        """Wait for a random time, in seconds; return early when the writers are told to hurry."""
        await self.writers.pause(self.dice.uniform(low, high))

    async def commit(self) -> None:
        """Commit, and report it to the model."""
        await self.session.execute("commit")
        self.tx.committed()

    async def rollback(self) -> None:
        """Roll back, and report it to the model."""
        await self.session.execute("rollback")
        self.tx.fate = Fate.ROLLED_BACK


@dataclass
class Prepared:
    """A transaction that will be ended by the notary.

    Attributes:
        tx: The transaction.
        due: When to end it, by the monotonic clock.
        commit: Whether to commit it; False: roll back.
        certain: Whether PREPARE TRANSACTION has succeeded.
        asked: Whether the notary has begun to end it.
    """

    tx: Transaction
    due: float
    commit: bool
    certain: bool = False
    asked: bool = False


# -- quick -------------------------------------------------------------------------------------------------------


@kind("quick", 30)
async def short(pen: Pen) -> None:
    """Lock and update the row of a subject, and write the event."""
    await pen.begin()
    await pen.write(await pen.turn())
    await pen.commit()


@kind("quick", 10)
async def single_statement(pen: Pen) -> None:
    """Insert without BEGIN: the statement commits itself."""
    await pen.write()
    pen.tx.committed()


@kind("quick", 6)
async def several(pen: Pen) -> None:
    """Write several events of one subject, and several without a subject."""
    await pen.begin()
    turn = await pen.turn()
    for _ in range(pen.dice.randint(2, 5)):
        await pen.write(turn)
    await pen.write_many(pen.dice.randint(1, 20))
    await pen.commit()


@kind("quick", 4)
async def two_subjects(pen: Pen) -> None:
    """Lock two subjects in any order, which causes deadlocks: PostgreSQL cancels one of the two transactions."""
    await pen.begin()
    await pen.write(await pen.turn(QUICK_SUBJECTS[:6]))
    await pen.write(await pen.turn(QUICK_SUBJECTS[:6]))
    await pen.commit()


@kind("quick", 6)
async def savepoints(pen: Pen) -> None:
    """Savepoints are rolled back and released, also nested ones."""
    await pen.begin()
    turn = await pen.turn()
    await pen.session.execute("savepoint a")
    pen.tx.undo([await pen.write(turn)])
    await pen.session.execute("rollback to savepoint a")
    await pen.write(turn)
    await pen.session.execute("savepoint b")
    await pen.write(turn)
    await pen.session.execute("savepoint c")
    pen.tx.undo([await pen.write(turn)])
    await pen.session.execute("rollback to savepoint c")
    await pen.session.execute("release savepoint b")
    await pen.commit()


@kind("quick", 2)
async def subtransactions(pen: Pen) -> None:
    """More than 64 subtransactions, so that the cache in shared memory overflows; a third of them is rolled back."""
    await pen.begin()
    rows = pen.tx.add(90)
    pen.tx.undo(row for row in rows if row % 3 == 0)
    await pen.session.execute("select storm.subtransactions($1, $2, $3)", pen.tx.key, rows[0], rows[-1])
    await pen.idle(0, 0.05)
    await pen.commit()


@kind("quick", 6)
async def repeatable_read(pen: Pen) -> None:
    """The snapshot is older than the row lock, so the transaction may fail and be repeated."""
    await pen.begin("isolation level repeatable read")
    await pen.session.fetchval("select count(*) from storm.subject")
    await pen.write(await pen.turn())
    await pen.commit()


@kind("quick", 6)
async def serializable(pen: Pen) -> None:
    """The transaction also reads, so it may fail because of read dependencies, and be repeated."""
    await pen.begin("isolation level serializable")
    await pen.session.fetchval("select sum(turn) from storm.subject where id = $1", pen.dice.choice(QUICK_SUBJECTS))
    await pen.write(await pen.turn())
    await pen.commit()


@kind("quick", 8)
async def aborted(pen: Pen) -> None:
    """Events are written, and the transaction is rolled back."""
    await pen.begin()
    await pen.write(await pen.turn())
    await pen.write_many(pen.dice.randint(1, 5))
    await pen.rollback()


@kind("quick", 3)
async def copied(pen: Pen) -> None:
    """Write by COPY, in half of the cases with an explicit position."""
    await pen.begin()
    turn, rows = await pen.turn(), pen.tx.add(pen.dice.randint(1, 30))
    pen.tx.turns = tuple((row, *turn) for row in rows)
    invented = pen.dice.random() < 0.5
    columns = [*COLUMNS, "event_subject_ref", *(["xact_id", "event_seq"] if invented else [])]
    text = "".join(
        f"{pen.tx.event(row)}\tiu\tversion_applied\tupdate\timmediate\t{UUID(int=turn[0] + 1)}"
        + (f"\t{pen.dice.randint(3, 500)}\t{pen.dice.randint(-(10**6), 10**9)}" if invented else "")
        + "\n"
        for row in rows
    )
    await pen.session.copy_to_table("event_outbox", source=io.BytesIO(text.encode()), columns=columns)
    await pen.commit()


@kind("quick", 4)
async def invented_position(pen: Pen) -> None:
    """Write with an explicit xact_id and event_seq, lower or higher than the real ones."""
    await pen.begin()
    xact_id = pen.dice.choice(["3", "700", "999999999999"])
    await pen.session.execute(INVENTED, pen.tx.event(*pen.tx.add()), xact_id, pen.dice.randint(-(10**9), 10**12))
    await pen.commit()


@kind("quick", 3)
async def replica_role(pen: Pen) -> None:
    """Ordinary triggers do not fire, as in a session that applies logical replication."""
    await pen.begin()
    await pen.session.execute("set local session_replication_role = replica")
    await pen.session.execute(INVENTED, pen.tx.event(*pen.tx.add()), "5", pen.dice.randint(-(10**6), 10**9))
    await pen.commit()


@kind("quick", 4)
async def moved_into_the_domain(pen: Pen) -> None:
    """An event is committed in another domain, and counts from its move to this domain on."""
    (row,) = pen.tx.add()
    await pen.session.execute(INSERT, pen.tx.event(row), "system", None)
    await pen.idle(0, 0.2)
    await pen.begin()
    turn = await pen.turn()
    pen.tx.turns = ((row, *turn),)
    done = await pen.session.execute(
        "update event_outbox set event_domain = 'iu', event_subject_ref = $2 where id = $1",
        pen.tx.event(row),
        UUID(int=turn[0] + 1),
    )
    assert done == "UPDATE 1", "an event of another domain is gone"
    await pen.commit()


@kind("quick", 2)
async def of_another_domain(pen: Pen) -> None:
    """Write an event of another domain, which no worker of the storm may route."""
    await pen.begin()
    pen.tx.undo([await pen.write(domain="system")])
    await pen.commit()


@kind("quick", 2)
async def vanishes(pen: Pen) -> None:
    """The client disconnects during COMMIT: the server may or may not have received it, and the answer is lost."""
    await pen.begin()
    await pen.write(await pen.turn())
    commit = asyncio.create_task(pen.session.execute("commit"))
    await asyncio.sleep(pen.dice.choice([0, 0, 0.0002, 0.001]))
    pen.session.terminate()
    await asyncio.gather(commit, return_exceptions=True)
    raise Vanished


@kind("quick", 1)
async def emits_and_runs(pen: Pen) -> None:
    """Emit, run the worker, and emit again in one transaction, as the probe does, or an operator in psql."""
    await pen.begin()
    turn = await pen.turn()
    await pen.write(turn)
    if not pen.writers.ground.measuring:
        await pen.session.fetchval("select fn_iu_route_worker_run($1, $2)::text", WORKER, pen.dice.choice([5, 500]))
    await pen.write(turn)
    await (pen.commit() if pen.dice.random() < 0.8 else pen.rollback())


@kind("quick", 1)
async def poisoned(pen: Pen) -> None:
    """The delivery of the second event fails at every attempt; its subject's events before and after it succeed."""
    await pen.begin()
    turn = await pen.turn()
    await pen.write(turn)
    await pen.write(turn, doom=pen.dice.choice((*POISON, *ODD)))
    await pen.write(turn)
    await pen.commit()


# -- slow --------------------------------------------------------------------------------------------------------


@kind("slow", 5)
async def long(pen: Pen) -> None:
    """Write, and then stay idle in the transaction."""
    await pen.begin()
    await pen.write(await pen.turn(SLOW_SUBJECTS))
    await pen.write_many(pen.dice.randint(1, 40))
    await pen.idle()
    await pen.commit()


@kind("slow", 2)
async def long_and_aborted(pen: Pen) -> None:
    """Write, stay idle in the transaction, and roll back."""
    await pen.begin()
    await pen.write(await pen.turn(SLOW_SUBJECTS))
    await pen.write_many(pen.dice.randint(1, 40))
    await pen.idle()
    await pen.rollback()


@kind("slow", 4)
async def early_xid(pen: Pen) -> None:
    """The transaction gets its id long before it locks its subject: ids do not follow the order of a subject."""
    await pen.begin()
    await pen.session.fetchval("select pg_current_xact_id()::text")
    await pen.idle()
    await pen.write(await pen.turn())
    await pen.commit()


@kind("slow", 4)
async def late_xid(pen: Pen) -> None:
    """Draw an event_seq first, wait, and then insert: the transaction gets its id late."""
    await pen.begin()
    drawn = await pen.session.fetchval("select nextval('event_outbox_event_seq')")
    await pen.idle()
    await pen.session.execute(INVENTED, pen.tx.event(*pen.tx.add()), "4", drawn)
    await pen.idle(0, 0.3)
    await pen.commit()


@kind("slow", 3)
async def old_snapshot(pen: Pen) -> None:
    """REPEATABLE READ with a snapshot that is much older than the insert."""
    await pen.begin("isolation level repeatable read")
    await pen.session.fetchval("select count(*) from storm.subject")
    await pen.idle()
    await pen.write_many(pen.dice.randint(1, 40))
    await pen.idle(0, 0.5)
    await pen.commit()


@kind("slow", 4)
async def prepared(pen: Pen) -> None:
    """PREPARE TRANSACTION; the notary commits it later, or rolls it back. The server may be restarted in between."""
    await pen.begin()
    await pen.write(await pen.turn(SLOW_SUBJECTS))
    await pen.write_many(pen.dice.randint(1, 40))
    pen.tx.gid = f"storm-{pen.tx.key}"
    waiting = Prepared(pen.tx, time.monotonic() + pen.dice.uniform(*SLOW), commit=pen.dice.random() < 0.75)
    # Registered before the statement: if the session is cut during it, the transaction may have been prepared.
    pen.writers.prepared.append(waiting)
    await pen.session.execute(f"prepare transaction '{pen.tx.gid}'")
    waiting.certain = True


# -- bulk --------------------------------------------------------------------------------------------------------


@kind("bulk", 1)
async def bulk(pen: Pen) -> None:
    """Write a very large number of events in one transaction."""
    await pen.begin()
    await pen.write_many(pen.writers.bulk_rows, BULK)
    await pen.commit()
