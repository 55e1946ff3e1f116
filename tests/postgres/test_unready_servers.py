"""Consumers of a database that is not ready: without the package, without the worker, read-only, or without LISTEN."""

from __future__ import annotations

import anyio
import pytest

from iu_listen.app import PostgresSessions
from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.model.errors import Refused
from iu_listen.model.observation import (
    LeaseTaken,
    Polling,
    SessionFailed,
)
from iu_listen.model.routing import State, Tally
from iu_listen.model.settings import Settings
from iu_listen.postgres.session import session
from postgres.listener_helpers import NO_CATCH_UP
from postgres.session_helpers import BackgroundConsumer, latest_heartbeat, wait_until_routed
from support import Recorder, connected, consuming, drain, insert_event, open_gate

pytestmark = pytest.mark.asyncio


async def test_a_consumer_waits_for_the_package(substrate):
    """A consumer that starts before the install reports the missing function, and works after the install."""
    early = BackgroundConsumer(substrate.dsn, Recorder(), **NO_CATCH_UP, reconnect_max=0.3)
    async with connected(substrate.dsn) as admin, anyio.create_task_group() as tasks:
        tasks.start_soon(early.consumer.run)
        failed = await early.recorder.wait_for(SessionFailed, lambda f: f.session == "worker")
        assert "fn_iu_route_worker_run" in failed.why
        await apply_package(substrate.dsn)
        await open_gate(substrate.dsn)
        event = await insert_event(admin)
        await wait_until_routed(admin, [event])
        early.consumer.stop("end of test")


async def apply_package(dsn: str) -> None:
    async with session(dsn, name="tests") as connection:
        state = await package_state(connection)
        await migrate.apply_files(connection, state.pending, {}, lambda _: None)


async def test_an_unknown_worker_is_reported_and_its_heartbeat_accepted(live):
    """A worker that is not registered is an error that names it; its heartbeat is accepted, and other workers go on."""
    async with connected(live.dsn) as admin:
        outbox = PostgresSessions(Settings.load({}, {"dsn": live.dsn, "worker": "nobody"})).worker()
        async with outbox as nobody:
            with pytest.raises(Refused, match="worker nobody is not registered"):
                await nobody.run_batch(1)
            await nobody.beat(State.STARTING, "", False, "", Tally())
            assert await drain(admin) == 0


async def test_a_consumer_without_listen_polls(live):
    """With listen = off the consumer opens no listener session, gives the reason once, and
    polls; the heartbeat shows it."""
    async with connected(live.dsn) as admin, consuming(live.dsn, listening=False, listen=False) as seen:
        event = await insert_event(admin)
        await wait_until_routed(admin, [event], within=2)
        assert ["switched off" in said.why for said in seen.of(Polling)] == [True]
        sessions = "select count(*) from pg_stat_activity where datname = current_database() and application_name like '%listener%'"
        assert await admin.fetchval(sessions) == 0
        assert not (await latest_heartbeat(admin))["listening"]


async def test_a_read_only_server_is_reported_and_retried(live):
    """A read-only server is reported and tried again with growing pauses until it accepts writes.

    Fails when: the check for a standby or read-only server is taken out, or does not name the setting.
    """
    consumer = BackgroundConsumer(live.dsn, Recorder(), **NO_CATCH_UP, reconnect_max=0.3)
    async with connected(live.dsn) as admin, anyio.create_task_group() as tasks:
        name = await admin.fetchval("select current_database()")
        event = await insert_event(admin)
        await admin.execute(f"alter database {name} set default_transaction_read_only = on")
        tasks.start_soon(consumer.consumer.run)
        failed = await consumer.recorder.wait_for(SessionFailed, lambda f: f.retry_in > 0.1)
        assert failed.why == "the server takes no writes: default_transaction_read_only is on for the database"
        assert not consumer.recorder.of(LeaseTaken)
        await admin.execute(f"alter database {name} reset default_transaction_read_only")
        await wait_until_routed(admin, [event])
        consumer.consumer.stop("end of test")
