"""The sessions of a consumer: their names, their loss, the change of the lease holder, and the heartbeat."""

from __future__ import annotations

import asyncio
import os
import select
import statistics
import time
import warnings
from collections import Counter
from typing import Any

import anyio
import asyncpg
import psutil
import pytest

from iu_listen.app import PostgresSessions
from iu_listen.flow.consumer import ConsumerLoop
from iu_listen.install import migrate
from iu_listen.model.errors import NoAnswer, Refused, SessionLost
from iu_listen.model.observation import (
    BatchRan,
    LeaseTaken,
    Listening,
    Polling,
    SessionFailed,
    StandingBy,
    Stopped,
)
from iu_listen.model.routing import State, Tally
from iu_listen.model.settings import Settings
from iu_listen.postgres.session import ask, session
from postgres.listener_helpers import ONLY_THE_BELL, sleep_sets_in
from support import WORKER, Recorder, attempted, connected, consuming, drain, insert_event, open_gate, wait_until

pytestmark = pytest.mark.asyncio

KILL = """
    select count(pg_terminate_backend(pid)) from pg_stat_activity
     where datname = current_database() and application_name = $1"""


async def routed(connection, events, within: float = 15) -> None:
    async def all_there() -> bool:
        return len(await attempted(connection)) >= len(events)

    await wait_until(all_there, f"{len(events)} events are attempted", within)
    assert Counter(await attempted(connection)) == Counter(events)


@pytest.mark.parametrize(("session_name", "kind"), [("worker", "worker"), ("bell", "bell")])
async def test_a_killed_session_is_replaced(live, session_name, kind):
    """A session that an administrator ends is replaced automatically, and no event is lost or routed twice.

    Fails when: a loss of that session ends its loop, or the first batch after it is taken out.
    """
    events, name = [], f"iu-listen {session_name} {WORKER}"
    async with connected(live.dsn) as admin, consuming(live.dsn, **ONLY_THE_BELL) as seen:
        for n in range(1, 6):
            await sleep_sets_in(admin)
            assert await admin.fetchval(KILL, name) == 1
            events.append(await insert_event(admin))
            await wait_until(lambda n=n: _count(seen, SessionFailed, n), "the loss is noticed")
            await routed(admin, events, within=5)
            await wait_until(lambda n=n: _count(seen, Listening, n + 1), "it listens again")
        assert {f.session for f in seen.of(SessionFailed)} == {kind}
        await sleep_sets_in(admin)
        events.append(await insert_event(admin))
        await routed(admin, events, within=5)


async def _count(seen, kind: type, at_least: int) -> bool:
    return len(seen.of(kind)) >= at_least


class Standby:
    """A second consumer, as a task of the test."""

    def __init__(self, dsn: str, recorder, **settings) -> None:
        loaded = Settings.load({}, {"dsn": dsn, **settings})
        self.recorder = recorder
        self.consumer = ConsumerLoop(loaded, PostgresSessions(loaded), recorder)


async def test_a_standby_takes_over_from_one_that_stops(live):
    """When the lease holder stops, the standby takes the lease, reports it, and routes new events.

    Fails when: a standby does not try again.
    """
    standby = Standby(live.dsn, Recorder(), **ONLY_THE_BELL)
    async with connected(live.dsn) as admin, anyio.create_task_group() as tasks:
        async with consuming(live.dsn, **ONLY_THE_BELL):
            tasks.start_soon(standby.consumer.run)
            told = await standby.recorder.wait_for(StandingBy)
            holder = """select format('pid %s, %s', pid, application_name) from pg_stat_activity
                         where pid = (select pid from pg_locks where locktype = 'advisory' and classid = 726003
                         and database = (select oid from pg_database where datname = current_database()))"""
            assert told.holder.startswith(await admin.fetchval(holder))

            async def beaten() -> bool:
                return (await _heartbeat(admin))["state_detail"] == told.holder

            await wait_until(beaten, "the standby beats, and says behind whom it stands")
            events = [await insert_event(admin)]
            await routed(admin, events)
            assert not standby.recorder.of(LeaseTaken)
        left = time.monotonic()
        await standby.recorder.wait_for(LeaseTaken)
        assert time.monotonic() - left < 2
        events.append(await insert_event(admin))
        await routed(admin, events)
        standby.consumer.stop("end of test")
        await standby.recorder.wait_for(Stopped)
        assert len(standby.recorder.of(StandingBy)) == 1


async def test_a_frozen_holder_loses_the_lease(live):
    """The server ends the session of a lease holder that sends nothing for the duration of the lease.

    Another consumer then takes the lease.

    Fails when: idle_session_timeout is taken out of the worker session.
    """
    async with PostgresSessions(
        Settings.load({}, {"dsn": live.dsn, "session_timeout": 1, "catch_up": 0.5})
    ).worker() as frozen:
        assert await frozen.take_lease() is None
        async with consuming(live.dsn, **ONLY_THE_BELL) as seen:
            assert seen.of(StandingBy)
            assert seen.of(LeaseTaken)
        with pytest.raises(SessionLost):
            await frozen.run_batch(1)


async def freeze(connection: asyncpg.Connection, until: float) -> None:
    """Block the event loop from the sending of a statement until its answer can be read and the clock reaches `until`.

    `until` is a time of the monotonic clock, in seconds.
    """
    await asyncio.sleep(0)
    fileno = connection._transport.get_extra_info("socket").fileno()
    readable, _, _ = select.select([fileno], [], [], 5)
    assert readable
    time.sleep(max(0.0, until - time.monotonic()))


@pytest.mark.both_loops
@pytest.mark.parametrize(("deadline", "lost"), [(0.2, NoAnswer), (20, SessionLost)])
async def test_a_session_that_ends_between_the_two_steps_of_a_statement_is_lost(live, deadline, lost):
    """If a deadline or another task ends the session between the two steps of a statement, only the session is lost.

    The driver first parses a statement and then binds it.

    Fails when: the error that the driver raises then ends the consumer, for example a frozen consumer that goes on.
    """
    for _ in range(20):
        async with session(live.dsn, name="a test") as connection:
            asked = asyncio.create_task(ask(connection, deadline, "select 1"))
            await freeze(connection, until=time.monotonic() + 0.3)
            await asyncio.sleep(0)
            if lost is SessionLost:
                # After the answer is read, and before the waiting task gets it; a loaded server may have sent both
                # answers by then.
                asyncio.get_running_loop().call_soon(connection.terminate)
            (answer,) = await asyncio.gather(asked, return_exceptions=True)
            if answer != 1:
                assert type(answer) is lost
                assert connection.is_closed()
                return
    pytest.fail("the session was never ended between the two steps")


@pytest.mark.both_loops
async def test_an_answer_that_has_arrived_counts_although_the_deadline_is_over(live):
    """If a process was suspended and finds both the answer and an expired deadline, the
    answer counts and the session stays.

    Fails when: the deadline ends the session before the answer that was read is processed.
    """
    async with session(live.dsn, name="a test") as connection:
        for statement, said in (("select 1", "1"), ("select 1 / 0", "division by zero")):
            asked = asyncio.create_task(
                ask(connection, 0.2, await connection.prepare(statement + " + $1::int - $1"), 0)
            )
            await freeze(connection, until=time.monotonic() + 0.3)
            try:
                answer = str(await asked)
            except Refused as refused:
                answer = refused.message
            assert said in answer
        assert await ask(connection, 5, "select 2") == 2


@pytest.mark.both_loops
async def test_what_is_not_answered_in_time_is_called_that(live):
    """A deadline of any length ends the session, and the error names the deadline.

    Fails when: a clock is compared to find out whether the deadline was the cause, because a loop that counts whole
    milliseconds may act up to one early.
    """
    for deadline in (0.0001, 0.0104, 0.0208, 0.0302, 0.0403):
        async with session(live.dsn, name="a test") as connection:
            with pytest.raises(NoAnswer, match=f"no answer within {deadline:g} s"):
                await ask(connection, deadline, await connection.prepare("select pg_sleep(5)"))
            assert connection.is_closed()


async def test_sessions_say_who_they_are(live):
    """pg_stat_activity names every session by its purpose and its worker, and none is in a transaction."""
    async with connected(live.dsn) as admin, consuming(live.dsn, completeness_interval=0, **ONLY_THE_BELL):
        await sleep_sets_in(admin)

        async def sessions() -> Any:
            rows = await admin.fetch(
                """select application_name, state from pg_stat_activity
                    where datname = current_database() and application_name like 'iu-listen%' order by 1"""
            )
            return [tuple(row) for row in rows] == [
                (f"iu-listen bell {WORKER}", "idle"),
                (f"iu-listen patrol {WORKER}", "idle"),
                (f"iu-listen worker {WORKER}", "idle"),
            ]

        await wait_until(sessions, "there is a session for the bell, one for the patrol and one for the work")


async def test_a_session_reads_and_writes_in_one_style(live):
    """A session sets time zone, styles and digits itself, regardless of the settings of the database.

    Fails when: a session takes them from the role or the database.
    """
    styles = {
        "TimeZone": ("'America/Sao_Paulo'", "UTC"),
        "DateStyle": ("'SQL, DMY'", "ISO, MDY"),
        "IntervalStyle": ("'sql_standard'", "postgres"),
        "bytea_output": ("'escape'", "hex"),
        "extra_float_digits": ("-15", "1"),
        "quote_all_identifiers": ("on", "off"),
        "standard_conforming_strings": ("off", "on"),
        "transform_null_equals": ("on", "off"),
        "array_nulls": ("off", "on"),
    }
    async with connected(live.dsn) as admin:
        name = await admin.fetchval("select current_database()")
        for setting, (theirs, _) in styles.items():
            await admin.execute(f"alter database {name} set {setting} = {theirs}")
    async with session(live.dsn, name="test") as connection:
        for setting, (_, ours) in styles.items():
            assert await connection.fetchval("select current_setting($1)", setting) == ours


async def test_the_server_bounds_how_long_a_dead_host_holds_anything(live):
    """Both sessions have an idle_session_timeout: that of the worker is the lease, that
    of the bell three of its checks.

    So a host that is gone holds nothing for longer than that.
    """
    sessions = PostgresSessions(Settings.load({}, {"dsn": live.dsn, "session_timeout": 20, "catch_up": 10}))
    show = "select current_setting('idle_session_timeout')"
    async with sessions.worker() as outbox, sessions.listener(lambda: None) as bell:
        assert await outbox._connection.fetchval(show) == "20s"
        assert await bell._connection.fetchval(show) == "30s"


async def test_the_bell_session_writes_nothing(live):
    """The server rejects writes of the listener session.

    The trigger does not see an armed lock of its own session, so an event that this session wrote would send no NOTIFY.

    Fails when: the listener session is not read-only.
    """
    async with PostgresSessions(Settings.load({}, {"dsn": live.dsn})).listener(lambda: None) as bell:
        assert await bell.arm()
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await insert_event(bell._connection)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_a_bell_that_is_ended_a_hundred_times_is_replaced_a_hundred_times(live):
    """A listener session that is ended a hundred times is replaced each time, leaks no
    session or file, and still wakes.

    Fails when: an attempt to open it leaks a resource, or its loss ends the loop that keeps it.
    """
    rounds = 100
    sessions = (
        "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'iu-%'"
    )
    async with connected(live.dsn) as admin, consuming(live.dsn, **ONLY_THE_BELL, reconnect_max=0.1) as seen:
        files, before = psutil.Process().num_fds(), await wait_until(lambda: admin.fetchval(sessions), "it is there")
        for n in range(1, rounds + 1):
            assert await admin.fetchval(KILL, f"iu-listen bell {WORKER}") == 1
            await wait_until(lambda n=n: _count(seen, Listening, n + 1), "it listens again")
        await sleep_sets_in(admin)
        event = await insert_event(admin)
        await routed(admin, [event], within=5)
        assert {f.session for f in seen.of(SessionFailed)} == {"bell"}
        assert len(seen.of(SessionFailed)) == rounds
        assert await admin.fetchval(sessions) <= before + 1
        assert psutil.Process().num_fds() <= files + 2


async def test_an_event_that_commits_late_is_routed_when_it_commits(live):
    """An event whose transaction outlived the routing of later events is routed within
    100 ms (median) after its commit.

    Fails when: the cursor goes by created_at or event_seq, or no notification is sent for such an event.
    """
    took = []
    async with connected(live.dsn) as late, connected(live.dsn) as others, consuming(live.dsn, **ONLY_THE_BELL) as seen:
        events = []
        for _ in range(5):
            transaction = late.transaction()
            await transaction.start()
            old = await insert_event(late)
            xid = await late.fetchval("select xact_id::text from event_outbox where id = $1", old)
            events += [await insert_event(others) for _ in range(10)]
            await routed(others, events)
            passed = "select pg_snapshot_xmax(prev) > $1::text::xid8 from iu_route_worker_cursor"
            assert await others.fetchval(passed, xid)
            await sleep_sets_in(others)
            events.append(old)
            looks = len(seen.of(BatchRan))
            await transaction.commit()
            committed = time.monotonic()
            await wait_until(lambda looks=looks: _found(seen, looks), "the late one is routed")
            took.append(time.monotonic() - committed)
            await routed(others, events)
    assert statistics.median(took) < 0.1


async def _found(seen, looks: int) -> bool:
    return any(b.batch.seen for b in seen.of(BatchRan)[looks:])


async def test_a_cancelled_consumer_leaves_at_once_and_loses_nothing(live):
    """A consumer that is cancelled while its batch waits for a lock ends at once, and its event is decided once later.

    Fails when: the batch is shielded, so that neither the grace period nor a second signal could end it.
    """
    one = Standby(live.dsn, Recorder(), **ONLY_THE_BELL)
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


async def _heartbeat(connection):
    return await connection.fetchrow("select * from iu_consumer_heartbeat order by started_at desc limit 1")


async def test_the_heartbeat_tells_every_state(applied):
    """The heartbeat identifies the consumer and shows gate_closed, idle, refusing and stopped with their reasons.

    Fails when: a change of state does not send a heartbeat at once.
    """
    async with connected(applied.dsn) as admin:

        async def says(state: str):
            async def so() -> bool:
                row = await _heartbeat(admin)
                return row is not None and row["state"] == state

            await wait_until(so, f"the heartbeat says {state}", timeout=5)
            return await _heartbeat(admin)

        async with consuming(applied.dsn, **ONLY_THE_BELL):
            row = await says("gate_closed")
            assert row["state_detail"] == "worker_gate_closed"
            assert (row["worker_name"], row["cadence_seconds"]) == (WORKER, 300)
            assert row["last_wake"] in ("start_up", "poll", "linger")
            await open_gate(applied.dsn)
            row = await says("idle")
            assert row["state_detail"] is None
            assert row["listening"]
            await admin.execute("update iu_route_worker_cursor set lineage = gen_random_uuid()")
            await open_gate(applied.dsn)
            assert (await says("refusing"))["state_detail"] == "foreign_cursor"
        row = await says("stopped")
        assert row["state_detail"] == "end of test"
        assert row["beat_at"] > row["started_at"]


async def test_the_heartbeat_tells_a_backlog(live):
    """The heartbeat of a consumer with more than one batch of backlog shows busy, the number of routed events
    and the lag."""
    async with connected(live.dsn) as admin:
        events = [await insert_event(admin) for _ in range(300)]

        async def busy():
            row = await _heartbeat(admin)
            return row is not None and row["state"] == "busy" and row

        async with consuming(live.dsn, **ONLY_THE_BELL, batch_limit=1):
            row = await wait_until(busy, "the heartbeat says busy", timeout=5)
            assert 1 <= row["events"] < 300
            assert row["lag_seconds"] >= 0
            await routed(admin, events)
        row = await _heartbeat(admin)
        assert (row["state"], row["events"], row["lag_seconds"]) == ("stopped", 300, None)


async def test_without_the_package_it_waits_for_it(substrate):
    """A consumer that starts before the install reports the missing function, and works after the install."""
    early = Standby(substrate.dsn, Recorder(), **ONLY_THE_BELL, reconnect_max=0.3)
    async with connected(substrate.dsn) as admin, anyio.create_task_group() as tasks:
        tasks.start_soon(early.consumer.run)
        failed = await early.recorder.wait_for(SessionFailed, lambda f: f.session == "worker")
        assert "fn_iu_route_worker_run" in failed.why
        await _apply(substrate.dsn)
        await open_gate(substrate.dsn)
        event = await insert_event(admin)
        await routed(admin, [event])
        early.consumer.stop("end of test")


async def _apply(dsn: str) -> None:
    async with session(dsn, name="tests") as connection:
        state = await migrate.package_state(connection)
        await migrate.apply_files(connection, state.pending, {}, lambda _: None)


async def test_a_heartbeat_that_cannot_be_written_is_said_ever_more_rarely(live):
    """If the heartbeat cannot be written, events are still routed, and the error is reported with growing pauses.

    Fails when: the backoff is reset before the heartbeat is written.
    """
    async with connected(live.dsn) as admin:
        await admin.execute("drop table iu_consumer_heartbeat")
        async with consuming(live.dsn, listening=False, **ONLY_THE_BELL, reconnect_max=1) as seen:
            event = await insert_event(admin)
            await routed(admin, [event])
            failed = await seen.wait_for(SessionFailed, lambda f: f.session == "worker" and f.retry_in > 0.3)
            assert "iu_consumer_heartbeat" in failed.why


async def test_an_unknown_worker_is_said_and_waited_for(live):
    """A worker that is not registered is an error that names it; its heartbeat is accepted, and other workers go on."""
    async with connected(live.dsn) as admin:
        outbox = PostgresSessions(Settings.load({}, {"dsn": live.dsn, "worker": "nobody"})).worker()
        async with outbox as nobody:
            with pytest.raises(Refused, match="worker nobody is not registered"):
                await nobody.run_batch(1)
            await nobody.beat(State.STARTING, "", False, "", Tally())
            assert await drain(admin) == 0


async def test_with_listening_switched_off_it_polls(live):
    """With listen = off the consumer opens no listener session, gives the reason once, and
    polls; the heartbeat shows it."""
    async with connected(live.dsn) as admin, consuming(live.dsn, listening=False, listen=False) as seen:
        event = await insert_event(admin)
        await routed(admin, [event], within=2)
        assert ["switched off" in said.why for said in seen.of(Polling)] == [True]
        bells = "select count(*) from pg_stat_activity where datname = current_database() and application_name like '%bell%'"
        assert await admin.fetchval(bells) == 0
        assert not (await _heartbeat(admin))["listening"]


async def test_a_server_that_takes_no_writes_is_left_alone(live):
    """A read-only server is reported and tried again with growing pauses until it accepts writes.

    Fails when: the check for a standby or read-only server is taken out, or does not name the setting.
    """
    consumer = Standby(live.dsn, Recorder(), **ONLY_THE_BELL, reconnect_max=0.3)
    async with connected(live.dsn) as admin, anyio.create_task_group() as tasks:
        name = await admin.fetchval("select current_database()")
        event = await insert_event(admin)
        await admin.execute(f"alter database {name} set default_transaction_read_only = on")
        tasks.start_soon(consumer.consumer.run)
        failed = await consumer.recorder.wait_for(SessionFailed, lambda f: f.retry_in > 0.1)
        assert failed.why == "the server takes no writes: default_transaction_read_only is on for the database"
        assert not consumer.recorder.of(LeaseTaken)
        await admin.execute(f"alter database {name} reset default_transaction_read_only")
        await routed(admin, [event])
        consumer.consumer.stop("end of test")


async def test_a_forked_process_has_an_identity_of_its_own():
    """After a fork the child has another identity and no former sessions, although the object was made before the fork.

    Fails when: the identity is that of the process that made the object.
    """
    sessions = PostgresSessions(Settings())
    consumer, former = sessions._mine
    read, write = os.pipe()
    with warnings.catch_warnings():
        # The warning is about threads of the test runner, which the child does not use.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        there, others = sessions._mine
        os.write(write, f"{there} {others is former}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    there, shared = os.read(read, 100).decode().split()

    assert (there != str(consumer), shared) == (True, "False")
    assert sessions._mine == (consumer, former)
