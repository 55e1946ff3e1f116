"""A streaming standby: it takes over, it is not used before its promotion, and it may delay commits of its primary."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import anyio
import pytest
from structlog.testing import capture_logs

from clusters import psql
from faults.load import append_events, check_each_event_once, wait_for_more_events, wait_until_attempted
from faults.standby import promote, standby_of, suspended, synchronous
from iu_listen.model.observation import BatchRan, Observation, SessionFailed, StateChanged
from iu_listen.model.routing import State
from iu_listen.postgres.listener import LISTENER_SLOTS
from iu_listen.telemetry.logs import LogObserver
from postgres.listener_helpers import NO_CATCH_UP, count_armed_locks, count_shared_locks, wait_until_armed
from proxy import Proxy
from support import WORKER, Recorder, connected, consuming, insert_event, wait_until

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

COLUMNS = "event_domain, event_type, event_stream, delivery_lane"
VALUES = "'iu', 'version_applied', 'update', 'immediate'"


@asynccontextmanager
async def following(primary) -> AsyncIterator:
    """A standby of the primary for the length of a block."""
    with standby_of(primary, wal_retrieve_retry_interval="100ms") as standby:
        yield standby


@asynccontextmanager
async def path_to(server) -> AsyncIterator[Proxy]:
    """A proxy to the database that can be redirected, as the host name of a cluster can."""
    async with Proxy(server.tcp_dsn()).running() as proxy:
        yield proxy


async def fail_over(primary, standby, *paths: Proxy) -> None:
    """Stop the primary at once, promote the standby, and redirect every proxy to it."""
    await asyncio.to_thread(primary.stop, "immediate")
    await asyncio.to_thread(promote, standby)
    for path in paths:
        path.lead_to(standby.tcp_dsn())
        path.reset()


def refusals(seen: Recorder) -> list[Observation]:
    """The observations that the consumer refuses to work."""
    return [o for o in seen.of(StateChanged) if o.state is State.REFUSING]


async def test_a_promoted_standby_continues_at_the_position_of_the_primary(primary):
    """After two failovers under load no acknowledged event is lost, none is routed twice, and nothing is refused.

    Fails when: the cursor is not kept in the database, or the anchor treats a promoted standby as a foreign history.
    """
    acknowledged: list[UUID] = []
    over = asyncio.Event()
    async with (
        path_to(primary) as path,
        following(primary) as second,
        consuming(path.dsn, reconnect_max=0.5) as seen,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(4):
            tasks.start_soon(append_events, path.dsn, over, acknowledged)
        async with synchronous(primary):
            await wait_for_more_events(acknowledged, 100)
            await fail_over(primary, second, path)
        await wait_for_more_events(acknowledged, 100)
        async with following(second) as third:
            async with synchronous(second):
                await wait_for_more_events(acknowledged, 100)
                await fail_over(second, third, path)
            await wait_for_more_events(acknowledged, 100)
            over.set()
            assert set(acknowledged) <= await check_each_event_once(third.tcp_dsn())
            assert refusals(seen) == []
            assert psql(third, "select left(pg_walfile_name(pg_current_wal_lsn()), 8)") == "00000003"


@pytest.mark.slow
async def test_a_standby_server_is_reported_until_its_promotion(primary):
    """A consumer that is redirected to a standby reports it about once a second, and works after the promotion.

    Fails when: the consumer does not check whether the server accepts writes.
    """
    async with path_to(primary) as path, following(primary) as standby, synchronous(primary):
        path.lead_to(standby.tcp_dsn())
        async with connected(primary.tcp_dsn()) as writer:
            events = {await insert_event(writer) for _ in range(20)}
        began = time.monotonic()
        recorder = Logging()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_consume, path.dsn, recorder, over := anyio.Event())

            async def said(times: int) -> bool:
                return len(recorder.of(SessionFailed)) >= times

            await wait_until(lambda: said(10), "it says again and again that it finds a standby", 60)
            took = time.monotonic() - began
            failed = recorder.of(SessionFailed)
            assert {(f.session, f.why) for f in failed} == {("worker", "the server takes no writes: it is a standby")}
            # The first five tries come within a second, because most outages are short; then about one a second.
            assert len(failed) <= 5 + 2 * took
            assert recorder.of(BatchRan) == []
            # The log has the same message once a minute.
            assert [line["event"] for line in recorder.lines] == ["started", "session failed"]

            await fail_over(primary, standby)
            promoted = time.monotonic()
            await recorder.wait_for(BatchRan, lambda b: b.batch.seen)
            assert time.monotonic() - promoted < 4
            assert await check_each_event_once(standby.tcp_dsn()) == events
            over.set()


class Logging(Recorder):
    """A recorder that also writes the log, as the consumer does, and keeps its lines."""

    def __init__(self) -> None:
        super().__init__()
        with capture_logs() as self.lines:
            self._log = LogObserver()

    def observe(self, observation: Observation, /) -> None:
        with capture_logs() as lines:
            self._log.observe(observation)
        self.lines += lines
        super().observe(observation)


async def _consume(dsn: str, recorder: Recorder, over: anyio.Event) -> None:
    async with consuming(dsn, recorder=recorder, reconnect_max=2):
        await over.wait()


@pytest.mark.slow
@pytest.mark.parametrize("idle", [True, False], ids=["nothing-to-do", "events-wait"])
async def test_the_run_refuses_on_a_standby(primary, idle):
    """On a standby the run answers "standby" and does nothing, with and without events.

    Fails when: fn_iu_outbox_refusal does not check pg_is_in_recovery().
    """
    async with following(primary) as standby, synchronous(primary):
        async with connected(primary.tcp_dsn()) as writer:
            # Within two seconds of a run, a run without events takes no lock, so no other check would stop it.
            await writer.fetchval("select fn_iu_route_worker_run($1)", WORKER)
            if not idle:
                await insert_event(writer)
        async with connected(standby.tcp_dsn()) as reader:
            answer = json.loads(await reader.fetchval("select fn_iu_route_worker_run($1)::text", WORKER))
        assert (answer["status"], answer["reason"], answer["seen"]) == ("standby", "standby", 0)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["crash", "promotion"])
async def test_a_prepared_transaction_survives_crash_and_failover(primary, fault):
    """A transaction that was prepared before a crash or a failover is routed when it commits, and is not lost.

    Fails when: the cursor regards prepared transactions as ended, for example because it reads the running sessions.
    """
    statement = f"""begin;
        insert into event_outbox (id, {COLUMNS}) values ('{{id}}', {VALUES});
        prepare transaction '{{name}}'"""
    in_progress = """
        select count(*) = 2 from pg_prepared_xacts, iu_route_worker_cursor c
         where not pg_visible_in_snapshot(transaction::text::xid8, c.prev)"""
    kept, dropped = uuid4(), uuid4()
    async with (
        path_to(primary) as path,
        following(primary) as standby,
        synchronous(primary),
        consuming(path.dsn, reconnect_max=0.5, catch_up=1) as seen,
    ):
        async with connected(path.dsn) as writer:
            await writer.execute(statement.format(id=kept, name="kept"))
            await writer.execute(statement.format(id=dropped, name="dropped"))
            assert await count_shared_locks(writer) == 0
            # The cursor passes both prepared transactions.
            before = await insert_event(writer)
            await wait_until_attempted(writer, before)
            assert await writer.fetchval(in_progress)
        if fault == "crash":
            await asyncio.to_thread(primary.stop, "immediate")
            await asyncio.to_thread(primary.start)
        else:
            await fail_over(primary, standby, path)
        async with connected(path.dsn) as writer:
            after = await insert_event(writer)
            await wait_until_attempted(writer, after)
            await writer.execute("rollback prepared 'dropped'")
            await writer.execute("commit prepared 'kept'")
            # COMMIT PREPARED sends no NOTIFY, so the catch-up poll finds the event.
            await wait_until_attempted(writer, kept, within=5)
        there = primary if fault == "crash" else standby
        assert await check_each_event_once(there.tcp_dsn()) == {before, after, kept}
        assert refusals(seen) == []


#: One commit waits for the standby, the others for that commit, because NOTIFY holds a lock until the commit.
STALLED = "select count(*) = 5 from pg_stat_activity where state = 'active' and wait_event in ('SyncRep', 'object')"


async def test_commits_stalled_by_a_standby_lose_no_event(primary):
    """While a synchronous standby stands still, commits wait and are invisible; then the bell announces each at once.

    Fails when: a producer releases the bell lock before its event is visible, or the consumer is idle without that
    lock.
    """
    dsn = primary.tcp_dsn()
    visible: list[UUID] = []
    waits: list[float] = []

    async def write_one() -> None:
        async with connected(dsn) as writer:
            visible.append(event := await insert_event(writer))
            began = time.monotonic()
            await wait_until_attempted(writer, event)
            waits.append(time.monotonic() - began)

    async with (
        following(primary) as standby,
        synchronous(primary),
        connected(dsn) as admin,
        consuming(dsn, **NO_CATCH_UP),
        anyio.create_task_group() as tasks,
    ):
        for done in (0, 5, 10):
            await wait_until_armed(admin)
            with suspended(standby):
                for _ in range(5):
                    tasks.start_soon(write_one)
                await wait_until(lambda: admin.fetchval(STALLED), "five commits wait")
                assert len(visible) == done

            async def all_routed(so_many: int = done + 5) -> bool:
                return len(waits) == so_many

            await wait_until(all_routed, "five events are routed")
        assert await check_each_event_once(dsn) == set(visible)
    print(
        f"{len(waits)} events behind a stalled standby waited {statistics.median(waits) * 1000:.0f} ms, {max(waits) * 1000:.0f} ms at most, once visible"
    )
    # A notification takes 100 ms on an idle machine. Without it the event would wait for the catch-up poll, far longer.
    assert max(waits) < 1


@pytest.mark.slow
async def test_a_stalled_commit_without_notify_prevents_arming(primary):
    """A stalled commit of a producer that sent no NOTIFY keeps the consumer unarmed; then its event is found at once.

    Fails when: the producer's lock is released before the commit is visible, so that the consumer becomes idle.
    """
    dsn = primary.tcp_dsn()
    # The consumer's own commits do not wait, so that it keeps polling while those of the producers wait.
    local = f"{dsn}?synchronous_commit=local"
    rhythm = {"linger": 2, "busy_interval": 0.02}
    async with (
        following(primary) as standby,
        synchronous(primary),
        connected(dsn) as admin,
        consuming(local, **NO_CATCH_UP, **rhythm) as seen,
        anyio.create_task_group() as tasks,
    ):
        await admin.execute(f"insert into event_outbox ({COLUMNS}) select {VALUES} from generate_series(1, 20)")
        await seen.wait_for(BatchRan, lambda b: b.batch.seen == 20)
        waits: list[float] = []

        async def write_one() -> None:
            async with connected(dsn) as writer:
                event = await insert_event(writer)
                began = time.monotonic()
                await wait_until_attempted(writer, event)
                waits.append(time.monotonic() - began)

        with suspended(standby):
            for _ in range(3):
                tasks.start_soon(write_one)

            async def all_silent() -> bool:
                return await count_shared_locks(admin) == 3 * len(LISTENER_SLOTS)

            await wait_until(all_silent, "three commits wait, and nobody was told")
            looks = len(seen.of(BatchRan))

            async def awake_beyond_linger() -> bool:
                return len(seen.of(BatchRan)) > looks + rhythm["linger"] / rhythm["busy_interval"] + 40

            await wait_until(awake_beyond_linger, "it tries to arm in vain, and looks again and again", 30)
            assert await count_armed_locks(admin) == 0
            assert not waits

        async def all_routed() -> bool:
            return len(waits) == 3

        await wait_until(all_routed, "three events are routed")
        assert max(waits) < 1
        await wait_until_armed(admin)
