"""An outbox that is partitioned by month: the package on it, removal of whole months, and months created in advance."""

from __future__ import annotations

import asyncio
import io
from uuid import UUID, uuid4

import asyncpg
import pytest

from conftest import Database
from iu_listen.admin import retention
from iu_listen.install import migrate
from iu_listen.install.probe import run_probe
from iu_listen.install.verify import verify
from iu_listen.model.routing import CHANNEL
from iu_listen.postgres.listener import BELL_KEY
from iu_listen.postgres.session import session
from iu_listen.postgres.sqlfiles import base_files, query
from support import apply_partitioned_base, attempted, connected, drain, open_gate, wait_until

pytestmark = pytest.mark.asyncio

#: Younger than the end of the month before the last one, older than the end of all months before.
KEEP = "70 days"
EVENT = (
    "('iu', 'version_applied', 'update', 'immediate', date_trunc('month', now(), 'UTC') - $1::int * interval '1 month')"
)
INSERT = f"insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at) values {EVENT} returning id"


async def event(connection: asyncpg.Connection, months_ago: int) -> UUID:
    """Insert an event at the first moment of a month."""
    return await connection.fetchval(INSERT, months_ago)


async def month(connection: asyncpg.Connection, months_ago: int) -> str:
    """Name of the partition of a month."""
    return await connection.fetchval(
        """select 'event_outbox_' || to_char((date_trunc('month', now(), 'UTC') - $1::int * interval '1 month')
                                              at time zone 'UTC', '"y"YYYY"m"MM')""",
        months_ago,
    )


async def names(connection: asyncpg.Connection) -> set[str]:
    """The partitions of the outbox."""
    return {row["part"] for row in await connection.fetch("select part::text from fn_iu_outbox_partitions()")}


async def tend(dsn: str, *, keep: str = KEEP, ahead: int = 0, drop: bool = False) -> retention.PartitionMaintainer:
    """Tend the partitions as `iu-listen retention run` does."""
    async with session(dsn, name="retention") as connection:
        plan = await retention.partitions(connection, keep, ahead)
        assert plan is not None
        tender = retention.PartitionMaintainer(connection, keep, drop=drop)
        await tender.tend(plan)
        return tender


async def add_default(connection: asyncpg.Connection) -> None:
    """Add a default partition."""
    await connection.execute("create table event_outbox_rest partition of event_outbox default")


# -- the package -------------------------------------------------------------------------------------------------


async def test_the_package_is_applied_and_verified(partitioned):
    """On a partitioned outbox every check passes, each partition has its indexes, and no file remains to be applied.

    Fails when: migration 006 runs unchanged, because PostgreSQL cannot build a partitioned index concurrently.
    """
    async with session(partitioned.dsn, name="test") as c:
        await c.execute("set search_path = public")
        assert [check for check in await verify(c, live=True) if not check.passed] == []
        assert (await migrate.package_state(c)).complete
        indexes = await c.fetch(
            """select i.indrelid::regclass::text as part, count(*) as n from pg_index i
                where i.indisvalid and i.indexrelid::regclass::text ~ '^event_outbox.*(tick|order)_idx' group by 1"""
        )
        assert {row["part"]: row["n"] for row in indexes} == dict.fromkeys({*await names(c), "event_outbox"}, 2)


async def test_an_interrupted_index_is_built_again(empty):
    """An index that an interrupted build left on one partition is replaced by the next
    apply, and removed by a rollback."""
    async with session(empty.dsn, name="test") as c:
        await c.execute("set search_path = public")
        await apply_partitioned_base(c)
        pending = (await migrate.package_state(c)).pending
        files = {m.number: m for m in pending}
        await migrate.apply_files(c, pending[: pending.index(files["006"])], {}, lambda _: None)
        leaf = (
            await c.fetch(
                "select relid::oid, relid::regclass::text as name from pg_partition_tree('event_outbox') where isleaf"
            )
        )[0]
        left_over = f"event_outbox_tick_idx_{leaf['relid']}"
        await c.execute(f"create index {left_over} on {leaf['name']} (id)")
        await migrate.apply_files(c, [files["006"]], {}, lambda _: None)
        definition = await c.fetchval("select pg_get_indexdef($1::text::regclass)", left_over)
        assert "(event_domain, xact_id, event_seq, id)" in definition
        await migrate.roll_back_files(c, [files["006"]], lambda _: None)
        await c.execute(f"create index {left_over} on {leaf['name']} (id)")
        await migrate.roll_back_files(c, [files["006"]], lambda _: None)
        assert not await c.fetchval("select count(*) from pg_class where relname ~ 'event_outbox_(tick|order)'")


async def test_the_probe_proves_it_there(empty):
    """On a partitioned outbox, SETUP and the tests A to H of the probe give the expected
    figures and leave nothing behind."""
    async with session(empty.dsn, name="test") as c:
        await apply_partitioned_base(c)
        proof = await run_probe(c, lambda: session(empty.dsn, name="test"))
        assert [f for f in [*proof.probes, *proof.footprint] if not f.passed] == []


async def test_a_tick_is_read_in_order_across_partitions(partitioned):
    """Pages follow the numbers of the events in any month, and an event that commits late is routed when it commits."""
    async with connected(partitioned.dsn) as c, connected(partitioned.dsn) as writer:
        late = writer.transaction()
        await late.start()
        behind = await event(writer, 4)
        events = [await event(c, months) for months in (0, 3, 1, 4, 2, 0, 3)]
        assert await drain(c, 2) == 7
        await late.commit()
        assert await drain(c, 2) == 1
        assert await attempted(c) == [*events, behind]


async def into_the_log(connection: asyncpg.Connection, _: str) -> None:
    await connection.execute(INSERT, 3)


async def into_the_partition(connection: asyncpg.Connection, part: str) -> None:
    await connection.execute(INSERT.replace("event_outbox", part, 1), 3)


async def copied(connection: asyncpg.Connection, part: str) -> None:
    (when,) = await connection.fetchrow("select date_trunc('month', now(), 'UTC') - interval '3 months'")
    await connection.copy_to_table(
        part,
        source=io.BytesIO(f"iu\tversion_applied\tupdate\timmediate\t{when.isoformat()}\t3\t-9\n".encode()),
        columns=["event_domain", "event_type", "event_stream", "delivery_lane", "created_at", "xact_id", "event_seq"],
    )


async def replicated(connection: asyncpg.Connection, part: str) -> None:
    async with connection.transaction():
        await connection.execute("set local session_replication_role = replica")
        await into_the_partition(connection, part)


@pytest.mark.parametrize("fresh", [False, True], ids=["old", "made ahead"])
@pytest.mark.parametrize("write", [into_the_log, into_the_partition, copied, replicated])
async def test_every_way_into_a_partition_is_stamped_and_rings(partitioned, write, fresh):
    """An event that is written to the outbox or to a partition is stamped and notifies an idle consumer.

    This holds for INSERT and COPY, and if ordinary triggers do not fire.

    Fails when: a trigger does not reach the partitions, or is not an ALWAYS trigger there.
    """
    heard = asyncio.Event()
    async with connected(partitioned.dsn) as c, connected(partitioned.dsn) as sleeper:
        part = await month(c, 3)
        if fresh:
            await c.execute(f"drop table {part}")
            plan = await c.fetch(
                "select format('for values from (%L) to (%L)', d, d + interval '1 month') as bound "
                "from (select date_trunc('month', now(), 'UTC') - interval '3 months') x(d)"
            )
            await c.execute(f"create table {part} (like event_outbox including all excluding indexes)")
            await c.execute(f"alter table event_outbox attach partition {part} {plan[0]['bound']}")
        await sleeper.add_listener(CHANNEL, lambda *_: heard.set())
        await sleeper.execute("select pg_advisory_lock($1, 1)", BELL_KEY)
        await write(c, part)
        async with asyncio.timeout(15):
            await heard.wait()
        assert await c.fetchval("select event_seq > 0 and xact_id > '3' from event_outbox")
        assert await drain(c) == 1


# -- months that are removed as a whole --------------------------------------------------------------------------


@pytest.mark.parametrize("default", [False, True], ids=["concurrently", "beside a default"])
@pytest.mark.parametrize("drop", [False, True], ids=["kept", "dropped"])
async def test_a_month_goes_whole(partitioned, drop, default):
    """A month that is old and read leaves the outbox in one step: it is detached as an
    independent table, or dropped."""
    async with connected(partitioned.dsn) as c:
        if default:
            await add_default(c)
        old = [await event(c, 4) for _ in range(3)]
        young = await event(c, 0)
        await drain(c)
        part = await month(c, 4)
        tender = await tend(partitioned.dsn, drop=drop)
        assert {"partition": part, "did": "dropped" if drop else "detached", "rows": 3} in tender.done
        assert part not in await names(c)
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
                await migrate.roll_back_files(s, (await migrate.package_state(s)).begun, lambda _: None)


async def test_a_month_that_is_not_read_stays(partitioned):
    """One unread event keeps its month in the outbox, while rows of that month that were read are removed one by one.

    Fails when: the bounds of a month alone decide.
    """
    async with connected(partitioned.dsn) as c:
        await event(c, 4)
        await drain(c)
        unread = await event(c, 4)
        part = await month(c, 4)
        assert (await tend(partitioned.dsn)).done[0]["partition"] != part
        assert part in await names(c)
        assert (
            await c.fetchval("select (fn_iu_retention_run('events', 100, $1::text::interval) ->> 'gone')::int", KEEP)
            == 1
        )
        assert [row["id"] for row in await c.fetch("select id from event_outbox")] == [unread]
        await drain(c)
        assert await attempted(c)
        assert (await tend(partitioned.dsn)).done[0] == {"partition": part, "did": "detached", "rows": 1}


async def test_a_month_with_rows_of_others_stays(partitioned):
    """A month with events of a domain without a worker is never detached; the events of the
    worker's domain are removed from it.

    Fails when: rows of other domains are not looked for.
    """
    async with connected(partitioned.dsn) as c:
        await event(c, 4)
        await c.execute(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at)
               values ('system', 'alert', 'alert', 'immediate', now() - interval '4 months' + interval '1 day')"""
        )
        await drain(c)
        part = await c.fetchval("select tableoid::regclass::text from event_outbox where event_domain = 'system'")
        await tend(partitioned.dsn)
        assert part in await names(c)
        await c.fetchval("select fn_iu_retention_run('events', 100, $1::text::interval)", KEEP)
        assert await c.fetchval("select array_agg(event_domain) from event_outbox") == ["system"]


async def test_a_month_that_was_written_just_now_stays(partitioned):
    """A month is kept if its events were written recently, although their created_at is old."""
    async with connected(partitioned.dsn) as c:
        await event(c, 0)
        await event(c, 4)
        await drain(c)
        await tend(partitioned.dsn)
        assert await month(c, 4) in await names(c)


async def test_nothing_goes_while_a_worker_refuses(partitioned):
    """While a cursor is refused, no month is detached."""
    async with connected(partitioned.dsn) as c:
        await event(c, 4)
        await drain(c)
        await c.execute("update iu_route_worker_cursor set lineage = gen_random_uuid()")
        assert (await tend(partitioned.dsn)).done == []


@pytest.mark.parametrize("default", [False, True], ids=["concurrently", "beside a default"])
async def test_an_event_that_is_still_being_written_keeps_its_month(partitioned, default):
    """Retention waits for an uncommitted event in an old month, keeps the month, and the event is read.

    Fails when: the month is not closed before it is checked. Then the producer commits while the detaching waits for
    it, and its event lies in a table that no cursor reads.
    """
    async with connected(partitioned.dsn) as c, connected(partitioned.dsn) as writer:
        if default:
            await add_default(c)
        await event(c, 4)
        await drain(c)
        part = await month(c, 4)
        late = writer.transaction()
        await late.start()
        unread = await event(writer, 4)
        running = asyncio.create_task(tend(partitioned.dsn))
        await wait_until(
            lambda: c.fetchval(
                "select count(*) from pg_stat_activity where application_name = 'retention' and wait_event_type = 'Lock'"
            ),
            "the run waits for the writer",
        )
        await late.commit()
        tender = await running
        assert part in await names(c)
        assert [held["partition"] for held in tender.held] == [part]
        assert await drain(c) == 1
        assert (await attempted(c))[-1] == unread
        # The month accepts events again: an old transaction that writes there gets no error.
        await event(c, 4)
        await drain(c)
        assert part in {row["partition"] for row in (await tend(partitioned.dsn)).done}


@pytest.mark.slow
@pytest.mark.parametrize("prepared", [False, True], ids=["open", "prepared"])
@pytest.mark.parametrize("default", [False, True], ids=["concurrently", "beside a default"])
async def test_a_writer_that_stays_is_named(partitioned, default, prepared, monkeypatch):
    """Retention names the session or prepared transaction, with its age, that keeps a month from being detached.

    It waits only for a limited time.
    """
    # Two seconds instead of the default of a minute: a longer wait proves no more.
    monkeypatch.setattr(retention, "DETACH_MS", 2_000)
    async with connected(partitioned.dsn) as c, connected(partitioned.dsn) as writer:
        if prepared and await c.fetchval("show max_prepared_transactions") == "0":
            pytest.skip("this server allows no prepared transactions")
        if default:
            await add_default(c)
        await drain(c)
        part = await month(c, 4)
        await writer.execute("set application_name = 'the slow one'")
        await writer.execute("begin")
        await event(writer, 4)
        if prepared:
            await writer.execute(f"prepare transaction '{(name := 'the slow one ' + uuid4().hex)}'")
        try:
            tender = await tend(partitioned.dsn)
        finally:
            await writer.execute(f"commit prepared '{name}'" if prepared else "commit")
        (held,) = [row for row in tender.held if row["partition"] == part]
        assert "the slow one" in held["why"]
        assert ("prepared transaction" if prepared else "idle in transaction") in held["why"]
        assert await drain(c) == 1


# -- interruptions -----------------------------------------------------------------------------------------------


async def interrupted(database: Database, part: str, reader: asyncpg.Connection) -> None:
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
async def test_an_interrupted_detaching_is_finished(partitioned, drop):
    """The next run finalizes a partition that is still being detached, and then opens or drops the table.

    Fails when: pending partitions are not looked for, because then no other partition can be detached.
    """
    async with connected(partitioned.dsn) as c, connected(partitioned.dsn) as reader:
        await event(c, 4)
        await event(c, 3)
        await drain(c)
        part, next_part = await month(c, 4), await month(c, 3)
        await interrupted(partitioned, part, reader)
        tender = await tend(partitioned.dsn, drop=drop)
        did = "dropped" if drop else "detached"
        assert [row["partition"] for row in tender.done if row["did"] == did][:2] == [part, next_part]
        assert {part, next_part}.isdisjoint(await names(c))
        assert (await c.fetchval("select to_regclass($1)", part) is None) is drop
        if not drop:
            assert not await c.fetchval("select count(*) from pg_trigger where tgrelid = $1::text::regclass", part)


async def test_a_run_that_died_after_closing_leaves_a_month_that_can_be_opened(partitioned):
    """A closed month rejects producers with a reason, and a run with a policy that keeps the month opens it again."""
    async with session(partitioned.dsn, name="test") as c:
        await c.execute("set search_path = public")
        part = await month(c, 4)
        oid = await c.fetchval("select $1::text::regclass::oid", part)
        await c.execute((await c.fetchrow(query("retention/retire"), oid))["close"])
        with pytest.raises(asyncpg.CheckViolationError, match="older than the retention keeps"):
            await event(c, 4)
        await tend(partitioned.dsn, keep="10 years")
        await event(c, 4)
        assert await drain(c) == 1


async def test_a_run_that_died_after_detaching_is_finished(partitioned):
    """A table that is detached but still closed is opened and made independent by the next run."""
    async with session(partitioned.dsn, name="test") as c:
        await c.execute("set search_path = public")
        part = await month(c, 4)
        oid = await c.fetchval("select $1::text::regclass::oid", part)
        words = await c.fetchrow(query("retention/retire"), oid)
        await c.execute(words["close"])
        await c.execute(words["detach"])
        tender = await tend(partitioned.dsn)
        assert {"partition": part, "did": "detached", "rows": None} in tender.done
        assert not await c.fetchval("select count(*) from pg_trigger where tgrelid = $1", oid)


# -- months created in advance -----------------------------------------------------------------------------------


async def test_months_are_made_ahead(partitioned):
    """Partitions for the coming months are created once, with their own indexes and triggers, and accept events."""
    async with session(partitioned.dsn, name="test") as c:
        await c.execute("set search_path = public")
        expected = [await month(c, -n) for n in (1, 2, 3)]
        tender = await tend(partitioned.dsn, keep="10 years", ahead=3)
        assert [row["partition"] for row in tender.done] == expected
        assert (await tend(partitioned.dsn, keep="10 years", ahead=3)).done == []
        assert [check for check in await verify(c, live=True) if not check.passed] == []
        made = await event(c, -2)
        assert await drain(c) == 1
        assert await c.fetchval("select tableoid::regclass::text from event_outbox where id = $1", made) == expected[1]


async def test_what_lies_in_the_default_partition_is_in_the_way(partitioned):
    """A month that already has events in the default partition is not created, with a message; the others are."""
    async with connected(partitioned.dsn) as c:
        await add_default(c)
        await event(c, -2)
        await event(c, -2)
        tender = await tend(partitioned.dsn, keep="10 years", ahead=3)
        assert [row["partition"] for row in tender.done] == [await month(c, -1), await month(c, -3)]
        assert tender.held == [{"partition": await month(c, -2), "why": "2 rows of the default partition belong there"}]


async def test_a_month_that_is_cut_elsewhere_is_filled(partitioned):
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
        await tend(partitioned.dsn, keep="10 years", ahead=1)
        holes = await c.fetchval(
            """select range_agg(tstzrange(p."from", p."to")) from fn_iu_outbox_partitions() p
                where p."to" > date_trunc('month', now(), 'UTC')"""
        )
        assert len(holes) == 1


async def test_other_kinds_of_partitions_are_left_alone(empty):
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
        await migrate.apply_files(c, (await migrate.package_state(c)).pending, {}, lambda _: None)
        tender = await tend(empty.dsn, ahead=3)
        assert (tender.done, len(tender.held)) == ([], 1)
        assert "not by range of created_at" in tender.held[0]["why"]


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
        plain = await connection.fetch(query("retention/months"), 14)
    await tend(partitioned.dsn, ahead=14)
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
