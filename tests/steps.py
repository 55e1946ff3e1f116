"""The steps of a batch, and a way to hold a batch at one of them by a lock that any session could take."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from support import connected, wait_until

#: A batch waits at the end of these steps while another session holds the lock of that step.
DETAINED = """
    create function detain() returns trigger language plpgsql as
    $$ begin perform pg_advisory_xact_lock_shared(4711, tg_argv[0]::int); return null; end $$;
    create trigger detained after insert on iu_route_attempt for each statement execute function detain('1');
    create constraint trigger detained after update on iu_route_worker_cursor
        deferrable initially deferred for each row execute function detain('2');
"""
#: The steps in their order, with the statement that holds a batch there.
STEPS = {
    "the cursor is locked": "lock table iu_outbound_route in access exclusive mode",
    "the page is read": "lock table iu_route_attempt in exclusive mode",
    "attempts are written": "select pg_advisory_xact_lock(4711, 1)",
    "it commits": "select pg_advisory_xact_lock(4711, 2)",
}
#: The server process of a batch that is held.
WAITS = """
    select pid from pg_stat_activity
     where datname = current_database() and application_name like 'iu-listen worker %' and wait_event_type = 'Lock'
"""


@asynccontextmanager
async def held(dsn: str, step: str) -> AsyncIterator[asyncpg.Connection]:
    """Every batch that reaches this step waits there until the block ends; yields the
    holding session. Needs DETAINED."""
    async with connected(dsn) as holder:
        await holder.execute("begin")
        await holder.execute(STEPS[step])
        yield holder


async def waiting(connection: asyncpg.Connection) -> int:
    """Wait until a batch is held; return its server process."""
    pid: int = await wait_until(lambda: connection.fetchval(WAITS), "a batch is held")
    return pid
