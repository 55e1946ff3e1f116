"""The package on an outbox that is partitioned by month."""

from __future__ import annotations

import asyncio
import io

import asyncpg
import pytest

from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.install.probe import run_probe
from iu_listen.install.verify import verify
from iu_listen.model.routing import CHANNEL
from iu_listen.postgres.listener import BELL_KEY
from iu_listen.postgres.session import session
from postgres.partition_helpers import INSERT_EVENT, append_event, partition_of_month, partitions
from support import apply_partitioned_base, attempted, connected, drain

pytestmark = pytest.mark.asyncio


async def test_the_package_is_applied_and_verified(partitioned):
    """On a partitioned outbox every check passes, each partition has its indexes, and no file remains to be applied.

    Fails when: migration 006 runs unchanged, because PostgreSQL cannot build a partitioned index concurrently.
    """
    async with session(partitioned.dsn, name="test") as c:
        await c.execute("set search_path = public")
        assert [check for check in await verify(c, live=True) if not check.passed] == []
        assert (await package_state(c)).complete
        indexes = await c.fetch(
            """select i.indrelid::regclass::text as part, count(*) as n from pg_index i
                where i.indisvalid and i.indexrelid::regclass::text ~ '^event_outbox.*(tick|order)_idx' group by 1"""
        )
        assert {row["part"]: row["n"] for row in indexes} == dict.fromkeys({*await partitions(c), "event_outbox"}, 2)


async def test_an_interrupted_index_is_built_again(empty):
    """An index that an interrupted build left on one partition is replaced by the next
    apply, and removed by a rollback."""
    async with session(empty.dsn, name="test") as c:
        await c.execute("set search_path = public")
        await apply_partitioned_base(c)
        pending = (await package_state(c)).pending
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


async def test_the_probe_passes_on_a_partitioned_outbox(empty):
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
        behind = await append_event(writer, 4)
        events = [await append_event(c, months) for months in (0, 3, 1, 4, 2, 0, 3)]
        assert await drain(c, 2) == 7
        await late.commit()
        assert await drain(c, 2) == 1
        assert await attempted(c) == [*events, behind]


async def insert_into_outbox(connection: asyncpg.Connection, _: str) -> None:
    await connection.execute(INSERT_EVENT, 3)


async def insert_into_partition(connection: asyncpg.Connection, part: str) -> None:
    await connection.execute(INSERT_EVENT.replace("event_outbox", part, 1), 3)


async def copy_into_partition(connection: asyncpg.Connection, part: str) -> None:
    (when,) = await connection.fetchrow("select date_trunc('month', now(), 'UTC') - interval '3 months'")
    await connection.copy_to_table(
        part,
        source=io.BytesIO(f"iu\tversion_applied\tupdate\timmediate\t{when.isoformat()}\t3\t-9\n".encode()),
        columns=["event_domain", "event_type", "event_stream", "delivery_lane", "created_at", "xact_id", "event_seq"],
    )


async def insert_as_replica(connection: asyncpg.Connection, part: str) -> None:
    async with connection.transaction():
        await connection.execute("set local session_replication_role = replica")
        # COPY claims a position, which only the trigger corrects.
        await copy_into_partition(connection, part)


@pytest.mark.parametrize("fresh", [False, True], ids=["old", "made ahead"])
@pytest.mark.parametrize("write", [insert_into_outbox, insert_into_partition, copy_into_partition, insert_as_replica])
async def test_every_way_of_writing_a_partition_stamps_and_notifies(partitioned, write, fresh):
    """An event that is written to the outbox or to a partition is stamped and notifies an idle consumer.

    This holds for INSERT and COPY, and if ordinary triggers do not fire.

    Fails when: a trigger does not reach the partitions, or is not an ALWAYS trigger there.
    """
    heard = asyncio.Event()
    async with connected(partitioned.dsn) as c, connected(partitioned.dsn) as sleeper:
        part = await partition_of_month(c, 3)
        if fresh:
            await c.execute(f"drop table {part}")
            plan = await c.fetch(
                "select format('for values from (%L) to (%L)', d, d + interval '1 month') as bound "
                "from (select date_trunc('month', now(), 'UTC') - interval '3 months') x(d)"
            )
            await c.execute(f"create table {part} (like event_outbox including all excluding indexes)")
            await c.execute(f"alter table event_outbox attach partition {part} {plan[0]['bound']}")
        await sleeper.add_listener(CHANNEL, lambda *_: heard.set())
        await sleeper.execute("select pg_advisory_lock($1, hashtext('iu/1'))", BELL_KEY)
        await write(c, part)
        async with asyncio.timeout(15):
            await heard.wait()
        assert await c.fetchval("select event_seq > 0 and xact_id > '3' from event_outbox")
        assert await drain(c) == 1
