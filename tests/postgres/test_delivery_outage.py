"""Outages of a target and poison events: the circuit breaker and the number of attempts."""

from __future__ import annotations

from uuid import uuid4

import pytest

from iu_listen.model.delivery import Failed, Unavailable
from iu_listen.model.observation import RoutePaused, RouteResumed
from postgres.delivery_helpers import (
    ROUTE,
    RecordingTarget,
    add_route,
    attempts,
    dead_letters,
    delivering,
    open_route,
    wait_until_settled,
)
from support import connected, insert_event, wait_until

pytestmark = pytest.mark.asyncio


@pytest.mark.slow
@pytest.mark.parametrize("how", ["unavailable", "failed"])
async def test_an_outage_spends_no_attempts_and_affects_no_other_route(live, how):
    """A target that is down for half an hour causes no dead letter, and all its events are delivered afterwards.

    The other route delivers at once. The time is compressed: with the default settings the interval between trial
    deliveries grows to 15 to 30 s, so half an hour has at least sixty of them; the test waits for 120.

    Fails when: the circuit breaker does not open, or the attempts that opened it are not given back.
    """
    down = True

    async def behave(_):
        if down:
            raise (Unavailable if how == "unavailable" else Failed)("down", code="down")

    hit, other = RecordingTarget(behave), RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=5, backoff=0.01, backoff_max=0.02, breaker=5, trial_interval_max=0.03)
        healthy = await add_route(connection, "healthy")
        async with delivering(live.dsn, hit.target(), other.target("healthy")) as recorder:
            events = [await insert_event(connection) for _ in range(30)]
            held = await recorder.wait_for(RoutePaused)
            assert (held.route, held.paused_by, held.why) == (ROUTE, "breaker_open", "down")
            await wait_until(lambda: connection.fetchval("select trials >= 120 from iu_delivery_breaker"), "trials")
            assert set(other.delivered) == set(events)
            calls = len(hit.calls)
            assert await connection.fetchval("select max(tries) from iu_route_delivery") == 0
            assert (
                await connection.fetchval("select paused_by from v_iu_delivery where route_code = $1", ROUTE)
                == "breaker_open"
            )
            down = False
            await wait_until_settled(connection)
            await recorder.wait_for(RouteResumed)
        assert calls < 30 + 120 + 30  # At most the first thirty, then one at a time.
        assert hit.delivered == dict.fromkeys(events, 1)
        assert await dead_letters(connection) == []
        assert [len(await attempts(connection, e, healthy)) for e in events] == [1] * 30


async def test_a_clock_that_was_set_back_delays_no_delivery(live):
    """A due time in the future, of a delivery or of a paused route, causes no wait after the clock was set back.

    Fails when: the dispatcher compares the clock only with the due time.
    """
    down = True

    async def behave(_):
        if down:
            raise Unavailable("down")

    recording = RecordingTarget(behave)
    future = "clock_timestamp() + interval '1 hour'"
    async with connected(live.dsn) as connection:
        await open_route(connection, breaker=1, trial_interval_max=0.05)
        async with delivering(live.dsn, recording.target()) as recorder:
            event = await insert_event(connection)
            await recorder.wait_for(RoutePaused)
            await connection.execute(f"update iu_delivery_breaker set opened_at = {future}, trial_at = {future}")
            await connection.execute(f"update iu_route_delivery set failed_at = {future}, due_at = {future}")
            # Not earlier: if the row changes while its success is settled, the delivery is made once more.
            down = False
            await wait_until_settled(connection)
        assert recording.delivered == {event: 1}


#: Many events: one in a thousand belongs to one subject, and one event of that subject is poison.
POISONED = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref, safe_payload)
    select 'iu', 'version_applied', 'update', 'immediate', case when n % 1000 = 0 then $1 else gen_random_uuid() end,
           jsonb_build_object('note', case when n = 5000 then 'poison' else '' end)
      from generate_series(0, $2::int - 1) n
    returning id
"""


@pytest.mark.slow
async def test_one_poison_event_becomes_one_dead_letter(live):
    """One poison event among ten thousand events spends only its own attempts, and the circuit breaker stays closed.

    Fails when: the failures of one event count as an outage, or its attempts are never used up.
    """
    subject = uuid4()

    async def behave(delivery):
        if delivery.event.data["note"] == "poison":
            raise Failed("never", code="never")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=4, backoff=0.01, breaker=2, order="subject")
        events = [row["id"] for row in await connection.fetch(POISONED, subject, 10_000)]
        async with delivering(live.dsn, recording.target()) as recorder:
            await wait_until_settled(connection, 60)
            assert recorder.of(RoutePaused) == []
        assert [code for code, _, _ in await dead_letters(connection)] == ["never"]
        assert len(await attempts(connection, events[5000])) == 4
        assert recording.delivered == dict.fromkeys(events[:5000] + events[5001:], 1)
        # The later events of its subject waited until the poison event was given up, and then were delivered.
        same = [c.event.id for c in recording.calls if c.event.subject == str(subject)]
        assert same == events[0:5000:1000] + [events[5000]] * 4 + events[6000::1000]
