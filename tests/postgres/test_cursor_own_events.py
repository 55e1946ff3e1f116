"""Batches in a transaction that also writes events, waits for a lock, or must not take an xid."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import asyncpg
import pytest

from support import WORKER, attempted, connected, insert_event, run_batch, wait_until

pytestmark = pytest.mark.asyncio


async def drain(connection: asyncpg.Connection, limit: int = 1000) -> int:
    """Run batches until there is no more; return the number of events seen.

    It stops after 100 batches, because own events that are not remembered would be read for ever.
    """
    seen = 0
    for _ in range(100):
        answer = await run_batch(connection, limit)
        seen += answer["seen"]
        if not answer["more"]:
            return seen
    raise AssertionError(f"there is still more after 100 runs, which saw {seen} events")


LIMITS = pytest.mark.parametrize("limit", [1, 2, 3, 1000])


@LIMITS
async def test_own_events_are_read_in_the_same_transaction(live, limit):
    """A transaction that emits events and runs batches reads its own events once, and none of them after its commit.

    Its later events are read by its next batch.

    Fails when: own events are not read separately, or the record of the own events read is lost at the commit.
    """
    async with connected(live.dsn) as probe, connected(live.dsn) as other:
        before = [await insert_event(other) for _ in range(2)]
        async with probe.transaction():
            own = [await insert_event(probe) for _ in range(3)]
            assert await drain(probe, limit) == 5
            assert await attempted(probe) == before + own
            own += [await insert_event(probe) for _ in range(2)]
            assert await drain(probe, limit) == 2
            own.append(await insert_event(probe))
        assert await drain(other, limit) == 1
        assert await drain(other, limit) == 0
        assert await attempted(other) == before + own


@LIMITS
async def test_own_events_are_read_after_a_partly_read_tick(live, limit):
    """Own events are also read once if the transaction begins with a partly read tick and ends with another.

    Fails when: the record of the own events read is removed while no tick covers them yet.
    """
    async with connected(live.dsn) as probe, connected(live.dsn) as other:
        events = {await insert_event(other) for _ in range(5)}
        assert (await run_batch(other, 2))["seen"] == 2
        async with probe.transaction():
            events |= {await insert_event(probe) for _ in range(3)}
            assert await drain(probe, limit) == 6
            events |= {await insert_event(other) for _ in range(4)}
            assert (await run_batch(probe, 2))["seen"] == 2
            events.add(await insert_event(probe))
        events |= {await insert_event(other) for _ in range(2)}
        assert await drain(other, limit) == 5
        assert await drain(other, limit) == 0
        routed = await attempted(other)
        assert len(routed) == len(set(routed)) == 15
        assert set(routed) == events


@LIMITS
async def test_a_second_emitting_transaction_keeps_the_record_of_own_events(live, limit):
    """A second transaction that emits and runs batches keeps the record of the own events that the first one read.

    Fails when: the record of the own events read is removed before a tick covers them.
    """
    async with connected(live.dsn) as first, connected(live.dsn) as second:
        async with first.transaction():
            events = [await insert_event(first) for _ in range(3)]
            assert await drain(first) == 3
            events += [await insert_event(second) for _ in range(3)]
            assert (await run_batch(first, 2))["seen"] == 2
        async with second.transaction():
            events.append(await insert_event(second))
            assert await drain(second, limit) == 2
        assert await drain(first, limit) == 0
        assert await attempted(first) == events


@LIMITS
async def test_own_events_do_not_overtake_older_events(live, limit):
    """Own events wait for a tick that was taken after them, so that an older event of the same subject goes first.

    Fails when: own events are read after a tick that was taken in an earlier batch.
    """
    subject = uuid4()
    async with connected(live.dsn) as probe, connected(live.dsn) as other:
        events = [await insert_event(other) for _ in range(3)]
        assert (await run_batch(other, 2))["seen"] == 2
        events.append(await insert_event(other, subject))
        async with probe.transaction():
            events.append(await insert_event(probe, subject))
            assert await drain(probe, limit) == 3
        assert await attempted(other) == events


async def test_an_event_written_after_the_own_batch_is_read_after_the_commit(live):
    """An event that a transaction writes after its batch is read by a batch after its commit.

    Fails when: the own transaction is not put back among those in progress in the tick.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as other:
        async with worker.transaction():
            await worker.fetchval("select pg_current_xact_id()::text")
            first = await insert_event(other)
            assert await drain(worker) == 1
            second = await insert_event(worker)
        assert await drain(other) == 1
        assert await attempted(other) == [first, second]


async def test_the_own_xid_is_in_progress_in_the_tick(live):
    """A tick lists the transaction that takes it as in progress even if a younger transaction has ended.

    Fails when: the own transaction is not put back among those in progress.
    """
    async with connected(live.dsn) as own, connected(live.dsn) as other:
        async with own.transaction():
            assert await own.fetchval("select pg_current_xact_id()::text")
            await other.fetchval("select pg_current_xact_id()::text")
            raw, masked = await own.fetchrow(
                """select pg_visible_in_snapshot(pg_current_xact_id(), pg_current_snapshot()),
                          pg_visible_in_snapshot(pg_current_xact_id(), fn_iu_outbox_tick())"""
            )
            assert (raw, masked) == (True, False)
        assert await own.fetchval("select fn_iu_outbox_tick()::text = pg_current_snapshot()::text")


async def test_a_rolled_back_batch_changes_nothing(live):
    """A transaction that emits, runs a batch and rolls back leaves no event, no attempt and no change of the cursor."""
    async with connected(live.dsn) as probe:
        with pytest.raises(ZeroDivisionError):
            async with probe.transaction():
                await insert_event(probe)
                assert await drain(probe) == 1
                raise ZeroDivisionError
        event = await insert_event(probe)
        assert await drain(probe) == 1
        assert await attempted(probe) == [event]


async def test_a_batch_takes_its_tick_after_waiting_for_the_lock(live):
    """A batch that waits for the row lock of the cursor takes its tick afterwards and reads no event twice.

    Fails when: the tick is taken before, or in, the statement that locks the cursor (EvalPlanQual).
    """
    async with connected(live.dsn) as holder, connected(live.dsn) as waiter, connected(live.dsn) as other:
        await drain(holder)
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("select from iu_route_worker_cursor for update")
        events = [await insert_event(other)]
        waiting = asyncio.create_task(run_batch(waiter))
        await wait_until(
            lambda: other.fetchval(
                "select wait_event_type = 'Lock' from pg_stat_activity where pid = $1", waiter.get_server_pid()
            ),
            "the second run waits for the row lock",
        )
        events.append(await insert_event(other))
        assert (await run_batch(holder))["seen"] == 2
        await transaction.commit()
        answer = await waiting
        assert (answer["status"], answer["seen"], answer["attempts_written"]) == ("ran", 0, 0)
        events.append(await insert_event(other))
        assert await drain(waiter) == 1
        assert await attempted(other) == events
        assert await other.fetchval("select total_seen from iu_route_worker_cursor") == 3


async def test_a_batch_in_an_old_snapshot_fails_and_loses_no_event(live):
    """A batch under REPEATABLE READ with a snapshot older than the cursor fails, may be
    tried again, and loses no event."""
    async with connected(live.dsn) as stale, connected(live.dsn) as other:
        transaction = stale.transaction(isolation="repeatable_read")
        await transaction.start()
        await stale.fetchval("select count(*) from event_outbox")
        event = await insert_event(other)
        assert await drain(other) == 1
        with pytest.raises(asyncpg.SerializationError):
            await run_batch(stale)
        await transaction.rollback()
        assert await drain(stale) == 0
        assert await attempted(other) == [event]


async def test_a_batch_without_events_takes_no_xid(live):
    """A batch that finds no event shortly after another one takes no lock and no xid, and writes nothing.

    Fails when: the cursor is locked before it is known that there is an event to read.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as other:
        await insert_event(worker)
        assert await drain(worker) == 1
        await worker.execute(
            "update iu_route_worker_cursor set last_run_at = clock_timestamp() where worker_name = $1", WORKER
        )
        async with worker.transaction():
            assert (await run_batch(worker))["seen"] == 0
            assert await worker.fetchval("select pg_current_xact_id_if_assigned() is null")
            async with other.transaction():
                await other.execute("select from iu_route_worker_cursor for update nowait")
        transaction = other.transaction()
        await transaction.start()
        await insert_event(other)
        assert (await run_batch(worker))["seen"] == 0
        await transaction.commit()
        assert (await run_batch(worker))["seen"] == 1


async def test_a_last_batch_in_the_future_is_corrected(live):
    """If the time of the last batch lies in the future because the clock was set back, the next batch corrects it.

    Fails when: the check before the lock accepts a time in the future.
    """
    async with connected(live.dsn) as worker:
        await drain(worker)
        await worker.execute("update iu_route_worker_cursor set last_run_at = now() + interval '1 hour'")
        before = await worker.fetchval("select prev::text from iu_route_worker_cursor")
        await worker.fetchval("select pg_current_xact_id()")
        assert await drain(worker) == 0
        assert await worker.fetchval("select last_run_at <= clock_timestamp() from iu_route_worker_cursor")
        assert await worker.fetchval("select prev::text from iu_route_worker_cursor") != before
