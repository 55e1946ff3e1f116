"""The reanchor: its preconditions, its behaviour beside other transactions, and the
events that count as read after it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from history.past import assert_complete, changeable_rows, planned_figures, reanchor, refusal
from iu_listen.model.observation import BatchRan, StateChanged
from iu_listen.model.routing import State
from iu_listen.postgres.sqlfiles import query
from support import (
    WORKER,
    attempted,
    connected,
    consuming,
    drain,
    insert_event,
    open_gate,
    run_batch,
    wait_until,
)

pytestmark = pytest.mark.asyncio

Damage = Callable[[asyncpg.Connection], Awaitable[object]]
#: The cursor has read more than another history will ever write.
FAR_AHEAD = "update iu_route_worker_cursor set prev = '9000000000:9000000000:', hi_seq = 1000"
SOON = timedelta(minutes=1)
#: An event of so many months ago.
IN_A_MONTH = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at)
    values ('iu', 'version_applied', 'update', 'immediate', date_trunc('month', now(), 'UTC') - $1::int * interval '1 month')
"""


async def restored(connection: asyncpg.Connection) -> None:
    """Rewrite anchor and events as a restored dump has them: the same contents, written by another transaction."""
    async with connection.transaction():
        await connection.execute(
            """create temp table kept on commit drop as select * from iu_outbox_anchor; delete from iu_outbox_anchor;
               insert into iu_outbox_anchor select * from kept;
               update event_outbox set actor_ref = actor_ref"""
        )


async def copied_cursor(connection: asyncpg.Connection) -> None:
    """Replace the cursor by one of another database, with its lineage and its position."""
    await connection.execute(FAR_AHEAD)
    await connection.execute("update iu_route_worker_cursor set lineage = $1", uuid4())


async def no_anchor(connection: asyncpg.Connection) -> None:
    """Delete the anchor."""
    await connection.execute("delete from iu_outbox_anchor")


async def ahead(connection: asyncpg.Connection) -> None:
    """Put the cursor ahead of the transactions of this server."""
    await connection.execute(FAR_AHEAD)


async def blocked(connection: asyncpg.Connection, pid: int) -> bool:
    """Whether that session waits for a lock."""
    return await connection.fetchval("select wait_event_type = 'Lock' from pg_stat_activity where pid = $1", pid)


# -- preconditions ------------------------------------------------------------------------------------------------


async def test_a_reanchor_requires_a_closed_gate(live):
    """While the worker gate is open, a reanchor raises an error and changes nothing."""
    async with connected(live.dsn) as worker:
        await restored(worker)
        before = await changeable_rows(worker)
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="the worker gate is open"):
            await reanchor(worker)
        assert await changeable_rows(worker) == before


async def test_a_reanchor_requires_a_foreign_history(applied):
    """If no worker refuses, a reanchor raises an error and changes nothing, unless it is forced."""
    async with connected(applied.dsn) as worker:
        before = await changeable_rows(worker)
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="no worker refuses"):
            await reanchor(worker)
        assert await changeable_rows(worker) == before
        assert (await reanchor(worker, force=True))["status"] == "reanchored"


async def test_a_reanchor_requires_its_own_transaction(applied):
    """After a write of the same transaction, or in a savepoint, a reanchor raises an error and changes nothing.

    Otherwise the anchor would belong to another transaction than the cursor.

    Fails when: the xmin of the new anchor is not checked.
    """
    async with connected(applied.dsn) as worker:
        await restored(worker)
        before = await changeable_rows(worker)
        with pytest.raises(asyncpg.ActiveSQLTransactionError, match="has written already"):
            async with worker.transaction():
                await insert_event(worker)
                await reanchor(worker)
        with pytest.raises(asyncpg.ActiveSQLTransactionError, match="made in a savepoint"):
            async with worker.transaction(), worker.transaction():
                await reanchor(worker)
        assert await changeable_rows(worker) == before


async def test_a_plan_changes_nothing(live):
    """A plan is also possible with the gate open, takes no transaction id, and changes nothing."""
    async with connected(live.dsn) as worker:
        await insert_event(worker)
        await restored(worker)
        before = await changeable_rows(worker)
        async with worker.transaction(readonly=True):
            plan = await reanchor(worker, plan=True)
            assert await worker.fetchval("select pg_current_xact_id_if_assigned()") is None
        assert (plan["status"], plan["foreign"], plan["workers"][0]["unread"]) == ("planned", True, 1)
        assert await changeable_rows(worker) == before


# -- certain and uncertain events ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "reason"), [(copied_cursor, "foreign_cursor"), (no_anchor, "anchor_missing"), (ahead, "cursor_ahead")]
)
async def test_events_before_a_foreign_cursor_are_read_again(live, damage: Damage, reason: str):
    """If cursor and history do not belong together, the events before the cursor are uncertain and are read again.

    Fails when: a cursor of another lineage, without an anchor, or ahead of the server is accepted.
    """
    async with connected(live.dsn) as worker:
        events = [await insert_event(worker) for _ in range(5)]
        assert await drain(worker) == 5
        events += [await insert_event(worker) for _ in range(2)]
        await damage(worker)
        events += [await insert_event(worker) for _ in range(2)]
        assert await refusal(worker) == reason
        plan = await planned_figures(worker)
        assert plan["unread"] + plan["uncertain"] == plan["again"] == 9
        assert plan["uncertain"] >= 5
        await open_gate(live.dsn, "false")
        assert (await reanchor(worker))["again"] == 9
        await open_gate(live.dsn)
        assert await drain(worker, 2) == 9
        assert await attempted(worker) == events
        await assert_complete(worker)


@pytest.mark.parametrize("damage", [copied_cursor, no_anchor, ahead])
async def test_since_overrides_a_foreign_cursor(live, damage: Damage):
    """With `--since`, older events count as read, regardless of the cursor."""
    async with connected(live.dsn) as worker:
        for _ in range(5):
            await insert_event(worker)
        assert await drain(worker) == 5
        await worker.execute("update event_outbox set created_at = now() - interval '2 days'")
        missing = [await insert_event(worker) for _ in range(3)]
        await damage(worker)
        await open_gate(live.dsn, "false")
        since = datetime.now(UTC) - timedelta(days=1)
        # An event is read at any age if the cursor does not know its number or its stamp.
        assert (await planned_figures(worker, since))["again"] == 3
        assert (await reanchor(worker, since))["again"] == 3
        await open_gate(live.dsn)
        assert await drain(worker) == 3
        assert (await attempted(worker))[5:] == missing
        await assert_complete(worker)


async def test_since_finds_events_restored_without_triggers(live):
    """Events that were restored without triggers look read; a forced reanchor with `--since` reads them.

    Fails when: `--since` is ignored if the history is our own.
    """
    async with connected(live.dsn) as worker:
        await insert_event(worker)
        assert await drain(worker) == 1
        await worker.execute(
            """alter table event_outbox disable trigger all;
               insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, xact_id, event_seq)
               values ('iu', 'version_applied', 'update', 'immediate', '3', 1),
                      ('iu', 'version_applied', 'update', 'immediate', '9000000000', 2);
               alter table event_outbox enable always trigger zz_event_outbox_stamp;
               alter table event_outbox enable trigger trg_event_outbox_type_validate"""
        )
        assert await drain(worker) == 0
        await open_gate(live.dsn, "false")
        assert (await reanchor(worker, datetime.now(UTC) - timedelta(hours=1), force=True))["again"] == 3
        await open_gate(live.dsn)
        assert await drain(worker) == 3
        await assert_complete(worker)


async def test_skipped_events_stay_skipped_after_a_restore(live):
    """Events that a reset to the present skipped are still skipped after a restore.

    Fails when: the reset does not record the numbers that it skips.
    """
    async with connected(live.dsn) as worker:
        for _ in range(3):
            await insert_event(worker)
        await worker.fetchval(query("reset_cursor"), WORKER, None)
        await restored(worker)
        unread = await insert_event(worker)
        assert (await planned_figures(worker))["again"] == 1
        await open_gate(live.dsn, "false")
        await reanchor(worker)
        await open_gate(live.dsn)
        assert await drain(worker) == 1
        assert await attempted(worker) == [unread]


async def test_an_undrawn_first_number_is_not_drawn(live):
    """A number that the sequence offers and that was never drawn counts as not drawn.

    Fails when: hi_seq is the last_value of a sequence that was never called.
    """
    async with connected(live.dsn) as worker:
        await run_batch(worker)
        assert await worker.fetchval("select hi_seq from iu_route_worker_cursor") == 0
        await restored(worker)
        await worker.execute("update iu_route_worker_cursor set prev = '9000000000:9000000000:'")
        # Only the stamp draws a number, because the column has a value already.
        await worker.execute(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_seq)
               values ('iu', 'version_applied', 'update', 'immediate', 7)"""
        )
        assert await worker.fetchval("select event_seq from event_outbox") == 1
        plan = await planned_figures(worker)
        assert (plan["unread"], plan["uncertain"]) == (1, 0)


async def test_events_of_partitions_are_judged_separately(partitioned):
    """In a partitioned outbox each event is judged separately, although rows of different partitions have equal ctids.

    Fails when: rows are found again by their ctid alone.
    """
    async with connected(partitioned.dsn) as worker:
        await worker.executemany(IN_A_MONTH, [(1,)] * 10)
        assert await drain(worker) == 10
        await worker.execute("update event_outbox set xact_id = '8000000000'")
        await worker.execute("update iu_route_worker_cursor set prev = '9000000000:9000000000:'")
        await worker.executemany(IN_A_MONTH, [(2,)] * 10)
        await restored(worker)
        await worker.execute("vacuum full event_outbox")
        assert await worker.fetchval("select count(distinct ctid) from event_outbox") == 10
        await open_gate(partitioned.dsn, "false")
        answer = await reanchor(worker)
        assert (answer["again"], answer["past"]) == (10, 10)
        await open_gate(partitioned.dsn)
        assert await drain(worker) == 10
        await assert_complete(worker)


# -- beside other transactions ------------------------------------------------------------------------------------


async def test_producers_commit_during_a_reanchor(live):
    """Producers commit during a reanchor, and their events are read once.

    Fails when: the reanchor locks event_outbox against producers.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as writer, connected(live.dsn) as late:
        await insert_event(worker)
        assert await drain(worker) == 1
        await late.execute("begin")
        await insert_event(late)
        await open_gate(live.dsn, "false")
        await restored(worker)
        await writer.execute("set lock_timeout = '100ms'")
        async with worker.transaction():
            await insert_event(writer)
            await reanchor(worker)
            await insert_event(writer)
            await late.execute("commit")
        await insert_event(writer)
        await open_gate(live.dsn)
        assert await drain(worker) == 4
        await assert_complete(worker)


async def test_an_event_that_commits_during_a_reanchor_is_read(live):
    """An event that commits between the snapshot of a reanchor and the judging of rows is read.

    Only the reanchor can find it: its number is low, its stamp looks read, and `--since` excludes it.

    Fails when: an event that the new snapshot does not contain is taken for one of another history.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as writer, connected(live.dsn) as gate:
        await worker.execute(FAR_AHEAD)
        await restored(worker)
        await open_gate(live.dsn, "false")
        await writer.execute("begin")
        event = await insert_event(writer)
        await gate.execute("begin; lock table iu_outbox_anchor")
        judging = asyncio.create_task(reanchor(worker, datetime.now(UTC) + SOON))
        await wait_until(lambda: blocked(writer, worker.get_server_pid()), "the reanchor has its snapshot and waits")
        await writer.execute("commit")
        await gate.execute("commit")
        await judging
        await open_gate(live.dsn)
        assert await drain(worker) == 1
        assert await attempted(worker) == [event]


async def test_an_event_stamped_during_a_reanchor_is_not_moved(live):
    """An event that is stamped again while a reanchor waits to move it into the past is not moved.

    Fails when: the reanchor updates another version of the row than the one that it judged.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as writer:
        event = await insert_event(worker)
        assert await drain(worker) == 1
        await worker.execute("update event_outbox set xact_id = '8000000000'")
        await worker.execute(FAR_AHEAD)
        await restored(worker)
        await open_gate(live.dsn, "false")
        await writer.execute("begin")
        for domain in ("system", "iu"):
            await writer.execute("update event_outbox set event_domain = $1 where id = $2", domain, event)
        judging = asyncio.create_task(reanchor(worker))
        await wait_until(lambda: blocked(writer, worker.get_server_pid()), "the reanchor waits for the row")
        await writer.execute("commit")
        assert (await judging)["past"] == 0
        await open_gate(live.dsn)
        assert await drain(worker) == 1


@pytest.mark.slow
async def test_repeated_reanchors_read_each_event_once(live):
    """After many reanchors among producers and batches every event was read exactly once.

    Fails when: the snapshot is taken after the rows are judged, or rows are moved by more than one statement.
    """
    rounds, writing, dice = 12, True, random.Random(7)

    async def write(length: float) -> None:
        async with connected(live.dsn) as writer:
            while writing:
                async with writer.transaction():
                    await insert_event(writer)
                    await asyncio.sleep(dice.uniform(0, length))
                    await insert_event(writer)

    tasks = [asyncio.create_task(write(length)) for length in (0, 0.001, 0.01, 0.1)]
    async with connected(live.dsn) as worker:
        for _ in range(rounds):
            await open_gate(live.dsn, "false")
            await reanchor(worker, force=True)
            await open_gate(live.dsn)
            await run_batch(worker, 20)
        writing = False
        await asyncio.gather(*tasks)
        await drain(worker)
        await assert_complete(worker)
        assert await worker.fetchval("select total_seen from iu_route_worker_cursor") == await worker.fetchval(
            "select count(*) from event_outbox"
        )


async def test_a_consumer_continues_after_the_reanchor(live):
    """A consumer reports that it refuses while the history is foreign, and works again after the reanchor."""
    async with connected(live.dsn) as worker:
        events = [await insert_event(worker)]
        await restored(worker)
        async with consuming(live.dsn, catch_up=1) as recorder:
            await recorder.wait_for(StateChanged, lambda o: o.state is State.REFUSING and o.why == "foreign_history")
            events.append(await insert_event(worker))
            await open_gate(live.dsn, "false")
            await reanchor(worker)
            await open_gate(live.dsn)
            await recorder.wait_for(StateChanged, lambda o: o.state is State.IDLE)
            events.append(await insert_event(worker))
            await wait_until(lambda: _read(recorder, len(events)), "everything is read")
        assert await attempted(worker) == events


async def test_own_events_that_were_read_count_as_read_after_a_restore(live):
    """An own event that a batch read before the commit counts as read after a restore, and a later one of the same
    transaction does not.

    Fails when: the position of own events is ignored.
    """
    async with connected(live.dsn) as worker:
        async with worker.transaction():
            events = [await insert_event(worker)]
            assert await drain(worker) == 1
            events.append(await insert_event(worker))
        await restored(worker)
        assert (await planned_figures(worker))["again"] == 1
        await open_gate(live.dsn, "false")
        await reanchor(worker)
        await open_gate(live.dsn)
        assert await drain(worker) == 1
        assert await attempted(worker) == events


async def _read(recorder, count: int) -> bool:
    return sum(o.batch.seen for o in recorder.of(BatchRan)) == count


# -- all or nothing -----------------------------------------------------------------------------------------------


async def test_an_interrupted_reanchor_changes_nothing(live):
    """A reanchor changes nothing if its session is ended, and can be repeated.

    Fails when: it commits before its end.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as holder:
        read: list[UUID] = [await insert_event(worker) for _ in range(3)]
        assert await drain(worker) == 3
        unread = [await insert_event(worker) for _ in range(3)]
        await restored(worker)
        await open_gate(live.dsn, "false")
        before = await changeable_rows(worker)
        await holder.execute("begin")
        await holder.execute("select from event_outbox where id = $1 for update", unread[-1])
        async with connected(live.dsn) as victim:
            ended = asyncio.create_task(reanchor(victim))
            await wait_until(lambda: blocked(worker, victim.get_server_pid()), "the reanchor stands in the middle")
            await worker.execute("select pg_terminate_backend($1, 10000)", victim.get_server_pid())
            with pytest.raises((asyncpg.AdminShutdownError, asyncpg.PostgresConnectionError)):
                await ended
        await holder.execute("rollback")
        assert await changeable_rows(worker) == before
        assert (await reanchor(worker))["again"] == 3
        await open_gate(live.dsn)
        assert await drain(worker) == 3
        assert await attempted(worker) == read + unread
