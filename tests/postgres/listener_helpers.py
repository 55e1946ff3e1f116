"""Helpers for the tests of the bell: armed sessions, listeners, and the notifications that arrived."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import asyncpg

from iu_listen.model.routing import CHANNEL
from iu_listen.postgres.listener import BELL_KEY, slot_name
from support import connected, wait_until

#: Settings under which only a notification can wake the consumer: the catch-up poll is 300 s away.
NO_CATCH_UP = {"catch_up": 300, "session_timeout": 1000}

_HOLDERS = """
    select count(*) from pg_locks l join pg_database d on d.oid = l.database
     where d.datname = current_database() and l.locktype = 'advisory' and l.granted
       and l.classid = 726001 and l.objsubid = 2 and l.mode = $1"""


async def count_armed_locks(connection: asyncpg.Connection) -> int:
    """The number of bell locks that are held exclusively."""
    return await connection.fetchval(_HOLDERS, "ExclusiveLock")


async def count_shared_locks(connection: asyncpg.Connection) -> int:
    """The number of bell locks that are held shared, by running or prepared transactions."""
    return await connection.fetchval(_HOLDERS, "ShareLock")


#: Sessions of consumers that work, or did within 50 ms: a consumer that holds its bell lock runs one more batch.
_BUSY = """
    select count(*) from pg_stat_activity a
     where a.datname = current_database() and a.application_name like 'iu-listen%'
       and (a.state <> 'idle' or a.state_change > clock_timestamp() - interval '50 ms')"""


async def wait_until_armed(connection: asyncpg.Connection, how_many: int = 1) -> None:
    """Wait until so many consumers hold a bell lock and have run one more batch, so
    that only the bell finds an event."""

    async def asleep() -> bool:
        return await count_armed_locks(connection) == how_many and not await connection.fetchval(_BUSY)

    await wait_until(asleep, f"{how_many} consumers sleep")


@asynccontextmanager
async def counting_notifications(dsn: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Yields a function that returns the number of notifications since its last call."""
    async with connected(dsn) as ear, connected(dsn) as mouth:
        heard: list[str] = []
        changed = anyio.Event()

        def on_notification(_connection, _pid, _channel, payload) -> None:
            heard.append(payload)
            changed.set()

        await ear.add_listener(CHANNEL, on_notification)

        async def count() -> int:
            nonlocal changed
            # Notifications arrive in the order of commits: one that is not here before the last one was never sent.
            await mouth.fetchval("select pg_notify($1, 'last')", CHANNEL)
            with anyio.fail_after(10):
                while "last" not in heard:
                    changed = anyio.Event()
                    await changed.wait()
            bells = sum(payload != "last" for payload in heard)
            heard.clear()
            return bells

        yield count


@asynccontextmanager
async def armed_session(dsn: str, slot: int = 1, domain: str = "iu") -> AsyncIterator[asyncpg.Connection]:
    """A session that holds a bell lock as an idle consumer does."""
    async with connected(dsn) as sleeper:
        await sleeper.fetchval("select pg_advisory_lock($1, hashtext($2))", BELL_KEY, slot_name(domain, slot))
        yield sleeper


@asynccontextmanager
async def queue_filled(dsn: str, usage: float) -> AsyncIterator[float]:
    """A listener in an open transaction, so that the notification queue keeps its contents;
    yields the usage of the queue.

    The queue is filled to at least ``usage``, a share from 0 to 1.
    """
    async with connected(dsn) as idler, connected(dsn) as filler:
        await idler.add_listener("another", lambda *_: None)
        await idler.execute("begin")
        await idler.fetchval("select 1")
        queue_is_full = 0
        while await filler.fetchval("select pg_notification_queue_usage()") < usage and queue_is_full < 3:
            try:
                await filler.execute("select pg_notify('another', repeat('x', 7900))")
            except asyncpg.ProgramLimitExceededError:
                queue_is_full += 1
        yield await filler.fetchval("select pg_notification_queue_usage()")


async def queue_is_full(connection: asyncpg.Connection) -> bool:
    """Whether a NOTIFY fails now because the queue is full."""
    try:
        await connection.execute(f"select pg_notify('{CHANNEL}', repeat('y', 7900))")
    except asyncpg.ProgramLimitExceededError:
        return True
    return False
