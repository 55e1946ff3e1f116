"""The cursor of the trace export: two readers at the same time, and attempts with the stamps of another history."""

from __future__ import annotations

import asyncio
from datetime import datetime

import asyncpg
import pytest

from history.past import reanchor
from history.test_reanchor import blocked, restored
from iu_listen.admin.traces import life
from iu_listen.app import PostgresSessions
from iu_listen.model.settings import Settings
from iu_listen.model.spans import batch_link
from iu_listen.postgres.trace import TraceSession
from support import connected, drain, insert_event, open_gate, wait_until

pytestmark = pytest.mark.asyncio

ATTEMPT = """insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key, xact_id)
             select e.id, 'outbound', 'r', 'dry_run', 'outbound:r:' || e.id, coalesce($1::text::xid8, pg_current_xact_id())
               from gen_random_uuid() e(id)"""
#: Give all attempts stamps as after a restore into a cluster with lower transaction ids.
BEYOND = "update iu_route_attempt set xact_id = (9000000000 + id)::text::xid8"
POSITION = "select tick::text, attempt_xid::text, attempt_id from iu_trace_cursor"


def tracing(dsn: str):
    return PostgresSessions(Settings.load({}, {"dsn": dsn})).trace_source()


async def exported(source: TraceSession) -> int:
    """Export all pending attempts; return the number of ticks."""
    for ticks in range(10):
        place = await source.tick()
        if place is None:
            return ticks
        await source.accepted(await source.page(place, 100), 0)
    raise AssertionError("after ten ticks there is still another one")


# -- two readers ---------------------------------------------------------------------------------------------------


async def test_a_reader_that_waited_does_not_move_the_position_back(live):
    """A reader that waited for the commit of another one compares with the new position, and does not move it back.

    Fails when: the position is computed from the state before the row was locked.
    """
    async with (
        tracing(live.dsn) as source,
        connected(live.dsn) as faster,
        connected(live.dsn) as slower,
        connected(live.dsn) as looker,
    ):
        await source.take_lease()
        for _ in range(5):
            await looker.execute(ATTEMPT, None)
        place = await source.tick()
        assert place is not None
        first = await source.page(place, 1)
        second = await source.page(first.place, 2)

        async def accept(connection: asyncpg.Connection, page) -> None:
            await connection.execute(
                "select fn_iu_trace_accepted('traces', $1::text::pg_snapshot, $2::text::xid8, $3, '0', $4, false, 1, 0, 0)",
                page.place.tick, *page.place.attempt, page.place.letter[1],
            )  # fmt: skip

        async with faster.transaction():
            await accept(faster, second)
            waiting = asyncio.create_task(accept(slower, first))
            await wait_until(lambda: blocked(looker, slower.get_server_pid()), "the slower one waits for the row")
        await waiting
        assert tuple(await looker.fetchrow(POSITION)) == (place.tick, *second.place.attempt)
        assert await looker.fetchval("select exported from iu_trace_cursor") == 2


# -- stamps of another history -------------------------------------------------------------------------------------


async def test_a_restored_transaction_number_causes_no_endless_ticks(live):
    """If a restored attempt has the number of a transaction that is in progress here, it does not cause endless ticks.

    Fails when: transactions in progress are looked up, too.
    """
    async with tracing(live.dsn) as source, connected(live.dsn) as connection, connected(live.dsn) as late:
        await source.take_lease()
        await late.execute("begin")
        number = await late.fetchval("select pg_current_xact_id()::text")
        await connection.execute(ATTEMPT, number)
        await connection.execute(ATTEMPT, None)
        assert await exported(source) == 1
        assert await source.tick() is None
        await late.execute("commit")
        assert await exported(source) == 1
        assert await source.tick() is None


async def test_restored_attempts_do_not_delay_retention(live):
    """After a restore into lower transaction ids and a reanchor, a restored event with its attempts may be removed.

    Fails when: attempts with stamps that this cluster has not reached wait for an export.
    """
    async with tracing(live.dsn) as source, connected(live.dsn) as connection:
        await source.take_lease()
        event = await insert_event(connection)
        await drain(connection)
        assert await connection.fetchval("select fn_iu_retention_releasable($1)", event) is False
        await connection.execute(BEYOND)
        await restored(connection)
        await open_gate(live.dsn, "false")
        await reanchor(connection)
        assert await connection.fetchval("select fn_iu_retention_releasable($1)", event) is True


async def test_a_second_reanchor_reports_only_the_current_history(live):
    """A second reanchor gives the time of the oldest unexported attempt of the current history only, or none.

    Fails when: attempts that the first reanchor covered count again, by their stamps or by the time of the last export.
    """
    async with tracing(live.dsn) as source, connected(live.dsn) as connection:
        await source.take_lease()
        for left_over in (False, True):
            await insert_event(connection)
            await drain(connection)
            if not left_over:
                await exported(source)
        await connection.execute(BEYOND)
        oldest = await connection.fetchval("select min(created_at) from iu_route_attempt")
        await restored(connection)
        await open_gate(live.dsn, "false")
        assert datetime.fromisoformat((await reanchor(connection))["traces_since"]) == oldest
        assert (await reanchor(connection, force=True))["traces_since"] is None

        await connection.execute(ATTEMPT, None)
        new = await connection.fetchval("select max(created_at) from iu_route_attempt")
        anchored = await connection.fetchval("select created_at from iu_outbox_anchor")
        await restored(connection)
        told = datetime.fromisoformat((await reanchor(connection))["traces_since"])
        assert anchored <= told <= new


async def test_attempts_of_another_history_link_to_no_batch(live):
    """An attempt links to its batch only if it was written in the current history, because
    the link contains the lineage.

    Fails when: the current lineage is used for restored attempts.
    """
    async with tracing(live.dsn) as source, connected(live.dsn) as connection:
        await source.take_lease()
        await insert_event(connection)
        await drain(connection)
        await connection.execute(BEYOND)
        await restored(connection)
        await open_gate(live.dsn, "false")
        since = datetime.fromisoformat((await reanchor(connection))["traces_since"])
        await open_gate(live.dsn)
        event = await insert_event(connection)
        await drain(connection)
        place = await source.place_since(since)
        spans = [s for s in (await source.page(place, 100)).spans if s.name.startswith("process")]
        links = {span.trace_id == event.hex: len(span.links) for span in spans}
        assert links == {True: 2, False: 1}
        made_by = await connection.fetchval("select xact_id from iu_route_attempt where event_ref = $1", event)
        (own,) = (span for span in spans if span.trace_id == event.hex)
        assert own.links[1] == batch_link(place.lineage, made_by)


async def test_a_foreign_stamp_gives_no_commit_time(live):
    """If the stamp of an event belongs to another transaction, that transaction's commit
    time is not used for the event.

    Otherwise the event would be committed after it was decided.

    Fails when: the commit time of a transaction is used without a check.
    """
    async with tracing(live.dsn) as source, connected(live.dsn) as connection:
        if await connection.fetchval("show track_commit_timestamp") == "off":
            pytest.skip("this server does not note commits")
        await source.take_lease()
        event = await insert_event(connection)
        await drain(connection)
        async with connection.transaction():
            later = await connection.fetchval("select pg_current_xact_id()::text")
        await connection.execute("alter table event_outbox disable trigger user")
        await connection.execute("update event_outbox set xact_id = $1::text::xid8", later)
        row = await connection.fetchrow("select commit_at > finished_at as foreign from v_iu_trace_attempt")
        assert row["foreign"]
        place = await source.tick()
        assert place is not None
        for spans in ((await source.page(place, 10)).spans, await life(connection, str(event))):
            sent, attempt = sorted(spans, key=lambda span: span.kind)
            assert (sent.name[:4], attempt.name[:7]) == ("send", "process")
            assert sent.start <= sent.end <= attempt.start < attempt.end
