"""Failed deliveries: retries, deadlines, cancellations, and the policy of a route."""

from __future__ import annotations

import asyncio
import re
import time

import anyio
import asyncpg
import pytest

from iu_listen.model.delivery import DeadLetters, Failed, Reject
from iu_listen.model.observation import DeliveriesSettled
from postgres.delivery_helpers import (
    ROUTE,
    RecordingTarget,
    attempts,
    dead_letters,
    delivering,
    open_route,
    wait_until_settled,
)
from support import connected, insert_event

pytestmark = pytest.mark.asyncio


async def test_a_failing_delivery_is_attempted_as_often_as_the_policy_allows(live):
    """A delivery that fails gets the three attempts of its policy, with a backoff, and then
    becomes a dead letter with a reason.

    A healthy event of the same route is delivered.

    Fails when: attempts are not counted, or the first failure is final.
    """

    async def behave(delivery):
        if delivery.event.data["note"] == "bad":
            raise Failed("no, not this", code="not_this")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        # The failures of one event do not open the circuit breaker.
        await open_route(connection, attempts=3, backoff=0.1, breaker=2)
        bad, good = await insert_event(connection, note="bad"), await insert_event(connection)
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
        assert await attempts(connection, bad) == [
            (1, "failed", "retry", "not_this"),
            (2, "failed", "retry", "not_this"),
            (3, "failed", "dead_letter", "not_this"),
        ]
        assert await attempts(connection, good) == [(1, "sent", "delivered", None)]
        assert await dead_letters(connection) == [("not_this", "no, not this", False)]
        waits = await connection.fetch(
            "select extract(epoch from created_at - lag(finished_at) over (order by attempt_no)) from iu_route_attempt where event_ref = $1",
            bad,
        )
        assert [0.04 < row[0] < 5 for row in waits[1:]] == [True, True]


async def test_a_rejected_event_becomes_a_dead_letter_at_its_first_attempt(live):
    """An event that the target rejects becomes a dead letter at its first attempt.

    Fails when: `Reject` counts as any other error.
    """

    async def behave(_):
        raise Reject("unknown customer", code="unknown_customer")

    async with connected(live.dsn) as connection:
        await open_route(connection)
        event = await insert_event(connection)
        async with delivering(live.dsn, RecordingTarget(behave).target()):
            await wait_until_settled(connection)
        assert await attempts(connection, event) == [(1, "failed", "dead_letter", "unknown_customer")]
        assert await dead_letters(connection) == [("unknown_customer", "unknown customer", False)]


async def test_the_message_of_a_foreign_exception_is_not_stored(live):
    """An unexpected exception of a coroutine leads to a retry, and its message is not stored, as it may hold secrets.

    The observation of the dead letter, from which the log line is made, names the event and the stored reason.
    Fails when: the message of an exception that is not ours becomes the failure detail, or the reason is not reported.
    """

    async def behave(_):
        raise ValueError("token=s3cr3t")

    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=1)
        event = await insert_event(connection)
        async with delivering(live.dsn, RecordingTarget(behave).target()) as recorder:
            await wait_until_settled(connection)
            settled = await recorder.wait_for(DeliveriesSettled, lambda o: o.dead)
        ((code, detail, _),) = await dead_letters(connection)
        assert settled.dead_letters == [DeadLetters(ROUTE, "target_error", 1, str(event), detail)]
        assert code == "target_error"
        assert re.fullmatch(r"ValueError \(.*test_delivery_failure\.py, line \d+\)", detail)


async def test_an_attempt_ends_at_its_deadline(live):
    """An attempt that exceeds the deadline is cancelled and fails with the code timeout.

    Fails when: no deadline is set.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=2, backoff=0.01, deadline=0.2)
        event = await insert_event(connection)
        async with delivering(live.dsn, RecordingTarget(lambda _: anyio.sleep(60)).target()):
            await wait_until_settled(connection)
        assert [a[3] for a in await attempts(connection, event)] == ["timeout", "timeout"]


@pytest.mark.parametrize("how", ["of what it waited for", "left behind"])
async def test_a_cancellation_by_a_target_affects_only_its_delivery(live, how):
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

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, backoff=0.01)
        events = []
        async with delivering(live.dsn, recording.target()):
            for _ in range(4):
                events.append(await insert_event(connection))
                await wait_until_settled(connection)
                await anyio.sleep(0.1)
        assert set(recording.delivered) == set(events)
        failed = [] if how == "left behind" else [(1, "failed", "retry", "target_cancelled")]
        assert await attempts(connection, events[0]) == [*failed, (len(failed) + 1, "sent", "delivered", None)]


async def test_retry_after_delays_the_next_attempt(live):
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
        async with delivering(live.dsn, RecordingTarget(behave).target()):
            await wait_until_settled(connection)
    assert times[1] - times[0] > 0.75


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        ('{"attempts": 0}', "attempts must be a whole number from 1 to 1000, not 0"),
        ('{"attempts": 2.5}', "attempts must be a whole number from 1"),
        ('{"deadline": "30"}', 'deadline must be a number from 0.01 to 3600, not "30"'),
        ('{"order": "fifo"}', "order must be none or subject"),
        ('{"retries": 3}', "there is no setting retries"),
        ('{"target": "x"}', "target must be an object"),
        ("[]", "a delivery policy must be a JSON object"),
        ("null", "a delivery policy must be a JSON object"),
    ],
)
@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_an_invalid_delivery_policy_is_refused_when_written(live, policy, wrong):
    """The database refuses an invalid delivery policy when it is written, and the error names the invalid part.

    Fails when: the policy is validated only at the delivery.
    """
    async with connected(live.dsn) as connection:
        with pytest.raises(asyncpg.CheckViolationError, match=wrong):
            await connection.execute("update iu_outbound_route set delivery_policy = $1::jsonb", policy)
