"""A broken path between consumer and database: packets dropped, connections reset or refused, a server restarted."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import anyio
import pytest

from cli.command import Running
from clusters import place
from conftest import Database, TestServer
from iu_listen import embedded
from iu_listen.app import PostgresSessions
from iu_listen.flow import backoff
from iu_listen.flow.consumer import ConsumerLoop
from iu_listen.model.errors import SessionLost
from iu_listen.model.observation import BatchRan, Listening, Observation, SessionFailed, Stopped
from iu_listen.model.settings import Settings
from iu_listen.postgres import listener
from postgres.listener_helpers import NO_CATCH_UP, wait_until_armed
from proxy import Proxy
from support import Recorder, attempted, connected, consuming, insert_event, open_gate, wait_until

pytestmark = pytest.mark.asyncio

#: Losses are found within seconds.
QUICK = {"catch_up": 0.5, "deadline": 1, "batch_deadline": 1, "reconnect_max": 0.3}
#: Only a notification wakes the consumer, and it reconnects at once after a loss.
EAGER = {**QUICK, **NO_CATCH_UP, "reconnect_max": 0.1}
#: The consumer still waits for an answer when it is asked to stop.
SLOW_TO_GIVE_UP = {"IU_LISTEN_DEADLINE": "60", "IU_LISTEN_BATCH_DEADLINE": "60", "IU_LISTEN_SESSION_TIMEOUT": "100"}
#: The longest time, in seconds, until a silent path is found: one idle period, one deadline, and 1 s for a slow
#: machine.
FOUND = QUICK["catch_up"] + QUICK["deadline"] + 1


@pytest.fixture(scope="module")
def tcp() -> Iterator[TestServer]:
    """A server that is reached over TCP: that of IU_LISTEN_TEST_DSN, or an embedded one."""
    if dsn := os.environ.get("IU_LISTEN_TEST_DSN"):
        ours = TestServer(dsn, None)
        yield ours
        ours.execute(*(f"drop database if exists {name} with (force)" for name in ours.templates.values()))
        return
    with place() as root, embedded.running(root, 18, durable=False, tcp=True) as server:
        yield TestServer(server.tcp_dsn("postgres"), server)


@pytest.fixture
def there(tcp: TestServer) -> Iterator[Database]:
    """A database with the package applied and the worker gate open."""
    for database in tcp.create("applied"):
        asyncio.run(open_gate(database.dsn))
        yield database


@asynccontextmanager
async def proxied(dsn: str) -> AsyncIterator[Proxy]:
    async with Proxy(dsn).running() as proxy:
        yield proxy


async def routed(connection, events, within: float = 15) -> None:
    async def all_there() -> bool:
        return len(await attempted(connection)) >= len(events)

    await wait_until(all_there, f"{len(events)} events are attempted", within)
    assert Counter(await attempted(connection)) == Counter(events)


async def test_both_ends_use_tcp_keepalive(there):
    """Over TCP both ends detect a host that is gone, even while no data is to be sent.

    Fails when: keepalive, or the timeout for unacknowledged data, is not set on one of the two ends.
    """
    sessions = PostgresSessions(Settings.load({}, {"dsn": there.dsn}))
    show = """select array[current_setting('tcp_keepalives_idle'), current_setting('tcp_keepalives_interval'),
                           current_setting('tcp_keepalives_count'), current_setting('tcp_user_timeout')]"""
    async with sessions.worker() as outbox, sessions.listener(lambda _: None) as bell:
        for connection in (outbox._connection, bell._connection):
            assert await connection.fetchval(show) == ["5", "3", "3", "10000"]
            ours = connection._transport.get_extra_info("socket")
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            wanted = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}
            there_are = {name: value for name, value in wanted.items() if hasattr(socket, name)}
            assert {n: ours.getsockopt(socket.IPPROTO_TCP, getattr(socket, n)) for n in there_are} == there_are


async def next_of(seen: Recorder, kind: type, before: int, timeout: float = 15) -> Observation:
    """The first observation of a kind after the first ``before`` ones of any kind."""

    async def came() -> Observation | None:
        return next((o for o in seen.seen[before:] if isinstance(o, kind)), None)

    return await wait_until(came, f"there is another {kind.__name__}", timeout)


async def test_a_stalled_path_is_found_by_a_deadline(there):
    """A deadline finds a stalled path, which raises no error by itself; when it works again, the consumer goes on.

    Fails when: a wait for the database has no deadline of its own.
    """
    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin, consuming(proxy.dsn, **QUICK) as seen:
        await wait_until_armed(admin)
        before, began = len(seen.seen), time.monotonic()
        proxy.stalled = True
        failed = await next_of(seen, SessionFailed, before)
        assert "no answer" in failed.why
        assert time.monotonic() - began < FOUND
        events = [await insert_event(admin) for _ in range(3)]
        await wait_until(lambda: _failures(seen, 3), "it tries again and again")
        before = len(seen.seen)
        proxy.stalled = False
        await routed(admin, events, within=5)
        await next_of(seen, Listening, before)
        await wait_until_armed(admin)


async def _failures(seen: Recorder, at_least: int) -> bool:
    return len(seen.of(SessionFailed)) >= at_least


async def test_a_dropped_connection_is_found_before_the_deadline(there):
    """If a router drops the connections, a batch is given up within seconds, not only at its deadline.

    The consumer gets its lease back at once, although the server still has the session that held it.

    Fails when: the state of a batch that is waited for is not asked from the server, or
    the former session is not ended.
    """
    patient = {"catch_up": 0.5, "deadline": 5, "batch_deadline": 600, "session_timeout": 1000, "reconnect_max": 0.3}
    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin, consuming(proxy.dsn, **patient) as seen:
        await wait_until_armed(admin)
        await wait_until(lambda: _patrols(admin), "the patrol has its session")
        before = len(seen.seen)
        proxy.swallow()
        event = await insert_event(admin)
        failed = await wait_until(lambda: _worker_failed(seen, before), "the batch is given up", 30)
        await routed(admin, [event], within=15)
        assert "answer" in failed.why


async def _patrols(admin) -> bool:
    return await admin.fetchval(
        "select exists (select from pg_stat_activity where application_name like 'iu-listen monitor %' and datname = current_database())"
    )


async def _worker_failed(seen: Recorder, before: int) -> SessionFailed | None:
    return next((o for o in seen.seen[before:] if isinstance(o, SessionFailed) and o.session == "worker"), None)


async def test_a_stalled_listener_session_is_found_by_its_checks(there):
    """If only the path of the listener session stalls, events are found by the catch-up poll until
    watch() fails, then by polling.

    Fails when: watch() sends no query, or the worker session depends on the listener session.
    """
    async with (
        proxied(there.dsn) as proxy,
        connected(there.dsn) as admin,
        consuming(there.dsn, listen_dsn=proxy.dsn, **QUICK) as seen,
    ):
        await wait_until_armed(admin)
        before, began = len(seen.seen), time.monotonic()
        proxy.stalled = True
        events = [await insert_event(admin)]
        await routed(admin, events, within=2)
        failed = await next_of(seen, SessionFailed, before)
        assert failed.session == "listener"
        assert time.monotonic() - began < FOUND
        events.append(await insert_event(admin))
        await routed(admin, events, within=1)
        proxy.stalled = False
        await next_of(seen, Listening, before)
        assert {f.session for f in seen.of(SessionFailed)} == {"listener"}


async def test_a_lost_listener_session_is_ended_by_the_server(there):
    """The server ends a listener session that is lost in the middle of a statement, because it
    blocks the notification queue.

    Fails when: the listener session has no transaction_timeout.
    """
    middle = """select count(*) from pg_stat_activity where datname = current_database()
                 and application_name like 'iu-listen listener%' and xact_start is not null"""
    pieces = 0

    async def asked() -> bool:
        nonlocal pieces
        pieces += 1
        if pieces == 2:
            # The server receives the first half of the statement, and its answer is dropped.
            proxy.swallow()
        return True

    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin:
        if await admin.fetchval("select current_setting('transaction_timeout', true)") is None:
            pytest.skip("transaction_timeout is there from PostgreSQL 17 on")
        sessions = PostgresSessions(Settings.load({}, {"dsn": proxy.dsn, **QUICK}))

        async def over() -> bool:
            return await admin.fetchval(middle) == 0

        async with sessions.listener(lambda _: None) as bell:
            proxy.asked = asked
            with pytest.raises(SessionLost):
                await bell.arm()
            assert not await over()
            await wait_until(over, "its session is over", 5)


async def test_a_listener_session_without_its_listen_is_replaced(there):
    """A listener session that is alive but has lost its LISTEN is replaced.

    Fails when: watch() only tests that the session answers.
    """
    sessions = PostgresSessions(Settings.load({}, {"dsn": there.dsn, **QUICK}))
    async with sessions.listener(lambda _: None) as bell:
        await bell._connection.execute("unlisten *")
        with anyio.fail_after(FOUND), pytest.raises(Exception, match="does not listen any more"):
            await bell.watch()


async def test_a_path_that_stalls_while_listen_is_tested_is_no_pooler(there, monkeypatch):
    """If the path of the listener session stalls before the token arrives, the session is lost, and is not pooled.

    Fails when: a token that does not arrive is always explained by a pooler.
    """
    test_listen = listener._test_listen
    async with proxied(there.dsn) as proxy:

        async def swallow_and_test(*args: Any) -> None:
            # The second session, which sends the token, is opened after this.
            proxy.swallow()
            await test_listen(*args)

        monkeypatch.setattr(listener, "_test_listen", swallow_and_test)
        sessions = PostgresSessions(Settings.load({}, {"dsn": proxy.dsn, **QUICK}))
        with pytest.raises(SessionLost):
            async with sessions.listener(lambda _: None):
                pass


async def test_reset_connections_are_replaced_at_once(there):
    """A path that resets every connection loses no event, however often."""
    async with (
        proxied(there.dsn) as proxy,
        connected(there.dsn) as admin,
        consuming(proxy.dsn, **{**QUICK, **NO_CATCH_UP}) as seen,
    ):
        events = []
        for _ in range(5):
            await wait_until_armed(admin)
            before = len(seen.seen)
            proxy.reset()
            events.append(await insert_event(admin))
            await next_of(seen, SessionFailed, before)
            await routed(admin, events, within=5)
            await next_of(seen, Listening, before)


async def test_refused_connections_are_tried_again(there):
    """While connections are refused, the consumer tries again with pauses, and works as soon as one is accepted."""
    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin, consuming(proxy.dsn, **QUICK) as seen:
        proxy.refusing = True
        proxy.reset()
        await wait_until(lambda: _failures(seen, 5), "it tries again and again")
        event = await insert_event(admin)
        proxy.refusing = False
        await routed(admin, [event], within=5)


@pytest.mark.parametrize(
    "step",
    ["pg_backend_pid", "pg_is_in_recovery", "pg_try_advisory_lock", "fn_iu_route_worker_run", "iu_consumer_heartbeat",
     "LISTEN", "pg_notify"],
)  # fmt: skip
async def test_a_connection_reset_at_any_step_of_the_start_is_survived(there, step):
    """If the connection breaks at any step of the start, the consumer reports it, tries again and works.

    Fails when: an error of the driver passes unchanged through a step of opening a session.
    """
    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin:
        proxy.reset_on = step.encode()
        event = await insert_event(admin)
        async with consuming(proxy.dsn, **QUICK) as seen:
            await routed(admin, [event], within=5)
            await wait_until_armed(admin)
            assert not proxy.reset_on
            assert len(seen.of(SessionFailed)) == 1


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnect without a pause after a loss: no message is sent in the pause, and other tests cover it."""
    monkeypatch.setattr(backoff, "BACKOFF_BASE", 0.002)


def every_other(first: int) -> pytest.MarkDecorator:
    """Every other message from this one on; `make wide` tests the others."""
    return pytest.mark.parametrize("first", [first, pytest.param(3 - first, marks=pytest.mark.wide)])


async def beside_messages(dsn: str, first: int, *, cut: bool) -> int:
    """Restart the sessions of a consumer again and again, from connect to idle, and disturb
    each round at the n-th message.

    Before the n-th message is forwarded, in either direction, an event is written; with `cut` the sessions are reset as
    well. n grows by 2. Every event must be routed once, without the catch-up poll. Returns the number of messages.
    """
    async with (
        proxied(dsn) as proxy,
        connected(dsn) as admin,
        connected(dsn) as writer,
        consuming(proxy.dsn, **EAGER) as seen,
    ):
        await wait_until_armed(admin)
        events: list[UUID] = []
        for number in range(first, 1000, 2):
            passed, done = 0, anyio.Event()

            async def asked(number: int = number, done: anyio.Event = done) -> bool:
                nonlocal passed
                passed += 1
                if passed != number:
                    return True
                events.append(await insert_event(writer))
                done.set()
                return not cut

            before = len(seen.seen)
            proxy.asked = asked
            proxy.reset()
            await next_of(seen, Listening, before)
            await wait_until_armed(admin)
            if passed < number:
                return number - 1
            await done.wait()
            await routed(admin, events, within=5)
    raise AssertionError("it never comes to rest")


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
@every_other(1)
async def test_a_session_lost_at_any_message_loses_no_event(there, first):
    """If a session is cut at any message between connect and idle, the consumer recovers and each event is routed once.

    Fails when: the loss of a session at some step ends the consumer, or the batch after LISTEN is taken out.
    """
    assert await beside_messages(there.dsn, first, cut=True) > 40


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
@every_other(2)
async def test_an_event_that_commits_at_any_message_wakes_the_consumer(there, first):
    """An event that commits at any message of the consumer is routed without the catch-up poll.

    Fails when: the batch after LISTEN or after arming is taken out, or the notification is cleared after the batch.
    """
    assert await beside_messages(there.dsn, first, cut=False) > 40


@pytest.mark.parametrize("asleep", [True, False], ids=["asleep", "in-a-batch"])
async def test_a_consumer_behind_a_dead_path_stops_in_bounded_time(there, asleep):
    """A consumer that is stopped while its database does not answer ends after its deadlines, and reports the stop."""
    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin:
        recorder = Recorder()
        settings = {**QUICK, **(NO_CATCH_UP if asleep else {})}
        consumer = ConsumerLoop(
            loaded := Settings.load({}, {"dsn": proxy.dsn, **settings}), PostgresSessions(loaded), recorder
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            await wait_until_armed(admin)
            proxy.stalled = True
            if not asleep:
                looks = len(recorder.of(BatchRan))
                await wait_until(lambda: _stuck(admin, recorder, looks), "a batch got no answer")
            began = time.monotonic()
            consumer.stop("SIGTERM")
            await recorder.wait_for(Stopped)
            assert time.monotonic() - began < 2 * QUICK["deadline"] + 1


async def test_sigterm_ends_a_consumer_that_gets_no_answers(there):
    """If sessions are silent and new ones get no answer, SIGTERM ends the process within its
    grace period, with exit code 0.

    Fails when: a connect has no time limit, or a session is closed instead of dropped.
    """
    grace = 1
    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin:
        consumer = Running(
            "run", "--log-format", "json", "--grace-period", str(grace), dsn=proxy.dsn, env=SLOW_TO_GIVE_UP
        )
        try:
            await wait_until_armed(admin)
            proxy.mute = True
            proxy.swallow()
            said = consumer.said.count("session failed")
            await insert_event(admin)
            await asyncio.to_thread(consumer.until_it_says, "session failed", said + 1)
            began = time.monotonic()
            assert await asyncio.to_thread(consumer.end) == 0
            assert time.monotonic() - began < grace + 3
        finally:
            await asyncio.to_thread(consumer.close)


async def _stuck(admin, recorder: Recorder, looks: int) -> bool:
    return bool(recorder.of(SessionFailed)) or len(recorder.of(BatchRan)) > looks


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_of_the_server_is_survived(there, mode):
    """After a restart of the server, orderly or by a crash, the consumer reconnects and
    every event is attempted once."""
    if there.server is None:
        pytest.skip("this server is not ours to restart")
    async with consuming(there.dsn, **{**QUICK, **NO_CATCH_UP}) as seen:
        async with connected(there.dsn) as admin:
            await wait_until_armed(admin)
            events = [await insert_event(admin)]
            await routed(admin, events)
        before = len(seen.seen)
        await asyncio.to_thread(there.server.stop, mode)
        await next_of(seen, SessionFailed, before)
        await asyncio.to_thread(there.server.start)
        await next_of(seen, Listening, before)
        async with connected(there.dsn) as admin:
            events.append(await insert_event(admin))
            await routed(admin, events, within=5)
