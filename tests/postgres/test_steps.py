"""A batch that is ended at each of its steps takes effect as a whole or not at all; in
the latter case it is repeated."""

from __future__ import annotations

from collections import Counter

import pytest

from postgres.listener_helpers import NO_CATCH_UP, wait_until_armed
from steps import DETAINED, STEPS, held, waiting
from support import attempted, connected, consuming, insert_event, wait_until

pytestmark = pytest.mark.asyncio


async def test_a_session_ended_at_any_step_of_a_batch_leaves_no_effect(live):
    """If the session of a batch is ended at any step, no effect of the batch is left, and its events are routed once.

    Fails when: events, attempts and cursor are not changed in one transaction.
    """
    async with connected(live.dsn) as admin:
        await admin.execute(DETAINED)
        events = []
        async with consuming(live.dsn, **NO_CATCH_UP, reconnect_max=0.1):
            for step in STEPS:
                await wait_until_armed(admin)
                async with held(live.dsn, step):
                    events.append(await insert_event(admin))
                    await admin.fetchval("select pg_terminate_backend($1, 10000)", await waiting(admin))
                    assert events[-1] not in await attempted(admin)

                async def all_there() -> bool:
                    return len(await attempted(admin)) >= len(events)

                await wait_until(all_there, f"it is routed after its batch was ended when {step}")
                assert Counter(await attempted(admin)) == Counter(events)
        assert await admin.fetchval("select total_seen from iu_route_worker_cursor") == len(events)
