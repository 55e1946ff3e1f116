"""Retention removes whole months of a partitioned outbox, and keeps the months that are still needed."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from iu_listen.admin import retention
from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.postgres.session import session
from postgres.partition_helpers import (
    KEEP,
    add_default_partition,
    append_event,
    maintain_partitions,
    partition_of_month,
    partitions,
)
from support import WORKER, attempted, connected, drain, open_gate, rows_read, wait_until

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("default", [False, True], ids=["concurrently", "beside a default"])
@pytest.mark.parametrize("drop", [False, True], ids=["kept", "dropped"])
async def test_an_old_and_read_month_is_removed_as_a_whole(partitioned, drop, default):
    """A month that is old and read leaves the outbox in one step: it is detached as an
    independent table, or dropped."""
    async with connected(partitioned.dsn) as c:
        if default:
            await add_default_partition(c)
        old = [await append_event(c, 4) for _ in range(3)]
        young = await append_event(c, 0)
        await drain(c)
        part = await partition_of_month(c, 4)
        maintainer = await maintain_partitions(partitioned.dsn, drop=drop)
        assert {"partition": part, "did": "dropped" if drop else "detached", "rows": 3} in maintainer.done
        assert part not in await partitions(c)
        assert [row["id"] for row in await c.fetch("select id from event_outbox")] == [young]
        if drop:
            assert await c.fetchval("select to_regclass($1)", part) is None
        else:
            assert {row["id"] for row in await c.fetch(f"select id from {part}")} == set(old)
            assert not await c.fetchval("select count(*) from pg_trigger where tgrelid = $1::text::regclass", part)
            # No dependency ties the table to the package, so the package can be rolled back.
            async with session(partitioned.dsn, name="test") as s:
                await s.execute("set search_path = public")
                await open_gate(partitioned.dsn, "false")
                await migrate.roll_back_files(s, (await package_state(s)).to_roll_back, lambda _: None)


async def test_a_month_with_an_unread_event_is_kept(partitioned):
    """One unread event keeps its month in the outbox, while rows of that month that were read are removed one by one.

    Fails when: the bounds of a month alone decide.
    """
    async with connected(partitioned.dsn) as c:
        await append_event(c, 4)
        await drain(c)
        unread = await append_event(c, 4)
        part = await partition_of_month(c, 4)
        assert (await maintain_partitions(partitioned.dsn)).done[0]["partition"] != part
        assert part in await partitions(c)
        assert (
            await c.fetchval("select (fn_iu_retention_run('events', 100, $1::text::interval) ->> 'gone')::int", KEEP)
            == 1
        )
        assert [row["id"] for row in await c.fetch("select id from event_outbox")] == [unread]
        await drain(c)
        assert await attempted(c)
        assert (await maintain_partitions(partitioned.dsn)).done[0] == {"partition": part, "did": "detached", "rows": 1}


async def test_a_month_with_events_of_other_domains_is_kept(partitioned):
    """A month with events of a domain without a worker is never detached; the events of the
    worker's domain are removed from it.

    Fails when: rows of other domains are not looked for.
    """
    async with connected(partitioned.dsn) as c:
        await append_event(c, 4)
        await c.execute(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at)
               values ('system', 'alert', 'alert', 'immediate', now() - interval '4 months' + interval '1 day')"""
        )
        await drain(c)
        part = await c.fetchval("select tableoid::regclass::text from event_outbox where event_domain = 'system'")
        await maintain_partitions(partitioned.dsn)
        assert part in await partitions(c)
        await c.fetchval("select fn_iu_retention_run('events', 100, $1::text::interval)", KEEP)
        assert await c.fetchval("select array_agg(event_domain) from event_outbox") == ["system"]


async def test_a_month_with_recently_written_events_is_kept(partitioned):
    """A month is kept if its events were written recently, although their created_at is old."""
    async with connected(partitioned.dsn) as c:
        await append_event(c, 0)
        await append_event(c, 4)
        await drain(c)
        await maintain_partitions(partitioned.dsn)
        assert await partition_of_month(c, 4) in await partitions(c)


async def test_no_month_is_removed_while_a_worker_refuses(partitioned):
    """While a cursor is refused, no month is detached."""
    async with connected(partitioned.dsn) as c:
        await append_event(c, 4)
        await drain(c)
        await c.execute("update iu_route_worker_cursor set lineage = gen_random_uuid()")
        assert (await maintain_partitions(partitioned.dsn)).done == []


@pytest.mark.parametrize("default", [False, True], ids=["concurrently", "beside a default"])
async def test_a_month_with_an_uncommitted_event_is_kept(partitioned, default):
    """Retention waits for an uncommitted event in an old month, keeps the month, and the event is read.

    Fails when: the month is not closed before it is checked. Then the producer commits while the detaching waits for
    it, and its event lies in a table that no cursor reads.
    """
    async with connected(partitioned.dsn) as c, connected(partitioned.dsn) as writer:
        if default:
            await add_default_partition(c)
        await append_event(c, 4)
        await drain(c)
        part = await partition_of_month(c, 4)
        late = writer.transaction()
        await late.start()
        unread = await append_event(writer, 4)
        running = asyncio.create_task(maintain_partitions(partitioned.dsn))
        await wait_until(
            lambda: c.fetchval(
                "select count(*) from pg_stat_activity where application_name = 'retention' and wait_event_type = 'Lock'"
            ),
            "the run waits for the writer",
        )
        await late.commit()
        maintainer = await running
        assert part in await partitions(c)
        assert [held["partition"] for held in maintainer.held] == [part]
        assert await drain(c) == 1
        assert (await attempted(c))[-1] == unread
        # The month accepts events again: an old transaction that writes there gets no error.
        await append_event(c, 4)
        await drain(c)
        assert part in {row["partition"] for row in (await maintain_partitions(partitioned.dsn)).done}


@pytest.mark.slow
@pytest.mark.parametrize("prepared", [False, True], ids=["open", "prepared"])
@pytest.mark.parametrize("default", [False, True], ids=["concurrently", "beside a default"])
async def test_a_transaction_that_prevents_detaching_is_reported(partitioned, default, prepared, monkeypatch):
    """Retention names the session or prepared transaction, with its age, that keeps a month from being detached.

    It waits only for a limited time.
    """
    # Two seconds instead of the default of a minute: a longer wait proves no more.
    monkeypatch.setattr(retention, "DETACH_TIMEOUT_MS", 2_000)
    async with connected(partitioned.dsn) as c, connected(partitioned.dsn) as writer:
        if prepared and await c.fetchval("show max_prepared_transactions") == "0":
            pytest.skip("this server allows no prepared transactions")
        if default:
            await add_default_partition(c)
        await drain(c)
        part = await partition_of_month(c, 4)
        await writer.execute("set application_name = 'the slow one'")
        await writer.execute("begin")
        await append_event(writer, 4)
        if prepared:
            await writer.execute(f"prepare transaction '{(name := 'the slow one ' + uuid4().hex)}'")
        try:
            maintainer = await maintain_partitions(partitioned.dsn)
        finally:
            await writer.execute(f"commit prepared '{name}'" if prepared else "commit")
        (held,) = [row for row in maintainer.held if row["partition"] == part]
        assert "the slow one" in held["why"]
        assert ("prepared transaction" if prepared else "idle in transaction") in held["why"]
        assert await drain(c) == 1


async def test_a_plan_judges_some_rows_of_a_partition_and_a_run_all_of_them(partitioned, monkeypatch):
    """A plan reads as many rows of an old partition as its bound; a run judges all rows before it removes the partition.

    If more than ten partitions share the bound, the plan reads a tenth of it in each. An event that must stay and is among
    the rows that were read keeps the partition; a later one is found by the run.

    Fails when: the plan has no bound, says nothing about it, or decides for the run.
    """
    monkeypatch.setattr(retention, "MAX_COUNT", 20)
    async with connected(partitioned.dsn) as c:
        for _ in range(60):
            await append_event(c, 4)
            await append_event(c, 3)
        await drain(c)
        await c.execute("insert into iu_completeness_missing (worker_name, event_ref) select $1, id from event_outbox "
                        "where created_at < now() - $2::text::interval order by event_seq desc limit 1", WORKER, KEEP)  # fmt: skip
        held, free = await partition_of_month(c, 3), await partition_of_month(c, 4)
        await c.fetchval("select pg_stat_force_next_flush()")
        async with session(partitioned.dsn, name="test") as plans:
            before = await rows_read(c, f"^({held}|{free})")
            plan = await retention.partitions(plans, KEEP, 0)
            await plans.fetchval("select pg_stat_force_next_flush()")
            assert await rows_read(c, f"^({held}|{free})") - before <= 2 * 21
            exact = await retention.partitions(plans, KEEP, 0, exact=True)
        found = {p["name"]: (p["capped"], p["rows"], p["held"], p["whole"]) for p in plan["partitions"]}
        assert (found[held], found[free]) == ((True, 20, 0, None), (True, 20, 0, None))
        found = {p["name"]: (p["capped"], p["rows"], p["held"], p["whole"]) for p in exact["partitions"]}
        assert (found[held], found[free]) == ((False, 60, 1, False), (False, 60, 0, True))
        maintainer = await maintain_partitions(partitioned.dsn)
        assert {"partition": free, "did": "detached", "rows": 60} in maintainer.done
        assert held in await partitions(c)
