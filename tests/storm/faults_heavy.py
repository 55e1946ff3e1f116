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
from faults.standby import behind, frozen, promote, standby_of, synchronous
from iu_listen import embedded
from postgres.listener_helpers import queue_filled
from storm.faults import fault
from storm.ground import CATCH_UP, DEADLINE, LOST, PATIENCE, RECONNECT_MAX, SINCE_SMALL_QUEUES, Ground
from storm.surviving import Surviving
from support import WORKER

T = TypeVar("T")

#: A standby of the storm tries to reconnect after 200 ms; the default is 5 s.
EAGER = {"wal_retrieve_retry_interval": "200ms"}
#: Log messages of a consumer: connected to a server that is a standby, and behind a transaction pooler.
REFUSED = "takes no writes"
POOLED = "a pooler in transaction mode is in between"


@asynccontextmanager
async def beside(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave a blocking context manager in a thread, so that the storm goes on."""
    stack = ExitStack()
    try:
        yield await asyncio.to_thread(stack.enter_context, manager)
    finally:
        await asyncio.to_thread(stack.close)


async def kept_up(ground: Ground) -> None:
    """Act as a supervisor: start the server whenever it is down, until it accepts connections."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(embedded.EmbeddedError):
                await asyncio.to_thread(ground.server.start)
            with suppress(*LOST):
                (await ground.connect("storm supervisor")).terminate()
                return
            await asyncio.sleep(0.1)


# -- replication -------------------------------------------------------------------------------------------------


@fault("promotion of a streaming standby", bound=RECONNECT_MAX + 2, cuts_writers=True)
async def promoted(ground: Ground) -> AsyncIterator[None]:
    """The primary fails, and its synchronous standby is promoted; at random, consumers reach it before that."""
    old = ground.server
    standby = await asyncio.to_thread(ground.leftovers.enter_context, standby_of(old, ground.home, **EAGER))
    async with synchronous(old):
        if ground.dice.random() < 0.5:
            before = ground.said(REFUSED)
            ground.path.lead_to(standby.tcp_dsn())
            ground.path.reset()
            await ground.until_said(REFUSED, before)
        await asyncio.sleep(ground.dice.uniform(0, 2))
        await asyncio.to_thread(old.stop, "immediate")
        await asyncio.to_thread(promote, standby)
        ground.server = standby
        ground.path.lead_to(standby.tcp_dsn())
        ground.path.reset()
    yield
    await asyncio.to_thread(shutil.rmtree, old.data, ignore_errors=True)


@fault("promotion of an asynchronous standby that is behind", bound=RECONNECT_MAX + 2, cuts_writers=True)
async def promoted_behind(ground: Ground) -> AsyncIterator[None]:
    """The standby stops following, and the primary goes on and fails: the latest transactions are lost."""
    assert ground.writers is not None
    old = ground.server
    standby = await asyncio.to_thread(ground.leftovers.enter_context, standby_of(old, ground.home, **EAGER))
    async with synchronous(old):
        # The standby has all data up to here; from here on, commits do not wait for it.
        pass
    history = Surviving(ground.writers.model)
    await asyncio.to_thread(behind, standby)
    await asyncio.sleep(ground.dice.uniform(0.5, 3))
    await asyncio.to_thread(old.stop, "immediate")
    await asyncio.to_thread(promote, standby)
    ground.server = standby
    ground.path.lead_to(standby.tcp_dsn())
    ground.path.reset()
    await history.compare(ground)
    yield
    await asyncio.to_thread(shutil.rmtree, old.data, ignore_errors=True)


@fault("synchronous standby stands still", bound=RECONNECT_MAX + 2)
async def standby_stalls(ground: Ground) -> AsyncIterator[None]:
    """Every commit waits, sometimes longer than the deadline of the consumers; then all commits complete at once."""
    async with beside(standby_of(ground.server, ground.home, **EAGER)) as standby, synchronous(ground.server):
        with frozen(standby):
            await asyncio.sleep(ground.dice.uniform(0.5, DEADLINE + 2))
        yield


# -- the disk ----------------------------------------------------------------------------------------------------


@fault("disk full", bound=RECONNECT_MAX + 2, cuts_writers=True, writers_may_fail=True, missing=lambda _: disk.missing())
async def disk_full(ground: Ground) -> AsyncIterator[None]:
    """No block is free for tables and WAL: statements fail; PostgreSQL panics and stays down until there is space."""
    with disk.full(ground.home):
        await _run_out_of_room(ground)
        await asyncio.sleep(ground.dice.uniform(0.5, 4))
    await kept_up(ground)
    yield
    await ground.rows("drop table if exists storm.scratch")


async def _run_out_of_room(ground: Ground) -> None:
    """Write until a write fails, so that the disk is certainly full."""
    async with asyncio.timeout(PATIENCE):
        with suppress(asyncpg.DiskFullError, *LOST):
            session = await ground.connect("storm scratch")
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
async def through_a_pooler(ground: Ground) -> AsyncIterator[Pooler]:
    """Restart the consumers with a PgBouncer in transaction mode in between, and without it at the end."""
    with pooler.pooling(ground.server.tcp_dsn()) as between:
        await between.start()
        ground.notes["no lock"] = True
        before = ground.said(POOLED)
        ground.path.lead_to(between.dsn)
        ground.path.reset()
        try:
            await ground.restart_consumers()
            yield between
            # A consumer detects the pooler within 2 s; its start takes about 1 s. bench/recovery.py measures it.
            await ground.until_said(POOLED, before)
        finally:
            between.kill()
            ground.path.lead_to(ground.server.tcp_dsn())
            ground.path.reset()
        await ground.restart_consumers()
        await ground.until(
            "select exists (select from iu_consumer_heartbeat where listening and state in ('idle', 'busy'))"
        )
        ground.notes["no lock"] = False


@fault("consumers restarted through PgBouncer", bound=3, missing=lambda _: pooler.missing())
async def pooled(ground: Ground) -> AsyncIterator[None]:
    """There is no lease, no prepared statement and no bell: the consumers poll, and log the reason."""
    async with through_a_pooler(ground):
        yield


@fault("PgBouncer killed and started", bound=RECONNECT_MAX + 2, missing=lambda _: pooler.missing())
async def pooler_killed(ground: Ground) -> AsyncIterator[None]:
    """PgBouncer is killed while statements of the consumers go through it, and is started again."""
    async with through_a_pooler(ground) as between:
        await asyncio.sleep(ground.dice.uniform(0, 3))
        between.kill()
        await asyncio.sleep(ground.dice.uniform(0, 1))
        await between.start()
        yield


# -- the clock ---------------------------------------------------------------------------------------------------

#: Offsets of the clock, one after the other, in seconds.
STEPS = (clock.HOUR, 0, -clock.HOUR, 0)


async def _set_again_and_again(ground: Ground, time: clock.Clock) -> None:
    for step in STEPS:
        time.set(step)
        await asyncio.sleep(ground.dice.uniform(0.2, 1.5))


@fault("clock of the consumers set by an hour", bound=CATCH_UP + 0.5, missing=lambda _: clock.missing())
async def consumers_clock(ground: Ground) -> AsyncIterator[None]:
    """The clock is set forward and back while they run; the monotonic clock is not changed, as by the kernel."""
    with clock.wall_clock() as time:
        for consumer in ground.consumers:
            consumer.environ = time.env
        try:
            await ground.restart_consumers()
            await _set_again_and_again(ground, time)
            yield
        finally:
            for consumer in ground.consumers:
                consumer.environ = {}
        await ground.restart_consumers()


@fault(
    "clock of PostgreSQL set by an hour", bound=RECONNECT_MAX + 1, cuts_writers=True, missing=lambda _: clock.missing()
)
async def servers_clock(ground: Ground) -> AsyncIterator[None]:
    """The clock is set forward and back: created_at follows it, the cursor must not. Idle sessions may be ended."""
    with clock.wall_clock() as time:
        async with beside(clock.going_by(time, ground.server)):
            await ground.leader()
            await _set_again_and_again(ground, time)
            yield
            # Times recorded while the clock was ahead are corrected, and do not change the health of the worker.
            await ground.until(
                """select last_run_at <= clock_timestamp() and (fn_iu_route_worker_health($1) ->> 'healthy')::boolean
                     from iu_route_worker_cursor where worker_name = $1""",
                WORKER,
            )


# -- the notification queue --------------------------------------------------------------------------------------


@fault(
    "notification queue full",
    bound=CATCH_UP + 0.5,
    missing=lambda major: "" if major >= SINCE_SMALL_QUEUES else "the queue cannot be made small before PostgreSQL 17",
)
async def queue_full(ground: Ground) -> AsyncIterator[None]:
    """A listener is idle in a transaction, so the queue is not freed: no writer can send NOTIFY, and none may fail."""
    async with queue_filled(ground.dsn, 1.0):
        await asyncio.sleep(ground.dice.uniform(0, 2))
        yield
    # The query for the usage frees the pages that no listener needs.
    await ground.until("select pg_notification_queue_usage() < 0.5")
