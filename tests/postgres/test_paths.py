"""A broken path between consumer and database: packets swallowed, connections reset or refused, a server restarted."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import UUID

import anyio
import pytest

from chaos import Proxy
from cli.command import Running
from clusters import place
from conftest import Database, TestServer
from iu_listen import embedded
from iu_listen.app import PostgresSessions
from iu_listen.flow import backoff
from iu_listen.flow.consumer import Consumer
from iu_listen.model.errors import SessionLost
from iu_listen.model.observation import BatchRan, Listening, Observation, SessionFailed, Stopped
from iu_listen.model.settings import Settings
from postgres.bells import ONLY_THE_BELL, sleep_sets_in
from support import Recorder, attempted, connected, consuming, insert_event, open_gate, wait_until

pytestmark = pytest.mark.asyncio

#: Everything is found out within seconds.
QUICK = {"catch_up": 0.5, "deadline": 1, "batch_deadline": 1, "reconnect_max": 0.3}
#: Only the bell wakes it, and after a loss it is back at once.
EAGER = {**QUICK, **ONLY_THE_BELL, "reconnect_max": 0.1}
#: It is still waiting for an answer when it is asked to stop.
SLOW_TO_GIVE_UP = {"IU_LISTEN_DEADLINE": "60", "IU_LISTEN_BATCH_DEADLINE": "60", "IU_LISTEN_LEASE": "100"}
#: The longest that finding a silent path may take: a sleep, a deadline, and a slow machine.
FOUND = QUICK["catch_up"] + QUICK["deadline"] + 1


@pytest.fixture(scope="module")
def tcp() -> Iterator[TestServer]:
    """A server that is reached over TCP: the one of IU_LISTEN_TEST_DSN, else one of our own."""
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


async def test_both_ends_have_the_kernel_look_for_a_dead_peer(there):
    """Over TCP a host that is gone is noticed on both ends, even while nobody has anything to say to it.
    Fails when: keepalive, or the bound for what is never acknowledged, is not asked for on one of the two ends.
    """
    sessions = PostgresSessions(Settings.load({}, {"dsn": there.dsn}))
    show = """select array[current_setting('tcp_keepalives_idle'), current_setting('tcp_keepalives_interval'),
                           current_setting('tcp_keepalives_count'), current_setting('tcp_user_timeout')]"""
    async with sessions.outbox() as outbox, sessions.bell(lambda: None) as bell:
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


async def test_a_path_that_swallows_everything_is_found_by_its_deadline(there):
    """A stalled path raises nothing by itself: the deadline finds it, and when it works again so does the consumer.
    Fails when: a wait for the database has no deadline of its own.
    """
    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin, consuming(proxy.dsn, **QUICK) as seen:
        await sleep_sets_in(admin)
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
        await sleep_sets_in(admin)


async def _failures(seen: Recorder, at_least: int) -> bool:
    return len(seen.of(SessionFailed)) >= at_least


async def test_an_answer_that_was_lost_is_found_before_its_deadline(there):
    """Behind a router that forgot its connections a batch is given up within seconds, not at its deadline, and the lease
    is had again at once, although the server still knows the session that held it.
    Fails when: nobody asks the server what became of a batch that is waited for; or nobody ends the former session.
    """
    patient = {"catch_up": 0.5, "deadline": 5, "batch_deadline": 600, "lease": 1000, "reconnect_max": 0.3}
    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin, consuming(proxy.dsn, **patient) as seen:
        await sleep_sets_in(admin)
        await wait_until(lambda: _patrols(admin), "the patrol has its session")
        before = len(seen.seen)
        proxy.swallow()
        event = await insert_event(admin)
        failed = await wait_until(lambda: _worker_failed(seen, before), "the batch is given up", 30)
        await routed(admin, [event], within=15)
        assert "answer" in failed.why


async def _patrols(admin) -> bool:
    return await admin.fetchval(
        "select exists (select from pg_stat_activity where application_name like 'iu-listen patrol %' and datname = current_database())"
    )


async def _worker_failed(seen: Recorder, before: int) -> SessionFailed | None:
    return next((o for o in seen.seen[before:] if isinstance(o, SessionFailed) and o.session == "worker"), None)


async def test_a_bell_that_went_deaf_is_found_by_its_checks(there):
    """When only the bell's path stalls, events are found by the timer until watch() finds out, then by polling.
    Fails when: watch() does not ask anything, or the worker session depends on the bell.
    """
    async with (
        proxied(there.dsn) as proxy,
        connected(there.dsn) as admin,
        consuming(there.dsn, listen_dsn=proxy.dsn, **QUICK) as seen,
    ):
        await sleep_sets_in(admin)
        before, began = len(seen.seen), time.monotonic()
        proxy.stalled = True
        events = [await insert_event(admin)]
        await routed(admin, events, within=2)
        failed = await next_of(seen, SessionFailed, before)
        assert failed.session == "bell"
        assert time.monotonic() - began < FOUND
        events.append(await insert_event(admin))
        await routed(admin, events, within=1)
        proxy.stalled = False
        await next_of(seen, Listening, before)
        assert {f.session for f in seen.of(SessionFailed)} == {"bell"}


async def test_a_bell_that_is_forgotten_in_the_middle_of_a_statement_holds_nobody(there):
    """The server ends a session whose statement has no second half: nothing of the queue was freed while it waited.
    Fails when: the bell session has no transaction_timeout.
    """
    middle = """select count(*) from pg_stat_activity where datname = current_database()
                 and application_name like 'iu-listen bell%' and xact_start is not null"""
    pieces = 0

    async def asked() -> bool:
        nonlocal pieces
        pieces += 1
        if pieces == 2:
            # The first half is there, and what is answered to it is not.
            proxy.swallow()
        return True

    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin:
        if await admin.fetchval("select current_setting('transaction_timeout', true)") is None:
            pytest.skip("transaction_timeout is there from PostgreSQL 17 on")
        sessions = PostgresSessions(Settings.load({}, {"dsn": proxy.dsn, **QUICK}))

        async def over() -> bool:
            return await admin.fetchval(middle) == 0

        async with sessions.bell(lambda: None) as bell:
            proxy.asked = asked
            with pytest.raises(SessionLost):
                await bell.arm()
            assert not await over()
            await wait_until(over, "its session is over", 5)


async def test_a_bell_that_does_not_listen_any_more_is_replaced(there):
    """A bell session that is alive but lost its LISTEN is replaced.
    Fails when: watch() only proves that the session answers.
    """
    sessions = PostgresSessions(Settings.load({}, {"dsn": there.dsn, **QUICK}))
    async with sessions.bell(lambda: None) as bell:
        await bell._connection.execute("unlisten *")
        with anyio.fail_after(FOUND), pytest.raises(Exception, match="does not listen any more"):
            await bell.watch()


async def test_reset_connections_are_replaced_at_once(there):
    """A path that resets every connection costs no event, however often it does."""
    async with (
        proxied(there.dsn) as proxy,
        connected(there.dsn) as admin,
        consuming(proxy.dsn, **{**QUICK, **ONLY_THE_BELL}) as seen,
    ):
        events = []
        for _ in range(5):
            await sleep_sets_in(admin)
            before = len(seen.seen)
            proxy.reset()
            events.append(await insert_event(admin))
            await next_of(seen, SessionFailed, before)
            await routed(admin, events, within=5)
            await next_of(seen, Listening, before)


async def test_refused_connections_are_tried_again(there):
    """While nobody answers it tries again and again, rarely, and works as soon as somebody does."""
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
async def test_a_reset_at_any_step_of_the_start_is_survived(there, step):
    """Wherever in its start the connection breaks, the consumer says so, tries again and works.
    Fails when: an error of the driver passes unchanged through a step of opening a session.
    """
    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin:
        proxy.reset_on = step.encode()
        event = await insert_event(admin)
        async with consuming(proxy.dsn, **QUICK) as seen:
            await routed(admin, [event], within=5)
            await sleep_sets_in(admin)
            assert not proxy.reset_on
            assert len(seen.of(SessionFailed)) == 1


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a loss it connects again at once: the pause before that has no message, and tests of its own."""
    monkeypatch.setattr(backoff, "BASE", 0.002)


def every_other(first: int) -> pytest.MarkDecorator:
    """Every other message from this one on, and in make wide the rest."""
    return pytest.mark.parametrize("first", [first, pytest.param(3 - first, marks=pytest.mark.wide)])


async def beside_messages(dsn: str, first: int, *, cut: bool) -> int:
    """A consumer begins anew, again and again, from its connect to its sleep. In each round an event is written before the
    n-th message on its path is forwarded, in whichever direction; or the session is cut over that message. n grows by 2.

    Every event must be routed once, without the timer. How many messages there were.
    """
    async with (
        proxied(dsn) as proxy,
        connected(dsn) as admin,
        connected(dsn) as writer,
        consuming(proxy.dsn, **EAGER) as seen,
    ):
        await sleep_sets_in(admin)
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
            await sleep_sets_in(admin)
            if passed < number:
                return number - 1
            await done.wait()
            await routed(admin, events, within=5)
    raise AssertionError("it never comes to rest")


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
@every_other(1)
async def test_whatever_message_a_session_is_lost_over_nothing_else_is(there, first):
    """Whichever message between the connect and the sleep a session is cut over, it recovers, and events are routed once.

    Fails when: a session that is lost at some step ends the consumer, or the look after LISTEN is taken out.
    """
    assert await beside_messages(there.dsn, first, cut=True) > 40


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
@every_other(2)
async def test_an_event_beside_any_message_is_woken_for(there, first):
    """Whatever a consumer is about to hear or to say, an event that commits just then is routed without the timer.

    Fails when: the look after LISTEN or after arming is taken out, or the ring is cleared after the look.
    """
    assert await beside_messages(there.dsn, first, cut=False) > 40


@pytest.mark.parametrize("asleep", [True, False], ids=["asleep", "in-a-batch"])
async def test_stopped_behind_a_dead_path_it_leaves_in_bounded_time(there, asleep):
    """A consumer that is stopped while its database does not answer leaves after its deadlines, and says so."""
    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin:
        recorder = Recorder()
        settings = {**QUICK, **(ONLY_THE_BELL if asleep else {})}
        consumer = Consumer(
            loaded := Settings.load({}, {"dsn": proxy.dsn, **settings}), PostgresSessions(loaded), recorder
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            await sleep_sets_in(admin)
            proxy.stalled = True
            if not asleep:
                looks = len(recorder.of(BatchRan))
                await wait_until(lambda: _stuck(admin, recorder, looks), "a batch got no answer")
            began = time.monotonic()
            consumer.stop("SIGTERM")
            await recorder.wait_for(Stopped)
            assert time.monotonic() - began < 2 * QUICK["deadline"] + 1


async def test_sigterm_while_nothing_answers_any_more(there):
    """With its sessions silent and new ones never answered, SIGTERM ends the process within its grace, in order.
    Fails when: a connect is waited for without an end, or a session is closed instead of dropped.
    """
    grace = 1
    async with proxied(there.dsn) as proxy, connected(there.dsn) as admin:
        consumer = Running("run", "--log-format", "json", "--grace", str(grace), dsn=proxy.dsn, env=SLOW_TO_GIVE_UP)
        try:
            await sleep_sets_in(admin)
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
    """After a restart, orderly or by a crash, the consumer is back by itself and every event is attempted once."""
    if there.server is None:
        pytest.skip("this server is not ours to restart")
    async with consuming(there.dsn, **{**QUICK, **ONLY_THE_BELL}) as seen:
        async with connected(there.dsn) as admin:
            await sleep_sets_in(admin)
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
