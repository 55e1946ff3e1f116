"""The heartbeat shows each state of a consumer, also when the consumer cannot work yet."""

from __future__ import annotations

import pytest

from iu_listen.model.observation import (
    SessionFailed,
)
from postgres.listener_helpers import NO_CATCH_UP
from postgres.session_helpers import latest_heartbeat, wait_until_routed
from support import WORKER, connected, consuming, insert_event, open_gate, wait_until

pytestmark = pytest.mark.asyncio


async def test_the_heartbeat_shows_each_state(applied):
    """The heartbeat identifies the consumer and shows gate_closed, idle, refusing and stopped with their reasons.

    Fails when: a change of state does not send a heartbeat at once.
    """
    async with connected(applied.dsn) as admin:

        async def says(state: str):
            async def so() -> bool:
                row = await latest_heartbeat(admin)
                return row is not None and row["state"] == state

            await wait_until(so, f"the heartbeat says {state}", timeout=5)
            return await latest_heartbeat(admin)

        async with consuming(applied.dsn, **NO_CATCH_UP):
            row = await says("gate_closed")
            assert row["state_detail"] == "worker_gate_closed"
            assert (row["worker_name"], row["cadence_seconds"]) == (WORKER, 300)
            assert row["last_wake"] in ("start_up", "poll", "linger")
            await open_gate(applied.dsn)
            row = await says("idle")
            assert row["state_detail"] is None
            assert row["listening"]
            await admin.execute("update iu_route_worker_cursor set lineage = gen_random_uuid()")
            await open_gate(applied.dsn)
            assert (await says("refusing"))["state_detail"] == "foreign_cursor"
        row = await says("stopped")
        assert row["state_detail"] == "end of test"
        assert row["beat_at"] > row["started_at"]


async def test_the_heartbeat_shows_a_backlog(live):
    """The heartbeat of a consumer with more than one batch of backlog shows busy, the number of routed events
    and the lag."""
    async with connected(live.dsn) as admin:
        events = [await insert_event(admin) for _ in range(300)]

        async def busy():
            row = await latest_heartbeat(admin)
            return row is not None and row["state"] == "busy" and row

        async with consuming(live.dsn, **NO_CATCH_UP, batch_limit=1):
            row = await wait_until(busy, "the heartbeat says busy", timeout=5)
            assert 1 <= row["events"] < 300
            assert row["lag_seconds"] >= 0
            await wait_until_routed(admin, events)
        row = await latest_heartbeat(admin)
        assert (row["state"], row["events"], row["lag_seconds"]) == ("stopped", 300, None)


async def test_a_failing_heartbeat_is_reported_with_growing_pauses(live):
    """If the heartbeat cannot be written, events are still routed, and the error is reported with growing pauses.

    Fails when: the backoff is reset before the heartbeat is written.
    """
    async with connected(live.dsn) as admin:
        await admin.execute("drop table iu_consumer_heartbeat")
        async with consuming(live.dsn, listening=False, **NO_CATCH_UP, reconnect_max=1) as seen:
            event = await insert_event(admin)
            await wait_until_routed(admin, [event])
            failed = await seen.wait_for(SessionFailed, lambda f: f.session == "worker" and f.retry_in > 0.3)
            assert "iu_consumer_heartbeat" in failed.why
