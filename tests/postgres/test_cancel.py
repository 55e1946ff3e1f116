"""Deliveries that are cancelled while the consumer works: in parts, without a deadlock or a delay for others."""

from __future__ import annotations

from uuid import uuid4

import anyio
import pytest

from iu_listen.admin import dead_letters as letters
from iu_listen.model.delivery import Delivery, Unavailable
from iu_listen.model.observation import SessionFailed
from iu_listen.postgres.session import session
from postgres.delivery_helpers import (
    ROUTE,
    RecordingTarget,
    add_route,
    attempts,
    delivering,
    open_route,
    wait_until_settled,
)
from support import MANY, connected, insert_event, run_batch, wait_until

pytestmark = pytest.mark.asyncio


async def test_cancelling_deliveries_of_a_paused_route_does_not_disturb_settlement(live):
    """While the circuit breaker is open, thousands of deliveries are cancelled beside the
    settlement of trial deliveries.

    There is no deadlock and no lost session, and each event of another route is delivered within a second.

    Fails when: cancel takes no lease while settling writes attempts before it locks their
    deliveries, or cancel is one transaction.
    """
    down, up = RecordingTarget(), RecordingTarget()

    async def nobody_there(delivery: Delivery) -> None:
        raise Unavailable("down")

    down.behave = nobody_there
    async with connected(live.dsn) as connection:
        await open_route(connection, trial_interval_max=0.01, breaker=1)
        await connection.execute(MANY, 4000)
        await run_batch(connection, 5000)
        await add_route(connection, "other")
        async with delivering(live.dsn, down.target(), up.target("other")) as recorder:
            await wait_until(
                lambda: connection.fetchval("select opened_at is not null from iu_delivery_breaker"),
                "the breaker opens",
            )
            slowest = 0.0

            async def one_by_one(scope: anyio.CancelScope) -> None:
                nonlocal slowest
                while not scope.cancel_called:
                    began = anyio.current_time()
                    event = await insert_event(connection)
                    with anyio.fail_after(15):
                        while not up.delivered[event]:
                            await anyio.sleep(0.001)
                    slowest = max(slowest, anyio.current_time() - began)

            async with session(live.dsn, name="cancels") as canceller, anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()
                tasks.start_soon(one_by_one, scope)
                found = await letters.cancel_plan(canceller, ROUTE, None)
                parts = [
                    part async for part in letters.cancel(canceller, ROUTE, None, found["last_id"], "a test", None)
                ]
                scope.cancel()
            assert sum(parts) == found["count"] >= 4000
            assert max(parts) <= letters.MAX_PART
            assert recorder.of(SessionFailed) == []
            assert slowest < 1
        dead = await connection.fetchval("select count(*) from iu_route_dead_letter where failure_code = 'cancelled'")
        assert dead == found["count"]


async def test_cancelled_deliveries_are_replayed_in_the_order_of_their_subject(live):
    """Deliveries of an ordered route that were cancelled in one statement are replayed in the order of their subject.

    Fails when: the dead letters of one transaction have the same time, so that their random ids decide.
    """
    subject, recording = uuid4(), RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        events = [await insert_event(connection, subject) for _ in range(50)]
        await run_batch(connection)
        await connection.execute("update iu_outbound_route set dry_run = true where route_code = $1", ROUTE)
        await connection.fetchval("select fn_iu_delivery_cancel($1, null, 'incident 8', 'ann')", ROUTE)
        await connection.execute("update iu_outbound_route set dry_run = false where route_code = $1", ROUTE)
        await connection.fetchval(
            "select fn_iu_dead_letters_replay($1, null, null, null, null, 'ann', clock_timestamp(), null, null)", ROUTE
        )
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
    assert [call.event.id for call in recording.calls] == events


async def test_a_cancelled_delivery_becomes_a_dead_letter_with_an_attempt(live):
    """Cancelling one event ends only its delivery; the dead letter has actor and reason, and an attempt is recorded.

    Fails when: the event is not compared, or the attempt is not written.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection)
        first, second = [await insert_event(connection) for _ in range(2)]
        await run_batch(connection)
        await connection.execute("update iu_outbound_route set dry_run = true where route_code = $1", ROUTE)
        answer = await connection.fetchval(
            "select fn_iu_delivery_cancel($1, $2, 'incident 7', 'ann')::jsonb - 'after'", ROUTE, first
        )
        assert answer == '{"more": false, "cancelled": 1}'
        assert await connection.fetchval("select event_ref from iu_route_delivery") == second
        assert await connection.fetchval("select failure_detail from iu_route_dead_letter") == (
            "cancelled by ann: incident 7"
        )
        assert await attempts(connection, first) == [(1, "failed", "dead_letter", "cancelled")]
