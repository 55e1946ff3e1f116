"""The faults that need more than a signal: other servers, a pooler, a separate disk, a clock that can be set.

Their components are in tests/faults, where each has a small test of its own. The faults are entered into the table of
faults.py.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from typing import TypeVar

import asyncpg

from faults import clock, disk, pooler
from faults.pooler import Pooler
from faults.standby import promote, standby_of, stop_receiving, suspended, synchronous
from iu_listen import embedded
from postgres.listener_helpers import queue_filled
from storm.environment import (
    CATCH_UP,
    CONNECTION_ERRORS,
    DEADLINE,
    RECONNECT_MAX,
    SINCE_SMALL_QUEUES,
    WAIT_TIMEOUT,
    Environment,
)
from storm.faults import fault
from storm.surviving_history import SurvivingHistory
from support import WORKER

T = TypeVar("T")

#: A standby of the storm tries to reconnect after 200 ms; the default is 5 s.
STANDBY_SETTINGS = {"wal_retrieve_retry_interval": "200ms"}
#: Log messages of a consumer: connected to a server that is a standby, and behind a transaction pooler.
STANDBY_REPORTED = "takes no writes"
POOLER_REPORTED = "a pooler in transaction mode is in between"


@asynccontextmanager
async def in_thread(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave a blocking context manager in a thread, so that the storm goes on."""
    stack = ExitStack()
    try:
        yield await asyncio.to_thread(stack.enter_context, manager)
    finally:
        await asyncio.to_thread(stack.close)


async def keep_server_running(environment: Environment) -> None:
    """Act as a supervisor: start the server whenever it is down, until it accepts connections."""
    async with asyncio.timeout(WAIT_TIMEOUT):
        while True:
            with suppress(embedded.EmbeddedError):
                await asyncio.to_thread(environment.server.start)
            with suppress(*CONNECTION_ERRORS):
                (await environment.connect("storm supervisor")).terminate()
                return
            await asyncio.sleep(0.1)


# -- replication -------------------------------------------------------------------------------------------------


@fault("promotion of a streaming standby", bound=RECONNECT_MAX + 2, cuts_producers=True)
async def promoted(environment: Environment) -> AsyncIterator[None]:
    """The primary fails, and its synchronous standby is promoted; at random, consumers reach it before that."""
    old = environment.server
    standby = await asyncio.to_thread(
        environment.cleanup.enter_context, standby_of(old, environment.home, **STANDBY_SETTINGS)
    )
    async with synchronous(old):
        if environment.rng.random() < 0.5:
            before = environment.count_log_lines(STANDBY_REPORTED)
            environment.path.lead_to(standby.tcp_dsn())
            environment.path.reset()
            await environment.wait_for_log(STANDBY_REPORTED, before)
        await asyncio.sleep(environment.rng.uniform(0, 2))
        await asyncio.to_thread(old.stop, "immediate")
        await asyncio.to_thread(promote, standby)
        environment.server = standby
        environment.path.lead_to(standby.tcp_dsn())
        environment.path.reset()
    yield
    await asyncio.to_thread(shutil.rmtree, old.data, ignore_errors=True)


@fault("promotion of an asynchronous standby that is behind", bound=RECONNECT_MAX + 2, cuts_producers=True)
async def promoted_behind(environment: Environment) -> AsyncIterator[None]:
    """The standby stops following, and the primary goes on and fails: the latest transactions are lost."""
    assert environment.producers is not None
    old = environment.server
    standby = await asyncio.to_thread(
        environment.cleanup.enter_context, standby_of(old, environment.home, **STANDBY_SETTINGS)
    )
    async with synchronous(old):
        # The standby has all data up to here; from here on, commits do not wait for it.
        pass
    history = SurvivingHistory(environment.producers.model)
    await asyncio.to_thread(stop_receiving, standby)
    await asyncio.sleep(environment.rng.uniform(0.5, 3))
    await asyncio.to_thread(old.stop, "immediate")
    await asyncio.to_thread(promote, standby)
    environment.server = standby
    environment.path.lead_to(standby.tcp_dsn())
    environment.path.reset()
    await history.mark_lost_transactions(environment)
    yield
    await asyncio.to_thread(shutil.rmtree, old.data, ignore_errors=True)


@fault("synchronous standby suspended", bound=RECONNECT_MAX + 2)
async def standby_stalls(environment: Environment) -> AsyncIterator[None]:
    """Every commit waits, sometimes longer than the deadline of the consumers; then all commits complete at once."""
    async with (
        in_thread(standby_of(environment.server, environment.home, **STANDBY_SETTINGS)) as standby,
        synchronous(environment.server),
    ):
        with suspended(standby):
            await asyncio.sleep(environment.rng.uniform(0.5, DEADLINE + 2))
        yield


# -- the disk ----------------------------------------------------------------------------------------------------


@fault(
    "disk full",
    bound=RECONNECT_MAX + 2,
    cuts_producers=True,
    producers_may_fail=True,
    unavailable=lambda _: disk.unavailable(),
)
async def disk_full(environment: Environment) -> AsyncIterator[None]:
    """No block is free for tables and WAL: statements fail; PostgreSQL panics and stays down until there is space."""
    with disk.filled_disk(environment.home):
        await _fill_disk(environment)
        await asyncio.sleep(environment.rng.uniform(0.5, 4))
    await keep_server_running(environment)
    yield
    await environment.rows("drop table if exists storm.scratch")


async def _fill_disk(environment: Environment) -> None:
    """Write until a write fails, so that the disk is certainly full."""
    async with asyncio.timeout(WAIT_TIMEOUT):
        with suppress(asyncpg.DiskFullError, *CONNECTION_ERRORS):
            session = await environment.connect("storm scratch")
            try:
                await session.execute("create table if not exists storm.scratch (t text)")
                while True:
                    await session.execute(
                        "insert into storm.scratch select repeat('x', 500) from generate_series(1, 2000)"
                    )
            finally:
                session.terminate()


# -- pooler ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def through_a_pooler(environment: Environment) -> AsyncIterator[Pooler]:
    """Restart the consumers with a PgBouncer in transaction mode in between, and without it at the end."""
    with pooler.pooling(environment.server.tcp_dsn()) as between:
        await between.start()
        environment.notes["no lock"] = True
        before = environment.count_log_lines(POOLER_REPORTED)
        environment.path.lead_to(between.dsn)
        environment.path.reset()
        try:
            await environment.restart_consumers()
            yield between
            # A consumer detects the pooler within 2 s; its start takes about 1 s. bench/recovery.py measures it.
            await environment.wait_for_log(POOLER_REPORTED, before)
        finally:
            between.kill()
            environment.path.lead_to(environment.server.tcp_dsn())
            environment.path.reset()
        await environment.restart_consumers()
        await environment.until(
            "select exists (select from iu_consumer_heartbeat where listening and state in ('idle', 'busy'))"
        )
        environment.notes["no lock"] = False


@fault("consumers restarted through PgBouncer", bound=3, unavailable=lambda _: pooler.unavailable())
async def pooled(environment: Environment) -> AsyncIterator[None]:
    """There is no lease, no prepared statement and no bell: the consumers poll, and log the reason."""
    async with through_a_pooler(environment):
        yield


@fault("PgBouncer killed and started", bound=RECONNECT_MAX + 2, unavailable=lambda _: pooler.unavailable())
async def pooler_killed(environment: Environment) -> AsyncIterator[None]:
    """PgBouncer is killed while statements of the consumers go through it, and is started again."""
    async with through_a_pooler(environment) as between:
        await asyncio.sleep(environment.rng.uniform(0, 3))
        between.kill()
        await asyncio.sleep(environment.rng.uniform(0, 1))
        await between.start()
        yield


# -- the clock ---------------------------------------------------------------------------------------------------

#: Offsets of the clock, one after the other, in seconds.
CLOCK_OFFSETS = (clock.HOUR, 0, -clock.HOUR, 0)


async def _change_clock(environment: Environment, time: clock.Clock) -> None:
    for step in CLOCK_OFFSETS:
        time.set(step)
        await asyncio.sleep(environment.rng.uniform(0.2, 1.5))


@fault("clock of the consumers set by an hour", bound=CATCH_UP + 0.5, unavailable=lambda _: clock.unavailable())
async def consumers_clock(environment: Environment) -> AsyncIterator[None]:
    """The clock is set forward and back while they run; the monotonic clock is not changed, as by the kernel."""
    with clock.wall_clock() as time:
        for consumer in environment.consumers:
            consumer.environ = time.env
        try:
            await environment.restart_consumers()
            await _change_clock(environment, time)
            yield
        finally:
            for consumer in environment.consumers:
                consumer.environ = {}
        await environment.restart_consumers()


@fault(
    "clock of PostgreSQL set by an hour",
    bound=RECONNECT_MAX + 1,
    cuts_producers=True,
    unavailable=lambda _: clock.unavailable(),
)
async def servers_clock(environment: Environment) -> AsyncIterator[None]:
    """The clock is set forward and back: created_at follows it, the cursor must not. Idle sessions may be ended."""
    with clock.wall_clock() as time:
        async with in_thread(clock.using_clock(time, environment.server)):
            await environment.active_consumer()
            await _change_clock(environment, time)
            yield
            # Times recorded while the clock was ahead are corrected, and do not change the health of the worker.
            await environment.until(
                """select last_run_at <= clock_timestamp() and (fn_iu_route_worker_health($1) ->> 'healthy')::boolean
                     from iu_route_worker_cursor where worker_name = $1""",
                WORKER,
            )


# -- the notification queue --------------------------------------------------------------------------------------


@fault(
    "notification queue full",
    bound=CATCH_UP + 0.5,
    unavailable=lambda major: (
        "" if major >= SINCE_SMALL_QUEUES else "the queue cannot be made small before PostgreSQL 17"
    ),
)
async def queue_full(environment: Environment) -> AsyncIterator[None]:
    """A listener is idle in a transaction, so the queue is not freed: no producer can send NOTIFY, and none may fail."""
    async with queue_filled(environment.dsn, 1.0):
        await asyncio.sleep(environment.rng.uniform(0, 2))
        yield
    # The query for the usage frees the pages that no listener needs.
    await environment.until("select pg_notification_queue_usage() < 0.5")
