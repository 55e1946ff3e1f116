"""A full disk: the batch fails as a whole and is repeated, and no event becomes a dead letter."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import UUID

import anyio
import asyncpg
import pytest

from clusters import psql
from faults.disk import filled_disk, small_filesystem, tables_in, unavailable, wal_in
from faults.load import append_events, check_each_event_once, wait_for_more_events
from iu_listen.embedded.keeper import EmbeddedError, Server, server_account
from iu_listen.model.observation import BatchRan, SessionFailed, StateChanged
from iu_listen.model.routing import State
from support import Recorder, connected, consuming, open_gate, wait_until

pytestmark = [pytest.mark.asyncio, pytest.mark.slow, pytest.mark.skipif(bool(unavailable()), reason=unavailable())]

#: As many events as a large batch.
MANY = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
    select 'iu', 'version_applied', 'update', 'immediate' from generate_series(1, 2000)"""


async def nothing_given_up(dsn: str) -> None:
    """Assert that no event became a dead letter."""
    async with connected(dsn) as connection:
        assert await connection.fetchval("select count(*) from iu_route_dead_letter") == 0


async def refused(seen: Recorder, times: int) -> None:
    """Wait until the consumer has reported that often that the disk is full."""

    async def said() -> bool:
        return sum("53100" in f.why for f in seen.of(SessionFailed)) >= times

    await wait_until(said, "it says that the disk is full", 30)


async def down_again(server: Server) -> bool:
    """Whether the server has panicked again, or is down, after a start on a full disk."""
    return server.pid() is None or server.log.read_text().count("PANIC") > 1


async def test_a_full_disk_for_attempts_delays_events_without_dead_letters(primary):
    """Without space for attempts the batch fails as a whole; with space, everything is routed without an operator.

    Fails when: the SQLSTATE filter is removed from the run, so that events become dead letters; or Refused ends it.
    """
    dsn = primary.tcp_dsn()
    with small_filesystem(16, server_account(primary.data)) as place, tables_in(primary, place, "iu_route_attempt"):
        async with connected(dsn) as writer, consuming(dsn, reconnect_max=0.5) as seen:
            with filled_disk(place):
                # Producers are not affected, because the outbox has space.
                for _ in range(3):
                    await writer.execute(MANY)
                await refused(seen, 3)
                assert sum(b.batch.seen for b in seen.of(BatchRan)) < 6000
            assert len(await check_each_event_once(dsn)) == 6000
        await nothing_given_up(dsn)


async def test_a_full_disk_for_tables_loses_no_committed_event(primary):
    """Without space for events, producers fail, too; with space, they continue, and all committed events are routed.

    More events wait behind the closed gate than their attempts have space for in allocated pages: otherwise, because
    the full disk also stops the producers, a consumer without a backlog would never be refused.
    """
    dsn = primary.tcp_dsn()
    acknowledged: list[UUID] = []
    over = asyncio.Event()
    with (
        small_filesystem(32, server_account(primary.data)) as place,
        tables_in(primary, place, "event_outbox", "iu_route_attempt", "iu_route_worker_cursor"),
    ):
        async with (
            consuming(dsn, reconnect_max=0.5) as seen,
            anyio.create_task_group() as tasks,
            connected(dsn) as bulk,
        ):
            for _ in range(4):
                tasks.start_soon(append_events, dsn, over, acknowledged)
            await wait_for_more_events(acknowledged, 100)
            await open_gate(dsn, "false")
            await seen.wait_for(StateChanged, lambda changed: changed.state is State.GATE_CLOSED)
            for _ in range(3):
                await bulk.execute(MANY)
            with filled_disk(place):
                with pytest.raises(asyncpg.DiskFullError):
                    for _ in range(100):
                        await bulk.execute(MANY)
                await open_gate(dsn)
                await refused(seen, 1)
            await wait_for_more_events(acknowledged, 100)
            over.set()
            events = await check_each_event_once(dsn)
            assert set(acknowledged) <= events
            assert len(events) >= 6000 + len(acknowledged)
        await nothing_given_up(dsn)


async def test_a_full_disk_for_wal_stops_the_server_and_loses_no_committed_event(primary):
    """Without space for WAL the server panics; after it is started with space, all committed events are routed.

    A slot of a replica that never returns keeps the WAL: otherwise a checkpoint might free space as fast as it is used.
    """
    dsn = primary.tcp_dsn()
    acknowledged: list[UUID] = []
    over = asyncio.Event()
    with small_filesystem(96, server_account(primary.data)) as place, wal_in(primary, place):
        async with consuming(dsn, reconnect_max=0.5) as seen, anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(append_events, dsn, over, acknowledged)
            await wait_for_more_events(acknowledged, 100)
            psql(primary, "select pg_create_physical_replication_slot('gone', true)")
            with filled_disk(place):
                with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
                    async with connected(dsn) as bulk:
                        for _ in range(100):
                            await bulk.execute(MANY)
                assert "PANIC" in primary.log.read_text()
                # After a start, the server panics again soon or cannot even recover, so the start has no effect.
                await wait_until(lambda: down_again(primary), "it panics again, or is down", 30)
                with suppress(EmbeddedError):
                    await asyncio.to_thread(primary.start)
            await asyncio.to_thread(primary.start)
            psql(primary, "select pg_drop_replication_slot('gone')")
            await wait_for_more_events(acknowledged, 100)
            over.set()
            assert set(acknowledged) <= await check_each_event_once(dsn, 30)
            assert seen.of(SessionFailed)
        await nothing_given_up(dsn)
