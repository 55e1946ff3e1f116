"""run: its start, idle state, stop and recovery. On one server, because the server version has no influence."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cli.command import (
    Running,
    execute,
    holding,
    on_one_server,
    rows,
    run,
    running,
    seen,
    value,
)
from steps import DETAINED, STEPS, WAITS
from support import connected, insert_event

pytestmark = on_one_server

#: Longest time between a signal and the end, in seconds, when there is nothing to wait for.
PROMPT = 3.0
JSON = ("run", "--log-format", "json")
#: The consumer is idle: its listener session holds a bell lock exclusively.
ASLEEP = """
    select exists (select from pg_locks l join pg_stat_activity a on a.pid = l.pid
                    where l.locktype = 'advisory' and l.mode = 'ExclusiveLock' and l.classid = 726001 and l.granted
                      and a.datname = current_database())
"""
STATE = "select state from iu_consumer_heartbeat order by beat_at desc limit 1"
BACKLOG = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
    select 'iu', 'version_applied', 'update', 'immediate' from generate_series(1, {})
"""


def each_once(dsn: str) -> int:
    """Assert that no event was routed twice; return the number of routed events."""
    decided, distinct = rows(dsn, "select count(*), count(distinct event_ref) from iu_route_attempt")[0]
    assert decided == distinct
    return decided


def nothing_half_done(dsn: str) -> None:
    """Assert that no session of the consumer remains, and that the cursor and the audit agree."""
    seen(
        dsn,
        """select not exists (select from pg_stat_activity
                               where datname = current_database() and application_name like 'iu-listen%')""",
    )
    assert value(dsn, "select total_seen from iu_route_worker_cursor") == each_once(dsn)


def stopped_at_once(consumer, number: int) -> None:
    """Assert that the consumer ends with 0 within PROMPT, and logs the signal and its end."""
    began = time.monotonic()
    assert consumer.end(number) == 0
    assert time.monotonic() - began < PROMPT
    assert signal.Signals(number).name in consumer.said
    assert '"stopped"' in consumer.said


def test_a_closed_terminal_ends_it_in_order(live):
    """SIGHUP ends the consumer as SIGTERM does; if it is ignored from the start (nohup), it stays ignored.

    Fails when: SIGHUP has its default action, which leaves a heartbeat with the state idle.
    """
    # The tests themselves may run under nohup.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with running(*JSON, dsn=live.dsn) as consumer:
            seen(live.dsn, ASLEEP)
            stopped_at_once(consumer, signal.SIGHUP)
        assert value(live.dsn, STATE) == "stopped"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with running(*JSON, dsn=live.dsn) as consumer:
            seen(live.dsn, ASLEEP)
            consumer.process.send_signal(signal.SIGHUP)
            assert run("emit", dsn=live.dsn).code == 0
            seen(live.dsn, "select count(*) = 1 from iu_route_attempt")
            stopped_at_once(consumer, signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
class TestStopping:
    """A signal ends the consumer in order, with exit code 0, in every state."""

    def test_asleep(self, live, number):
        """Idle: the consumer wakes up and ends, and its last heartbeat has the state stopped."""
        with running(*JSON, dsn=live.dsn) as consumer:
            seen(live.dsn, ASLEEP)
            stopped_at_once(consumer, number)
        assert value(live.dsn, STATE) == "stopped"
        nothing_half_done(live.dsn)

    def test_gate_closed(self, applied, number):
        """Waiting for a gate: the consumer ends at once."""
        with running(*JSON, dsn=applied.dsn) as consumer:
            consumer.until_it_says("waiting: a gate is closed")
            stopped_at_once(consumer, number)
        assert value(applied.dsn, STATE) == "stopped"
        nothing_half_done(applied.dsn)

    def test_standing_by(self, live, number):
        """Standby: it ends at once, and the active consumer is not affected."""
        with running(*JSON, dsn=live.dsn) as active:
            active.until_it_says('"lease taken"')
            with running(*JSON, dsn=live.dsn) as standby:
                standby.until_it_says("standby")
                stopped_at_once(standby, number)
            assert run("emit", dsn=live.dsn).code == 0
            seen(live.dsn, "select count(*) = 1 from iu_route_attempt")
            assert '"lease taken"' not in standby.said
            assert active.end() == 0
        nothing_half_done(live.dsn)

    @pytest.mark.slow
    def test_in_the_middle_of_a_backlog(self, live, number):
        """During a backlog: the running batch is completed and kept, and the next consumer continues after it."""
        total = 200_000 if number == signal.SIGTERM else 50_000
        execute(live.dsn, BACKLOG.format(total))
        with running(*JSON, "--batch-limit", "2000", dsn=live.dsn) as consumer:
            seen(live.dsn, "select exists (select from iu_route_attempt)")
            stopped_at_once(consumer, number)
        done = each_once(live.dsn)
        assert 0 < done < total
        assert done % 2000 == 0
        assert value(live.dsn, STATE) == "stopped"
        nothing_half_done(live.dsn)

        with running(*JSON, dsn=live.dsn) as consumer:
            seen(live.dsn, f"select total_seen = {total} from iu_route_worker_cursor", timeout=60)
            assert consumer.end() == 0
        assert each_once(live.dsn) == total


def test_a_batch_that_does_not_end(live):
    """A stop waits for the running batch only for the grace period; the batch counts completely or not at all."""
    with holding(live.dsn, "lock table iu_outbound_route"):
        run("emit", dsn=live.dsn)
        with running(*JSON, "--grace-period", "1", dsn=live.dsn) as consumer:
            seen(
                live.dsn,
                "select exists (select from pg_locks where not granted and relation = 'iu_outbound_route'::regclass)",
            )
            began = time.monotonic()
            consumer.end()
            assert time.monotonic() - began < 1 + PROMPT
    nothing_half_done(live.dsn)


def test_the_second_signal(live):
    """After a second signal the consumer does not wait for the running batch."""
    with holding(live.dsn, "lock table iu_outbound_route"):
        run("emit", dsn=live.dsn)
        with running(*JSON, "--grace-period", "30", dsn=live.dsn) as consumer:
            seen(
                live.dsn,
                "select exists (select from pg_locks where not granted and relation = 'iu_outbound_route'::regclass)",
            )
            consumer.process.send_signal(signal.SIGTERM)
            consumer.until_it_says('"stopping"')
            began = time.monotonic()
            consumer.end(signal.SIGTERM)
            assert time.monotonic() - began < PROMPT
    nothing_half_done(live.dsn)


# -- starting ----------------------------------------------------------------------------------------------------


def test_it_starts_against_a_closed_gate(applied):
    """The consumer starts with a closed gate, logs that once, and works within a second after the gate is opened."""
    run("emit", dsn=applied.dsn)
    with running(*JSON, "--catch-up", "0.5", "--session-timeout", "5", dsn=applied.dsn) as consumer:
        consumer.until_it_says("waiting: a gate is closed")
        seen(applied.dsn, "select (wakes ->> 'catch_up')::int >= 3 from iu_consumer_heartbeat")
        assert consumer.said.count("waiting: a gate is closed") == 1
        assert each_once(applied.dsn) == 0
        opened = run("gate", "open", "worker", "--json", dsn=applied.dsn)
        assert opened.code == 0
        seen(applied.dsn, "select count(*) = 1 from iu_route_attempt", timeout=5)
        took = value(
            applied.dsn,
            """select extract(epoch from a.finished_at - d.updated_at)::float8
                 from iu_route_attempt a, dot_config d where d.key = 'iu_core.route_worker_enabled'""",
        )
        assert 0 <= took < 1
        consumer.until_it_says('"working"')
        assert consumer.end() == 0


def test_a_gate_that_is_closed_under_way(live):
    """Closing a gate stops the next batch; after the gate is opened again, no event was missed."""
    with running(*JSON, dsn=live.dsn) as consumer:
        seen(live.dsn, ASLEEP)
        run("gate", "close", "worker", dsn=live.dsn)
        consumer.until_it_says("waiting: a gate is closed")
        run("emit", "--count", "5", dsn=live.dsn)
        assert each_once(live.dsn) == 0
        run("gate", "open", "worker", dsn=live.dsn)
        seen(live.dsn, "select count(*) = 5 from iu_route_attempt")
        assert consumer.end() == 0


def test_killed(live):
    """After SIGKILL nothing is half done; the next consumer takes over and catches up completely."""
    execute(live.dsn, BACKLOG.format(30_000))
    with running(*JSON, "--batch-limit", "500", dsn=live.dsn) as consumer:
        seen(live.dsn, "select exists (select from iu_route_attempt)")
        assert consumer.end(signal.SIGKILL) == -signal.SIGKILL
    run("emit", "--count", "10", dsn=live.dsn)
    assert each_once(live.dsn) < 30_010
    with running(*JSON, dsn=live.dsn) as consumer:
        seen(live.dsn, "select total_seen = 30010 from iu_route_worker_cursor", timeout=30)
        assert consumer.end() == 0
    assert each_once(live.dsn) == 30_010
    nothing_half_done(live.dsn)


def test_the_standby_takes_over(live):
    """When the active consumer is killed, the standby becomes active and continues."""
    with running(*JSON, dsn=live.dsn) as active, running(*JSON, dsn=live.dsn) as standby:
        # Either of the two consumers may have become active first.
        seen(
            live.dsn,
            "select count(distinct state) = 2 from iu_consumer_heartbeat where state in ('idle', 'standing_by')",
        )
        first = value(live.dsn, "select pid from iu_consumer_heartbeat where state = 'idle'")
        first, second = (active, standby) if active.process.pid == first else (standby, active)
        second.until_it_says("standby")
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        second.until_it_says('"lease taken"')
        run("emit", dsn=live.dsn)
        seen(live.dsn, "select count(*) = 1 from iu_route_attempt")
        assert second.end() == 0


# -- killed and frozen consumers ---------------------------------------------------------------------------------

ATTEMPTED = "select count(*) = {} from iu_route_attempt"
#: No session holds the lease or a bell lock.
LET_GO = "select not exists (select from pg_locks where locktype = 'advisory' and classid in (726001, 726003))"
#: Ends the session that detains a batch, so that the batch continues.
GO_ON = "select pg_terminate_backend(pid) from pg_locks where classid = 4711 and mode = 'ExclusiveLock' and granted"


def write(dsn: str) -> None:
    """Insert one event."""

    async def go() -> None:
        async with connected(dsn) as connection:
            await insert_event(connection)

    asyncio.run(go())


@contextmanager
def stopped_at(dsn: str, step: str) -> Iterator[Running]:
    """A consumer whose batch is stopped at a step."""
    execute(dsn, DETAINED)
    write(dsn)
    with holding(dsn, STEPS[step]), running(*JSON, dsn=dsn) as consumer:
        seen(dsn, WAITS)
        yield consumer


def routed_by_the_next(dsn: str) -> None:
    """Assert that the next consumer leaves no event out and repeats none."""
    write(dsn)
    with running(*JSON, dsn=dsn) as heir:
        seen(dsn, ATTEMPTED.format(2), timeout=30)
        # The former batch may have routed both events before the new consumer has registered its signal handlers.
        seen(dsn, f"select exists (select from iu_consumer_heartbeat where pid = {heir.process.pid})", timeout=30)
        assert heir.end() == 0
    assert each_once(dsn) == 2
    nothing_half_done(dsn)


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_of_a_batch(live, step):
    """If the consumer is killed at any step of its batch, the event is routed once, by the server or the next consumer.

    Fails when: events, attempts and cursor do not change in one transaction.
    """
    with stopped_at(live.dsn, step) as consumer:
        assert consumer.end(signal.SIGKILL) == -signal.SIGKILL
        assert each_once(live.dsn) == 0
    routed_by_the_next(live.dsn)


def test_killed_before_the_answer_of_a_committed_batch_arrives(live):
    """If the consumer is killed between the commit of its batch and the answer, nothing is repeated.

    Fails when: the consumer keeps the position, or the cursor changes in a separate transaction.
    """
    with stopped_at(live.dsn, "it commits") as consumer:
        consumer.process.send_signal(signal.SIGSTOP)
        execute(live.dsn, GO_ON)
        seen(live.dsn, ATTEMPTED.format(1))
        assert consumer.end(signal.SIGKILL) == -signal.SIGKILL
    assert value(live.dsn, "select total_seen from iu_route_worker_cursor") == 1
    routed_by_the_next(live.dsn)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_gone_while_asleep(live, number):
    """A consumer that is lost while idle holds the bell no longer than its lease; then the next one can become idle.

    Fails when: the listener session has no idle_session_timeout, so that producers notify a frozen consumer for ever.
    """
    with running(*JSON, "--session-timeout", "2", "--catch-up", "0.5", dsn=live.dsn) as consumer:
        seen(live.dsn, ASLEEP)
        consumer.process.send_signal(number)
        write(live.dsn)
        seen(live.dsn, LET_GO, timeout=30)
        write(live.dsn)
        with running(*JSON, "--session-timeout", "1000", "--catch-up", "300", dsn=live.dsn) as heir:
            seen(live.dsn, ATTEMPTED.format(2))
            seen(live.dsn, ASLEEP)
            write(live.dsn)
            seen(live.dsn, ATTEMPTED.format(3))
            consumer.process.send_signal(signal.SIGKILL)
            assert heir.end() == 0
    assert each_once(live.dsn) == 3
