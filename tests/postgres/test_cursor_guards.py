"""The conditions that the cursor relies on: the stamp of each event, the history of the database, and valid arguments."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.postgres.session import session
from iu_listen.postgres.sqlfiles import query
from support import WORKER, attempted, connected, drain, insert_event, open_gate, run_batch, wait_until

pytestmark = pytest.mark.asyncio

#: Columns and values of an event that claims to belong to the first transaction and to precede all other events.
CLAIM = """(event_domain, event_type, event_stream, delivery_lane, xact_id, event_seq)
           values ('iu', 'version_applied', 'update', 'immediate', '3', -9000000000000000000)"""


async def invented(connection: asyncpg.Connection) -> None:
    """INSERT an event with an invented position."""
    await connection.execute(f"insert into event_outbox {CLAIM}")


async def copied(connection: asyncpg.Connection) -> None:
    """COPY an event with an invented position."""
    await connection.copy_to_table(
        "event_outbox",
        source=io.BytesIO(b"iu\tversion_applied\tupdate\timmediate\t3\t-9000000000000000000\n"),
        columns=["event_domain", "event_type", "event_stream", "delivery_lane", "xact_id", "event_seq"],
    )


async def replicated(connection: asyncpg.Connection) -> None:
    """INSERT as a replication worker or a restore does it: ordinary triggers do not fire."""
    async with connection.transaction():
        await connection.execute("set local session_replication_role = replica")
        await invented(connection)


async def overwritten(connection: asyncpg.Connection) -> None:
    """UPDATE an event of another domain so that it moves into this one with an old position."""
    event = await connection.fetchval(
        """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
           values ('system', 'alert', 'alert', 'immediate') returning id"""
    )
    await connection.execute(
        """update event_outbox set event_domain = 'iu', event_type = 'version_applied', event_stream = 'update',
                  xact_id = '3', event_seq = -9000000000000000000 where id = $1""",
        event,
    )


@pytest.mark.parametrize("write", [invented, copied, replicated, overwritten])
async def test_a_position_claimed_by_a_producer_is_ignored(live, write):
    """An event is read once, after the older events, for any position that its producer claims and any way of writing.

    Fails when: the stamp is missing or conditional, does not fire for replicas, or an UPDATE of the domain skips it.
    """
    async with connected(live.dsn) as worker:
        for _ in range(2):
            await insert_event(worker)
        assert await drain(worker) == 2
        await insert_event(worker)
        await write(worker)
        await insert_event(worker)
        assert await drain(worker, 1) == 3
        order = [row["id"] for row in await worker.fetch("select id from event_outbox order by xact_id")]
        assert await attempted(worker) == order
        assert await drain(worker) == 0


async def test_a_claimed_position_in_the_future_is_ignored(live):
    """An event that claims a position after all others is read in its place and does not delay later events.

    Fails when: the stamp accepts an explicit event_seq or xact_id.
    """
    async with connected(live.dsn) as worker:
        first = await worker.fetchval(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, xact_id, event_seq)
               values ('iu', 'version_applied', 'update', 'immediate', '9000000000', 9000000000) returning id"""
        )
        second = await insert_event(worker)
        assert await drain(worker, 1) == 2
        assert await attempted(worker) == [first, second]


async def test_an_event_that_moves_into_the_domain_is_read(live):
    """An event that moves into the domain of the worker is read, although a tick has already passed its old position.

    Fails when: an UPDATE of event_domain does not stamp the event again.
    """
    async with connected(live.dsn) as worker:
        moved = await worker.fetchval(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
               values ('system', 'alert', 'alert', 'immediate') returning id"""
        )
        event = await insert_event(worker)
        assert await drain(worker) == 1
        await worker.execute("update event_outbox set event_domain = 'iu' where id = $1", moved)
        assert await drain(worker) == 1
        assert await attempted(worker) == [event, moved]


async def test_updates_within_the_domain_do_not_stamp_again(live):
    """An UPDATE that does not change the domain does not make an event new."""
    async with connected(live.dsn) as worker:
        await insert_event(worker)
        assert await drain(worker) == 1
        await worker.execute("update event_outbox set event_domain = 'iu', actor_ref = 'somebody'")
        assert await drain(worker) == 0


async def test_events_of_other_domains_are_not_read(live):
    """A worker reads only the events of its own domain, also if they lie between events of other domains."""
    async with connected(live.dsn) as worker:
        events = []
        for _ in range(3):
            await worker.execute(
                """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
                   values ('system', 'alert', 'alert', 'immediate')"""
            )
            events.append(await insert_event(worker))
        assert await drain(worker, 2) == 3
        assert await attempted(worker) == events


async def test_events_older_than_the_package_are_read_first(substrate):
    """Events that were written before the package was installed are read from the beginning, in order of created_at.

    Fails when: migration 006 does not number them, or the position of the first page excludes numbers below zero.
    """
    async with connected(substrate.dsn) as writer:
        events = [await insert_event(writer) for _ in range(7)]
        for age, event in enumerate(events):
            await writer.execute(
                "update event_outbox set created_at = now() - make_interval(days => $2) where id = $1", event, age
            )
    async with session(substrate.dsn, name="tests") as connection:
        state = await package_state(connection)
        await migrate.apply_files(connection, state.pending, {}, lambda _: None)
    await open_gate(substrate.dsn)
    async with connected(substrate.dsn) as worker:
        young = await insert_event(worker)
        assert await drain(worker, 3) == 8
        assert await attempted(worker) == [*reversed(events), young]
        assert await drain(worker) == 0


async def test_events_older_than_the_package_can_be_skipped(substrate):
    """A cursor that is reset to the present before it starts reads no earlier event and every later event.

    Fails when: the reset stores anything but a tick.
    """
    async with connected(substrate.dsn) as writer, connected(substrate.dsn) as late:
        for _ in range(3):
            await insert_event(writer)
        async with session(substrate.dsn, name="tests") as connection:
            await migrate.apply_files(connection, (await package_state(connection)).pending, {}, lambda _: None)
        await open_gate(substrate.dsn)
        await insert_event(writer)
        async with late.transaction():
            events = [await insert_event(late)]
            assert await writer.fetchval(query("reset_cursor"), WORKER, None)
            events.append(await insert_event(writer))
            assert await drain(writer) == 1
        assert await drain(writer) == 1
        assert set(await attempted(writer)) == set(events)


async def test_the_package_is_applied_beside_running_producers(substrate):
    """While the package is applied, producers see no error, the outbox is not rewritten, and no event is missed.

    Fails when: a column is added with a volatile default, or an index is built under a lock.
    """
    over = asyncio.Event()
    written: list[UUID] = []

    async def write() -> None:
        async with connected(substrate.dsn) as writer:
            while not over.is_set():
                async with writer.transaction():
                    written.append(await insert_event(writer))
                    written.append(await insert_event(writer))

    async def enough(more: int) -> bool:
        return len(written) > more

    place = "select pg_relation_filenode('event_outbox')"
    async with connected(substrate.dsn) as admin, anyio.create_task_group() as tasks:
        before = await admin.fetchval(place)
        for _ in range(4):
            tasks.start_soon(write)
        await wait_until(lambda: enough(100), "writers write")
        async with session(substrate.dsn, name="tests") as connection:
            await migrate.apply_files(connection, (await package_state(connection)).pending, {}, lambda _: None)
        reached = len(written)
        await wait_until(lambda: enough(reached + 100), "writers go on")
        over.set()
    await open_gate(substrate.dsn)
    async with connected(substrate.dsn) as worker:
        assert await worker.fetchval(place) == before
        assert await drain(worker, 100) == len(written)
        assert Counter(await attempted(worker)) == Counter(written)


async def test_a_reset_sequence_loses_and_repeats_no_event(live):
    """No event is lost or repeated after the sequence was set back, not even in the middle of a tick.

    Fails when: the lower end of a tick is derived from the sequence instead of from its rows.
    """
    async with connected(live.dsn) as worker:
        events = [await insert_event(worker) for _ in range(5)]
        assert (await run_batch(worker, 2))["seen"] == 2
        for _ in range(2):
            await worker.fetchval("select setval('event_outbox_event_seq', 1, false)")
            events += [await insert_event(worker) for _ in range(4)]
            assert (await run_batch(worker, 2))["seen"] > 0
        await drain(worker, 2)
        routed = await attempted(worker)
        assert len(routed) == len(events)
        assert set(routed) == set(events)
        assert await worker.fetchval("select total_seen from iu_route_worker_cursor") == len(events)


# History ------------------------------------------------------------------------------------------------


async def restored(connection: asyncpg.Connection) -> None:
    """Rewrite the anchor as a restored dump has it: the same contents, written by another transaction."""
    await connection.execute(
        """with old as (delete from iu_outbox_anchor returning *) select * into temp kept from old;
           insert into iu_outbox_anchor (lineage, xact_id) select lineage, xact_id from kept"""
    )


async def anchored_elsewhere(connection: asyncpg.Connection) -> None:
    """Give the cursor the lineage of another history."""
    await connection.execute("update iu_route_worker_cursor set lineage = $1", uuid4())


async def without_anchor(connection: asyncpg.Connection) -> None:
    """Remove the anchor."""
    await connection.execute("delete from iu_outbox_anchor")


async def ahead(connection: asyncpg.Connection) -> None:
    """Put the cursor ahead of the transactions of this server."""
    await connection.execute("update iu_route_worker_cursor set prev = '9000000000:9000000000:'")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (restored, "foreign_history"),
        (anchored_elsewhere, "foreign_cursor"),
        (without_anchor, "anchor_missing"),
        (ahead, "cursor_ahead"),
    ],
)
async def test_a_foreign_history_is_refused(live, damage, reason):
    """If the cursor and the history do not belong together, the batch names the reason and reads no event.

    Fails when: the xmin of the anchor, its lineage, its presence, or a cursor ahead of the server is not checked.
    """
    async with connected(live.dsn) as worker:
        await insert_event(worker)
        await damage(worker)
        before = await worker.fetchrow("select w::text from iu_route_worker_cursor w")
        answer = await run_batch(worker)
        assert (answer["status"], answer["reason"], answer["seen"]) == ("foreign_history", reason, 0)
        assert await attempted(worker) == []
        assert await worker.fetchrow("select w::text from iu_route_worker_cursor w") == before


@pytest.mark.parametrize("command", ["vacuum full iu_outbox_anchor", "vacuum (full, freeze) iu_outbox_anchor"])
async def test_vacuum_of_the_anchor_causes_no_refusal(live, command):
    """The anchor keeps its xmin through VACUUM, FULL and FREEZE included, so the history is not reported as foreign."""
    async with connected(live.dsn) as worker:
        await insert_event(worker)
        await worker.execute(command)
        assert await drain(worker) == 1


async def test_a_cursor_past_an_open_transaction_is_an_error(live):
    """A cursor that was put past a transaction in progress causes an error until that
    transaction ends, and loses no event.

    Fails when: the tick may lie before the cursor.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as late, connected(live.dsn) as other:
        transaction = late.transaction()
        await transaction.start()
        await insert_event(late)
        await insert_event(other)
        await worker.execute("""update iu_route_worker_cursor set prev = format('%1$s:%1$s:', x.xmax)::pg_snapshot
                                  from pg_snapshot_xmax(pg_current_snapshot()) x(xmax)""")
        await insert_event(other)
        with pytest.raises(asyncpg.SerializationError, match="lies before the cursor"):
            await run_batch(worker)
        assert await attempted(worker) == []
        await transaction.rollback()
        assert await drain(worker) == 1


# Arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, -1, None])
async def test_a_batch_limit_below_one_is_refused(live, limit):
    """A batch limit below 1, or none, is an error that names the limit."""
    async with connected(live.dsn) as worker:
        with pytest.raises(asyncpg.InvalidParameterValueError, match="batch limit must be 1 or more"):
            await run_batch(worker, limit)


async def test_an_unregistered_worker_is_refused(live):
    """A worker that is not registered is an error that names it."""
    async with connected(live.dsn) as worker:
        with pytest.raises(asyncpg.PostgresError, match="worker nobody is not registered") as error:
            await run_batch(worker, worker="nobody")
        assert error.value.sqlstate == "P0002"


async def test_each_worker_has_its_own_position(live):
    """Each worker reads every event of its domain and writes no attempt for an event that another worker has decided."""
    async with connected(live.dsn) as worker:
        await worker.execute(
            """insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
               select 'second', event_domain, lineage from iu_route_worker_cursor where worker_name = $1""",
            WORKER,
        )
        events = [await insert_event(worker) for _ in range(3)]
        assert await drain(worker) == 3
        answer = await run_batch(worker, worker="second")
        assert (answer["seen"], answer["attempts_written"]) == (3, 0)
        assert await attempted(worker) == events
