"""The faults of the storm: a table. Each strikes, and what it struck must recover without a hand.

To add one, write an async generator of one yield under @fault(...), here or in a module that run.py imports:

    @fault("what is done to whom", bound=LEASE + 1)
    async def name(ground: Ground) -> AsyncIterator[None]:
        ...   strike, and mend what a supervisor or an operator would mend: restart the server, heal the path
        yield      the runner measures here: how long until an event that is written now is routed, against the bound
        ...   put back what the storm needs for the next one; a check that fails raises AssertionError

The fault may last over its yield (a frozen process): then the bound is for recovery in spite of it. Use ground.dice for
chance, ground.rows() and ground.until() to look: they try again while there is no server. A check after the yield that
raises fails the storm.
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
        name: What is done to whom.
        bound: Longest recovery, in seconds, on an idle machine and without a backlog.
        strike: The fault itself; made by @fault.
        cuts_writers: It ends the writers' sessions: they connect again, and it is no error.
        writers_may_fail: Writers get errors that are not cuts: a full disk.
        missing: Why it cannot be done here, on this major version (a tool that is not installed), or nothing.
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
    """Enter a fault into the table. Arguments as of Fault."""

    def enter(strike: Strike) -> Strike:
        FAULTS[name] = Fault(name, bound, asynccontextmanager(strike), cuts_writers, writers_may_fail, missing)
        return strike

    return enter


# -- processes ---------------------------------------------------------------------------------------------------


@fault("kill -9 of the active consumer", bound=2)
async def killed(ground: Ground) -> AsyncIterator[None]:
    """The standby takes over; the supervisor starts the dead one again."""
    (await ground.leader()).signal(signal.SIGKILL)
    yield


@fault("kill -9 of every consumer", bound=5)
async def all_killed(ground: Ground) -> AsyncIterator[None]:
    """Nobody is left but the supervisor."""
    for consumer in ground.consumers:
        consumer.signal(signal.SIGKILL)
    yield


@fault("active consumer asked to stop", bound=2)
async def asked_to_stop(ground: Ground) -> AsyncIterator[None]:
    """SIGTERM, as a deployment does: it ends its batch and leaves, the standby takes over."""
    (await ground.leader()).signal(signal.SIGTERM)
    yield


@fault("frozen leader, thawed later", bound=LEASE + 1)
async def frozen(ground: Ground) -> AsyncIterator[None]:
    """The server ends the frozen one's session, the standby takes over, and the thawed one only stands by."""
    leader, holder = await ground.leader(), await ground.lease_holder()
    leader.signal(signal.SIGSTOP)
    try:
        # A batch that is under way ends by itself: the server does not need its client for it.
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
WORKER_SESSION, BELL_SESSION = f"iu-listen worker {WORKER}", f"iu-listen bell {WORKER}"


@fault("worker session terminated", bound=1)
async def worker_terminated(ground: Ground) -> AsyncIterator[None]:
    """pg_terminate_backend of the session that holds the lease."""
    await ground.rows("select pg_terminate_backend($1)", await ground.lease_holder())
    yield


@fault("bell session terminated", bound=1)
async def bell_terminated(ground: Ground) -> AsyncIterator[None]:
    """pg_terminate_backend of every bell session."""
    await ground.rows(TERMINATE, [BELL_SESSION])
    yield


@fault("all sessions of the consumers terminated", bound=2)
async def all_terminated(ground: Ground) -> AsyncIterator[None]:
    """pg_terminate_backend of whatever the consumers have open."""
    await ground.rows(TERMINATE, [WORKER_SESSION, BELL_SESSION, "iu-listen token"])
    yield


@fault("sessions of writers terminated", bound=1, cuts_writers=True)
async def writers_terminated(ground: Ground) -> AsyncIterator[None]:
    """Half of the writers lose their session in the middle of whatever they do: all of it counts, or nothing."""
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
    """As after a crash: nobody says goodbye, and recovery replays the log."""
    await _restarted(ground, "immediate")
    yield


@fault("PostgreSQL stopped (fast) and started", bound=2, cuts_writers=True)
async def restarted(ground: Ground) -> AsyncIterator[None]:
    """As an update of the package does."""
    await _restarted(ground, "fast")
    yield


@fault("backend killed -9", bound=2, cuts_writers=True)
async def backend_killed(ground: Ground) -> AsyncIterator[None]:
    """As the kernel does when memory runs out: the server takes all its sessions down, and recovers by itself."""
    pids = await ground.rows("select pid from pg_stat_activity where application_name ~ '^storm writer'")
    os.kill(ground.dice.choice(pids)["pid"], signal.SIGKILL)
    # Until it has noticed, and then until it accepts connections again.
    await asyncio.sleep(0.2)
    await ground.value("select true")
    yield


@fault("gate closed for a while", bound=1)
async def gate_closed(ground: Ground) -> AsyncIterator[None]:
    """Nothing is routed meanwhile; the consumer obeys at once, both times."""
    await open_gate(ground.dsn, "false")
    await asyncio.sleep(ground.dice.uniform(0.2, 2))
    await open_gate(ground.dsn)
    yield


# -- the path ----------------------------------------------------------------------------------------------------


@fault("path reset", bound=2)
async def path_reset(ground: Ground) -> AsyncIterator[None]:
    """Every connection of the consumers is cut without a goodbye."""
    ground.path.reset()
    yield


@fault("path refuses for a while", bound=RECONNECT_MAX + 1)
async def path_refuses(ground: Ground) -> AsyncIterator[None]:
    """Every connection is cut, and new ones are, too."""
    ground.path.refusing = True
    ground.path.reset()
    await asyncio.sleep(ground.dice.uniform(0.2, 2))
    ground.path.refusing = False
    yield


@fault("path swallows everything for a while", bound=DEADLINE + RECONNECT_MAX + 1)
async def path_stalls(ground: Ground) -> AsyncIterator[None]:
    """Open connections lose what was sent meanwhile and are useless afterwards; nobody is told."""
    ground.path.stalled = True
    await asyncio.sleep(ground.dice.uniform(0.2, 3))
    ground.path.stalled = False
    yield


@fault("open connections go silent for good", bound=LEASE + DEADLINE + RECONNECT_MAX)
async def path_forgets(ground: Ground) -> AsyncIterator[None]:
    """A router that restarted forgets the connections that it carried; new ones work."""
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
    """Nobody rings: the catch-up timer finds what is written while the consumer sleeps."""
    assert ground.writers is not None
    async with ground.writers.still():
        await ground.rows("alter table event_outbox disable trigger zz_event_outbox_bell")
    try:
        yield
    finally:
        async with ground.writers.still():
            await ground.rows("alter table event_outbox enable always trigger zz_event_outbox_bell")
