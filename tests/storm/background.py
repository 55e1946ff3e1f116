"""What goes on beside the storm: a table of actions, each done again and again, also during the faults.

To add one, write a coroutine under @every(seconds), here or in a module that run.py imports. A server that is away is
waited for; what it raises otherwise fails the storm. It gets the ground, and keeps what it wants in ``ground.notes``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from iu_listen.postgres.worker import LEASE_KEY
from storm.ground import LOST, Ground
from support import WORKER

Action = Callable[[Ground], Awaitable[None]]

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
        except LOST:
            await asyncio.sleep(0.1)
        await asyncio.sleep(pause)


@every(0.1)
async def one_consumer_works(ground: Ground) -> None:
    """Nobody has run a batch as his last statement without holding the lease, not even a consumer that was frozen.

    The two views are not of one moment, so it must be seen twice. Behind a pooler there is no lease.
    """
    if ground.notes.get("pooled"):
        return
    found = await ground.rows(
        """select a.pid, a.backend_start from pg_stat_activity a
            where a.application_name = $1 and a.query ~ 'fn_iu_route_worker_run'
              and not exists (select from pg_locks l
                               where l.pid = a.pid and l.locktype = 'advisory' and l.classid = $2 and l.granted)""",
        f"iu-listen worker {WORKER}",
        LEASE_KEY,
    )
    now = {tuple(row) for row in found}
    twice = now & ground.notes.setdefault("batches without the lease", set())
    ground.notes["batches without the lease"] = now
    assert not twice, f"backend {twice} runs batches and does not hold the lease"
