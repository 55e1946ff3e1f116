"""Operations that keep a history: point-in-time recovery, physical copies, pg_upgrade, rewrites. None is refused."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import pytest

from clusters import cluster, copy_of, place, program, psql
from conftest import Database, TestServer
from history.past import EventHistory, assert_complete, create_event_history, planned_figures, reanchor, refusal
from iu_listen import embedded
from iu_listen.embedded.keeper import Server
from support import attempted, connected, drain, insert_event, open_gate, wait_until


async def goes_on(dsn: str, unread: list[UUID]) -> None:
    """Assert that the worker reads the unread events and a new one, and no others."""
    async with connected(dsn) as worker:
        assert await refusal(worker) is None
        before = len(await attempted(worker))
        assert await drain(worker, 3) == len(unread)
        assert set((await attempted(worker))[before:]) == set(unread)
        young = await insert_event(worker)
        assert await drain(worker) == 1
        assert (await attempted(worker))[-1] == young
        await assert_complete(worker)


@pytest.fixture
def past(server: TestServer) -> Database:
    """A database with a past on the shared server, which must be one that can be copied."""
    if server.embedded is None:
        pytest.skip("only a server of ours can be copied")
    yield from server.create(None)


@pytest.mark.slow
def test_a_physical_copy_continues_without_a_reanchor(past: Database):
    """A physical copy has the history of its original: it reads the unread events without a reanchor."""
    life = asyncio.run(create_event_history(past.dsn))
    with copy_of(past.server) as copy:
        copy.start()
        asyncio.run(goes_on(copy.dsn(past.dsn.split("@/")[1].split("?")[0]), list(life.unread)))


@pytest.mark.slow
def test_a_reanchor_on_a_standby_is_refused(past: Database):
    """A reanchor and its plan are refused on a standby, because its snapshots do not list transactions in progress."""
    life = asyncio.run(create_event_history(past.dsn))

    async def refused(dsn: str) -> None:
        async with connected(dsn) as reader:
            assert await refusal(reader) == "standby"
            for plan in (True, False):
                with pytest.raises(asyncpg.ReadOnlySQLTransactionError, match="this server is a standby"):
                    await reanchor(reader, plan=plan)

    with copy_of(past.server, signal="standby") as copy:
        copy.start()
        asyncio.run(refused(copy.dsn(past.dsn.split("@/")[1].split("?")[0])))
    assert life.unread


@pytest.mark.slow
@pytest.mark.parametrize("major", embedded.MAJORS)
def test_a_recovery_to_a_point_in_time_loses_no_event(major: int):
    """After a recovery to an earlier point the worker reads the events that the recovered
    cursor has not read, and loses none.

    The cursor returns to its state together with the events and the attempts, and it never contained the
    transaction ids that are used again.
    """

    async def until_the_point(dsn: str) -> EventHistory:
        life = await create_event_history(dsn)
        async with connected(dsn) as connection:
            await connection.fetchval("select pg_create_restore_point('here')")
        return life

    async def beyond_it(dsn: str) -> None:
        async with connected(dsn) as worker:
            await drain(worker)
            for _ in range(20):
                await insert_event(worker)
            assert await drain(worker) == 20
            done = await worker.fetchval("select pg_walfile_name(pg_switch_wal())")

            async def archived() -> bool:
                return await worker.fetchval("select last_archived_wal >= $1 from pg_stat_archiver", done)

            await wait_until(archived, "the WAL is archived")

    with cluster(major, archive_mode="on", archive_command="/bin/true") as server, place(server.data) as archive:
        psql(server, f"alter system set archive_command = 'cp %p {archive}/%f'; select pg_reload_conf()")
        recovery = {
            "restore_command": f"cp {archive}/%f %p", "recovery_target_name": "here",
            "recovery_target_action": "promote", "archive_mode": "off",
        }  # fmt: skip
        with copy_of(server, signal="recovery", **recovery) as copy:
            dsn = server.dsn()
            life = asyncio.run(until_the_point(dsn))
            asyncio.run(beyond_it(dsn))
            # The settings of ALTER SYSTEM are part of the copy.
            copy.start()
            asyncio.run(_promoted(copy))
            asyncio.run(goes_on(copy.dsn(), list(life.unread)))


async def _promoted(server: Server) -> None:
    async with connected(server.dsn()) as connection:

        async def writable() -> bool:
            return not await connection.fetchval("select pg_is_in_recovery()")

        await wait_until(writable, "the recovery has ended")


@pytest.mark.slow
def test_pg_upgrade_keeps_the_history():
    """pg_upgrade from 16 to 18 keeps the history: late, partly read and own events are read, and nothing is refused."""
    with place() as old_root, place() as new_root:
        with embedded.running(old_root, 16, durable=False) as old:
            life = asyncio.run(create_event_history(old.dsn()))
        with embedded.running(new_root, 18, durable=False) as new:
            psql(new, "drop database iu")
        with place(new.data) as work:
            program(
                new, "pg_upgrade", "-b", old.bin, "-B", new.bin, "-d", old.data, "-D", new.data, "-U", "postgres",
                "-s", work, cwd=work,
            )  # fmt: skip
        with embedded.running(new_root, 18, durable=False) as new:
            asyncio.run(goes_on(new.dsn(), list(life.unread)))


# -- rewrites -----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "command",
    [
        "vacuum freeze {table}", "vacuum full {table}", "vacuum (full, freeze) {table}", "cluster {table} using {table}_pkey",
    ],
)  # fmt: skip
async def test_vacuum_and_cluster_keep_the_history(live, command: str):
    """VACUUM and CLUSTER of anchor, events and cursors keep xmin, and so the history."""
    async with connected(live.dsn) as worker:
        await insert_event(worker)
        assert await drain(worker) == 1
        unread = await insert_event(worker)
        for table in ("iu_outbox_anchor", "event_outbox", "iu_route_worker_cursor"):
            await worker.execute(command.format(table=table))
        assert await refusal(worker) is None
        assert await drain(worker) == 1
        assert (await attempted(worker))[-1] == unread


@pytest.mark.asyncio
@pytest.mark.parametrize("events_too", [True, False], ids=["everything", "only the anchor"])
async def test_a_rewritten_anchor_causes_a_refusal(live, events_too: bool):
    """A rewrite of the anchor causes a refusal, because it looks like a restore; the
    reanchor loses and repeats no event.

    If the events were rewritten too, as by pg_repack, none is uncertain; otherwise all events that were read are.
    """
    async with connected(live.dsn) as worker:
        events = [await insert_event(worker) for _ in range(3)]
        assert await drain(worker) == 3
        events.append(await insert_event(worker))
        for table in ["iu_outbox_anchor", *(["event_outbox"] if events_too else [])]:
            await worker.execute(
                f"""alter table {table} add column rewrites timestamptz default clock_timestamp();
                    alter table {table} drop column rewrites"""
            )
        assert await refusal(worker) == "foreign_history"
        events.append(await insert_event(worker))
        plan = await planned_figures(worker)
        assert (plan["unread"], plan["uncertain"], plan["past"]) == (2, 0 if events_too else 3, 0)
        await open_gate(live.dsn, "false")
        await reanchor(worker)
        await open_gate(live.dsn)
        assert await drain(worker) == plan["again"]
        assert await attempted(worker) == events
        await assert_complete(worker)
