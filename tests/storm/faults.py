"""The faults of the storm: a table. The system must recover from each fault without an operator.

To add one, write an async generator with one yield under @fault(...), here or in a module that run.py imports:

    @fault("the action and its object", bound=LEASE + 1)
    async def name(ground: Ground) -> AsyncIterator[None]:
        ...   cause the fault, and repair what a supervisor or an operator would: restart the server, heal the path
        yield      the runner measures the recovery here: the time until a new event is routed, compared with the bound
        ...   restore the conditions for the next fault; a check that fails raises AssertionError

A fault may last beyond its yield (a frozen process): then the bound is for the recovery during the fault. Use
ground.dice for random choices, and ground.rows() and ground.until() for queries: they repeat the query while there is
no server. A check after the yield that raises fails the storm.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from iu_listen.postgres.lease import LEASE_KEY
from storm.ground import CATCH_UP, DEADLINE, LEASE, RECONNECT_MAX, Ground
from support import WORKER, open_gate


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: The action and its object.
        bound: Longest recovery, in seconds, on an idle machine and without a backlog.
        strike: The context manager that causes the fault; made by @fault.
        cuts_writers: Whether it ends the sessions of writers. They connect again, and that is not an error.
        writers_may_fail: Whether writers may get errors other than lost sessions, as from a full disk.
        missing: Takes the major version of PostgreSQL and returns why the fault is not possible here, for example a
            tool that is not installed; an empty text if it is possible.
    """

    name: str
    bound: float
    strike: Callable[[Ground], AbstractAsyncContextManager[None]]
    cuts_writers: bool = False
    writers_may_fail: bool = False
    missing: Callable[[int], str] = lambda _: ""


FAULTS: dict[str, Fault] = {}

Strike = Callable[[Ground], AsyncIterator[None]]


def fault(
    name: str,
    *,
    bound: float,
    cuts_writers: bool = False,
    writers_may_fail: bool = False,
    missing: Callable[[int], str] = lambda _: "",
) -> Callable[[Strike], Strike]:
    """Enter a fault into the table. The arguments are the attributes of Fault."""

    def enter(strike: Strike) -> Strike:
        FAULTS[name] = Fault(name, bound, asynccontextmanager(strike), cuts_writers, writers_may_fail, missing)
        return strike

    return enter


# -- processes ---------------------------------------------------------------------------------------------------


@fault("kill -9 of the active consumer", bound=2)
async def killed(ground: Ground) -> AsyncIterator[None]:
    """The standby takes over, and the supervisor starts the killed consumer again."""
    (await ground.leader()).signal(signal.SIGKILL)
    yield


@fault("kill -9 of every consumer", bound=5)
async def all_killed(ground: Ground) -> AsyncIterator[None]:
    """Only the supervisor remains, and starts the consumers again."""
    for consumer in ground.consumers:
        consumer.signal(signal.SIGKILL)
    yield


@fault("active consumer asked to stop", bound=2)
async def asked_to_stop(ground: Ground) -> AsyncIterator[None]:
    """SIGTERM is sent, as at a deployment: the consumer completes its batch and ends, the standby takes over."""
    (await ground.leader()).signal(signal.SIGTERM)
    yield


@fault("frozen leader, thawed later", bound=LEASE + 1)
async def frozen(ground: Ground) -> AsyncIterator[None]:
    """The server ends the frozen consumer's session, the standby takes over, the thawed consumer becomes standby."""
    leader, holder = await ground.leader(), await ground.lease_holder()
    leader.signal(signal.SIGSTOP)
    try:
        # A running batch ends without its client, because the server executes it.
        await ground.until(
            "select not exists (select from pg_stat_activity where pid = $1 and state = 'active')", holder
        )
        yield
        await ground.until(
            """select exists (select from pg_locks
                               where locktype = 'advisory' and classid = $1 and granted and pid <> $2)""",
            LEASE_KEY,
            holder,
        )
        heir = await ground.lease_holder()
        await asyncio.sleep(ground.dice.uniform(0, 1))
    finally:
        leader.signal(signal.SIGCONT)
    await ground.until(
        """select exists (select from iu_consumer_heartbeat
                           where pid = $1 and state = 'standing_by' and beat_at > clock_timestamp() - interval '2 s')""",
        leader.pid,
    )
    assert await ground.lease_holder() == heir, "the thawed consumer took the lease from its heir"


# -- sessions ----------------------------------------------------------------------------------------------------

TERMINATE = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = any ($1)"
WORKER_SESSION, BELL_SESSION = f"iu-listen worker {WORKER}", f"iu-listen listener {WORKER}"


@fault("worker session terminated", bound=1)
async def worker_terminated(ground: Ground) -> AsyncIterator[None]:
    """pg_terminate_backend ends the session that holds the lease."""
    await ground.rows("select pg_terminate_backend($1)", await ground.lease_holder())
    yield


@fault("bell session terminated", bound=1)
async def bell_terminated(ground: Ground) -> AsyncIterator[None]:
    """pg_terminate_backend ends every listener session."""
    await ground.rows(TERMINATE, [BELL_SESSION])
    yield


@fault("all sessions of the consumers terminated", bound=2)
async def all_terminated(ground: Ground) -> AsyncIterator[None]:
    """pg_terminate_backend ends the worker, listener and token sessions of all consumers."""
    await ground.rows(TERMINATE, [WORKER_SESSION, BELL_SESSION, "iu-listen token"])
    yield


@fault("sessions of writers terminated", bound=1, cuts_writers=True)
async def writers_terminated(ground: Ground) -> AsyncIterator[None]:
    """About half of the writers lose their session during a transaction, which must count completely or not at all."""
    await ground.rows(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name ~ '^storm writer' and random() < 0.5"
    )
    yield


# -- the server --------------------------------------------------------------------------------------------------


async def _restarted(ground: Ground, mode: str) -> None:
    await asyncio.to_thread(ground.server.stop, mode)
    await asyncio.sleep(ground.dice.uniform(0, 1))
    await asyncio.to_thread(ground.server.start)


@fault("PostgreSQL stopped at once (immediate) and started", bound=2, cuts_writers=True)
async def crashed(ground: Ground) -> AsyncIterator[None]:
    """The server crashes: clients get no message, and recovery replays the write-ahead log."""
    await _restarted(ground, "immediate")
    yield


@fault("PostgreSQL stopped (fast) and started", bound=2, cuts_writers=True)
async def restarted(ground: Ground) -> AsyncIterator[None]:
    """The server is stopped and started, as by an update of the PostgreSQL package."""
    await _restarted(ground, "fast")
    yield


@fault("backend killed -9", bound=2, cuts_writers=True)
async def backend_killed(ground: Ground) -> AsyncIterator[None]:
    """A backend is killed, as by the OOM killer: the server ends all its sessions, and recovers by itself."""
    pids = await ground.rows("select pid from pg_stat_activity where application_name ~ '^storm writer'")
    os.kill(ground.dice.choice(pids)["pid"], signal.SIGKILL)
    # First wait until the server has noticed the killed backend, then until it accepts connections again.
    await asyncio.sleep(0.2)
    await ground.value("select true")
    yield


@fault("gate closed for a while", bound=1)
async def gate_closed(ground: Ground) -> AsyncIterator[None]:
    """Nothing is routed while the gate is closed; the consumer follows both changes at once."""
    await open_gate(ground.dsn, "false")
    await asyncio.sleep(ground.dice.uniform(0.2, 2))
    await open_gate(ground.dsn)
    yield


# -- the path ----------------------------------------------------------------------------------------------------


@fault("path reset", bound=2)
async def path_reset(ground: Ground) -> AsyncIterator[None]:
    """Every connection of the consumers is reset."""
    ground.path.reset()
    yield


@fault("path refuses for a while", bound=RECONNECT_MAX + 1)
async def path_refuses(ground: Ground) -> AsyncIterator[None]:
    """Every connection is reset, and new connections are reset, too."""
    ground.path.refusing = True
    ground.path.reset()
    await asyncio.sleep(ground.dice.uniform(0.2, 2))
    ground.path.refusing = False
    yield


@fault("path swallows everything for a while", bound=DEADLINE + RECONNECT_MAX + 1)
async def path_stalls(ground: Ground) -> AsyncIterator[None]:
    """Open connections lose the data that was sent and cannot be used afterwards; neither side is notified."""
    ground.path.stalled = True
    await asyncio.sleep(ground.dice.uniform(0.2, 3))
    ground.path.stalled = False
    yield


@fault("open connections go silent for good", bound=LEASE + DEADLINE + RECONNECT_MAX)
async def path_forgets(ground: Ground) -> AsyncIterator[None]:
    """As after the restart of a router that forgets the connections that it carried; new connections work."""
    ground.path.swallow()
    yield


@fault("path accepts and says nothing for a while", bound=DEADLINE + RECONNECT_MAX + 1)
async def path_mute(ground: Ground) -> AsyncIterator[None]:
    """New connections are accepted and never answered."""
    ground.path.mute = True
    ground.path.reset()
    await asyncio.sleep(ground.dice.uniform(0.2, 2))
    ground.path.mute = False
    yield


# -- the bell ----------------------------------------------------------------------------------------------------


@fault("bell trigger disabled", bound=CATCH_UP + 0.5)
async def bell_disabled(ground: Ground) -> AsyncIterator[None]:
    """No producer sends NOTIFY: the catch-up poll finds events that are written while the consumer is idle."""
    assert ground.writers is not None
    async with ground.writers.still():
        await ground.rows("alter table event_outbox disable trigger zz_event_outbox_bell")
    try:
        yield
    finally:
        async with ground.writers.still():
            await ground.rows("alter table event_outbox enable always trigger zz_event_outbox_bell")
