"""A wall clock that is set forward and back: cursor and bell do not depend on it, and recorded times are corrected."""

from __future__ import annotations

import pytest

from cli.command import running
from faults.clock import HOUR, unavailable, using_clock, wall_clock
from faults.load import check_each_event_once, wait_until_attempted
from iu_listen.model.observation import BatchRan, NotificationMissed, SessionFailed
from postgres.listener_helpers import wait_until_armed
from support import connected, consuming, insert_event, wait_until

pytestmark = [pytest.mark.asyncio, pytest.mark.slow, pytest.mark.skipif(bool(unavailable()), reason=unavailable())]

#: Offsets in seconds: forward, back, behind, and back.
STEPS = (0, HOUR, 0, -HOUR, 0)

#: Seconds by which a recorded time differs from that of the server.
AHEAD = "select extract(epoch from {} - clock_timestamp())::float8 from {}"


async def test_a_consumer_works_with_a_changed_clock(primary):
    """A consumer whose clock is set by an hour, forward and back, still works by the bell and loses no session.

    Fails when: a deadline, an interval or the cursor uses the wall clock.
    """
    dsn = primary.tcp_dsn()
    with wall_clock() as clock:
        environ = clock.env | {"IU_LISTEN_CATCH_UP": "1", "IU_LISTEN_SESSION_TIMEOUT": "3"}
        with running("run", "--log-format", "json", dsn=dsn, env=environ) as consumer:
            async with connected(dsn) as writer:
                for step in STEPS:
                    clock.set(step)
                    await wait_until_armed(writer)
                    await wait_until_attempted(writer, await insert_event(writer), within=5)

                    async def told(step: int = step) -> bool:
                        ahead = await writer.fetchval(AHEAD.format("last_wake_at", "iu_consumer_heartbeat"))
                        return abs(ahead - step) < 60

                    # The only time by the consumer's own clock; it proves that the clock was really set.
                    await wait_until(told, "it tells the time that it believes")
                await check_each_event_once(dsn)
                assert await writer.fetchval("select count(*) from iu_consumer_heartbeat") == 1
            assert consumer.end() == 0
            assert "session failed" not in consumer.said
            assert "lost" not in consumer.said


async def test_events_are_routed_on_a_server_with_a_changed_clock(primary):
    """On a server whose clock is set by an hour, forward and back, each event is routed once, woken by the bell.

    After each step the time of the last run is corrected without an event. A listener session with a
    transaction_timeout may end: at the alarm of that timeout PostgreSQL also checks its other timeouts, by a clock that
    was set by an hour. Fails when: the cursor uses created_at, or a last run in the future is trusted.
    """
    dsn = primary.tcp_dsn()
    with wall_clock() as clock, using_clock(clock, primary):
        async with consuming(dsn, catch_up=1, session_timeout=3) as seen, connected(dsn) as writer:
            for step in STEPS:
                clock.set(step)
                # No event is written that would cause the correction.
                for noted in ("last_run_at", "iu_route_worker_cursor"), ("beat_at", "iu_consumer_heartbeat"):

                    async def right(noted: tuple[str, str] = noted) -> bool:
                        return -5 < await writer.fetchval(AHEAD.format(*noted)) <= 0

                    await wait_until(right, f"{noted} comes right")

                for _ in range(3):
                    await wait_until_armed(writer)
                    await wait_until_attempted(writer, await insert_event(writer), within=5)
            span = "select extract(epoch from max(created_at) - min(created_at))::float8 from event_outbox"
            assert await writer.fetchval(span) > 1.9 * HOUR
            assert len(await check_each_event_once(dsn)) == 3 * len(STEPS)
            spared = (
                {"listener"} if await writer.fetchval("select current_setting('transaction_timeout', true)") else set()
            )
        assert [f for f in seen.of(SessionFailed) if f.session not in spared] == []
        assert seen.of(NotificationMissed) == []
        assert seen.of(BatchRan)
