"""The removal of a month that was interrupted is completed or undone by the next run."""

from __future__ import annotations

import asyncpg
import pytest

from conftest import Database
from iu_listen.postgres.session import session
from iu_listen.postgres.sqlfiles import query
from postgres.partition_helpers import append_event, maintain_partitions, partition_of_month, partitions
from support import connected, drain

pytestmark = pytest.mark.asyncio


async def interrupt_detaching(database: Database, part: str, reader: asyncpg.Connection) -> None:
    """DETACH CONCURRENTLY, interrupted between its two transactions while it waits for a reader."""
    async with session(database.dsn, name="retention") as c:
        await c.execute("set search_path = public")
        oid = await c.fetchval("select $1::text::regclass::oid", part)
        words = await c.fetchrow(query("retention/retire"), oid)
        await c.execute(words["close"])
        transaction = reader.transaction()
        await transaction.start()
        await reader.execute("select count(*) from event_outbox")
        await c.execute("set lock_timeout = '300ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await c.execute(words["detach_concurrently"])
        await transaction.rollback()
        assert await c.fetchval("select pending and closed from fn_iu_outbox_partitions() where part::oid = $1", oid)


@pytest.mark.parametrize("drop", [False, True], ids=["kept", "dropped"])
async def test_an_interrupted_detaching_is_completed_by_the_next_run(partitioned, drop):
    """The next run finalizes a partition that is still being detached, and then opens or drops the table.

    Fails when: pending partitions are not looked for, because then no other partition can be detached.
    """
    async with connected(partitioned.dsn) as c, connected(partitioned.dsn) as reader:
        await append_event(c, 4)
        await append_event(c, 3)
        await drain(c)
        part, next_part = await partition_of_month(c, 4), await partition_of_month(c, 3)
        await interrupt_detaching(partitioned, part, reader)
        maintainer = await maintain_partitions(partitioned.dsn, drop=drop)
        did = "dropped" if drop else "detached"
        assert [row["partition"] for row in maintainer.done if row["did"] == did][:2] == [part, next_part]
        assert {part, next_part}.isdisjoint(await partitions(c))
        assert (await c.fetchval("select to_regclass($1)", part) is None) is drop
        if not drop:
            assert not await c.fetchval("select count(*) from pg_trigger where tgrelid = $1::text::regclass", part)


async def test_a_month_closed_by_an_interrupted_run_is_opened_again(partitioned):
    """A closed month rejects producers with a reason, and a run with a policy that keeps the month opens it again."""
    async with session(partitioned.dsn, name="test") as c:
        await c.execute("set search_path = public")
        part = await partition_of_month(c, 4)
        oid = await c.fetchval("select $1::text::regclass::oid", part)
        await c.execute((await c.fetchrow(query("retention/retire"), oid))["close"])
        with pytest.raises(asyncpg.CheckViolationError, match="older than the retention policy keeps"):
            await append_event(c, 4)
        await maintain_partitions(partitioned.dsn, keep="10 years")
        await append_event(c, 4)
        assert await drain(c) == 1


async def test_a_run_interrupted_after_detaching_is_completed(partitioned):
    """A table that is detached but still closed is opened and made independent by the next run."""
    async with session(partitioned.dsn, name="test") as c:
        await c.execute("set search_path = public")
        part = await partition_of_month(c, 4)
        oid = await c.fetchval("select $1::text::regclass::oid", part)
        words = await c.fetchrow(query("retention/retire"), oid)
        await c.execute(words["close"])
        await c.execute(words["detach"])
        maintainer = await maintain_partitions(partitioned.dsn)
        assert {"partition": part, "did": "detached", "rows": None} in maintainer.done
        assert not await c.fetchval("select count(*) from pg_trigger where tgrelid = $1", oid)
