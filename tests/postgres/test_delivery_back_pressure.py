"""The prefetch bounds the deliveries of a consumer, and the deliveries that did not fit are made later."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import anyio
import pytest

from iu_listen.flow.route import PREFETCH_FACTOR
from iu_listen.model.observation import RoutePaused
from iu_listen.postgres.delivery import DeliverySession
from postgres.delivery_helpers import RecordingTarget, delivering, open_route, wait_until_settled
from support import MANY, connected, insert_event, wait_until

pytestmark = pytest.mark.asyncio


@pytest.mark.slow
@pytest.mark.parametrize("held", [False, True])
async def test_unblocked_deliveries_are_taken_later_when_capacity_is_full(live, monkeypatch, held):
    """If more subjects become free than fit into the prefetch, or the route is paused, each subject goes on later.

    Fails when: subjects that do not fit, or that belong to a paused route, are found only by the sweep, once in 30 s.
    """
    ready = anyio.Event()

    async def nothing(self, searches):
        return []

    async def behave(_):
        await ready.wait()

    monkeypatch.setattr(DeliverySession, "sweep", nothing)
    gate = "update dot_config set value = $1 where key = 'iu_core.delivery_enabled'"

    recording = RecordingTarget(behave)
    subjects = [uuid4() for _ in range(1 + PREFETCH_FACTOR)]
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=20 if held else 1, order="subject", trial_interval_max=0.1)
        async with delivering(live.dsn, recording.target()) as recorder:
            ready.set()
            await insert_event(connection)
            await wait_until_settled(connection)
            async with connection.transaction():
                if held:
                    ready = anyio.Event()
                else:
                    await connection.execute("select from iu_delivery_lease for update")
                async with connected(live.dsn) as other, other.transaction():
                    for subject in subjects:
                        for _ in range(2):
                            await insert_event(other, subject=subject)
                await wait_until(lambda: asyncio.sleep(0, len(recording.calls) == 1 + len(subjects)), "calls")
            if held:
                await connection.execute(gate, "false")
                await recorder.wait_for(RoutePaused)
                ready.set()
                settled = "select count(*) = $1 from iu_route_delivery"
                await wait_until(lambda: connection.fetchval(settled, len(subjects)), "the settlements")
                await anyio.sleep(0.2)  # A take asks for the subjects while the route is paused.
                await connection.execute(gate, "true")
            await wait_until_settled(connection, 15)
        assert len(recording.delivered) == 1 + 2 * len(subjects)


async def test_unsettled_deliveries_count_against_the_prefetch(live):
    """While outcomes cannot be settled, no more calls begin than the prefetch allows, because a
    crash would repeat each of them.

    Fails when: only the calls that still run count against the prefetch.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=2)
        async with delivering(live.dsn, recording.target()):
            await insert_event(connection)
            await wait_until_settled(connection)
            async with connection.transaction():
                await connection.execute("select from iu_delivery_lease for update")
                async with connected(live.dsn) as other:
                    await other.execute(MANY, 100)
                await wait_until(lambda: asyncio.sleep(0, len(recording.calls) > 10), "calls")
                await asyncio.sleep(0.5)
                assert len(recording.calls) <= 1 + 2 * (1 + PREFETCH_FACTOR)
            await wait_until_settled(connection)
        assert len(recording.delivered) == 101
        assert set(recording.delivered.values()) == {1}
