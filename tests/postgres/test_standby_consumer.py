"""The lease of the worker: a standby takes it over when the lease holder stops or freezes."""

from __future__ import annotations

import time

import anyio
import pytest

from iu_listen.app import PostgresSessions
from iu_listen.model.errors import SessionLost
from iu_listen.model.observation import (
    LeaseTaken,
    StandingBy,
    Stopped,
)
from iu_listen.model.settings import Settings
from postgres.listener_helpers import NO_CATCH_UP
from postgres.session_helpers import BackgroundConsumer, latest_heartbeat, wait_until_routed
from support import Recorder, connected, consuming, insert_event, wait_until

pytestmark = pytest.mark.asyncio


async def test_a_standby_takes_the_lease_when_the_holder_stops(live):
    """When the lease holder stops, the standby takes the lease, reports it, and routes new events.

    Fails when: a standby does not try again.
    """
    standby = BackgroundConsumer(live.dsn, Recorder(), **NO_CATCH_UP)
    async with connected(live.dsn) as admin, anyio.create_task_group() as tasks:
        async with consuming(live.dsn, **NO_CATCH_UP):
            tasks.start_soon(standby.consumer.run)
            told = await standby.recorder.wait_for(StandingBy)
            holder = """select format('pid %s, %s', pid, application_name) from pg_stat_activity
                         where pid = (select pid from pg_locks where locktype = 'advisory' and classid = 726003
                         and database = (select oid from pg_database where datname = current_database()))"""
            assert told.holder.startswith(await admin.fetchval(holder))

            async def beaten() -> bool:
                return (await latest_heartbeat(admin))["state_detail"] == told.holder

            await wait_until(beaten, "the standby beats, and says behind whom it stands")
            events = [await insert_event(admin)]
            await wait_until_routed(admin, events)
            assert not standby.recorder.of(LeaseTaken)
        left = time.monotonic()
        await standby.recorder.wait_for(LeaseTaken)
        assert time.monotonic() - left < 2
        events.append(await insert_event(admin))
        await wait_until_routed(admin, events)
        standby.consumer.stop("end of test")
        await standby.recorder.wait_for(Stopped)
        assert len(standby.recorder.of(StandingBy)) == 1


async def test_a_frozen_lease_holder_loses_the_lease(live):
    """The server ends the session of a lease holder that sends nothing for the duration of the lease.

    Another consumer then takes the lease.

    Fails when: idle_session_timeout is taken out of the worker session.
    """
    async with PostgresSessions(
        Settings.load({}, {"dsn": live.dsn, "session_timeout": 1, "catch_up": 0.5})
    ).worker() as frozen:
        assert await frozen.take_lease() is None
        async with consuming(live.dsn, **NO_CATCH_UP) as seen:
            assert seen.of(StandingBy)
            assert seen.of(LeaseTaken)
        with pytest.raises(SessionLost):
            await frozen.run_batch(1)
