"""Retention creates the partitions of the coming months."""

from __future__ import annotations

import pytest

from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.install.verify import verify
from iu_listen.postgres.session import session
from iu_listen.postgres.sqlfiles import base_files, query
from postgres.partition_helpers import add_default_partition, append_event, maintain_partitions, partition_of_month
from support import connected, drain

pytestmark = pytest.mark.asyncio


async def test_partitions_of_coming_months_are_created(partitioned):
    """Partitions for the coming months are created once, with their own indexes and triggers, and accept events."""
    async with session(partitioned.dsn, name="test") as c:
        await c.execute("set search_path = public")
        expected = [await partition_of_month(c, -n) for n in (1, 2, 3)]
        maintainer = await maintain_partitions(partitioned.dsn, keep="10 years", ahead=3)
        assert [row["partition"] for row in maintainer.done] == expected
        assert (await maintain_partitions(partitioned.dsn, keep="10 years", ahead=3)).done == []
        assert [check for check in await verify(c, live=True) if not check.passed] == []
        made = await append_event(c, -2)
        assert await drain(c) == 1
        assert await c.fetchval("select tableoid::regclass::text from event_outbox where id = $1", made) == expected[1]


async def test_rows_in_the_default_partition_prevent_a_month(partitioned):
    """A month that already has events in the default partition is not created, with a message; the others are."""
    async with connected(partitioned.dsn) as c:
        await add_default_partition(c)
        await append_event(c, -2)
        await append_event(c, -2)
        maintainer = await maintain_partitions(partitioned.dsn, keep="10 years", ahead=3)
        assert [row["partition"] for row in maintainer.done] == [
            await partition_of_month(c, -1),
            await partition_of_month(c, -3),
        ]
        assert maintainer.held == [
            {"partition": await partition_of_month(c, -2), "why": "2 rows of this month are in the default partition"}
        ]


async def test_the_rest_of_a_partly_covered_month_is_created(partitioned):
    """If a part of a month has a partition already, partitions for the rest of the month,
    before and after it, are created."""
    async with connected(partitioned.dsn) as c:
        await c.execute("""
            do $$
            declare v_month timestamptz := date_trunc('month', now(), 'UTC') + interval '1 month';
            begin
                execute format('create table theirs partition of event_outbox for values from (%L) to (%L)',
                               v_month + interval '9 days', v_month + interval '19 days');
            end $$
        """)
        await maintain_partitions(partitioned.dsn, keep="10 years", ahead=1)
        holes = await c.fetchval(
            """select range_agg(tstzrange(p."from", p."to")) from fn_iu_outbox_partitions() p
                where p."to" > date_trunc('month', now(), 'UTC')"""
        )
        assert len(holes) == 1


async def test_partitions_by_another_key_are_not_changed(empty):
    """An outbox that is partitioned by another key is reported as such and left alone."""
    async with session(empty.dsn, name="test") as c:
        await c.execute("set search_path = public")
        await migrate.apply_base(c)
        columns = base_files()[1].text().partition("create table public.event_outbox (")[2].partition("\n);\n")[0]
        await c.execute(f"""
            drop table event_outbox;
            create table event_outbox ({columns.replace("primary key (id)", "primary key (id, event_domain)")})
                partition by list (event_domain);
            create table event_outbox_iu partition of event_outbox for values in ('iu');
            create table event_outbox_rest partition of event_outbox default;
            create trigger trg_event_outbox_type_validate before insert on event_outbox
                for each row execute function fn_event_type_validate();
        """)
        await migrate.apply_files(c, (await package_state(c)).pending, {}, lambda _: None)
        maintainer = await maintain_partitions(empty.dsn, ahead=3)
        assert (maintainer.done, len(maintainer.held)) == ([], 1)
        assert "not by range of created_at" in maintainer.held[0]["why"]


@pytest.mark.parametrize("zone", ["America/Sao_Paulo", "Europe/Berlin", "Pacific/Kiritimati"])
async def test_months_are_counted_in_utc(partitioned, zone):
    """Months are created in UTC for any time zone and styles of the database, also through a pooler.

    Behind a pooler the session has no settings of its own.

    Fails when: timestamptz + interval is evaluated in the zone of the session, or the bounds of a partition are
    read in the style of the session.
    """
    async with connected(partitioned.dsn) as connection:
        name = await connection.fetchval("select current_database()")
        for setting in (f"timezone = '{zone}'", "datestyle = 'SQL, DMY'", "intervalstyle = 'sql_standard'"):
            await connection.execute(f"alter database {name} set {setting}")
    async with connected(partitioned.dsn) as connection:
        plain = await connection.fetch(query("retention/months"), 14, None)
    await maintain_partitions(partitioned.dsn, ahead=14)
    async with connected(partitioned.dsn) as connection:
        await connection.execute("set timezone = 'UTC'")
        bounds = await connection.fetch(
            """select "from", "to", date_trunc('month', "from") as whole, "from" + interval '1 month' as next
                 from fn_iu_outbox_partitions() order by 1"""
        )

    assert len(plain) == 14
    assert [row["from"] for row in plain] == [row["from"] for row in bounds][-14:]
    assert all(row["from"] == row["whole"] and row["to"] == row["next"] for row in bounds)
    assert [row["to"] for row in bounds][:-1] == [row["from"] for row in bounds][1:]
