"""A dump that was restored into another cluster: it is refused, planned and adopted, and no event is missing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from clusters import psql
from history.conftest import Pair
from history.past import (
    FOREIGN_DOMAIN,
    add_partial_reader,
    assert_complete,
    changeable_rows,
    create_event_history,
    planned_figures,
    reanchor,
    refusal,
)
from iu_listen.install.verify import verify
from iu_listen.postgres.session import session
from support import WORKER, attempted, connected, drain, insert_event, open_gate, run_batch

pytestmark = pytest.mark.asyncio


async def written_here(connection: asyncpg.Connection) -> list[UUID]:
    """Events that are written before the foreign history is noticed: plainly, and in a savepoint."""
    events = [await insert_event(connection)]
    async with connection.transaction():
        await connection.fetchval("select pg_current_xact_id()")
        async with connection.transaction():
            events.append(await insert_event(connection))
    await connection.execute(FOREIGN_DOMAIN)
    return events


async def test_every_kind_of_event_is_handled_after_a_restore(pair: Pair):
    """After a restore the worker refuses; after a reanchor it reads the unread events in order, and none twice.

    This covers late, partly read, own and old events, and events that were written in this cluster, one of them in
    a transaction that stays open.

    Fails when: hi_seq, the partly read tick, the position of own events, stamps beyond the snapshot, the anchor or the
    lineage is left out of the reanchor.
    """
    database = pair.new()
    past = await create_event_history(pair.source.dsn(database))
    dsn = pair.travel(database)
    async with connected(dsn) as worker, connected(dsn) as writer:
        await writer.execute("begin")
        open_event = await insert_event(writer)
        unread = [*past.unread, *await written_here(worker)]
        other_domain = await worker.fetch(
            "select id, xact_id from event_outbox where event_domain = 'system' order by id"
        )

        before = await changeable_rows(worker)
        answer = await run_batch(worker)
        assert (answer["status"], answer["reason"]) == ("foreign_history", "foreign_history")
        plan = await planned_figures(worker)
        assert await changeable_rows(worker) == before
        beyond = len(past.read) if pair.beyond else 0
        assert plan == {
            "worker_name": WORKER, "event_domain": "iu", "refusal": "foreign_history",
            "events": len(past.read) + len(unread), "unread": len(unread), "uncertain": 0,
            "again": len(unread), "past": beyond,
        }  # fmt: skip

        await open_gate(dsn, "false")
        answer = await reanchor(worker)
        assert (answer["status"], answer["again"], answer["past"]) == ("reanchored", len(unread), beyond)
        assert await refusal(worker) is None
        position = "select tick, tick_floor, pos_seq, pos_id, own_xid, own_seq from iu_route_worker_cursor"
        assert set(await worker.fetchrow(position)) == {None}
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="no worker refuses"):
            await reanchor(worker)
        # A second reanchor before any event is read gives the same result and loses nothing.
        answer = await reanchor(worker, force=True)
        assert (answer["again"], answer["past"]) == (len(unread), 0)
        assert (
            await worker.fetch("select id, xact_id from event_outbox where event_domain = 'system' order by id")
            == other_domain
        )

        await open_gate(dsn)
        audited = len(await attempted(worker))
        assert await drain(worker, 3) == len(unread)
        by_number = [
            row["id"]
            for row in await worker.fetch("select id from event_outbox where id = any ($1) order by event_seq", unread)
        ]
        assert (await attempted(worker))[audited:] == by_number
        await writer.execute("commit")
        assert await drain(worker) == 1
        assert (await attempted(worker))[-1] == open_event
        await insert_event(worker)
        assert await drain(worker) == 1
        await assert_complete(worker)
    async with session(dsn, name="tests") as connection:
        assert [c.id for c in await verify(connection, live=True) if not c.passed] == []


async def test_several_workers_read_events_at_least_once_after_a_restore(pair: Pair):
    """Events that one worker of a domain has not read are read again by all its workers; idempotency
    keys prevent second decisions.

    Fails when: only one cursor is checked for unread events, or the other cursors are not moved.
    """
    database = pair.new()
    past = await create_event_history(pair.source.dsn(database))
    async with connected(pair.source.dsn(database)) as worker:
        left = await add_partial_reader(worker, "second", 5)
        before = await attempted(worker)
    dsn = pair.travel(database)
    async with connected(dsn) as worker:
        native = await written_here(worker)
        unread = {*left, *past.unread, *native}
        first, second = await planned_figures(worker), await planned_figures(worker, worker="second")
        assert (first["unread"], second["unread"]) == (len(past.unread) + 2, len(left) + 2)
        assert first["again"] == second["again"] == len(unread)
        await open_gate(dsn, "false")
        assert (await reanchor(worker))["again"] == len(unread)
        await open_gate(dsn)
        assert await drain(worker, 3) == len(unread)
        assert await drain(worker, 100, "second") == len(unread)
        assert (await attempted(worker))[: len(before)] == before
        await assert_complete(worker)


async def test_events_of_a_copy_are_found_in_its_copy(pair: Pair):
    """Events that were written in a copy are found in a copy of that copy, although all its events were restored.

    Fails when: an event above hi_seq counts as read because of its stamp.
    """
    database = pair.new()
    past = await create_event_history(pair.source.dsn(database))
    copy = pair.travel(database)
    async with connected(copy) as writer:
        unread = [*past.unread, *await written_here(writer)]
    psql(pair.source, f"drop database {database}")
    dsn = pair.back().travel(database)
    async with connected(dsn) as worker:
        assert await refusal(worker) == "foreign_history"
        plan = await planned_figures(worker)
        assert (plan["unread"], plan["uncertain"]) == (len(unread), 0)
        await open_gate(dsn, "false")
        await reanchor(worker)
        await open_gate(dsn)
        assert await drain(worker) == len(unread)
        await assert_complete(worker)


async def test_events_with_restarted_numbers_are_found(pair: Pair):
    """If the sequence was not restored, new events are found by the xmin of their rows, and
    later numbers follow all others.

    Fails when: only numbers are compared, or the sequence is not advanced.
    """
    database = pair.new()
    past = await create_event_history(pair.source.dsn(database))
    dsn = pair.travel(database)
    async with connected(dsn) as worker:
        highest = await worker.fetchval("select max(event_seq) from event_outbox")
        await worker.fetchval("select setval('event_outbox_event_seq', 1, false)")
        native = await written_here(worker)
        assert await worker.fetchval("select max(event_seq) from event_outbox") == highest
        found, plan = await planned_figures(worker), await reanchor(worker, plan=True)
        assert plan["numbers_behind"] > 0
        # In a cluster with higher ids these stamps lie beyond the cursor; in one with lower ids they look read.
        assert found["uncertain"] == (len(native) if pair.beyond else 0)
        assert found["again"] == found["unread"] + found["uncertain"] == len(past.unread) + len(native)
        await open_gate(dsn, "false")
        await reanchor(worker)
        young = await insert_event(worker)
        assert await worker.fetchval("select event_seq from event_outbox where id = $1", young) > highest
        await open_gate(dsn)
        assert await drain(worker, 3) == len(past.unread) + len(native) + 1
        assert (await attempted(worker))[-1] == young
        await assert_complete(worker)


async def test_since_limits_the_events_that_are_read_again(pair: Pair):
    """With `--since`, newer events are read again, and older uncertain events count as read."""
    database = pair.new()
    past = await create_event_history(pair.source.dsn(database))
    dsn = pair.travel(database)
    async with connected(dsn) as worker:
        await worker.fetchval("select setval('event_outbox_event_seq', 1, false)")
        native = await written_here(worker)
        old, new = datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(minutes=1)
        total = len(past.read) + len(past.unread) + len(native)
        assert (await planned_figures(worker, old))["again"] == total
        assert (await planned_figures(worker, new))["again"] == len(past.unread) + (0 if pair.beyond else len(native))
        await open_gate(dsn, "false")
        assert (await reanchor(worker, old))["again"] == total
        await open_gate(dsn)
        assert await drain(worker) == total
        await assert_complete(worker)


async def test_a_dump_of_a_busy_database_is_adopted_without_a_loss(pair: Pair):
    """A dump that was taken beside producers and the worker is adopted without a loss.

    Fails when: the cursor and the events of a dump do not belong to one snapshot.
    """
    database = pair.new()
    source = pair.source.dsn(database)
    await create_event_history(source)
    writing = True

    async def write() -> None:
        async with connected(source) as writer:
            while writing:
                async with writer.transaction():
                    await insert_event(writer)
                    await insert_event(writer)

    async def work() -> None:
        async with connected(source) as worker:
            while writing:
                await run_batch(worker, 3)

    tasks = [asyncio.create_task(write()) for _ in range(4)] + [asyncio.create_task(work())]
    try:
        dsn = await asyncio.to_thread(pair.travel, database)
    finally:
        writing = False
        await asyncio.gather(*tasks)
    async with connected(dsn) as worker:
        await written_here(worker)
        await open_gate(dsn, "false")
        unread = await worker.fetchval(
            """select count(*) from event_outbox o where o.event_domain = 'iu'
                  and not exists (select from iu_route_attempt a where a.event_ref = o.id)"""
        )
        assert (await reanchor(worker))["again"] == unread
        await open_gate(dsn)
        assert await drain(worker) == unread
        await assert_complete(worker)
