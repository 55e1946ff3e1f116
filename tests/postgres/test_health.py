"""The state of a worker as the database reports it: health with reasons and warnings, and the backlog."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from iu_listen.postgres import queries
from postgres.routes import open_live_route
from support import BACKLOGS, WORKER, connected, drain, insert_event, run_batch

pytestmark = pytest.mark.asyncio


async def health(connection: asyncpg.Connection, worker: str = WORKER) -> dict[str, Any]:
    """The answer of the health function."""
    return json.loads(await connection.fetchval("select fn_iu_route_worker_health($1)::text", worker))


async def backlog(connection: asyncpg.Connection) -> int:
    """The backlog that the view shows, which is the one of health."""
    row = await connection.fetchrow(BACKLOGS, WORKER)
    assert row["backlog"] == row["of_health"]
    return row["backlog"]


async def gate_opened(connection: asyncpg.Connection, seconds: int) -> None:
    """Pretend that the worker gate was opened so many seconds ago."""
    await connection.execute(
        """update dot_config set updated_at = now() - make_interval(secs => $1)
            where key = 'iu_core.route_worker_enabled'""",
        seconds,
    )


async def beat(connection: asyncpg.Connection, seconds: int, state: str = "idle", cadence: float = 5) -> None:
    """Pretend that a consumer sent a heartbeat so many seconds ago."""
    await connection.execute(
        """insert into iu_consumer_heartbeat (consumer_id, worker_name, host, pid, version, state, cadence_seconds, beat_at)
           values (gen_random_uuid(), $1, 'host', 1, '0', $2, $3, now() - make_interval(secs => $4))""",
        WORKER,
        state,
        cadence,
        seconds,
    )


async def test_a_recent_batch_behind_open_gates_is_healthy(live):
    """A registered worker behind open gates that ran a moment ago is healthy, without reasons or warnings."""
    async with connected(live.dsn) as worker:
        await insert_event(worker)
        await drain(worker)
        answer = await health(worker)
        assert (answer["healthy"], answer["reasons"], answer["warnings"]) == (True, [], [])
        assert (answer["registered"], answer["backlog"], answer["state"]) == (True, 0, "no consumer")


async def test_an_unregistered_worker_is_not_healthy(live):
    """A worker that is not registered is not healthy, and the answer gives this reason."""
    async with connected(live.dsn) as worker:
        answer = await health(worker, "nobody")
        assert (answer["healthy"], answer["registered"]) == (False, False)
        assert answer["reasons"] == ["worker is not registered"]


async def test_a_closed_master_gate_is_not_healthy(live):
    """Behind a closed master gate no worker is healthy."""
    async with connected(live.dsn) as worker:
        await worker.execute("update dot_config set value = 'false' where key = 'iu_core.routes_master_enabled'")
        answer = await health(worker)
        assert (answer["healthy"], answer["reasons"]) == (False, ["master gate is closed"])


async def test_a_closed_worker_gate_is_a_warning(applied):
    """A worker behind a closed worker gate is healthy with a warning, however long it has been silent."""
    async with connected(applied.dsn) as worker:
        await gate_opened(worker, 3600)
        answer = await health(worker)
        assert (answer["healthy"], answer["reasons"]) == (True, [])
        assert answer["warnings"] == [{"code": "worker_gate_closed", "figure": 1}]


@pytest.mark.parametrize(("seconds", "healthy"), [(10, True), (20, False)])
async def test_a_worker_that_is_silent_since_its_gate_opened_is_not_healthy(live, seconds, healthy):
    """A worker is not healthy if its gate was opened more than three intervals ago and no consumer has ever run.

    Fails when: silence is counted only from a heartbeat or a batch.
    """
    async with connected(live.dsn) as worker:
        await gate_opened(worker, seconds)
        answer = await health(worker)
        assert answer["healthy"] is healthy
        assert seconds <= answer["silent_seconds"] < seconds + 60
        assert [r.split(" for ")[0] for r in answer["reasons"]] == ([] if healthy else ["silent"])


@pytest.mark.parametrize(
    ("state", "seconds", "cadence", "healthy"),
    [
        ("idle", 1, 5, True),
        ("idle", 20, 5, False),
        ("idle", 20, 30, True),
        ("gate_closed", 1, 5, True),
        ("refusing", 1, 5, False),
        ("stopped", 1, 5, False),
        ("standing_by", 1, 5, False),
    ],
)
async def test_a_recent_heartbeat_is_healthy(live, state, seconds, cadence, healthy):
    """A worker is healthy if a heartbeat is younger than three of its intervals, and not
    from a consumer that does no work.

    Consumers that are stopped, standby or refusing do no work.

    Fails when: the heartbeat is not read, or that of a consumer which does not serve the worker counts.
    """
    async with connected(live.dsn) as worker:
        await gate_opened(worker, 3600)
        await beat(worker, seconds, state, cadence)
        answer = await health(worker)
        assert answer["healthy"] is healthy, answer["reasons"]
        assert bool(answer["reasons"]) is not healthy


async def test_health_works_without_the_heartbeat_table(live):
    """If migration 010 is not applied, a recent batch shows that the worker is not silent."""
    async with connected(live.dsn) as worker:
        await worker.execute("drop table iu_consumer_heartbeat")
        await gate_opened(worker, 3600)
        assert not (await health(worker))["healthy"]
        await drain(worker)
        assert (await health(worker))["healthy"]


async def test_a_foreign_history_is_not_healthy(live):
    """A worker that would refuse is not healthy, and the answer gives the reason of the refusal."""
    async with connected(live.dsn) as worker:
        await worker.execute("update iu_route_worker_cursor set lineage = $1", uuid4())
        answer = await health(worker)
        assert (answer["healthy"], answer["reasons"]) == (False, ["worker refuses: foreign_cursor"])


async def test_a_backlog_and_dead_letters_are_warnings(live):
    """Unread events and open dead letters are warnings with their figures, and do not make a worker unhealthy."""
    async with connected(live.dsn) as worker:
        await open_live_route(worker)
        for _ in range(5):
            await insert_event(worker)
        await run_batch(worker, 2)
        answer = await health(worker)
        assert answer["healthy"]
        assert answer["warnings"] == [{"code": "backlog", "figure": 3}, {"code": "open_dead_letters", "figure": 2}]
        assert (answer["backlog"], answer["open_dead_letters"]) == (3, 2)
        assert answer["backlog_oldest_at"]


async def test_the_backlog_is_the_number_of_unread_events(live):
    """The backlog is exactly the number of events that later batches read, also inside a tick.

    These are the committed events of the domain that the worker has not read.

    Fails when: the view ignores the position in a tick, the transactions that prev lists, or the domain.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as old, connected(live.dsn) as young:
        assert await backlog(worker) == 0
        transaction = old.transaction()
        await transaction.start()
        for _ in range(3):
            await insert_event(old)
        await insert_event(young)
        assert await backlog(worker) == 1
        assert await drain(worker) == 1
        assert await backlog(worker) == 0
        for _ in range(4):
            await insert_event(young)
        await young.execute(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
               values ('system', 'alert', 'alert', 'immediate')"""
        )
        assert await backlog(worker) == 4
        await transaction.commit()
        unread = 7
        while unread:
            assert await backlog(worker) == unread
            unread -= (await run_batch(worker, 2))["seen"]
            if unread == 3:
                await insert_event(young)
                unread += 1
        assert await backlog(worker) == 0


async def test_own_events_are_no_backlog(live):
    """Events that a transaction emitted and read itself are no backlog, neither before nor after its commit.

    Fails when: the view ignores the cursor's record of own events.
    """
    async with connected(live.dsn) as worker, connected(live.dsn) as other:
        async with worker.transaction():
            for _ in range(3):
                await insert_event(worker)
            assert await backlog(worker) == 3
            assert await drain(worker) == 3
            assert await backlog(worker) == 0
            await insert_event(worker)
            assert await backlog(worker) == 1
        assert await backlog(other) == 1
        assert await drain(other) == 1
        assert await backlog(other) == 0


@pytest.mark.parametrize(("seconds", "alive"), [(1, True), (20, False), (-3600, False)], ids=["young", "old", "future"])
async def test_a_heartbeat_in_the_future_is_ignored(live, seconds, alive):
    """A heartbeat in the future, from before the clock was set back, does not make a dead consumer look alive.

    Fails when: a heartbeat in the future counts as a recent one.
    """
    async with connected(live.dsn) as worker:
        await beat(worker, seconds)
        (shown,) = await queries.rows(worker, "consumers")
        assert shown["silent"] is not alive
        assert await queries.value(worker, "host_beats", "host", WORKER) is alive


async def event_is_old(connection: asyncpg.Connection, seconds: int) -> None:
    """Pretend that all events were written so many seconds ago, and that the last batch is as long ago."""
    await connection.execute("update event_outbox set created_at = now() - make_interval(secs => $1)", seconds)
    await connection.execute(
        "update iu_route_worker_cursor set last_run_at = last_run_at - make_interval(secs => $1)", seconds
    )


@pytest.mark.parametrize("ever", [False, True], ids=["no-consumer-ever", "a-run-before"])
async def test_events_that_are_not_routed_are_not_healthy(live, ever):
    """Events that wait longer than the interval without being routed make a worker
    unhealthy before it counts as silent.

    Fails when: only the silence of a consumer counts, not the backlog.
    """
    async with connected(live.dsn) as worker:
        if ever:
            await drain(worker)
        await gate_opened(worker, 8)
        await insert_event(worker)
        assert (await health(worker))["healthy"]
        await event_is_old(worker, 8)
        answer = await health(worker)
        assert not answer["healthy"]
        assert "no consumer routes them" in answer["reasons"][-1]
        assert "1 event(s) wait" in answer["reasons"][-1]
        await drain(worker)
        assert (await health(worker))["healthy"]


async def test_a_late_commit_does_not_make_a_worker_unhealthy(live):
    """An event that looks old when it commits does not make a worker unhealthy that polled a moment ago: it is behind.

    Fails when: the age of the event alone decides.
    """
    async with connected(live.dsn) as worker:
        await drain(worker)
        await insert_event(worker)
        await worker.execute("update event_outbox set created_at = now() - interval '1 hour'")
        answer = await health(worker)
        assert (answer["healthy"], answer["condition"]) == (True, "behind")


async def test_times_in_the_future_do_not_hide_silence(live):
    """The times of a batch and of a heartbeat in the future, from before the clock was set back, do not hide silence.

    Fails when: a time in the future counts as a recent one.
    """
    async with connected(live.dsn) as worker:
        await drain(worker)
        await gate_opened(worker, 3600)
        await beat(worker, -3600)
        await worker.execute("update iu_route_worker_cursor set last_run_at = now() + interval '1 hour'")
        answer = await health(worker)
        assert (answer["healthy"], answer["condition"]) == (False, "silent")
        # Nor do they hide the heartbeat of another consumer.
        await beat(worker, 1)
        answer = await health(worker)
        assert (answer["healthy"], answer["condition"]) == (True, "idle")


async def test_a_stalled_trace_export_is_not_healthy(live):
    """If attempts wait and none was exported for ten minutes, the worker is unhealthy, also in the metric.

    A trace export that makes progress is no reason, even with a large backlog.

    Fails when: health looks at routing alone.
    """
    async with connected(live.dsn) as worker:
        await worker.execute("select fn_iu_trace_register('traces')")
        await insert_event(worker)
        await drain(worker)
        await beat(worker, 0)
        assert (await health(worker))["healthy"]
        await worker.execute(
            """update iu_route_attempt set created_at = now() - interval '20 minutes';
               update iu_trace_cursor set created_at = now() - interval '30 minutes'"""
        )
        answer = await health(worker)
        assert not answer["healthy"]
        assert "1 attempt(s) wait for the export of traces, and none was exported for 1800 s" in answer["reasons"]
        assert await worker.fetchval("select figure from fn_iu_metrics($1) where what = 'healthy'", WORKER) == 0

        await worker.execute("update iu_trace_cursor set last_export_at = now() - interval '9 minutes'")
        assert (await health(worker))["healthy"]


async def test_a_stalled_completeness_check_is_not_healthy(live):
    """A pass of the completeness check without progress for ten minutes makes the worker unhealthy until the next page.

    Fails when: health looks at routing alone.
    """
    async with connected(live.dsn) as worker:
        for _ in range(3):
            await insert_event(worker)
        await drain(worker)
        await beat(worker, 0)
        await worker.fetchval("select fn_iu_completeness_page($1, 1, null)", WORKER)
        assert (await health(worker))["healthy"]
        await worker.execute("update iu_completeness_pass set paged_at = now() - interval '11 minutes'")
        answer = await health(worker)
        assert answer["reasons"] == ["the completeness check has checked no event for 660 s"]
        await worker.fetchval("select fn_iu_completeness_page($1, 1, null)", WORKER)
        assert (await health(worker))["healthy"]


NEVER_RAN = "update iu_route_worker_cursor set last_run_at = null"


@pytest.mark.parametrize(
    ("arrange", "condition", "why"),
    [
        ("select 1", "idle", None),
        ("update dot_config set value = 'false' where key = 'iu_core.route_worker_enabled'", "gate_closed", "worker gate"),
        ("update dot_config set value = 'false' where key like '%master%'", "gate_closed", "master gate"),
        ("update iu_consumer_heartbeat set listening = false, polling_why = 'a pooler'", "polling", "a pooler"),
        ("update iu_consumer_heartbeat set state = 'refusing', state_detail = 'standby'", "refusing", "standby"),
        ("update iu_consumer_heartbeat set state = 'failing', state_detail = 'disk full'", "failing", "disk full"),
        ("update iu_route_worker_cursor set lineage = gen_random_uuid()", "refusing", "foreign_cursor"),
        (f"update iu_consumer_heartbeat set state = 'standing_by', state_detail = 'pid 7, cron'; {NEVER_RAN}",
         "standing_by", "pid 7, cron"),
        (f"update iu_consumer_heartbeat set beat_at = '2026-01-02 03:04:05Z'; {NEVER_RAN}",
         "silent", "since 2026-01-02T03:04:05Z"),
        (f"delete from iu_consumer_heartbeat; {NEVER_RAN}", "silent", "no consumer has ever run"),
    ],
)  # fmt: skip
async def test_the_condition_is_the_same_in_function_and_view(live, arrange, condition, why):
    """The condition of a worker is one word with a reason, the same in the function and in the view.

    Fails when: two situations that look different to an operator get the same word.
    """
    async with connected(live.dsn) as worker:
        await drain(worker)
        await gate_opened(worker, 3600)
        await beat(worker, 1)
        await worker.execute(arrange)
        answer = await health(worker)
        assert (answer["condition"], answer["condition_why"]) == (condition, why)
        shown = await worker.fetchrow("select * from v_iu_worker_health where worker_name = $1", WORKER)
        assert (shown["condition"], shown["condition_why"], shown["healthy"]) == (condition, why, answer["healthy"])


async def test_polling_is_a_warning_with_its_reason(live):
    """A consumer without a listener session is healthy; that it polls is a warning with the reason."""
    async with connected(live.dsn) as worker:
        await drain(worker)
        await beat(worker, 1)
        await worker.execute("update iu_consumer_heartbeat set polling_why = 'a pooler'")
        answer = await health(worker)
        assert answer["healthy"]
        assert answer["warnings"] == [{"code": "polling", "figure": 1, "detail": "a pooler"}]
