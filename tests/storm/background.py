"""What goes on beside the storm: a table of actions, each done again and again, also during the faults.

To add one, write a coroutine under @every(seconds), here or in a module that run.py imports. A server that is away is
waited for; what it raises otherwise fails the storm. It gets the ground, and keeps what it wants in ``ground.notes``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from iu_listen.model.errors import DatabaseUnreachable, SessionLost
from iu_listen.postgres import retention
from iu_listen.postgres.former import MOST
from iu_listen.postgres.lease import LEASE_KEY
from iu_listen.postgres.session import session
from storm.ground import LOST, Ground
from support import WORKER

Action = Callable[[Ground], Awaitable[None]]

#: How long retention keeps events that every cursor has read. Long enough for a writer that was cut to look for his.
KEEP = "20 s"

#: Sessions of one consumer: eight purposes, each with what may be left of its former ones.
MOST_SESSIONS = 8 * (1 + MOST)

#: Deliveries that wait beyond which quick and bulk writers pause.
FLOOD = 20_000

ACTIONS: list[tuple[float, Action]] = []


def every(seconds: float) -> Callable[[Action], Action]:
    """Enter an action into the table."""

    def enter(action: Action) -> Action:
        ACTIONS.append((seconds, action))
        return action

    return enter


async def keep_doing(pause: float, action: Action, ground: Ground) -> None:
    """One action, for the whole storm."""
    while True:
        try:
            await action(ground)
        except (*LOST, DatabaseUnreachable, SessionLost):
            await asyncio.sleep(0.1)
        await asyncio.sleep(pause)


@every(0.1)
async def one_consumer_works(ground: Ground) -> None:
    """Nobody has run a batch as his last statement without holding the lease, not even a consumer that was frozen.

    The two views are not of one moment, so it must be seen twice. A batch that was only prepared, as a standby on a
    silent path has it, is active and waits for its client. Behind a pooler there is no lease, and where a stranger holds
    the lock a row stands for it.
    """
    if ground.notes.get("no lock"):
        return
    found = await ground.rows(
        """select a.pid, a.backend_start from pg_stat_activity a
            where a.application_name = $1 and a.query ~ 'fn_iu_route_worker_run'
              and not (a.state = 'active' and a.wait_event is not distinct from 'ClientRead')
              and not exists (select from pg_locks l
                               where l.pid = a.pid and l.locktype = 'advisory' and l.classid = $2 and l.granted)""",
        f"iu-listen worker {WORKER}",
        LEASE_KEY,
    )
    now = {tuple(row) for row in found}
    twice = now & ground.notes.setdefault("batches without the lease", set())
    ground.notes["batches without the lease"] = now
    assert not twice, f"backend {twice} runs batches and does not hold the lease"


@every(0.5)
async def sessions_are_bounded(ground: Ground) -> None:
    """Whatever is struck, the consumers have a bounded number of sessions, those included that they have given up."""
    count = await ground.value(
        "select count(*) from pg_stat_activity where application_name like 'iu-listen %' and backend_type = 'client backend'"
    )
    ground.notes["sessions"] = max(count, ground.notes.get("sessions", 0))
    assert count <= len(ground.consumers) * MOST_SESSIONS, f"the consumers have {count} sessions"


@every(0.5)
async def writers_wait_for_deliveries(ground: Ground) -> None:
    """Back-pressure: what is written can be delivered before it is judged, on a slow machine, too."""
    waiting = await ground.value("select count(*) from (select from iu_route_delivery limit $1) d", FLOOD)
    if ground.writers is not None:
        ground.writers.flooded = waiting == FLOOD


@every(2)
async def retention_goes_on(ground: Ground) -> None:
    """What every cursor has read is removed soon, while the storm goes on; not while writers look for what is theirs."""
    async with session(ground.dsn, name="storm retention") as connection:
        batches = retention.batches(connection, "events", KEEP, 5000, 0.01, deadline=30)
        while not (ground.cutting or ground.writers is None or ground.writers.looking):
            if (answer := await anext(batches, None)) is None:
                return
            ground.notes["removed"] = ground.notes.get("removed", 0) + answer["gone"]
