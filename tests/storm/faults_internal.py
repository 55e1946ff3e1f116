"""The faults inside the system: events that targets cannot handle, refused records, locks of other sessions.

An event with a planned outcome (model.py) is written like any other. It must end exactly once, in one of the ways that its
plan permits, and the storm waits for that before it goes on. The faults are entered into the table of faults.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg

from iu_listen.postgres.lease import LEASE_KEY
from storm.environment import (
    BATCH_DEADLINE,
    DEADLINE,
    RECONNECT_MAX,
    ROUTES,
    SESSION_TIMEOUT,
    WAIT_TIMEOUT,
    Environment,
)
from storm.faults import fault
from storm.model import PlannedOutcome
from storm.planned_outcomes import (
    HUGE_PAYLOADS,
    INVALID_OUTCOMES,
    POISON,
    PROCESS_KILLERS,
    REFUSED_FAILURE,
    REFUSED_SUCCESS,
)
from storm.transaction_kinds import TransactionRecorder
from support import WORKER

LIVE = ROUTES[1]

#: A CHECK that refuses attempts. An event whose success is refused is known by its payload; an event that retention has
#: removed has ended, so it is not refused.
REFUSING_CHECK = """
    alter table iu_route_attempt add constraint storm_refused
    check (failure_code is distinct from 'unwanted' and (status <> 'sent' or not storm.returns(event_ref))) not valid
"""
OUTCOMES_RECORDED = """
    select count(distinct idempotency_key) = cardinality($1::text[])
      from iu_route_attempt
     where idempotency_key = any ($1) and decision in ('delivered', 'dead_letter')
"""


async def write_planned_events(environment: Environment, planned: Iterable[PlannedOutcome]) -> list[UUID]:
    """Commit an event for each planned outcome, about 70 % of them with a subject; return their ids."""
    assert environment.producers is not None
    session, events = await environment.connect("storm planned"), []
    try:
        for outcome in planned:
            tx = environment.producers.model.begin(outcome.name)
            recorder = TransactionRecorder(environment.producers, session, tx, environment.rng)
            await recorder.begin()
            row = await recorder.write(
                await recorder.turn() if environment.rng.random() < 0.7 else None, planned=outcome
            )
            await recorder.commit()
            events.append(tx.event(row))
    finally:
        session.terminate()
    return events


async def wait_for_outcomes(environment: Environment, events: Iterable[UUID]) -> None:
    """Wait until each of these events has ended on the live route."""
    keys = [f"outbound:{LIVE}:{event}" for event in events]
    await environment.until(OUTCOMES_RECORDED, keys, within=3 * WAIT_TIMEOUT, pause=0.05)


# -- events ------------------------------------------------------------------------------------------------------


@fault("poison events", bound=1)
async def poison(environment: Environment) -> AsyncIterator[None]:
    """Two or more events of one route always fail: they become dead letters, and all other events are delivered."""
    events = await write_planned_events(environment, environment.rng.choices(POISON, k=environment.rng.randint(2, 8)))
    yield
    await wait_for_outcomes(environment, events)


@fault("events that end the process", bound=SESSION_TIMEOUT + 2)
async def killing(environment: Environment) -> AsyncIterator[None]:
    """Each attempt ends its consumer. Such an event is identified, attempted alone, and becomes a dead letter."""
    events = await write_planned_events(
        environment,
        environment.rng.choices(PROCESS_KILLERS, k=1 if environment.short else environment.rng.randint(1, 3)),
    )
    yield
    await wait_for_outcomes(environment, events)


@fault("huge payloads", bound=1)
async def huge(environment: Environment) -> AsyncIterator[None]:
    """Events whose payload text is larger than payload_max are written among events with a permitted size."""
    events = await write_planned_events(
        environment, environment.rng.choices(HUGE_PAYLOADS, k=environment.rng.randint(1, 3))
    )
    yield
    await wait_for_outcomes(environment, events)


# -- outcomes ----------------------------------------------------------------------------------------------------


@fault("outcomes with invalid text", bound=1)
async def odd(environment: Environment) -> AsyncIterator[None]:
    """Reasons and codes contain NUL or half a surrogate pair, and delays are not numbers."""
    events = await write_planned_events(
        environment, environment.rng.choices(INVALID_OUTCOMES, k=environment.rng.randint(2, 8))
    )
    yield
    await wait_for_outcomes(environment, events)


@fault("a CHECK refuses attempts for a while", bound=1)
async def refused(environment: Environment) -> AsyncIterator[None]:
    """A CHECK of the application on iu_route_attempt refuses one kind of failure, and the success of some events."""
    await environment.rows(REFUSING_CHECK)
    try:
        events = await write_planned_events(
            environment, environment.rng.choices((REFUSED_FAILURE, REFUSED_SUCCESS), k=environment.rng.randint(2, 6))
        )
        yield
        await asyncio.sleep(environment.rng.uniform(0, 1))
    finally:
        await environment.rows("alter table iu_route_attempt drop constraint storm_refused")
    await wait_for_outcomes(environment, events)


# -- locks -------------------------------------------------------------------------------------------------------


@fault("a lock on event_outbox for longer than the deadlines", bound=DEADLINE + RECONNECT_MAX + 1)
async def outbox_locked(environment: Environment) -> AsyncIterator[None]:
    """ALTER TABLE of another application: nothing can be read or written, and sessions stay bounded (periodic_actions.py)."""
    assert environment.producers is not None
    session = await environment.connect("storm migration")
    try:
        # The lock is taken when every producer has finished: a producer that holds the table lock and waits for another
        # producer would cause a deadlock with this session.
        async with environment.producers.quiesced():
            await session.execute("begin")
            await session.execute("lock table event_outbox in access exclusive mode")
        longest = DEADLINE + 2 if environment.short else BATCH_DEADLINE + 10
        await asyncio.sleep(environment.rng.uniform(DEADLINE + 1, longest))
        await session.execute("commit")
    finally:
        session.terminate()
    yield


@asynccontextmanager
async def foreign_session(environment: Environment) -> AsyncIterator[asyncpg.Connection]:
    """A session of a role that may only connect, under the application name of the worker."""
    await environment.rows(
        "do $$ begin create role storm_stranger login; exception when duplicate_object then null; end $$"
    )
    session = await asyncpg.connect(
        environment.dsn, user="storm_stranger", server_settings={"application_name": f"iu-listen worker {WORKER}"}
    )
    try:
        yield session
    finally:
        session.terminate()


@fault("a foreign session holds the lock of the lease", bound=2 * SESSION_TIMEOUT + RECONNECT_MAX)
async def foreign_lease_lock(environment: Environment) -> AsyncIterator[None]:
    """Another role gets the lock of the lease when the lease holder's session ends; then a row represents the lease."""
    mine = "select exists (select from fn_iu_lease_holders($1, $2) where unauthorized = $3)"
    async with foreign_session(environment) as stranger:
        environment.notes["no lock"] = True
        try:
            taken = asyncio.create_task(
                stranger.fetchval("select pg_advisory_lock($1, hashtext($2))", LEASE_KEY, WORKER)
            )
            await asyncio.sleep(0.2)
            async with asyncio.timeout(WAIT_TIMEOUT):
                while not taken.done():
                    if holder := await environment.lease_holder():
                        await environment.rows("select pg_terminate_backend($1)", holder)
                    await asyncio.sleep(0.2)
            await taken
            yield
            await asyncio.sleep(environment.rng.uniform(0, 1 if environment.short else 2 * SESSION_TIMEOUT))
            await stranger.execute("select pg_advisory_unlock_all()")
            await environment.until(mine, LEASE_KEY, WORKER, False)
        finally:
            environment.notes["no lock"] = False
