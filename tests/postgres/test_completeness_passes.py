"""Passes of the completeness check: they are continued, shared, superseded, and cheap."""

from __future__ import annotations

import asyncio
import itertools

import asyncpg
import pytest

from postgres.completeness_helpers import (
    add_unrelated_attempts,
    append_events,
    check_page,
    continue_pass,
    delete_attempts,
    missing_events,
    run_pass,
)
from support import WORKER, connect, connected, drain

pytestmark = pytest.mark.asyncio


async def test_a_pass_continues_after_its_session_was_killed(live):
    """A session that ends in the middle of a page loses only that page; another session continues the pass.

    Each event is checked once.

    Fails when: the position is not stored with the page, or the other session begins anew.
    """
    async with connected(live.dsn) as worker:
        events = await append_events(worker, 100)
        await drain(worker)
        await delete_attempts(worker, events[5], events[95])
        first = await connect(live.dsn)
        assert [(await check_page(first, 30))["checked"] for _ in range(2)] == [30, 60]
        await first.execute("begin")
        assert (await check_page(first, 30))["checked"] == 90
        await worker.execute("select pg_terminate_backend($1, 5000)", first.get_server_pid())
        first.terminate()
        answers = await continue_pass(worker, None, 30)
        # The last two read the attempts, and judge the two events.
        assert [a["checked"] for a in answers] == [90, 100, 100, 100]
        assert set(await missing_events(worker)) == {events[5], events[95]}


async def test_two_sessions_share_one_pass(live):
    """Two sessions that check one worker take turns in one pass, and both receive its result.

    Fails when: each begins a pass of its own, or the end of a pass begins another one.
    """
    async with connected(live.dsn) as one, connected(live.dsn) as two:
        events = await append_events(one, 100)
        await drain(one)
        await delete_attempts(one, events[50])
        first = await check_page(one, 20, 0)
        ends = await asyncio.gather(*(continue_pass(who, first["pass"], 20) for who in (one, two)))
        assert [(e[-1]["status"], e[-1]["checked"], e[-1]["missing"]) for e in ends] == [("passed", 100, 1)] * 2
        assert await one.fetchval("select pass from iu_completeness_pass") == 1


async def test_a_new_pass_supersedes_a_running_one(live):
    """A new pass replaces a running one: a session of the old pass is told so and checks no page of the new one."""
    async with connected(live.dsn) as worker:
        await append_events(worker, 50)
        await drain(worker)
        old = await check_page(worker, 20, 0)
        new = await check_page(worker, 20, 0)
        assert (new["pass"], new["checked"]) == (old["pass"] + 1, 20)
        assert (await check_page(worker, 20, old["pass"]))["status"] == "superseded"
        assert (await check_page(worker, 20, new["pass"]))["checked"] == 40


async def test_each_worker_has_its_own_completeness_check(live):
    """Workers of different domains are checked separately; two workers of one domain are
    both responsible for its events."""
    async with connected(live.dsn) as worker:
        await worker.execute(
            """insert into event_type_registry values ('system', 'noted', 'update', 'immediate');
               insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
               select w.name, w.domain, a.lineage
                 from iu_outbox_anchor a, (values ('system', 'system'), ('twin', 'iu')) w(name, domain)"""
        )
        mine = await append_events(worker, 4)
        noted = await worker.fetchval(
            "insert into event_outbox (event_domain, event_type, event_stream, delivery_lane) "
            "values ('system', 'noted', 'update', 'immediate') returning id"
        )
        for name in (WORKER, "system", "twin"):
            await drain(worker, worker=name)
        await delete_attempts(worker, noted, mine[0])
        for name in (WORKER, "system", "twin"):
            await run_pass(worker, worker=name)
        found = {name: set(await missing_events(worker, name)) for name in (WORKER, "system", "twin")}
        assert found == {WORKER: {mine[0]}, "system": {noted}, "twin": {mine[0]}}
        with pytest.raises(asyncpg.NoDataFoundError):
            await check_page(worker, worker="nobody")


async def test_a_page_reads_on_from_the_place_of_the_previous_page(live):
    """The first page looks its events up by their keys; the next pages read on from the place where those were found.

    Fails when: a page reads all attempts, or looks up every event by its key, or the place is not recorded.
    """
    async with connected(live.dsn) as worker:
        await add_unrelated_attempts(worker, 5000)
        await append_events(worker, 1000)
        await drain(worker)

        async def reads() -> asyncpg.Record:
            await worker.execute("select pg_stat_force_next_flush()")
            return await worker.fetchrow(
                "select seq_tup_read as blocks, coalesce(idx_tup_fetch, 0) as keys from pg_stat_user_tables where relname = 'iu_route_attempt'"
            )

        counts = [await reads()]
        await check_page(worker, 100, 0)
        counts.append(await reads())
        for _ in range(5):
            await check_page(worker, 100, 1)
        counts.append(await reads())
        first, then = (
            {name: after[name] - before[name] for name in ("blocks", "keys")}
            for before, after in itertools.pairwise(counts)
        )
        assert first["keys"] == 100
        assert first["blocks"] < 2000
        assert then["keys"] <= 50
        assert then["blocks"] < 5 * 1000


async def test_pages_of_different_sizes_share_the_recorded_place(live):
    """A large page after a small one also reads its attempts in sequence; the consumer and a command can share a pass.

    Fails when: the distance to read is that of the page before, although the sizes differ.
    """
    async with connected(live.dsn) as worker:
        await append_events(worker, 3000)
        await drain(worker)
        await check_page(worker, 30, 0)
        await check_page(worker, 30, 1)
        keys = "select coalesce(idx_tup_fetch, 0) from pg_stat_user_tables where relname = 'iu_route_attempt'"
        await worker.execute("select pg_stat_force_next_flush()")
        before = await worker.fetchval(keys)
        assert (await check_page(worker, 2500, 1))["checked"] == 2560
        await worker.execute("select pg_stat_force_next_flush()")
        assert await worker.fetchval(keys) - before < 500
