"""The faults of the storm: a table. The system must recover from each fault without an operator.

To add one, write an async generator with one yield under @fault(...), here or in a module that run.py imports:

    @fault("the action and its object", bound=LEASE + 1)
    async def name(environment: Environment) -> AsyncIterator[None]:
        ...   cause the fault, and repair what a supervisor or an operator would: restart the server, heal the path
        yield      the runner measures the recovery here: the time until a new event is routed, compared with the bound
        ...   restore the conditions for the next fault; a check that fails raises AssertionError

A fault may last beyond its yield (a frozen process): then the bound is for the recovery during the fault. Use
environment.rng for random choices, and environment.rows() and environment.until() for queries: they repeat the query while there is
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
from storm.environment import CATCH_UP, DEADLINE, RECONNECT_MAX, SESSION_TIMEOUT, Environment
from support import WORKER, open_gate


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: The action and its object.
        bound: Longest recovery, in seconds, on an idle machine and without a backlog.
        inject: The context manager that causes the fault; made by @fault.
        cuts_producers: Whether it ends the sessions of producers. They connect again, and that is not an error.
        producers_may_fail: Whether producers may get errors other than lost sessions, as from a full disk.
        unavailable: Takes the major version of PostgreSQL and returns why the fault is not possible here, for example a
            tool that is not installed; an empty text if it is possible.
    """

    name: str
    bound: float
    inject: Callable[[Environment], AbstractAsyncContextManager[None]]
    cuts_producers: bool = False
    producers_may_fail: bool = False
    unavailable: Callable[[int], str] = lambda _: ""


FAULTS: dict[str, Fault] = {}

Injector = Callable[[Environment], AsyncIterator[None]]


def fault(
    name: str,
    *,
    bound: float,
    cuts_producers: bool = False,
    producers_may_fail: bool = False,
    unavailable: Callable[[int], str] = lambda _: "",
) -> Callable[[Injector], Injector]:
    """Enter a fault into the table. The arguments are the attributes of Fault."""

    def enter(inject: Injector) -> Injector:
        FAULTS[name] = Fault(name, bound, asynccontextmanager(inject), cuts_producers, producers_may_fail, unavailable)
        return inject

    return enter


# -- processes ---------------------------------------------------------------------------------------------------


@fault("kill -9 of the active consumer", bound=2)
async def killed(environment: Environment) -> AsyncIterator[None]:
    """The standby takes over, and the supervisor starts the killed consumer again."""
    (await environment.active_consumer()).signal(signal.SIGKILL)
    yield


@fault("kill -9 of every consumer", bound=5)
async def all_killed(environment: Environment) -> AsyncIterator[None]:
    """Only the supervisor remains, and starts the consumers again."""
    for consumer in environment.consumers:
        consumer.signal(signal.SIGKILL)
    yield


@fault("active consumer asked to stop", bound=2)
async def asked_to_stop(environment: Environment) -> AsyncIterator[None]:
    """SIGTERM is sent, as at a deployment: the consumer completes its batch and ends, the standby takes over."""
    (await environment.active_consumer()).signal(signal.SIGTERM)
    yield


@fault("active consumer frozen, resumed later", bound=SESSION_TIMEOUT + 1)
async def frozen(environment: Environment) -> AsyncIterator[None]:
    """The server ends the frozen consumer's session, the standby takes over, the resumed consumer becomes standby."""
    active_consumer, holder = await environment.active_consumer(), await environment.lease_holder()
    active_consumer.signal(signal.SIGSTOP)
    try:
        # A running batch ends without its client, because the server executes it.
        await environment.until(
            "select not exists (select from pg_stat_activity where pid = $1 and state = 'active')", holder
        )
        yield
        await environment.until(
            """select exists (select from pg_locks
                               where locktype = 'advisory' and classid = $1 and granted and pid <> $2)""",
            LEASE_KEY,
            holder,
        )
        successor = await environment.lease_holder()
        await asyncio.sleep(environment.rng.uniform(0, 1))
    finally:
        active_consumer.signal(signal.SIGCONT)
    await environment.until(
        """select exists (select from iu_consumer_heartbeat
                           where pid = $1 and state = 'standing_by' and beat_at > clock_timestamp() - interval '2 s')""",
        active_consumer.pid,
    )
    assert await environment.lease_holder() == successor, "the resumed consumer took the lease from its successor"


# -- sessions ----------------------------------------------------------------------------------------------------

TERMINATE = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = any ($1)"
WORKER_SESSION, BELL_SESSION = f"iu-listen worker {WORKER}", f"iu-listen listener {WORKER}"


@fault("worker session terminated", bound=1)
async def worker_terminated(environment: Environment) -> AsyncIterator[None]:
    """pg_terminate_backend ends the session that holds the lease."""
    await environment.rows("select pg_terminate_backend($1)", await environment.lease_holder())
    yield


@fault("listener session terminated", bound=1)
async def bell_terminated(environment: Environment) -> AsyncIterator[None]:
    """pg_terminate_backend ends every listener session."""
    await environment.rows(TERMINATE, [BELL_SESSION])
    yield


@fault("all sessions of the consumers terminated", bound=2)
async def all_terminated(environment: Environment) -> AsyncIterator[None]:
    """pg_terminate_backend ends the worker, listener and token sessions of all consumers."""
    await environment.rows(TERMINATE, [WORKER_SESSION, BELL_SESSION, "iu-listen listen-test"])
    yield


@fault("sessions of producers terminated", bound=1, cuts_producers=True)
async def writers_terminated(environment: Environment) -> AsyncIterator[None]:
    """About half of the producers lose their session during a transaction, which must count completely or not at all."""
    await environment.rows(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name ~ '^storm producer' and random() < 0.5"
    )
    yield


# -- the server --------------------------------------------------------------------------------------------------


async def _restarted(environment: Environment, mode: str) -> None:
    await asyncio.to_thread(environment.server.stop, mode)
    await asyncio.sleep(environment.rng.uniform(0, 1))
    await asyncio.to_thread(environment.server.start)


@fault("PostgreSQL stopped at once (immediate) and started", bound=2, cuts_producers=True)
async def crashed(environment: Environment) -> AsyncIterator[None]:
    """The server crashes: clients get no message, and recovery replays the write-ahead log."""
    await _restarted(environment, "immediate")
    yield


@fault("PostgreSQL stopped (fast) and started", bound=2, cuts_producers=True)
async def restarted(environment: Environment) -> AsyncIterator[None]:
    """The server is stopped and started, as by an update of the PostgreSQL package."""
    await _restarted(environment, "fast")
    yield


@fault("backend killed -9", bound=2, cuts_producers=True)
async def backend_killed(environment: Environment) -> AsyncIterator[None]:
    """A backend is killed, as by the OOM killer: the server ends all its sessions, and recovers by itself."""
    pids = await environment.rows("select pid from pg_stat_activity where application_name ~ '^storm producer'")
    os.kill(environment.rng.choice(pids)["pid"], signal.SIGKILL)
    # First wait until the server has noticed the killed backend, then until it accepts connections again.
    await asyncio.sleep(0.2)
    await environment.value("select true")
    yield


@fault("gate closed for a while", bound=1)
async def gate_closed(environment: Environment) -> AsyncIterator[None]:
    """Nothing is routed while the gate is closed; the consumer follows both changes at once."""
    await open_gate(environment.dsn, "false")
    await asyncio.sleep(environment.rng.uniform(0.2, 2))
    await open_gate(environment.dsn)
    yield


# -- the path ----------------------------------------------------------------------------------------------------


@fault("path reset", bound=2)
async def path_reset(environment: Environment) -> AsyncIterator[None]:
    """Every connection of the consumers is reset."""
    environment.path.reset()
    yield


@fault("path refuses connections for a while", bound=RECONNECT_MAX + 1)
async def path_refuses(environment: Environment) -> AsyncIterator[None]:
    """Every connection is reset, and new connections are reset, too."""
    environment.path.refusing = True
    environment.path.reset()
    await asyncio.sleep(environment.rng.uniform(0.2, 2))
    environment.path.refusing = False
    yield


@fault("path drops all data for a while", bound=DEADLINE + RECONNECT_MAX + 1)
async def path_stalls(environment: Environment) -> AsyncIterator[None]:
    """Open connections lose the data that was sent and cannot be used afterwards; neither side is notified."""
    environment.path.stalled = True
    await asyncio.sleep(environment.rng.uniform(0.2, 3))
    environment.path.stalled = False
    yield


@fault("open connections stall for ever", bound=SESSION_TIMEOUT + DEADLINE + RECONNECT_MAX)
async def path_forgets(environment: Environment) -> AsyncIterator[None]:
    """As after the restart of a router that forgets the connections that it carried; new connections work."""
    environment.path.swallow()
    yield


@fault("path accepts connections and does not answer for a while", bound=DEADLINE + RECONNECT_MAX + 1)
async def path_mute(environment: Environment) -> AsyncIterator[None]:
    """New connections are accepted and never answered."""
    environment.path.mute = True
    environment.path.reset()
    await asyncio.sleep(environment.rng.uniform(0.2, 2))
    environment.path.mute = False
    yield


# -- the bell ----------------------------------------------------------------------------------------------------


@fault("bell trigger disabled", bound=CATCH_UP + 0.5)
async def bell_disabled(environment: Environment) -> AsyncIterator[None]:
    """No producer sends NOTIFY: the catch-up poll finds events that are written while the consumer is idle."""
    assert environment.producers is not None
    async with environment.producers.quiesced():
        await environment.rows("alter table event_outbox disable trigger zz_event_outbox_bell")
    try:
        yield
    finally:
        async with environment.producers.quiesced():
            await environment.rows("alter table event_outbox enable always trigger zz_event_outbox_bell")
