"""Ticks: every committed event is read once, in any order of commits and with any size of pages."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from support import WORKER, attempted, connected, drain, insert_event, rows_read, run_batch, wait_until

pytestmark = pytest.mark.asyncio


async def cursor_of(connection: asyncpg.Connection) -> asyncpg.Record:
    """The state of the worker's cursor."""
    return await connection.fetchrow(
        """select prev::text, tick::text, pos_seq, own_xid::text, total_seen from iu_route_worker_cursor
            where worker_name = $1""",
        WORKER,
    )


async def test_a_late_commit_is_routed_when_it_commits(live):
    """An event that commits after a younger event was read is read once by the next batch.

    Fails when: transactions that the previous tick listed as in progress are not looked up (branch a).
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as late, connected(live.dsn) as early:
        transaction = late.transaction()
        await transaction.start()
        first = await insert_event(late)
        second = await insert_event(early)
        assert await drain(worker) == 1
        await transaction.commit()
        assert await drain(worker) == 1
        assert await drain(worker) == 0
        assert await attempted(worker) == [second, first]


async def test_an_event_with_an_old_xid_is_read(live):
    """An event is read although its transaction is older than a tick that was consumed before the insert.

    Fails when: transactions that the previous tick listed as in progress are not looked up (branch a).
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as late, connected(live.dsn) as early:
        transaction = late.transaction()
        await transaction.start()
        await late.fetchval("select pg_current_xact_id()::text")
        second = await insert_event(early)
        assert await drain(worker) == 1
        first = await insert_event(late)
        await transaction.commit()
        assert await drain(worker) == 1
        assert await attempted(worker) == [second, first]


async def test_an_event_with_an_old_number_is_read(live):
    """An event is read although its number was drawn before that of an event that was already read.

    Its transaction got its xid later.

    Fails when: the position of a cursor is a number, or the stamp accepts a number that the producer drew.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as late, connected(live.dsn) as early:
        await late.fetchval("select nextval('event_outbox_event_seq')")
        transaction = late.transaction()
        await transaction.start()
        drawn = await late.fetchval("select nextval('event_outbox_event_seq')")
        assert await late.fetchval("select pg_current_xact_id_if_assigned() is null")
        second = await insert_event(early)
        assert await drain(worker) == 1
        first = await late.fetchval(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_seq)
               values ('iu', 'version_applied', 'update', 'immediate', $1) returning id""",
            drawn,
        )
        await transaction.commit()
        assert await drain(worker) == 1
        assert await attempted(worker) == [second, first]


async def test_an_open_producer_delays_no_other_event(live):
    """While one producer keeps its transaction open, the events of all other producers are read as they commit.

    Fails when: the tick ends at the oldest transaction that is in progress.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as late, connected(live.dsn) as other:
        transaction = late.transaction()
        await transaction.start()
        waiting = await insert_event(late)
        for _ in range(20):
            event = await insert_event(other)
            assert await drain(worker) == 1
            assert (await attempted(worker))[-1] == event
        await transaction.commit()
        assert await drain(worker) == 1
        assert (await attempted(worker))[-1] == waiting


@pytest.mark.parametrize("savepoints", [2, 70])
async def test_released_savepoints_are_read_and_rolled_back_ones_are_not(live, savepoints):
    """Events of a released savepoint are read with their transaction, and those of a rolled-back savepoint never.

    More than 64 savepoints, which overflow the subtransaction cache of the server, change nothing.

    Fails when: the stamp holds the xid of the subtransaction instead of the transaction's.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as writer, connected(live.dsn) as other:
        transaction = writer.transaction()
        await transaction.start()
        kept = []
        for _ in range(savepoints):
            async with writer.transaction():
                kept.append(await insert_event(writer))
            undone = writer.transaction()
            await undone.start()
            await insert_event(writer)
            await undone.rollback()
        early = await insert_event(other)
        assert await drain(worker) == 1
        kept.append(await insert_event(writer))
        await transaction.commit()
        assert await drain(worker, 50) == len(kept)
        assert await attempted(worker) == [early, *kept]


async def test_a_rolled_back_event_is_never_read(live):
    """A transaction that is rolled back leaves no event to read and delays no other event."""
    async with connected(live.dsn) as worker, connected(live.dsn) as writer:
        transaction = writer.transaction()
        await transaction.start()
        await insert_event(writer)
        assert await drain(worker) == 0
        await transaction.rollback()
        assert await drain(worker) == 0
        event = await insert_event(writer)
        assert await drain(worker) == 1
        assert await attempted(worker) == [event]


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_producer_with_an_old_snapshot_loses_no_event(live, isolation):
    """A producer with an old snapshot loses no event: the position depends on its transaction, not on its snapshot."""
    async with connected(live.dsn) as worker, connected(live.dsn) as writer, connected(live.dsn) as other:
        transaction = writer.transaction(isolation=isolation)
        await transaction.start()
        await writer.fetchval("select count(*) from event_outbox")
        early = await insert_event(other)
        assert await drain(worker) == 1
        late = await insert_event(writer)
        assert await drain(worker) == 0
        await transaction.commit()
        assert await drain(worker) == 1
        assert await attempted(worker) == [early, late]


@pytest.mark.parametrize("ending", ["commit", "rollback"])
async def test_a_prepared_transaction_delays_no_event_and_is_read_after_commit(live, ending):
    """An abandoned prepared transaction delays no other event, and its own event is read if it is committed.

    Fails when: the tick ends at the oldest transaction in progress, or branch a is missing.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as writer:
        if await worker.fetchval("select current_setting('max_prepared_transactions')") == "0":
            pytest.skip("this server has max_prepared_transactions = 0")
        name = await worker.fetchval("select current_database()")
        await writer.execute("begin")
        prepared = await insert_event(writer)
        await writer.execute(f"prepare transaction '{name}'")
        try:
            others = []
            for _ in range(3):
                others.append(await insert_event(writer))
                assert await drain(worker) == 1
        finally:
            await writer.execute(f"{ending} prepared '{name}'")
        assert await drain(worker) == (ending == "commit")
        assert await attempted(worker) == [*others, prepared][: 3 + (ending == "commit")]


@pytest.mark.parametrize("limit", [1, 100])
@pytest.mark.parametrize("known", [True, False], ids=["listed-by-prev", "new"])
async def test_events_of_a_subject_are_read_in_the_order_of_its_row_lock(live, known, limit):
    """Events of one subject are read in the order in which their producers held its row lock, not in the order of xids.

    Fails when: a tick is ordered by xact_id, or its two branches are read one after the other instead of being merged.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as old, connected(live.dsn) as young:
        subject = await worker.fetchval(
            "insert into information_unit (canonical_address, title) values ('a', 'A') returning id"
        )
        lock = "select from information_unit where id = $1 for update"
        transaction = old.transaction()
        await transaction.start()
        assert await old.fetchval("select pg_current_xact_id()::text")
        if known:
            await insert_event(young)
            assert await drain(worker) == 1
        async with young.transaction():
            await young.execute(lock, subject)
            first = await insert_event(young, subject)
        await old.execute(lock, subject)
        second = await insert_event(old, subject)
        await transaction.commit()
        assert await drain(worker, limit) == 2
        assert (await attempted(worker))[-2:] == [first, second]


@pytest.mark.parametrize("ties", [False, True])
async def test_a_large_tick_is_read_page_by_page(live, ties):
    """A tick larger than the limit is read in pages, in order, none twice, while newer events wait for the next tick.

    Fails when: the position inside a tick is the number without the id, or a page takes a new tick.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as old, connected(live.dsn) as young:
        transaction = old.transaction()
        await transaction.start()
        mixed = [await insert_event(old)]
        early = await insert_event(young)
        assert await drain(worker) == 1
        assert (await cursor_of(worker))["prev"].split(":")[2]
        for _ in range(4):
            mixed.append(await insert_event(young))
            mixed.append(await insert_event(old))
        await transaction.commit()
        if ties:
            await young.execute("update event_outbox set event_seq = 7 where id <> $1", early)
            mixed.sort()
        later, seen = [], 0
        while seen < len(mixed):
            answer = await run_batch(worker, 2)
            seen += answer["seen"]
            if answer["more"] and seen < len(mixed):
                assert (await cursor_of(worker))["tick"]
                later.append(await insert_event(young))
        assert await attempted(worker) == [early, *mixed]
        assert await drain(worker, 2) == len(later)
        assert await attempted(worker) == [early, *mixed, *later]


#: A batch waits between its tick and its page while another session holds advisory lock 4712.
PAUSED = """
    alter function fn_iu_outbox_tick() rename to taken;
    create function fn_iu_outbox_tick() returns pg_snapshot language plpgsql stable as $$
    declare tick pg_snapshot := public.taken();
    begin perform pg_advisory_xact_lock_shared(4712); return tick; end $$
"""


@pytest.mark.parametrize("begun", ["before", "after"])
async def test_an_event_that_commits_after_the_tick_is_read_by_the_next_batch(live, begun):
    """An event that becomes visible between the tick and the page, which are separate
    statements, is read by the next batch.

    Fails when: a page reads all visible events after `prev` and is not bounded by its tick.
    """
    async with (
        connected(live.dsn) as worker,
        connected(live.dsn) as holder,
        connected(live.dsn) as writer,
        connected(live.dsn) as other,
    ):
        early = await insert_event(other)
        await drain(worker)
        await worker.execute(PAUSED)
        transaction = writer.transaction()
        if begun == "before":
            await transaction.start()
            late = await insert_event(writer)
        await holder.fetchval("select pg_advisory_lock(4712)")
        mine = await insert_event(other)
        run = asyncio.create_task(run_batch(worker))
        waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = $1"
        await wait_until(lambda: other.fetchval(waits, worker.get_server_pid()), "the tick is taken")
        if begun == "after":
            await transaction.start()
            late = await insert_event(writer)
        await transaction.commit()
        await holder.fetchval("select pg_advisory_unlock(4712)")
        assert (await run)["seen"] == 1
        assert await drain(worker) == 1
        assert await attempted(worker) == [early, mine, late]
        assert (await cursor_of(worker))["total_seen"] == 3


async def test_a_batch_that_ends_an_older_tick_reports_more(live):
    """A batch that reads the rest of an older tick reports that there may be more, because
    it has not read past that tick.

    Fails when: a batch answers "no more" although it took no tick itself.
    """
    async with connected(live.dsn) as worker:
        events = [await insert_event(worker) for _ in range(3)]
        assert (await run_batch(worker, 2))["more"]
        events.append(await insert_event(worker))
        answer = await run_batch(worker, 2)
        assert (answer["seen"], answer["more"]) == (1, True)
        answer = await run_batch(worker, 2)
        assert (answer["seen"], answer["more"]) == (1, False)
        assert await attempted(worker) == events


async def test_a_tick_of_exactly_one_page_ends(live):
    """A tick with exactly as many events as the limit reports that there may be more, and ends with an empty page."""
    async with connected(live.dsn) as worker:
        for _ in range(3):
            await insert_event(worker)
        answer = await run_batch(worker, 3)
        assert (answer["seen"], answer["more"]) == (3, True)
        assert await drain(worker, 3) == 0
        assert (await cursor_of(worker))["tick"] is None


@pytest.mark.parametrize("death", ["rollback", "terminated"])
async def test_a_batch_that_ends_before_its_commit_is_repeated(live, death):
    """A batch that ends before its commit has neither read nor decided an event; the next one resumes at the same page."""
    async with connected(live.dsn) as worker, connected(live.dsn) as dying, connected(live.dsn) as writer:
        events = [await insert_event(writer) for _ in range(7)]
        assert (await run_batch(worker, 3))["seen"] == 3
        before = await cursor_of(worker)
        await dying.execute("begin")
        assert (await run_batch(dying, 3))["seen"] == 3
        if death == "rollback":
            await dying.execute("rollback")
        else:
            await worker.fetchval("select pg_terminate_backend($1, 10000)", dying.get_server_pid())
        assert await cursor_of(worker) == before
        events.append(await insert_event(writer))
        assert await drain(worker, 3) == 5
        assert await attempted(worker) == events
        assert (await cursor_of(worker))["total_seen"] == 8


async def test_reading_a_backlog_costs_linear_time(live):
    """Reading a tick of 20 000 events in 40 pages reads each event a bounded number of times, not once for each page.

    Fails when: a page is found through the transaction, which sorts the tick again, instead of through the order index.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as writer:
        await writer.execute(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
               select 'iu', 'version_applied', 'update', 'immediate' from generate_series(1, 20000)"""
        )
        before = await rows_read(writer, "^event_outbox$")
        assert await drain(worker, 500) == 20_000
        assert 20_000 <= await rows_read(worker, "^event_outbox$") - before <= 3 * 20_000
        assert await worker.fetchval("select count(distinct event_ref) from iu_route_attempt") == 20_000


async def test_events_are_found_among_many_transactions_in_progress(live):
    """Events are found when many transactions, some with events and most without, were in progress at the last tick."""
    writers = []
    async with connected(live.dsn) as worker:
        try:
            for _ in range(25):
                writers.append(await asyncpg.connect(live.dsn))
                await writers[-1].execute("begin; select pg_current_xact_id()")
            early = await insert_event(worker)
            assert await drain(worker) == 1
            assert len((await cursor_of(worker))["prev"].split(":")[2].split(",")) >= 25
            events = [await insert_event(writer) for writer in writers[::5]]
            for writer in writers:
                await writer.execute("commit")
            assert await drain(worker, 2) == 5
            assert await attempted(worker) == [early, *events]
        finally:
            for writer in writers:
                writer.terminate()
