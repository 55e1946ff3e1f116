"""The switches of deliveries: nothing is delivered while one of them is closed or unknown."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest

from iu_listen.flow.intake import MAX_ANSWER_AGE
from iu_listen.model.observation import RoutePaused
from iu_listen.postgres.delivery import DeliverySession
from postgres.delivery_helpers import (
    ROUTE,
    RecordingTarget,
    attempts,
    count_deliveries,
    dead_letters,
    delivering,
    open_route,
    wait_until_settled,
)
from support import connected, insert_event, run_batch, wait_until

pytestmark = pytest.mark.asyncio


CLOSE = {
    "master_gate_closed": "update dot_config set value = 'false' where key = 'iu_core.routes_master_enabled'",
    "worker_gate_closed": "update dot_config set value = 'false' where key = 'iu_core.route_worker_enabled'",
    "delivery_gate_closed": "update dot_config set value = 'TRUE' where key = 'iu_core.delivery_enabled'",
    "dry_run": "update dot_config set value = 'a,,b' where key = 'iu_core.delivery_live_routes'",
}


OPEN = {
    "master_gate_closed": "update dot_config set value = 'true' where key = 'iu_core.routes_master_enabled'",
    "worker_gate_closed": "update dot_config set value = 'true' where key = 'iu_core.route_worker_enabled'",
    "delivery_gate_closed": "update dot_config set value = 'true' where key = 'iu_core.delivery_enabled'",
    "dry_run": f"select fn_iu_route_live('{ROUTE}', true, 'again', 'tester')",
}


@pytest.mark.slow
@pytest.mark.parametrize("lock", CLOSE)
async def test_a_switch_that_closes_stops_deliveries_within_100_ms(live, lock):
    """No delivery begins later than 100 ms after the commit that closed a switch; the others
    arrive after the switch is open.

    Fails when: switches are read once for a page and not while its events are delivered.
    """
    begun: list[float] = []

    async def behave(_):
        begun.append(time.monotonic())
        await anyio.sleep(0.004)

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=4)
        events = [await insert_event(connection) for _ in range(400)]
        async with delivering(live.dsn, recording.target()) as recorder:
            await wait_until(lambda: asyncio.sleep(0, len(begun) > 20), "a burst")
            await connection.execute(CLOSE[lock])
            closed = time.monotonic()
            held = await recorder.wait_for(RoutePaused)
            # The route is no longer in the list of live routes; the consumer may see either reason first.
            assert held.paused_by in (lock, "route_not_listed" if lock == "dry_run" else lock)
            await asyncio.sleep(0.3)
            assert max(begun) - closed < 0.1
            assert len(begun) < 400
            assert await count_deliveries(connection) == 400 - len(recording.delivered)
            await connection.execute(OPEN[lock])
            await wait_until_settled(connection)
        assert recording.delivered == dict.fromkeys(events, 1)


async def test_no_delivery_begins_while_the_database_does_not_answer(live):
    """While the database does not answer, deliveries that were taken do not begin, because
    a switch may have been closed.

    Fails when: one answer of the database allows all deliveries that came with it, however long they wait.
    """
    begun: list[float] = []

    async def behave(_):
        begun.append(time.monotonic())
        await anyio.sleep(0.04)

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=1)
        events = [await insert_event(connection) for _ in range(20)]
        async with delivering(live.dsn, recording.target()):
            await wait_until(lambda: asyncio.sleep(0, len(begun) > 3), "deliveries")
            async with connection.transaction():
                await connection.execute("lock table iu_delivery_breaker in access exclusive mode")
                locked = time.monotonic()
                await asyncio.sleep(0.5)
                assert max(begun) - locked < 0.1
                assert len(begun) < 20
            await wait_until_settled(connection)
        assert recording.delivered == dict.fromkeys(events, 1)


async def test_a_late_answer_does_not_begin_behind_a_closed_switch(live, monkeypatch):
    """Deliveries of an answer that is older than MAX_ANSWER_AGE do not begin: a switch may have been closed since.

    Fails when: the age of an answer is measured from the moment at which it is read.
    """
    recording, take, late = RecordingTarget(), DeliverySession.take, list[int]()

    async def slow_take(self, *args):
        answer = await take(self, *args)
        if answer.taken and not late:
            async with connected(live.dsn) as closer:
                await closer.execute(CLOSE["delivery_gate_closed"])
            await anyio.sleep(MAX_ANSWER_AGE)
            late.append(len(answer.taken))
        return answer

    monkeypatch.setattr(DeliverySession, "take", slow_take)
    async with connected(live.dsn) as connection:
        await open_route(connection)
        events = [await insert_event(connection) for _ in range(5)]
        assert (await run_batch(connection))["queued"] == 5
        async with delivering(live.dsn, recording.target()) as recorder:
            await recorder.wait_for(RoutePaused)
            assert (late, recording.calls) == ([5], [])
            await connection.execute(OPEN["delivery_gate_closed"])
            await wait_until_settled(connection)
        assert recording.delivered == dict.fromkeys(events, 1)


async def test_a_closed_delivery_gate_is_named_by_an_attempt(live):
    """An event that is routed while the delivery gate is closed gets an attempt that names
    the gate, and is delivered later.

    Fails when: the event becomes a dead letter, or no attempt names the gate.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await connection.execute(CLOSE["delivery_gate_closed"])
        event = await insert_event(connection)
        async with delivering(live.dsn, recording.target()) as recorder:
            await recorder.wait_for(RoutePaused, lambda h: h.paused_by == "delivery_gate_closed")
            assert await attempts(connection, event) == [(1, "pending", "delivery_gate_closed", None)]
            await connection.execute(OPEN["delivery_gate_closed"])
            await wait_until_settled(connection)
        assert await attempts(connection, event) == [
            (1, "pending", "delivery_gate_closed", None),
            (2, "sent", "delivered", None),
        ]
        assert await dead_letters(connection) == []


@pytest.mark.parametrize("kind", ["workflow", "external_endpoint"])
@pytest.mark.parametrize("value", [None, "missing", "", "True", "true "])
@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_a_delivery_gate_that_is_not_true_stops_every_take(live, kind, value):
    """Unless the value of the delivery gate is exactly true, no delivery of any kind of target is taken.

    The attempt of each event names the gate.

    Fails when: the gate is open by default, or only the batch reads it.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await connection.execute("update iu_outbound_route set target_kind = $1", kind)
        first = await insert_event(connection)
        await run_batch(connection)
        key = "iu_core.delivery_enabled"
        if value == "missing":
            await connection.execute("delete from dot_config where key = $1", key)
        else:
            await connection.execute("update dot_config set value = $2 where key = $1", key, value)
        second = await insert_event(connection)
        await run_batch(connection)
        take = "select count(delivery_id) from fn_iu_delivery_take('iu_outbound_default', $1, '{9}', '{0}', '{1000000}', '{}', '{}', '{}', 1000000)"
        hand_over = "select count(*) from fn_iu_delivery_hand_over('iu_outbound_default', $1, '{9}', '{0}')"
        assert await connection.fetchval(take, [ROUTE]) == await connection.fetchval(hand_over, [ROUTE]) == 0
        assert await attempts(connection, first) == []
        assert await attempts(connection, second) == [(1, "pending", "delivery_gate_closed", None)]
        await connection.execute("insert into dot_config values ($1, 'x') on conflict do nothing", key)
        await connection.execute("update dot_config set value = 'true' where key = $1", key)
        assert await connection.fetchval(take, [ROUTE]) == await connection.fetchval(hand_over, [ROUTE]) == 2


async def test_a_route_without_its_target_is_paused_with_a_reason(live):
    """A consumer without the coroutine of a route pauses the route; a consumer that has it delivers the events.

    Fails when: the deliveries become dead letters, or the pause is not reported.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        event = await insert_event(connection)
        async with delivering(live.dsn) as recorder:
            held = await recorder.wait_for(RoutePaused)
            assert (held.paused_by, held.why) == (
                "no_target",
                "there is no target with the name event_outbox (known: none)",
            )
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
        assert recording.delivered == {event: 1}
