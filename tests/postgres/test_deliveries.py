"""Deliveries outside the database: queued by the batch, called by the consumer, settled in sets.

The migrations are 012, 019 and 020.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from iu_listen import Consumer, Settings
from iu_listen.flow import dispatcher, sweep
from iu_listen.flow.route import AHEAD
from iu_listen.model.delivery import Failed, Reject, Unavailable
from iu_listen.model.observation import DeliveriesSettled, RoutePaused, RouteResumed
from iu_listen.model.routing import Batch
from iu_listen.model.spans import attempt_span, attempt_spans, batch_link, call_span, event_span, letter_span
from iu_listen.postgres.delivery import DeliverySession
from iu_listen.postgres.sqlfiles import query
from iu_listen.postgres.worker import WorkerSession
from postgres.delivery_helpers import ROUTE, Arrivals, add_route, attempts, delivering, open_route, pending, settled
from support import MANY, connected, drain, insert_event, rows_read, run_batch, wait_until

pytestmark = pytest.mark.asyncio


async def letters(connection: asyncpg.Connection) -> list[tuple[str, str, bool]]:
    rows = await connection.fetch(
        "select failure_code, failure_detail, resolved_at is not null from iu_route_dead_letter order by created_at"
    )
    return [tuple(row) for row in rows]


# -- the path of a delivery ------------------------------------------------------------------------------------------


async def test_an_event_reaches_its_coroutine_and_is_settled(live):
    """The coroutine receives the event with its idempotency key, and the attempt is recorded as sent.

    The attempt has the start and the end of the call, and the delivery is removed.

    Fails when: the batch does not queue the delivery, the dispatcher does not take it, or its outcome is not settled.
    """
    arrivals = Arrivals(lambda _: anyio.sleep(0.05))
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, arrivals.target()):
            event = await insert_event(connection, note="hello")
            await settled(connection)
        (call,) = arrivals.calls
        assert (call.event.id, call.route, call.attempt) == (event, ROUTE, 1)
        assert call.idempotency_key == f"outbound:{ROUTE}:{event}"
        assert call.event.data == {"note": "hello"}
        assert call.event.type == "version_applied"
        row = await connection.fetchrow(
            """select status, decision, delivered, attempt_no, extract(epoch from finished_at - created_at)::float8 as took,
                      span_id, call_span_id, trace_id, target from v_iu_route_attempt"""
        )
        assert tuple(row)[:4] == ("sent", "delivered", True, 1)
        assert 0.04 < row["took"] < 5
        assert call.traceparent == f"00-{row['trace_id']}-{row['span_id']}-01"
        assert row["call_span_id"] is None
        assert row["target"] == "workflow event_outbox"


async def test_a_second_reading_delivers_nothing_again(live):
    """A cursor that was set back reads its events again and queues neither pending deliveries nor delivered events.

    Fails when: the batch looks only in the attempts, or only in the deliveries.
    """
    arrivals = Arrivals()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        events = [await insert_event(connection) for _ in range(5)]
        assert (await run_batch(connection))["queued"] == 5
        for _ in range(2):
            await connection.execute(
                "update iu_route_worker_cursor set prev = '3:3:', tick = null, pos_seq = null, pos_id = null"
            )
            assert (await run_batch(connection))["queued"] == 0
            async with delivering(live.dsn, arrivals.target()):
                await settled(connection)
        assert arrivals.arrived == dict.fromkeys(events, 1)


@pytest.mark.parametrize("how", ["made anew", "beside it"])
async def test_what_another_cursor_has_read_is_not_delivered_again(live, how):
    """A cursor queues no event that another cursor of the same domain has routed.

    The other cursor either was deleted and is replaced by this one, or exists beside it.

    Fails when: the batch treats each event after the last position of its own cursor as unread by all cursors.
    """
    new = """insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
             select $1, 'iu', lineage from iu_outbox_anchor"""
    arrivals = Arrivals()
    async with connected(live.dsn) as connection:
        await insert_event(connection)
        assert (await run_batch(connection))["seen"] == 1
        if how == "beside it":
            await connection.execute(new, "another")
            assert (await run_batch(connection, worker="another"))["seen"] == 1
        await open_route(connection)
        await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 1
        async with delivering(live.dsn, arrivals.target()):
            await wait_until(lambda: asyncio.sleep(0, arrivals.arrived), "the delivery")
        await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 1
        if how == "made anew":
            await connection.execute("delete from iu_route_worker_cursor")
            await connection.execute(new, "another")
        again = await run_batch(connection, worker="another")
        assert (again["seen"], again["queued"]) == (3 if how == "made anew" else 2, 0)
        assert await pending(connection) == 1
        assert await connection.fetchval("select count(*) from iu_route_attempt") == 2


async def test_an_attempt_that_somebody_else_wrote_keeps_its_number(live):
    """If an attempt number is already used, by hand or by a restore, the attempt of the consumer gets the next number.

    Fails when: the attempt of the consumer is not recorded, or its settlement fails for ever.
    """
    arrivals = Arrivals()
    by_hand = """insert into iu_route_attempt (event_ref, route_kind, route_code, status, decision, idempotency_key, attempt_no)
                 select event_ref, route_kind, route_code, 'failed', 'by hand', 'outbound:' || route_code || ':' || event_ref, 1
                   from iu_route_delivery where event_ref = $1"""
    async with connected(live.dsn) as connection:
        await open_route(connection)
        one, two = await insert_event(connection), await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 2
        await connection.execute(by_hand, one)
        async with delivering(live.dsn, arrivals.target()):
            await settled(connection)
        assert await attempts(connection, one) == [(1, "failed", "by hand", None), (2, "sent", "delivered", None)]
        assert await attempts(connection, two) == [(1, "sent", "delivered", None)]
        assert arrivals.arrived == {one: 1, two: 1}


async def test_deliveries_are_bounded_by_the_concurrency_of_their_route(live):
    """The number of calls at one time reaches the `concurrency` of the route and never
    exceeds it, and all events arrive.

    Fails when: the dispatcher ignores `concurrency`.
    """
    arrivals = Arrivals(lambda _: anyio.sleep(0.01))
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=7)
        for _ in range(100):
            await insert_event(connection)
        async with delivering(live.dsn, arrivals.target()):
            await settled(connection)
    assert arrivals.most == 7
    assert len(arrivals.arrived) == 100


# -- failure ---------------------------------------------------------------------------------------------------------


async def test_what_fails_is_tried_as_often_as_the_policy_says(live):
    """A delivery that fails gets the three attempts of its policy, with a backoff, and then
    becomes a dead letter with a reason.

    A healthy event of the same route is delivered.

    Fails when: attempts are not counted, or the first failure is final.
    """

    async def behave(delivery):
        if delivery.event.data["note"] == "bad":
            raise Failed("no, not this", code="not_this")

    arrivals = Arrivals(behave)
    async with connected(live.dsn) as connection:
        # The failures of one event do not open the circuit breaker.
        await open_route(connection, attempts=3, backoff=0.1, breaker=2)
        bad, good = await insert_event(connection, note="bad"), await insert_event(connection)
        async with delivering(live.dsn, arrivals.target()):
            await settled(connection)
        assert await attempts(connection, bad) == [
            (1, "failed", "retry", "not_this"),
            (2, "failed", "retry", "not_this"),
            (3, "failed", "dead_letter", "not_this"),
        ]
        assert await attempts(connection, good) == [(1, "sent", "delivered", None)]
        assert await letters(connection) == [("not_this", "no, not this", False)]
        waits = await connection.fetch(
            "select extract(epoch from created_at - lag(finished_at) over (order by attempt_no)) from iu_route_attempt where event_ref = $1",
            bad,
        )
        assert [0.04 < row[0] < 5 for row in waits[1:]] == [True, True]


async def test_a_rejected_event_is_a_dead_letter_at_once(live):
    """An event that the target rejects becomes a dead letter at its first attempt.

    Fails when: `Reject` counts as any other error.
    """

    async def behave(_):
        raise Reject("unknown customer", code="unknown_customer")

    async with connected(live.dsn) as connection:
        await open_route(connection)
        event = await insert_event(connection)
        async with delivering(live.dsn, Arrivals(behave).target()):
            await settled(connection)
        assert await attempts(connection, event) == [(1, "failed", "dead_letter", "unknown_customer")]
        assert await letters(connection) == [("unknown_customer", "unknown customer", False)]


async def test_an_error_of_somebody_else_keeps_its_text_to_itself(live):
    """An unexpected exception of a coroutine leads to a retry, and its message is not
    stored, because it may hold secrets.

    Fails when: the message of an exception that is not ours becomes the failure detail.
    """

    async def behave(_):
        raise ValueError("token=s3cr3t")

    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=1)
        await insert_event(connection)
        async with delivering(live.dsn, Arrivals(behave).target()):
            await settled(connection)
        ((code, detail, _),) = await letters(connection)
        assert code == "target_error"
        assert detail.startswith("ValueError (test_deliveries.py, line ")


async def test_a_deadline_ends_an_attempt(live):
    """An attempt that exceeds the deadline is cancelled and fails with the code timeout.

    Fails when: no deadline is set.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=2, backoff=0.01, deadline=0.2)
        event = await insert_event(connection)
        async with delivering(live.dsn, Arrivals(lambda _: anyio.sleep(60)).target()):
            await settled(connection)
        assert [a[3] for a in await attempts(connection, event)] == ["timeout", "timeout"]


@pytest.mark.parametrize("how", ["of what it waited for", "left behind"])
async def test_a_cancellation_of_a_target_is_its_own(live, how):
    """If a target raises a cancellation, or leaves a callback that cancels its task later,
    at most its own delivery fails.

    The delivery is attempted again, and the other deliveries go on.

    Fails when: a cancellation that the consumer did not request ends the dispatcher, during the call or while
    it waits for the next delivery.
    """

    async def behave(delivery):
        if how == "left behind":
            asyncio.get_running_loop().call_later(0.05, asyncio.current_task().cancel)
        elif delivery.attempt == 1:
            broken = asyncio.get_running_loop().create_future()
            broken.cancel()
            await broken

    arrivals = Arrivals(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, backoff=0.01)
        events = []
        async with delivering(live.dsn, arrivals.target()):
            for _ in range(4):
                events.append(await insert_event(connection))
                await settled(connection)
                await anyio.sleep(0.1)
        assert set(arrivals.arrived) == set(events)
        failed = [] if how == "left behind" else [(1, "failed", "retry", "target_cancelled")]
        assert await attempts(connection, events[0]) == [*failed, (len(failed) + 1, "sent", "delivered", None)]


async def test_retry_after_is_honoured(live):
    """The next attempt waits for the `retry_after` of the target if that is longer than the backoff.

    Fails when: `retry_after` is ignored.
    """
    times = []

    async def behave(delivery):
        times.append(time.monotonic())
        if delivery.attempt == 1:
            raise Failed("later", retry_after=0.8)

    async with connected(live.dsn) as connection:
        await open_route(connection, backoff=0.001)
        await insert_event(connection)
        async with delivering(live.dsn, Arrivals(behave).target()):
            await settled(connection)
    assert times[1] - times[0] > 0.75


# -- outage ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["unavailable", "failed"])
async def test_an_outage_spends_no_attempts_and_disturbs_nobody(live, how):
    """A target that is down for half an hour causes no dead letter, and all its events are delivered afterwards.

    The other route delivers at once. The time is compressed: with the default settings the interval between trial
    deliveries grows to 15 to 30 s, so half an hour has at least sixty of them; the test waits for 120.

    Fails when: the circuit breaker does not open, or the attempts that opened it are not given back.
    """
    down = True

    async def behave(_):
        if down:
            raise (Unavailable if how == "unavailable" else Failed)("down", code="down")

    hit, other = Arrivals(behave), Arrivals()
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=5, backoff=0.01, backoff_max=0.02, breaker=5, probe_max=0.03)
        healthy = await add_route(connection, "healthy")
        async with delivering(live.dsn, hit.target(), other.target("healthy")) as recorder:
            events = [await insert_event(connection) for _ in range(30)]
            held = await recorder.wait_for(RoutePaused)
            assert (held.route, held.paused_by, held.why) == (ROUTE, "breaker_open", "down")
            await wait_until(lambda: connection.fetchval("select probes >= 120 from iu_delivery_breaker"), "probes")
            assert set(other.arrived) == set(events)
            calls = len(hit.calls)
            assert await connection.fetchval("select max(tries) from iu_route_delivery") == 0
            assert (
                await connection.fetchval("select paused_by from v_iu_delivery where route_code = $1", ROUTE)
                == "breaker_open"
            )
            down = False
            await settled(connection)
            await recorder.wait_for(RouteResumed)
        assert calls < 30 + 120 + 30  # At most the first thirty, then one at a time.
        assert hit.arrived == dict.fromkeys(events, 1)
        assert await letters(connection) == []
        assert [len(await attempts(connection, e, healthy)) for e in events] == [1] * 30


async def test_a_clock_that_was_set_back_keeps_nothing_waiting(live):
    """A due time in the future, of a delivery or of a paused route, causes no wait after the clock was set back.

    Fails when: the dispatcher compares the clock only with the due time.
    """
    down = True

    async def behave(_):
        if down:
            raise Unavailable("down")

    arrivals = Arrivals(behave)
    future = "clock_timestamp() + interval '1 hour'"
    async with connected(live.dsn) as connection:
        await open_route(connection, breaker=1, probe_max=0.05)
        async with delivering(live.dsn, arrivals.target()) as recorder:
            event = await insert_event(connection)
            await recorder.wait_for(RoutePaused)
            await connection.execute(f"update iu_delivery_breaker set opened_at = {future}, probe_at = {future}")
            await connection.execute(f"update iu_route_delivery set failed_at = {future}, due_at = {future}")
            # Not earlier: if the row changes while its success is settled, the delivery is made once more.
            down = False
            await settled(connection)
        assert arrivals.arrived == {event: 1}


#: Many events: one in a thousand belongs to one subject, and one event of that subject is poison.
POISONED = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref, safe_payload)
    select 'iu', 'version_applied', 'update', 'immediate', case when n % 1000 = 0 then $1 else gen_random_uuid() end,
           jsonb_build_object('note', case when n = 5000 then 'poison' else '' end)
      from generate_series(0, $2::int - 1) n
    returning id
"""


@pytest.mark.slow
async def test_one_poison_event_is_one_dead_letter(live):
    """One poison event among ten thousand events spends only its own attempts, and the circuit breaker stays closed.

    Fails when: the failures of one event count as an outage, or its attempts are never used up.
    """
    subject = uuid4()

    async def behave(delivery):
        if delivery.event.data["note"] == "poison":
            raise Failed("never", code="never")

    arrivals = Arrivals(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=4, backoff=0.01, breaker=2, order="subject")
        events = [row["id"] for row in await connection.fetch(POISONED, subject, 10_000)]
        async with delivering(live.dsn, arrivals.target()) as recorder:
            await settled(connection, 60)
            assert recorder.of(RoutePaused) == []
        assert [code for code, _, _ in await letters(connection)] == ["never"]
        assert len(await attempts(connection, events[5000])) == 4
        assert arrivals.arrived == dict.fromkeys(events[:5000] + events[5001:], 1)
        # The later events of its subject waited until the poison event was given up, and then were delivered.
        same = [c.event.id for c in arrivals.calls if c.event.subject == str(subject)]
        assert same == events[0:5000:1000] + [events[5000]] * 4 + events[6000::1000]


# -- switches --------------------------------------------------------------------------------------------------------

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
async def test_a_lock_that_closes_during_a_burst_stops_deliveries_within_100_ms(live, lock):
    """No delivery begins later than 100 ms after the commit that closed a switch; the others
    arrive after the switch is open.

    Fails when: switches are read once for a page and not while its events are delivered.
    """
    begun: list[float] = []

    async def behave(_):
        begun.append(time.monotonic())
        await anyio.sleep(0.004)

    arrivals = Arrivals(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=4)
        events = [await insert_event(connection) for _ in range(400)]
        async with delivering(live.dsn, arrivals.target()) as recorder:
            await wait_until(lambda: asyncio.sleep(0, len(begun) > 20), "a burst")
            await connection.execute(CLOSE[lock])
            closed = time.monotonic()
            held = await recorder.wait_for(RoutePaused)
            # The route is no longer in the list of live routes; the consumer may see either reason first.
            assert held.paused_by in (lock, "route_not_listed" if lock == "dry_run" else lock)
            await asyncio.sleep(0.3)
            assert max(begun) - closed < 0.1
            assert len(begun) < 400
            assert await pending(connection) == 400 - len(arrivals.arrived)
            await connection.execute(OPEN[lock])
            await settled(connection)
        assert arrivals.arrived == dict.fromkeys(events, 1)


async def test_nothing_begins_while_nobody_says_that_the_locks_are_open(live):
    """While the database does not answer, deliveries that were taken do not begin, because
    a switch may have been closed.

    Fails when: one answer of the database allows all deliveries that came with it, however long they wait.
    """
    begun: list[float] = []

    async def behave(_):
        begun.append(time.monotonic())
        await anyio.sleep(0.04)

    arrivals = Arrivals(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=1)
        events = [await insert_event(connection) for _ in range(20)]
        async with delivering(live.dsn, arrivals.target()):
            await wait_until(lambda: asyncio.sleep(0, len(begun) > 3), "deliveries")
            async with connection.transaction():
                await connection.execute("lock table iu_delivery_breaker in access exclusive mode")
                locked = time.monotonic()
                await asyncio.sleep(0.5)
                assert max(begun) - locked < 0.1
                assert len(begun) < 20
            await settled(connection)
        assert arrivals.arrived == dict.fromkeys(events, 1)


@pytest.mark.slow
@pytest.mark.parametrize("held", [False, True])
async def test_who_is_freed_when_there_is_no_room_is_not_forgotten(live, held):
    """If more subjects become free than fit into the prefetch, or the route is paused, each subject goes on later.

    Fails when: subjects that do not fit, or that belong to a paused route, are found only by the sweep, once in 30 s.
    """
    ready = anyio.Event()

    async def behave(_):
        if held and len(arrivals.calls) == 1 + len(subjects):
            # The last call pauses the route after the other deliveries have arrived.
            raise Unavailable("for a moment", retry_after=0.5)
        await ready.wait()

    arrivals = Arrivals(behave)
    subjects = [uuid4() for _ in range(1 + AHEAD)]
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=20 if held else 1, order="subject", probe_max=0.1)
        async with delivering(live.dsn, arrivals.target()) as recorder:
            ready.set()
            await insert_event(connection)
            await settled(connection)
            async with connection.transaction():
                if held:
                    ready = anyio.Event()
                else:
                    await connection.execute("select from iu_delivery_lease for update")
                async with connected(live.dsn) as other, other.transaction():
                    for _ in range(2):
                        for subject in subjects:
                            await insert_event(other, subject=subject)
                await wait_until(lambda: asyncio.sleep(0, len(arrivals.calls) == 1 + len(subjects)), "calls")
            if held:
                await recorder.wait_for(RoutePaused)
                ready.set()
            await settled(connection, 15)
        assert len(arrivals.arrived) == 1 + 2 * len(subjects)


async def test_what_cannot_be_settled_bounds_what_begins(live):
    """While outcomes cannot be settled, no more calls begin than the prefetch allows, because a
    crash would repeat each of them.

    Fails when: only the calls that still run count against the prefetch.
    """
    arrivals = Arrivals()
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=2)
        async with delivering(live.dsn, arrivals.target()):
            await insert_event(connection)
            await settled(connection)
            async with connection.transaction():
                await connection.execute("select from iu_delivery_lease for update")
                async with connected(live.dsn) as other:
                    await other.execute(MANY, 100)
                await wait_until(lambda: asyncio.sleep(0, len(arrivals.calls) > 10), "calls")
                await asyncio.sleep(0.5)
                assert len(arrivals.calls) <= 1 + 2 * (1 + AHEAD)
            await settled(connection)
        assert len(arrivals.arrived) == 101
        assert set(arrivals.arrived.values()) == {1}


async def test_behind_a_closed_lock_an_attempt_says_so_and_the_event_waits(live):
    """An event that is routed while the delivery gate is closed gets an attempt that names
    the gate, and is delivered later.

    Fails when: the event becomes a dead letter, or no attempt names the gate.
    """
    arrivals = Arrivals()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await connection.execute(CLOSE["delivery_gate_closed"])
        event = await insert_event(connection)
        async with delivering(live.dsn, arrivals.target()) as recorder:
            await recorder.wait_for(RoutePaused, lambda h: h.paused_by == "delivery_gate_closed")
            assert await attempts(connection, event) == [(1, "pending", "delivery_gate_closed", None)]
            await connection.execute(OPEN["delivery_gate_closed"])
            await settled(connection)
        assert await attempts(connection, event) == [
            (1, "pending", "delivery_gate_closed", None),
            (2, "sent", "delivered", None),
        ]
        assert await letters(connection) == []


@pytest.mark.parametrize("kind", ["workflow", "external_endpoint"])
@pytest.mark.parametrize("value", [None, "missing", "", "True", "true "])
@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_a_delivery_gate_that_is_not_open_lets_nothing_be_taken(live, kind, value):
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


async def test_a_route_without_its_target_waits_and_says_so(live):
    """A consumer without the coroutine of a route pauses the route; a consumer that has it delivers the events.

    Fails when: the deliveries become dead letters, or the pause is not reported.
    """
    arrivals = Arrivals()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        event = await insert_event(connection)
        async with delivering(live.dsn) as recorder:
            held = await recorder.wait_for(RoutePaused)
            assert (held.paused_by, held.why) == ("no_target", "there is no target called event_outbox (known: none)")
        async with delivering(live.dsn, arrivals.target()):
            await settled(connection)
        assert arrivals.arrived == {event: 1}


# -- order -----------------------------------------------------------------------------------------------------------


async def test_a_route_keeps_the_order_of_a_subject(live):
    """In an ordered route, a subject waits for its failed event while other subjects go on, and a
    view shows the parked deliveries.

    Two deliveries of one subject never run at the same time.

    Fails when: only the first take respects subjects.
    """
    slow = uuid4()
    blocked = True

    async def behave(delivery):
        if delivery.event.subject == str(slow) and blocked:
            raise Failed("not yet")
        await anyio.sleep(0.002)

    arrivals = Arrivals(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=1000, backoff=0.02, backoff_max=0.05, order="subject", concurrency=20)
        subjects = [uuid4() for _ in range(10)]
        mine, others = [], {s: [] for s in subjects}
        for n in range(200):
            others[subjects[n % 10]].append(await insert_event(connection, subject=subjects[n % 10]))
            if n % 20 == 0:
                mine.append(await insert_event(connection, subject=slow))
        async with delivering(live.dsn, arrivals.target()):
            await wait_until(lambda: asyncio.sleep(0, len(arrivals.arrived) == 200), "the others")
            parked = await connection.fetchrow(
                "select depth, waits_for, tries > 0 as tried, since from v_iu_delivery_parked"
            )
            assert tuple(parked)[:3] == (9, mine[0], True)
            assert {c.event.id for c in arrivals.calls if c.event.subject == str(slow)} == {mine[0]}
            blocked = False
            await settled(connection)
        for subject, events in {**others, slow: mine}.items():
            assert list(dict.fromkeys(c.event.id for c in arrivals.calls if c.event.subject == str(subject))) == events
        assert arrivals.crowded == set()
        assert arrivals.most > 5


async def test_a_batch_hands_over_what_nobody_holds_and_nobody_comes_before(live):
    """A batch hands over the first delivery of each subject among the untried deliveries, up to the given number.

    It hands over only deliveries after the given position, and does so even if the event was deleted.

    Fails when: the hand-over ignores subjects or the circuit breaker, or omits a delivery
    because its event was deleted.
    """
    hand_over = "select array_agg(event_ref) from fn_iu_delivery_hand_over('iu_outbound_default', $1, $2, $3)"
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        one, other = uuid4(), uuid4()
        events = [await insert_event(connection, subject=subject) for subject in (one, one, other)]
        first, second, third = events
        await run_batch(connection)
        ids = [r["id"] for r in await connection.fetch("select id from iu_route_delivery order by id")]

        async def given(room: int = 9, after: int = 0) -> list[UUID] | None:
            return await connection.fetchval(hand_over, [ROUTE], [room], [after])

        assert await given() == await given(room=2) == [first, third]
        assert await given(room=1) == [first]
        assert await given(after=ids[0]) == [third]
        await connection.execute("delete from event_outbox where id = $1", first)
        assert await given() == [first, third]
        for held in ("opened_at", "stopped_at"):
            await connection.execute(f"insert into iu_delivery_breaker (route_code, {held}) values ($1, now())", ROUTE)
            assert await given() is None
            await connection.execute("delete from iu_delivery_breaker")
        await connection.execute("update iu_route_delivery set due_at = now() where id = $1", ids[2])
        assert await given() == [first]
        await open_route(connection, order="none")
        assert await given() == [first, second]
        await connection.execute(
            "update iu_outbound_route set target_kind = 'sql_function' where route_code = $1", ROUTE
        )
        assert await given() is None


async def test_a_batch_that_queues_nothing_reads_no_deliveries(live):
    """A batch that queues nothing does not read the table of deliveries, because a busy
    consumer polls every few milliseconds.

    Fails when: the hand-over reads deliveries although nothing was queued, so that each poll costs time in
    proportion to the parked deliveries.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        batch = await connection.prepare(query("run_batch_and_take"))
        await insert_event(connection)
        for queued in (1, 0):
            before = await rows_read(connection, "^iu_route_delivery$")
            answer, *_ = await batch.fetch("iu_outbound_default", 9, [ROUTE], [100], [0])
            assert (answer["event_ref"] is not None) == queued
            assert (await rows_read(connection, "^iu_route_delivery$") > before) == queued


@pytest.mark.slow
async def test_a_replay_waits_for_those_of_its_subject_that_are_on_their_way(live):
    """A replayed dead letter is delivered after the events of its subject that were queued before the replay.

    Fails when: a due delivery is taken before an earlier delivery of its subject.
    """
    subject = uuid4()
    bad, blocked = True, True

    async def behave(delivery):
        if delivery.event.data["note"] == "dead" and bad:
            raise Reject("no")
        if delivery.event.data["note"] == "slow" and blocked:
            raise Failed("not yet")

    arrivals = Arrivals(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject", attempts=1000, backoff=0.05, backoff_max=0.05)
        dead = await insert_event(connection, subject=subject, note="dead")
        async with delivering(live.dsn, arrivals.target()):
            await settled(connection)
            slow = await insert_event(connection, subject=subject, note="slow")
            await wait_until(lambda: asyncio.sleep(0, len(arrivals.calls) > 2), "a second event that is tried again")
            bad = False
            await connection.fetchval("select fn_iu_route_dead_letter_replay(id, 'ann') from iu_route_dead_letter")
            seen = len(arrivals.calls)
            await wait_until(lambda: asyncio.sleep(0, len(arrivals.calls) > seen + 5), "more tries")
            assert {c.event.id for c in arrivals.calls[1:]} == {slow}
            blocked = False
            await settled(connection)
        assert list(arrivals.arrived) == [slow, dead]
        assert arrivals.crowded == set()


# -- lease -----------------------------------------------------------------------------------------------------------


async def test_what_was_under_way_when_the_session_ended_is_settled_by_the_next(live):
    """If the database ends the session during a call, a new session settles its outcome, and the call is not repeated.

    Fails when: the consumer forgets its in-flight deliveries when it loses a session.
    """
    arrivals = Arrivals(lambda _: anyio.sleep(1.0))
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, arrivals.target()):
            event = await insert_event(connection)
            await wait_until(lambda: asyncio.sleep(0, arrivals.calls), "the call")
            ended = await connection.fetchval(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like 'iu-listen %' and datname = current_database()"
            )
            assert ended >= 2
            await settled(connection)
        assert [c.event.id for c in arrivals.calls] == [event]
        assert await attempts(connection, event) == [(1, "sent", "delivered", None)]


async def test_who_has_lost_the_lease_settles_nothing(live):
    """A consumer that has lost its lease drops its in-flight deliveries; the next lease holder
    delivers and settles them once.

    Fails when: the settlement does not check the lease.
    """
    gate = anyio.Event()
    arrivals = Arrivals(lambda _: gate.wait())
    async with connected(live.dsn) as connection:
        await open_route(connection)
        event = await insert_event(connection)
        async with delivering(live.dsn, arrivals.target(), session_timeout=60) as recorder:
            await wait_until(lambda: asyncio.sleep(0, arrivals.calls), "the call")
            thief = uuid4()
            await connection.execute(
                "update iu_delivery_lease set owner = $1, backend = null, renewed_at = clock_timestamp()", thief
            )
            # The next renewal, after at most 1 s, finds the loss: long before the lease of 60 s would have expired.
            await wait_until(lambda: asyncio.sleep(0, not arrivals.running.total()), "it to be given up", timeout=10)
            gate.set()
            await asyncio.sleep(0.3)
            assert recorder.of(DeliveriesSettled) == []
            assert await pending(connection) == 1
            await connection.execute("select fn_iu_delivery_release('iu_outbound_default', $1)", thief)
            await settled(connection)
        assert await attempts(connection, event) == [(1, "sent", "delivered", None)]


@pytest.mark.parametrize("lost", ["both", "the one that has the lease"])
async def test_a_lost_session_ends_what_has_an_order(live, monkeypatch, lost):
    """A consumer that loses its session cancels the call of an ordered route, because another consumer may begin it.

    Its next session makes the call again.

    Fails when: the call of an ordered route outlives the session, or the consumer notices
    the loss only at its next query.
    """
    monkeypatch.setattr(dispatcher, "TICK", 60)
    arrivals = Arrivals(lambda delivery: anyio.sleep(0 if len(arrivals.calls) > 1 else 600))
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject", deadline=900)
        async with delivering(live.dsn, arrivals.target(), session_timeout=60):
            event = await insert_event(connection, subject=uuid4())
            await wait_until(lambda: asyncio.sleep(0, arrivals.calls), "the call")
            await connection.execute(
                """select pg_terminate_backend(a.pid) from pg_stat_activity a
                    where a.application_name like 'iu-listen delivery %' and a.datname = current_database()
                      and ($1 or a.pid = (select backend from iu_delivery_lease))""",
                lost == "both",
            )
            await settled(connection)
        assert [c.event.id for c in arrivals.calls] == [event, event]
        assert arrivals.crowded == set()
        assert await attempts(connection, event) == [(1, "sent", "delivered", None)]


async def test_an_answer_from_long_ago_begins_nothing(live, monkeypatch):
    """A consumer that was suspended until its lease expired begins none of the deliveries that it had taken.

    Another consumer may hold the lease by then.

    Fails when: the age of an answer is measured from the moment at which it is read, for example by a frozen consumer
    that goes on.
    """
    arrivals, take, settle = Arrivals(), DeliverySession.take, DeliverySession.settle
    asleep, awake, events = anyio.Event(), anyio.Event(), list[UUID]()

    async def late(self, *args):
        answer = await take(self, *args)
        if answer.taken and not asleep.is_set():
            asleep.set()
            await awake.wait()
        return answer

    async def later(self, *args):
        if asleep.is_set():
            await awake.wait()
        return await settle(self, *args)

    monkeypatch.setattr(DeliverySession, "take", late)
    monkeypatch.setattr(DeliverySession, "settle", later)
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject")
        async with delivering(live.dsn, arrivals.target(), session_timeout=2):
            with anyio.fail_after(20):
                while not asleep.is_set():
                    events.append(await insert_event(connection, subject=uuid4()))
                    await anyio.sleep(0.02)
            await anyio.sleep(2)
            before, thief = len(arrivals.calls), uuid4()
            lease = "select fn_iu_delivery_lease('iu_outbound_default', $1, 60, true, null) ->> 'held'"
            assert await connection.fetchval(lease, thief) == "true"
            awake.set()
            await anyio.sleep(1)
            assert len(arrivals.calls) == before
            await connection.execute("select fn_iu_delivery_release('iu_outbound_default', $1)", thief)
            await settled(connection)
        assert set(arrivals.arrived) == set(events)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["none", "subject"])
@pytest.mark.parametrize("late", ["the taker", "the batch", "nobody"])
async def test_an_event_that_two_took_is_delivered_once(live, monkeypatch, late, order):
    """If a delivery is both handed over by a batch and taken, and one of the two answers
    comes late, it is delivered once.

    Fails when: an answer, of a batch or of a take, is not compared with the deliveries that were
    settled since it was asked for.
    """
    monkeypatch.setattr(sweep, "RESCAN", -1)
    arrivals, take, run_batch = Arrivals(), DeliverySession.take, WorkerSession.run_batch

    async def slow_take(self, *args):
        answer = await take(self, *args)
        if answer.taken and late == "the taker":
            # A later answer would be too old to prove that the switches are open.
            await anyio.sleep(dispatcher.LATE - 0.1)
        return answer

    async def slow_batch(self, limit, wants, give):
        given: list[tuple[Any, ...]] = []
        batch = await run_batch(self, limit, wants, lambda *what: given.append(what))
        if given:
            handed.append(batch)
            consumer._deliverer.work()
            await anyio.sleep({"the taker": 0.1, "the batch": 0.5, "nobody": 0}[late])
            give(*given[0])
        return batch

    handed: list[Batch] = []
    monkeypatch.setattr(DeliverySession, "take", slow_take)
    monkeypatch.setattr(WorkerSession, "run_batch", slow_batch)
    async with connected(live.dsn) as connection:
        await open_route(connection, order=order)
        async with Consumer(Settings(dsn=live.dsn), targets=[arrivals.target()]) as consumer:
            # Wait until the consumer knows the route and is idle.
            events = [await insert_event(connection)]
            await settled(connection)
            for _ in range(5):
                await wait_until(lambda: asyncio.sleep(0, not consumer._deliverer._ledger), "rest")
                events.append(await insert_event(connection))
                await wait_until(lambda: asyncio.sleep(0, len(handed) >= len(events) - 1), "a hand-over")
                await settled(connection)
            await anyio.sleep(0.6)
        assert arrivals.arrived == dict.fromkeys(events, 1)


async def test_what_is_handed_over_late_does_not_begin_behind_a_lock(live, monkeypatch):
    """A hand-over that arrives after a switch was closed does not begin.

    The batch reads the switches before its commit, and the commit may take long.

    Fails when: the dispatcher does not compare a hand-over with its own state of the route.
    """
    arrivals, run_batch, handed = Arrivals(), WorkerSession.run_batch, list[float]()

    async def slow_batch(self, limit, wants, give):
        given: list[tuple[Any, ...]] = []
        batch = await run_batch(self, limit, wants, lambda *what: given.append(what))
        if given:
            async with connected(live.dsn) as closer:
                await closer.execute(gate, "false")
                await recorder.wait_for(RoutePaused)
                give(*given[0])
                await anyio.sleep(0.1)
                handed.append(len(arrivals.calls))
                await closer.execute(gate, "true")
        return batch

    gate = "update dot_config set value = $1 where key = 'iu_core.delivery_enabled'"
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, arrivals.target()) as recorder:
            events = [await insert_event(connection)]
            await settled(connection)
            monkeypatch.setattr(WorkerSession, "run_batch", slow_batch)
            while not handed:
                events.append(await insert_event(connection))
                await settled(connection)
        assert handed == [len(events) - 1]
        assert arrivals.arrived == dict.fromkeys(events, 1)


async def test_taken_or_handed_over_a_delivery_looks_the_same(live):
    """The functions of the take and of the hand-over return the same columns in the order of
    `Event`; the take adds the routes.

    Fails when: a column is added to one of them, or moved.
    """
    result = "select pg_get_function_result($1::text::regproc)"
    async with connected(live.dsn) as connection:
        taken = await connection.fetchval(result, "fn_iu_delivery_take")
        handed_over = await connection.fetchval(result, "fn_iu_delivery_hand_over")
    assert taken == handed_over.replace("TABLE(", "TABLE(route jsonb, ")


@pytest.mark.slow
async def test_what_was_given_up_while_it_is_settled_is_not_taken_again(live, monkeypatch):
    """If a settlement lasts longer than the lease, it succeeds in the end, and each of its deliveries is called once.

    Calls of one subject do not overlap.

    Fails when: deliveries are taken while the consumer is not sure of its lease: rows that are being settled are still
    in the table, for example while a commit waits for a synchronous standby.
    """
    monkeypatch.setattr(dispatcher, "TICK", 0.05)
    arrivals, subject = Arrivals(lambda _: anyio.sleep(0.05)), uuid4()
    async with connected(live.dsn) as connection, connected(live.dsn) as other:
        await open_route(connection, order="subject")
        async with delivering(live.dsn, arrivals.target(), session_timeout=4):
            await insert_event(connection)
            await settled(connection)
            async with other.transaction():
                await other.execute("lock table iu_route_attempt in share row exclusive mode")
                events = [await insert_event(connection, subject=subject) for _ in range(3)]
                await wait_until(lambda: asyncio.sleep(0, len(arrivals.calls) == 2), "the call")
                await anyio.sleep(4.5)
            await settled(connection)
        assert arrivals.crowded == set()
        assert [c.event.id for c in arrivals.calls[1:]] == events


async def test_what_was_given_back_is_taken_again_whatever_comes_late(live, monkeypatch):
    """An answer that was requested before the consumer gave its deliveries back does not mark them as taken.

    Fails when: the position in an answer counts regardless of the age of the request.
    """
    take, asked = DeliverySession.take, anyio.Event()
    arrivals = Arrivals(lambda _: anyio.sleep(0.01))

    async def slow_take(self, wants, *args):
        answer = await take(self, wants, *args)
        if answer.taken and wants and wants[0].after and not asked.is_set():
            asked.set()
            await anyio.sleep(0.2)
        return answer

    monkeypatch.setattr(DeliverySession, "take", slow_take)
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=1)
        async with Consumer(Settings(dsn=live.dsn), targets=[arrivals.target()]) as consumer:
            await connection.execute(MANY, 50)
            with anyio.fail_after(20):
                await asked.wait()
            consumer._deliverer._forget()
            await settled(connection)
        assert len(arrivals.arrived) == 50


async def test_the_lease_ends_with_its_session_or_its_time_and_not_before(live):
    """The delivery lease ends with the session of its holder or with its time, and not before.

    While the session lives and the lease is renewed, no other consumer gets it. After the session is gone, another
    consumer gets it with its second request.

    Fails when: the session is not checked, the holder has no time to notice its loss, or a clock that was set back
    extends the lease.
    """
    one, two = uuid4(), uuid4()
    ask = "select fn_iu_delivery_lease('iu_outbound_default', $1, 60, false, $2)"
    take = "select fn_iu_delivery_lease('iu_outbound_default', $1, 60, false, null) ->> 'held' = 'true'"
    async with connected(live.dsn) as connection:
        holder = await asyncpg.connect(live.dsn)
        assert await holder.fetchval(take, one)
        assert not await connection.fetchval(take, two)
        for moved in ("- interval '61 seconds'", "+ interval '1 hour'"):
            await connection.execute(f"update iu_delivery_lease set renewed_at = clock_timestamp() {moved}")
            assert await connection.fetchval(take, two)
            await connection.execute("select fn_iu_delivery_release('iu_outbound_default', $1)", two)
            assert await holder.fetchval(take, one)
        holder.terminate()

        async def gone() -> bool:
            return json.loads(await connection.fetchval(ask, two, None))["gone"]

        await wait_until(gone, "the session to be gone", timeout=10)
        assert not json.loads(await connection.fetchval(ask, two, uuid4()))["held"]
        assert json.loads(await connection.fetchval(ask, two, one))["held"]


# -- stop ------------------------------------------------------------------------------------------------------------


async def test_a_stop_ends_what_is_under_way_and_hands_back_the_rest(live):
    """A graceful shutdown begins no delivery, settles the calls that run, and leaves the others to the next consumer.

    Fails when: the shutdown cancels calls, or new calls begin.
    """
    arrivals = Arrivals(lambda _: anyio.sleep(0.3))
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=3)
        events = [await insert_event(connection) for _ in range(12)]
        async with delivering(live.dsn, arrivals.target()):
            await wait_until(lambda: asyncio.sleep(0, len(arrivals.calls) == 3), "three calls")
        assert len(arrivals.arrived) == 3
        assert await pending(connection) == 9
        assert await connection.fetchval("select released from iu_delivery_lease")
        async with delivering(live.dsn, arrivals.target()):
            await settled(connection)
        assert arrivals.arrived == dict.fromkeys(events, 1)


# -- traces ----------------------------------------------------------------------------------------------------------


async def test_attempts_dead_letter_and_replay_are_one_trace(live):
    """Each attempt is a child of its event and links to the attempt before it.

    The dead letter is a child of the last attempt, and the replay is a child of the dead letter.

    Fails when: a repeated attempt is treated as a replay, or a dead letter as a child of the first attempt.
    """
    bad = True

    async def behave(_):
        if bad:
            raise Failed("no")

    arrivals = Arrivals(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=3, backoff=0.01)
        event = await insert_event(connection)
        async with delivering(live.dsn, arrivals.target()):
            await settled(connection)
            bad = False
            await connection.fetchval("select fn_iu_route_dead_letter_replay(id, 'ann') from iu_route_dead_letter")
            await settled(connection)
        rows = await connection.fetch("select * from v_iu_trace_attempt order by attempt_no")
        one, two, three, replay = (attempt_span(row, "") for row in rows)
        sent = event_span(rows[0])
        letter = letter_span(await connection.fetchrow("select * from v_iu_trace_dead_letter"))
        spans = [sent, one, two, three, letter, replay]
        assert {span.trace_id for span in spans} == {event.hex}
        assert [span.parent_id for span in spans] == [
            "", sent.span_id, sent.span_id, sent.span_id, three.span_id, letter.span_id,
        ]  # fmt: skip
        assert [span.links[1].span_id for span in (two, three, replay)] == [one.span_id, two.span_id, three.span_id]
        begins = {span.span_id: span.start for span in spans}
        assert all(span.start >= begins[span.parent_id] for span in spans[1:])
        assert all(span.end >= span.start for span in spans)
        tried = (one, two, three, replay)
        assert [call.traceparent[36:52] for call in arrivals.calls] == [span.span_id for span in tried]
        assert [span.attributes["iu.target"] for span in tried] == ["workflow event_outbox"] * 4
        assert [call_span(row, span) for row, span in zip(rows, tried, strict=True)] == [None] * 4


async def test_an_event_ends_before_any_of_its_attempts_begins(live):
    """No attempt begins before the span of its event has ended, whichever of two routes is exported first.

    Fails when: the span of the event ends where the first exported attempt began.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await add_route(connection, "second")
        slow = Arrivals(lambda _: anyio.sleep(0.02))
        async with delivering(live.dsn, Arrivals().target(), slow.target("second")):
            await insert_event(connection)
            await settled(connection)
        found = await connection.fetch("select * from v_iu_trace_attempt order by created_at")
        assert len({row["created_at"] for row in found}) == 2
        unknown = [dict(row) | {"commit_at": None} for row in found]
        for order in (found, found[::-1], unknown, unknown[::-1]):
            sent, *tried = attempt_spans(order, "")
            assert sent.name.startswith("send")
            assert all(span.start >= sent.end for span in tried)


async def test_a_delivery_links_to_the_batch_that_queued_it(live):
    """A first attempt, settled or cancelled, links to the transaction that queued it; a
    settled attempt names its target.

    Fails when: it links to the transaction that wrote the attempt, or to none.
    """
    arrivals = Arrivals()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await insert_event(connection)
        await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 2
        batch = await connection.fetchval("select distinct batch_xact_id from iu_route_delivery")
        async with delivering(live.dsn, arrivals.target()):
            await settled(connection)
        await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 1
        later = await connection.fetchval("select batch_xact_id from iu_route_delivery")
        await connection.fetchval("select fn_iu_route_live($1, false, 'a test', 'tester')", ROUTE)
        await connection.fetchval("select fn_iu_delivery_cancel($1, null, 'a test')", ROUTE)
        rows = await connection.fetch("select * from v_iu_trace_attempt order by id")
    assert [(row["batch_xact_id"], row["target"]) for row in rows] == [
        (batch, "workflow event_outbox"), (batch, "workflow event_outbox"), (later, None),
    ]  # fmt: skip
    for row in rows:
        assert attempt_span(row, "a history").links[1] == batch_link("a history", row["batch_xact_id"])
        assert row["xact_id"] != row["batch_xact_id"]
    assert len(list(attempt_spans(rows, ""))) == 3 * 2


@pytest.mark.parametrize(
    ("address", "target"),
    [(None, "workflow event_outbox"), ("https://h.example:8/s3cret?k=s3cret", "https://h.example:8")],
)
async def test_a_call_that_ended_its_process_is_a_span(live, address, target):
    """A call during which the process ended becomes a span that names the server, so spans of the target have a parent.

    Fails when: the attempt that the interruption spent does not name its target, or shows parts of
    the address that may be secret.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, address=address, attempts=1)
        await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 1
        await connection.execute(
            "select fn_iu_delivery_interrupted(array[route_code], array[id]) from iu_route_delivery"
        )
        (row,) = await connection.fetch("select * from v_iu_trace_attempt")
    assert row["target"] == target
    sent, attempt, *calls = attempt_spans([row], "")
    assert [(call.parent_id, call.name) for call in calls] == ([(attempt.span_id, "HTTP")] if address else [])
    assert [*calls, attempt][0].attributes["iu.target"] == target
    assert "s3cret" not in str((sent, attempt, calls))


async def test_an_attempt_links_to_the_one_before_it_that_was_written(live):
    """If there is no attempt with the preceding number, an attempt links to the last one before it, or to none.

    Fails when: the link assumes that an attempt exists for each number.
    """
    arrivals = Arrivals()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await insert_event(connection)
        assert (await run_batch(connection))["queued"] == 1
        await connection.execute("update iu_route_delivery set attempt_no = 3")
        async with delivering(live.dsn, arrivals.target()):
            await settled(connection)
        (row,) = await connection.fetch("select * from v_iu_trace_attempt")
    assert [link.span_id for link in attempt_span(row, "").links] == [event_span(row).span_id]


# -- replay, audit, retention ----------------------------------------------------------------------------------------


async def test_a_replay_is_delivered_with_the_same_key_and_resolves_its_dead_letter(live):
    """Two replay requests queue a dead letter once, and it is delivered as attempt 2 with the same idempotency key.

    The dead letter is resolved with the name of the operator.

    Fails when: a replay begins with attempt 1, or the dead letter is not resolved.
    """
    bad = True

    async def behave(_):
        if bad:
            raise Reject("broken")

    arrivals = Arrivals(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection)
        event = await insert_event(connection)
        async with delivering(live.dsn, arrivals.target()):
            await settled(connection)
            bad = False
            letter = await connection.fetchval("select id from iu_route_dead_letter")
            await connection.execute("delete from event_outbox where id = $1", event)
            replay = "select fn_iu_route_dead_letter_replay($1, 'ann')::jsonb ->> 'status'"
            async with connection.transaction():
                assert await connection.fetchval(replay, letter) == "queued"
                assert await connection.fetchval(replay, letter) == "already_queued"
            await settled(connection)
        assert len({c.idempotency_key for c in arrivals.calls}) == 1
        assert arrivals.calls[1].event.data == arrivals.calls[0].event.data
        assert await attempts(connection, event) == [
            (1, "failed", "dead_letter", "reject"),
            (2, "sent", "delivered", None),
        ]
        row = await connection.fetchrow("select resolution, replay_count, attempt_no from iu_route_dead_letter")
        assert tuple(row) == ("replayed by ann: delivered", 1, 2)


async def test_what_is_on_its_way_is_not_missing_and_is_not_removed(live):
    """A queued event is not missing for the completeness check, and retention does not remove it
    before its delivery has ended.

    Fails when: the check reads only attempts, or retention reads only cursors.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await insert_event(connection)
        await drain(connection)
        # At once: the event is not even suspected of being missing.
        page = "select fn_iu_completeness_page('iu_outbound_default', 1000, null) ->> 'status'"
        assert await connection.fetchval(page) == "passed"
        assert await connection.fetchval("select missing from v_iu_completeness") == 0
        await connection.execute(
            "alter table event_outbox disable trigger user; update event_outbox set created_at = now() - interval '1 year'; alter table event_outbox enable trigger user"
        )
        await connection.fetchval("select fn_iu_retention_run('events', 100, '1 day')")
        assert await connection.fetchval("select count(*) from event_outbox") == 1
        await connection.execute("delete from iu_route_delivery")
        await connection.fetchval("select fn_iu_completeness_page('iu_outbound_default', 1000, null)")
        await connection.fetchval("select fn_iu_completeness_page('iu_outbound_default', 1000, null)")
        assert await connection.fetchval("select missing from v_iu_completeness") == 1


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        ('{"attempts": 0}', "attempts must be a whole number from 1 to 1000, not 0"),
        ('{"attempts": 2.5}', "attempts must be a whole number from 1"),
        ('{"deadline": "30"}', 'deadline must be a number from 0.01 to 3600, not "30"'),
        ('{"order": "fifo"}', "order must be none or subject"),
        ('{"retries": 3}', "there is no retries"),
        ('{"target": "x"}', "target must be an object"),
        ("[]", "a delivery policy is an object"),
        ("null", "a delivery policy is an object"),
    ],
)
@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_a_wrong_policy_is_refused_where_it_is_written(live, policy, wrong):
    """The database refuses an invalid delivery policy when it is written, and the error names the invalid part.

    Fails when: the policy is validated only at the delivery.
    """
    async with connected(live.dsn) as connection:
        with pytest.raises(asyncpg.CheckViolationError, match=wrong):
            await connection.execute("update iu_outbound_route set delivery_policy = $1::jsonb", policy)
