"""Random interleavings of producers, savepoints, row locks and a worker that also writes, each from a seed."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from support import BACKLOGS, WORKER, connected, insert_event, run_batch

pytestmark = pytest.mark.asyncio

Event = tuple[UUID, UUID]  # id, subject


class Writer:
    """A session and the events of its transaction, one list for each savepoint."""

    def __init__(self, connection: asyncpg.Connection, subjects: list[UUID], dice: random.Random) -> None:
        self.connection = connection
        self.subjects = subjects
        self.dice = dice
        self.written: list[list[Event]] = []
        self.transactions: list[Any] = []

    async def begin(self) -> None:
        """Open a transaction, or a savepoint in it; some of them draw an xid or a number at once."""
        isolation = None if self.transactions else self.dice.choice(["read_committed"] * 3 + ["repeatable_read"])
        transaction = self.connection.transaction(isolation=isolation)
        await transaction.start()
        self.transactions.append(transaction)
        self.written.append([])
        first = self.dice.choice(
            ["select 1", "select pg_current_xact_id()::text", "select nextval('event_outbox_event_seq')"]
        )
        await self.connection.fetchval(first)

    async def insert(self) -> None:
        """Write an event of a subject whose lock is free, after taking that lock."""
        subject = self.dice.choice(self.subjects)
        if await self.connection.fetchval("select pg_try_advisory_xact_lock(hashtext($1))", str(subject)):
            self.written[-1].append((await insert_event(self.connection, subject), subject))

    async def end(self, *, commit: bool) -> list[Event]:
        """End the innermost savepoint or the transaction; return the events that this commits."""
        transaction, written = self.transactions.pop(), self.written.pop()
        await (transaction.commit() if commit else transaction.rollback())
        if commit and self.transactions:
            self.written[-1] += written
        return written if commit and not self.transactions else []

    async def step(self) -> list[Event]:
        """Make one random step; return the events that it commits."""
        if not self.transactions:
            await self.begin()
        elif self.dice.random() < 0.55:
            await self.insert()
        elif len(self.transactions) < 4 and self.dice.random() < 0.4:
            await self.begin()
        else:
            return await self.end(commit=self.dice.random() < 0.7)
        return []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
async def test_random_interleavings_read_each_event_once_in_order(live, seed):
    """Each committed event is read once, no other event is read, and events of a subject are
    read in the order of its locks.

    Meanwhile health finds the same number of unread events as the view, which counts all of them.

    Fails when: any rule of the cursor is broken that the other tests of the cursor check one by one; or health omits a
    part of the backlog, or counts one twice.
    """
    dice = random.Random(seed)
    subjects = [uuid4() for _ in range(4)]
    committed: list[Event] = []
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(connected(live.dsn)) for _ in range(4)]
        writers = [Writer(connection, subjects, dice) for connection in sessions]
        worker = writers.pop()  # Writes now and then, before and after its own batches.

        for _ in range(600):
            if dice.random() < 0.75:
                committed += await dice.choice(writers).step()
            elif dice.random() < 0.4:
                committed += await worker.step()
            elif (
                not worker.transactions
                or await worker.connection.fetchval("show transaction_isolation") == "read committed"
            ):
                await run_batch(worker.connection, dice.choice([1, 2, 3, 50]))
                found = await writers[0].connection.fetchrow(BACKLOGS, WORKER)
                assert found["backlog"] == found["of_health"]

        for writer in [*writers, worker]:
            while writer.transactions:
                committed += await writer.end(commit=True)
        for _ in range(1000):
            answer = await run_batch(worker.connection, dice.choice([1, 2, 3, 50]))
            if not answer["more"]:
                break

        rows = await worker.connection.fetch(
            """select a.event_ref, o.event_subject_ref from iu_route_attempt a
                 left join event_outbox o on o.id = a.event_ref order by a.id"""
        )
        seen = await worker.connection.fetchval("select total_seen from iu_route_worker_cursor")
        backlog = await worker.connection.fetchval("select backlog from v_iu_event_backlog")
    routed = [tuple(row) for row in rows]
    assert len(routed) == len(committed) == seen
    assert set(routed) == set(committed)
    assert backlog == 0
    for subject in subjects:
        assert [e for e in routed if e[1] == subject] == [e for e in committed if e[1] == subject], f"seed {seed}"
