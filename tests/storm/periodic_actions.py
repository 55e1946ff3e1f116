"""Background actions of the storm: a table of coroutines that run at a fixed interval, also during the faults.

To add one, write a coroutine under @every(seconds), here or in a module that run.py imports. If the server is not
available, the action is tried again; any other exception fails the storm. An action receives the environment, and keeps its
state in ``environment.notes``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from iu_listen.admin import retention
from iu_listen.model.errors import DatabaseUnreachable, SessionLost
from iu_listen.postgres.earlier_sessions import MAX_EARLIER_SESSIONS
from iu_listen.postgres.lease import LEASE_KEY
from iu_listen.postgres.session import session
from storm.environment import CONNECTION_ERRORS, Environment
from support import WORKER

Action = Callable[[Environment], Awaitable[None]]

#: How long retention keeps events that every cursor has read: long enough for a producer to find out, after its session
#: was cut, whether its transaction was committed.
RETENTION_KEEP = "20 s"

#: Largest number of sessions of one consumer: eight purposes, each with one session and up to MAX_EARLIER_SESSIONS earlier ones.
MAX_SESSIONS_PER_CONSUMER = 8 * (1 + MAX_EARLIER_SESSIONS)

#: Number of waiting deliveries from which quick and bulk producers pause.
MAX_WAITING_DELIVERIES = 5_000

ACTIONS: list[tuple[float, Action]] = []


def every(seconds: float) -> Callable[[Action], Action]:
    """Register an action that runs every so many seconds."""

    def enter(action: Action) -> Action:
        ACTIONS.append((seconds, action))
        return action

    return enter


async def repeat_action(pause: float, action: Action, environment: Environment) -> None:
    """Run one action again and again, until the storm ends."""
    while True:
        try:
            await action(environment)
        except (*CONNECTION_ERRORS, DatabaseUnreachable, SessionLost):
            await asyncio.sleep(0.1)
        await asyncio.sleep(pause)


@every(0.1)
async def check_lease_of_batches(environment: Environment) -> None:
    """No backend has a batch as its last statement without holding the lease, also after its consumer was frozen.

    The two views are not read at the same moment, so only a backend that is seen twice in a row is an error. Excluded
    is a batch that was only prepared, as by a standby on a silent path: it is active and waits for its client. The
    check is off behind a pooler, where there is no lease, and while another role holds the lock, when a row represents
    the lease.
    """
    if environment.notes.get("no lock"):
        return
    found = await environment.rows(
        """select a.pid, a.backend_start from pg_stat_activity a
            where a.application_name = $1 and a.query ~ 'fn_iu_route_worker_run'
              and not (a.state = 'active' and a.wait_event is not distinct from 'ClientRead')
              and not exists (select from pg_locks l
                               where l.pid = a.pid and l.locktype = 'advisory' and l.classid = $2 and l.granted)""",
        f"iu-listen worker {WORKER}",
        LEASE_KEY,
    )
    now = {tuple(row) for row in found}
    twice = now & environment.notes.setdefault("batches without the lease", set())
    environment.notes["batches without the lease"] = now
    assert not twice, f"backend {twice} runs batches and does not hold the lease"


@every(0.5)
async def check_number_of_sessions(environment: Environment) -> None:
    """The number of sessions of the consumers is bounded during every fault, abandoned sessions included."""
    count = await environment.value(
        "select count(*) from pg_stat_activity where application_name like 'iu-listen %' and backend_type = 'client backend'"
    )
    environment.notes["sessions"] = max(count, environment.notes.get("sessions", 0))
    assert count <= len(environment.consumers) * MAX_SESSIONS_PER_CONSUMER, f"the consumers have {count} sessions"


@every(0.5)
async def throttle_producers(environment: Environment) -> None:
    """Back-pressure: producers pause, so that a slow machine can also deliver all events before the verdict."""
    waiting = await environment.value(
        "select count(*) from (select from iu_route_delivery limit $1) d", MAX_WAITING_DELIVERIES
    )
    if environment.producers is not None:
        environment.producers.throttled = waiting == MAX_WAITING_DELIVERIES


@every(2)
async def run_retention(environment: Environment) -> None:
    """Remove events that every cursor has read, during the storm, but not while a producer verifies its own events."""
    async with session(environment.dsn, name="storm retention") as connection:
        batches = retention.batches(connection, "events", RETENTION_KEEP, 5000, 0.01, deadline=30)
        while not (environment.cuts_sessions or environment.producers is None or environment.producers.verifying):
            if (answer := await anext(batches, None)) is None:
                return
            environment.notes["removed"] = environment.notes.get("removed", 0) + answer["gone"]
