"""Sessions of a consumer that are ended, and consumers that are cancelled: no event is lost."""

from __future__ import annotations

import statistics
import time
from uuid import uuid4

import anyio
import psutil
import pytest

from iu_listen.model.observation import (
    BatchRan,
    Listening,
    SessionFailed,
)
from iu_listen.model.settings import Settings
from iu_listen.postgres.earlier_sessions import EarlierSessions
from iu_listen.postgres.worker import worker_session
from postgres.listener_helpers import NO_CATCH_UP, wait_until_armed
from postgres.session_helpers import TERMINATE_SESSION, BackgroundConsumer, has_observed, wait_until_routed
from support import WORKER, Recorder, attempted, connected, consuming, drain, insert_event, wait_until

pytestmark = pytest.mark.asyncio


async def test_an_ended_worker_session_still_has_its_process_id(live):
    """The monitor reads the process id while a batch waits, also when the session has just ended.

    Fails when: the driver is asked for it each time, so that an AttributeError ends the consumer.
    """
    settings = Settings.load({}, {"dsn": live.dsn})
    async with worker_session(settings, uuid4(), "0", EarlierSessions()) as session:
        assert session.backend > 0
        session.abandon("the test ends it")
        await anyio.sleep(0)
        assert session.backend > 0


@pytest.mark.parametrize(("session_name", "kind"), [("worker", "worker"), ("listener", "listener")])
async def test_a_terminated_session_is_replaced(live, session_name, kind):
    """A session that an administrator ends is replaced automatically, and no event is lost or routed twice.

    Fails when: a loss of that session ends its loop, or the first batch after it is taken out.
    """
    events, name = [], f"iu-listen {session_name} {WORKER}"
    async with connected(live.dsn) as admin, consuming(live.dsn, **NO_CATCH_UP) as seen:
        for n in range(1, 6):
            await wait_until_armed(admin)
            assert await admin.fetchval(TERMINATE_SESSION, name) == 1
            events.append(await insert_event(admin))
            await wait_until(lambda n=n: has_observed(seen, SessionFailed, n), "the loss is noticed")
            await wait_until_routed(admin, events, within=5)
            await wait_until(lambda n=n: has_observed(seen, Listening, n + 1), "it listens again")
        assert {f.session for f in seen.of(SessionFailed)} == {kind}
        await wait_until_armed(admin)
        events.append(await insert_event(admin))
        await wait_until_routed(admin, events, within=5)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_a_listener_session_is_replaced_each_of_a_hundred_times(live):
    """A listener session that is ended a hundred times is replaced each time, leaks no
    session or file, and still wakes.

    Fails when: an attempt to open it leaks a resource, or its loss ends the loop that keeps it.
    """
    rounds = 100
    sessions = (
        "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'iu-%'"
    )
    async with connected(live.dsn) as admin, consuming(live.dsn, **NO_CATCH_UP, reconnect_max=0.1) as seen:
        files, before = psutil.Process().num_fds(), await wait_until(lambda: admin.fetchval(sessions), "it is there")
        for n in range(1, rounds + 1):
            assert await admin.fetchval(TERMINATE_SESSION, f"iu-listen listener {WORKER}") == 1
            await wait_until(lambda n=n: has_observed(seen, Listening, n + 1), "it listens again")
        await wait_until_armed(admin)
        event = await insert_event(admin)
        await wait_until_routed(admin, [event], within=5)
        assert {f.session for f in seen.of(SessionFailed)} == {"listener"}
        assert len(seen.of(SessionFailed)) == rounds
        assert await admin.fetchval(sessions) <= before + 1
        assert psutil.Process().num_fds() <= files + 2


async def test_a_late_commit_is_routed_by_a_running_consumer(live):
    """An event whose transaction outlived the routing of later events is routed within
    100 ms (median) after its commit.

    Fails when: the cursor goes by created_at or event_seq, or no notification is sent for such an event.
    """
    took = []
    async with connected(live.dsn) as late, connected(live.dsn) as others, consuming(live.dsn, **NO_CATCH_UP) as seen:
        events = []
        for _ in range(5):
            transaction = late.transaction()
            await transaction.start()
            old = await insert_event(late)
            xid = await late.fetchval("select xact_id::text from event_outbox where id = $1", old)
            events += [await insert_event(others) for _ in range(10)]
            await wait_until_routed(others, events)
            passed = "select pg_snapshot_xmax(prev) > $1::text::xid8 from iu_route_worker_cursor"
            assert await others.fetchval(passed, xid)
            await wait_until_armed(others)
            events.append(old)
            looks = len(seen.of(BatchRan))
            await transaction.commit()
            committed = time.monotonic()
            await wait_until(lambda looks=looks: batch_found_event(seen, looks), "the late one is routed")
            took.append(time.monotonic() - committed)
            await wait_until_routed(others, events)
    assert statistics.median(took) < 0.1


async def batch_found_event(seen, looks: int) -> bool:
    return any(b.batch.seen for b in seen.of(BatchRan)[looks:])


async def test_a_cancelled_consumer_ends_at_once_and_loses_no_event(live):
    """A consumer that is cancelled while its batch waits for a lock ends at once, and its event is decided once later.

    Fails when: the batch is shielded, so that neither the grace period nor a second signal could end it.
    """
    one = BackgroundConsumer(live.dsn, Recorder(), **NO_CATCH_UP)
    async with connected(live.dsn) as blocker, connected(live.dsn) as admin:
        event = await insert_event(admin)
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute("lock table iu_route_attempt in exclusive mode")
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.consumer.run)
                waits = """select count(*) = 1 from pg_stat_activity where datname = current_database()
                            and application_name like 'iu-listen worker%' and wait_event_type = 'Lock'"""
                await wait_until(lambda: admin.fetchval(waits), "the batch waits")
                tasks.cancel_scope.cancel()
        await transaction.commit()
        await drain(admin)
        assert await attempted(admin) == [event]
