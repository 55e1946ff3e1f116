"""run: how it starts, waits, is stopped and comes back. One server: none of this depends on its version."""

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

#: Most seconds between a signal and the end, when there is nothing to wait for.
PROMPT = 3.0
JSON = ("run", "--log-format", "json")
#: The consumer sleeps: its bell session holds a bell lock exclusively.
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
    """No event was decided twice; how many were."""
    decided, distinct = rows(dsn, "select count(*), count(distinct event_ref) from iu_route_attempt")[0]
    assert decided == distinct
    return decided


def nothing_half_done(dsn: str) -> None:
    """No session of ours is left, and the cursor and the audit agree."""
    seen(
        dsn,
        """select not exists (select from pg_stat_activity
                               where datname = current_database() and application_name like 'iu-listen%')""",
    )
    assert value(dsn, "select total_seen from iu_route_worker_cursor") == each_once(dsn)


def stopped_at_once(consumer, number: int) -> None:
    """It ends with 0, says that it was asked to, and does not linger."""
    began = time.monotonic()
    assert consumer.end(number) == 0
    assert time.monotonic() - began < PROMPT
    assert signal.Signals(number).name in consumer.said
    assert '"stopped"' in consumer.said


def test_a_closed_terminal_ends_it_in_order(live):
    """SIGHUP ends the service as SIGTERM does; where it is ignored from the start (nohup), it is ignored.

    Fails when: SIGHUP has its default action, which leaves a heartbeat that says idle.
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
    """A signal ends the service in order, with exit code 0, whatever it is doing."""

    def test_asleep(self, live, number):
        """Asleep: it wakes to leave, and its last heartbeat says so."""
        with running(*JSON, dsn=live.dsn) as consumer:
            seen(live.dsn, ASLEEP)
            stopped_at_once(consumer, number)
        assert value(live.dsn, STATE) == "stopped"
        nothing_half_done(live.dsn)

    def test_gate_closed(self, applied, number):
        """Waiting for a gate: it leaves at once."""
        with running(*JSON, dsn=applied.dsn) as consumer:
            consumer.until_it_says("waiting for a gate to open")
            stopped_at_once(consumer, number)
        assert value(applied.dsn, STATE) == "stopped"
        nothing_half_done(applied.dsn)

    def test_standing_by(self, live, number):
        """Standing by behind another consumer: it leaves at once, and the other one does not notice."""
        with running(*JSON, dsn=live.dsn) as active:
            active.until_it_says('"active"')
            with running(*JSON, dsn=live.dsn) as standby:
                standby.until_it_says("standing by")
                stopped_at_once(standby, number)
            assert run("emit", dsn=live.dsn).code == 0
            seen(live.dsn, "select count(*) = 1 from iu_route_attempt")
            assert '"active"' not in standby.said
            assert active.end() == 0
        nothing_half_done(live.dsn)

    @pytest.mark.slow
    def test_in_the_middle_of_a_backlog(self, live, number):
        """In the middle of a backlog: the running batch ends and is kept, and the next consumer goes on from there."""
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
    """Asked to stop it waits for the running batch no longer than its grace; the server does it whole or not at all."""
    with holding(live.dsn, "lock table iu_outbound_route"):
        run("emit", dsn=live.dsn)
        with running(*JSON, "--grace", "1", dsn=live.dsn) as consumer:
            seen(
                live.dsn,
                "select exists (select from pg_locks where not granted and relation = 'iu_outbound_route'::regclass)",
            )
            began = time.monotonic()
            consumer.end()
            assert time.monotonic() - began < 1 + PROMPT
    nothing_half_done(live.dsn)


def test_the_second_signal(live):
    """A second signal does not wait for the running batch."""
    with holding(live.dsn, "lock table iu_outbound_route"):
        run("emit", dsn=live.dsn)
        with running(*JSON, "--grace", "30", dsn=live.dsn) as consumer:
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
    """It starts against a closed gate, says so once, and works within a second after the gate is opened."""
    run("emit", dsn=applied.dsn)
    with running(*JSON, "--catch-up", "0.5", "--lease", "5", dsn=applied.dsn) as consumer:
        consumer.until_it_says("waiting for a gate to open")
        seen(applied.dsn, "select (wakes ->> 'catch_up')::int >= 3 from iu_consumer_heartbeat")
        assert consumer.said.count("waiting for a gate to open") == 1
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
    """A gate that is closed under way stops the next batch; opened again, nothing was missed."""
    with running(*JSON, dsn=live.dsn) as consumer:
        seen(live.dsn, ASLEEP)
        run("gate", "close", "worker", dsn=live.dsn)
        consumer.until_it_says("waiting for a gate to open")
        run("emit", "--count", "5", dsn=live.dsn)
        assert each_once(live.dsn) == 0
        run("gate", "open", "worker", dsn=live.dsn)
        seen(live.dsn, "select count(*) = 5 from iu_route_attempt")
        assert consumer.end() == 0


def test_killed(live):
    """Killed with kill -9 it leaves nothing half done; the next one takes over by itself and catches up with all of it."""
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
    """When the active consumer is killed the one that stands by becomes active, and goes on."""
    with running(*JSON, dsn=live.dsn) as active, running(*JSON, dsn=live.dsn) as standby:
        # Either of them may have been first.
        seen(
            live.dsn,
            "select count(distinct state) = 2 from iu_consumer_heartbeat where state in ('idle', 'standing_by')",
        )
        first = value(live.dsn, "select pid from iu_consumer_heartbeat where state = 'idle'")
        first, second = (active, standby) if active.process.pid == first else (standby, active)
        second.until_it_says("standing by")
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        second.until_it_says('"active"')
        run("emit", dsn=live.dsn)
        seen(live.dsn, "select count(*) = 1 from iu_route_attempt")
        assert second.end() == 0


# -- killed and frozen -------------------------------------------------------------------------------------------

ATTEMPTED = "select count(*) = {} from iu_route_attempt"
#: Neither the lease nor a bell lock is held by anybody.
LET_GO = "select not exists (select from pg_locks where locktype = 'advisory' and classid in (726001, 726003))"
#: Whoever holds a batch lets it go.
GO_ON = "select pg_terminate_backend(pid) from pg_locks where classid = 4711 and mode = 'ExclusiveLock' and granted"


def write(dsn: str) -> None:
    """One event."""

    async def go() -> None:
        async with connected(dsn) as connection:
            await insert_event(connection)

    asyncio.run(go())


@contextmanager
def stopped_at(dsn: str, step: str) -> Iterator[Running]:
    """A consumer whose batch has come to a step, and no further."""
    execute(dsn, DETAINED)
    write(dsn)
    with holding(dsn, STEPS[step]), running(*JSON, dsn=dsn) as consumer:
        seen(dsn, WAITS)
        yield consumer


def routed_by_the_next(dsn: str) -> None:
    """The next consumer leaves nothing out and repeats nothing."""
    write(dsn)
    with running(*JSON, dsn=dsn) as heir:
        seen(dsn, ATTEMPTED.format(2), timeout=30)
        # Both may have been routed by what is left of the former one, before this one hears any signal.
        seen(dsn, f"select exists (select from iu_consumer_heartbeat where pid = {heir.process.pid})", timeout=30)
        assert heir.end() == 0
    assert each_once(dsn) == 2
    nothing_half_done(dsn)


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_of_a_batch(live, step):
    """Killed while its batch is at whatever step, it leaves the event to be routed once, by the server or by the next one.

    Fails when: events, attempts and cursor do not move in one transaction.
    """
    with stopped_at(live.dsn, step) as consumer:
        assert consumer.end(signal.SIGKILL) == -signal.SIGKILL
        assert each_once(live.dsn) == 0
    routed_by_the_next(live.dsn)


def test_killed_before_it_hears_that_its_batch_is_committed(live):
    """Killed between the commit of its batch and the answer to it, it leaves nothing to be done again.

    Fails when: the position is kept by the consumer, or the cursor moves in a transaction of its own.
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
    """A consumer that is gone while it sleeps holds the bell no longer than its lease: the next one sleeps by it.

    Fails when: the bell session has no idle_session_timeout, and writers ring for a frozen consumer for ever.
    """
    with running(*JSON, "--lease", "2", "--catch-up", "0.5", dsn=live.dsn) as consumer:
        seen(live.dsn, ASLEEP)
        consumer.process.send_signal(number)
        write(live.dsn)
        seen(live.dsn, LET_GO, timeout=30)
        write(live.dsn)
        with running(*JSON, "--lease", "1000", "--catch-up", "300", dsn=live.dsn) as heir:
            seen(live.dsn, ATTEMPTED.format(2))
            seen(live.dsn, ASLEEP)
            write(live.dsn)
            seen(live.dsn, ATTEMPTED.format(3))
            consumer.process.send_signal(signal.SIGKILL)
            assert heir.end() == 0
    assert each_once(live.dsn) == 3
