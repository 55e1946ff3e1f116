"""Large numbers: an open transaction beside many others, a tick of many pages, a thousand transactions in progress."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from clusters import cluster
from iu_listen import embedded
from iu_listen.app import PostgresSessions
from iu_listen.model.settings import Settings
from iu_listen.postgres.trace import TraceSession
from postgres.delivery_helpers import open_route
from support import MANY, WORKER, apply_package, attempted, connected, drain, insert_event, rows_read, run_batch

pytestmark = pytest.mark.asyncio

#: Pattern for `rows_read`: the outbox.
OUTBOX = "^event_outbox$"


async def test_an_open_producer_does_not_increase_the_cost_of_a_batch(live):
    """A batch reads no more rows because a producer has been in a transaction while many others committed.

    Fails when: a batch reads from the oldest transaction in progress onwards and skips the
    events that it has already read.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as late, connected(live.dsn) as other:
        transaction = late.transaction()
        await transaction.start()
        waiting = await insert_event(late)
        costs = []
        for _ in range(40):
            await other.execute(MANY, 50)
            before = await rows_read(worker, OUTBOX)
            assert await drain(worker) == 50
            costs.append(await rows_read(worker, OUTBOX) - before)
        assert max(costs) <= 2 * min(costs)
        await transaction.commit()
        assert await drain(worker) == 1
        assert (await attempted(worker))[-1] == waiting
        assert await worker.fetchval("select count(distinct event_ref) from iu_route_attempt") == 2001


async def test_plans_do_not_depend_on_statistics(live):
    """A session that planned its queries while the outbox was tiny and analyzed reads no
    more after the outbox has grown.

    Fails when: a batch may choose sequential scans.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as other:
        await other.execute("alter table event_outbox set (autovacuum_enabled = off)")
        # An ordered route reads each event by its id, in a query without ORDER BY.
        await open_route(other, order="subject")
        await insert_event(other)
        await other.execute("analyze event_outbox")
        assert await drain(worker) == 1
        await other.execute(MANY, 5000)
        assert await drain(worker) == 5000
        before = await rows_read(worker, OUTBOX)
        for _ in range(10):
            await insert_event(other)
            assert await drain(worker) == 1
        assert await rows_read(worker, OUTBOX) - before < 500


#: Pages of tables and indexes that were accessed so far. The entries that an index scan skips show only in this figure.
PAGES = """
    select sum(t.heap_blks_hit + t.heap_blks_read + t.idx_blks_hit + t.idx_blks_read)::bigint
      from pg_statio_user_tables t where t.relname in ('event_outbox', 'iu_route_attempt', 'iu_route_dead_letter')
"""


async def pages(session: asyncpg.Connection) -> int:
    await session.fetchval("select pg_stat_force_next_flush()")
    return await session.fetchval(PAGES)


@pytest.mark.slow
async def test_costs_do_not_grow_with_the_past_of_the_outbox(live):
    """The cost of a batch, of a trace export and of the queries for metrics does not grow with the past of the outbox.

    Fails when: the position in a tick and its lowest number are two bounds, so that the index scan begins at the
    earlier one; or a query for metrics may scan an analyzed table, or joins an analyzed table with one that is not.
    """
    settings = Settings.load({}, {"dsn": live.dsn})
    async with (
        connected(live.dsn) as worker,
        connected(live.dsn) as other,
        PostgresSessions(settings).trace_source() as traces,
    ):
        await traces.take_lease()
        await insert_event(other)
        costs: list[tuple[int, ...]] = []
        for past, statistics in ((1000, ""), (60_000, ""), (0, "analyze iu_route_attempt"), (0, "analyze")):
            await other.execute(MANY, past)
            assert await drain(worker, 5000) == past + (past == 1000)
            await exported(traces)
            if statistics:
                await other.execute(statistics)
            for _ in range(4):
                await insert_event(other)
                before = await pages(worker)
                assert await drain(worker) == 1
                routed = await pages(worker)
                assert await exported(traces) == 1
                sent = await pages(worker)
                last = await worker.fetchval("select max(id) - 10 from iu_route_attempt")
                await worker.fetch("select * from fn_iu_decision_latency($1, $2, 5)", WORKER, last)
                await worker.fetch("select * from fn_iu_metrics($1)", WORKER)
                costs.append((routed - before, sent - routed, await pages(worker) - sent))
        for n in (4, 8, 12):
            for few, many in zip(zip(*costs[:4], strict=True), zip(*costs[n : n + 4], strict=True), strict=True):
                assert min(many) <= 2 * max(few)


async def exported(source: TraceSession) -> int:
    """Export all spans that are pending; return the number of attempts."""
    attempts = 0
    while (place := await source.tick()) is not None:
        page = await source.page(place, 5000)
        attempts += sum(span.name.startswith("process") for span in page.spans)
        await source.accepted(page, 0)
    await source._connection.fetchval("select pg_stat_force_next_flush()")
    return attempts


async def test_paging_never_sorts_a_tick(live):
    """A backlog is read once, page by page, even if statistics make a tick look like a small part of a large outbox.

    Fails when: a batch may sort, because then each page reads the rest of the tick again.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as other:
        await other.execute(MANY, 5000)
        assert await drain(worker) == 5000
        await other.execute("analyze event_outbox")
        await other.execute(MANY, 5000)
        before = await rows_read(worker, OUTBOX)
        assert await drain(worker, 100) == 5000
        assert await rows_read(worker, OUTBOX) - before < 50_000


#: Records the memory that the session has allocated when a batch writes its page.
MEASURED = """
    create table measured (bytes bigint);
    create function measure() returns trigger language plpgsql as $$
    begin insert into public.measured select sum(total_bytes) from pg_backend_memory_contexts; return null; end $$;
    create trigger measured after insert on iu_route_attempt for each statement execute function measure();
"""


@pytest.mark.slow
async def test_a_huge_transaction_is_read_with_the_memory_of_one_page(live):
    """One transaction of 100 000 events is read in order with the memory of one page, also if a batch is interrupted.

    Fails when: a batch reads more than a page, or keeps data of earlier pages.
    """
    rows, page = 100_000, 5000
    async with connected(live.dsn) as worker, connected(live.dsn) as writer:
        await worker.execute(MEASURED)
        await writer.execute(MANY, rows)
        for number in range(rows // page):
            if number == 7:
                async with connected(live.dsn) as dying:
                    await dying.execute("begin")
                    assert (await run_batch(dying, page))["seen"] == page
                    await worker.fetchval("select pg_terminate_backend($1, 10000)", dying.get_server_pid())
            assert (await run_batch(worker, page))["seen"] == page
        assert await drain(worker, page) == 0
        disorder = """select count(*), count(*) filter (where a.event_seq < a.before), count(distinct a.event_ref)
                        from (select a.event_ref, o.event_seq, lag(o.event_seq) over (order by a.id) as before
                                from iu_route_attempt a join event_outbox o on o.id = a.event_ref) a"""
        assert tuple(await worker.fetchrow(disorder)) == (rows, 0, rows)
        first, most = await worker.fetchrow("select (array_agg(bytes order by ctid))[2], max(bytes) from measured")
        assert most < 1.5 * first


@pytest.fixture(params=embedded.MAJORS, ids=lambda major: f"pg{major}")
def roomy(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that allows a thousand transactions in progress: prepared transactions, which need no session."""
    with cluster(request.param, max_prepared_transactions="1010") as server:
        asyncio.run(apply_package(server.dsn()))
        yield server.dsn()


@pytest.mark.slow
async def test_events_are_read_beside_a_thousand_transactions_in_progress(roomy):
    """With a thousand transactions in progress, other events are read as they commit, and
    those of the thousand as well.

    Fails when: the list of transactions in progress is truncated, or a batch reads the
    events of others for each of them.
    """
    async with connected(roomy) as worker, connected(roomy) as writer:
        open_ones = []
        for number in range(1000):
            await writer.execute("begin")
            open_ones.append(await insert_event(writer))
            await writer.execute(f"prepare transaction 'p{number}'")
        others = [await insert_event(writer)]
        assert await drain(worker) == 1
        listed = "select count(*) from iu_route_worker_cursor, pg_snapshot_xip(prev)"
        assert await worker.fetchval(listed) == 1000
        for _ in range(3):
            await writer.execute(MANY, 1000)
            others.append(await insert_event(writer))
            before = await rows_read(worker, OUTBOX)
            assert await drain(worker) == 1001
            assert (await attempted(worker))[-1] == others[-1]
            # The batch reads each event a few times, and each transaction in progress once.
            assert await rows_read(worker, OUTBOX) - before < 10_000
        for number in range(0, 1000, 2):
            await writer.execute(f"commit prepared 'p{number}'")
        before = await rows_read(worker, OUTBOX)
        assert await drain(worker, 100) == 500
        assert await attempted(worker) == [*(await attempted(worker))[:-500], *open_ones[::2]]
        assert await rows_read(worker, OUTBOX) - before < 10_000
        for number in range(1, 1000, 2):
            await writer.execute(f"{'commit' if number % 4 == 1 else 'rollback'} prepared 'p{number}'")
        assert await drain(worker, 100) == 250
        assert await drain(worker) == 0
        assert (await attempted(worker))[-250:] == open_ones[1::4]
        assert await worker.fetchval("select count(*) = count(distinct event_ref) from iu_route_attempt")
