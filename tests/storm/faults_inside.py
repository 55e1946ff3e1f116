"""The faults from inside the system: events that targets cannot handle, refused records, locks of other sessions.

An event with a doom (model.py) is written like any other. It must end exactly once, in one of the ways that its doom
permits, and the storm waits for that before it goes on. The faults are entered into the table of faults.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg

from iu_listen.postgres.lease import LEASE_KEY
from storm.dooms import ARRIVES, HUGE, KILLS, ODD, POISON, UNWANTED
from storm.faults import fault
from storm.ground import BATCH_DEADLINE, DEADLINE, LEASE, PATIENCE, RECONNECT_MAX, ROUTES, Ground
from storm.kinds import Pen
from storm.model import Doom
from support import WORKER

LIVE = ROUTES[1]

#: A CHECK that refuses attempts. An event whose success is refused is known by its payload; an event that retention has
#: removed has ended, so it is not refused.
REFUSE = """
    alter table iu_route_attempt add constraint storm_refused
    check (failure_code is distinct from 'unwanted' and (status <> 'sent' or not storm.returns(event_ref))) not valid
"""
ENDED = """
    select count(distinct idempotency_key) = cardinality($1::text[])
      from iu_route_attempt
     where idempotency_key = any ($1) and decision in ('delivered', 'dead_letter')
"""


async def written(ground: Ground, dooms: Iterable[Doom]) -> list[UUID]:
    """Commit an event for each doom, about 70 % of them with a subject; return their ids."""
    assert ground.writers is not None
    session, events = await ground.connect("storm doom"), []
    try:
        for doom in dooms:
            tx = ground.writers.model.begin(doom.name)
            pen = Pen(ground.writers, session, tx, ground.dice)
            await pen.begin()
            row = await pen.write(await pen.turn() if ground.dice.random() < 0.7 else None, doom=doom)
            await pen.commit()
            events.append(tx.event(row))
    finally:
        session.terminate()
    return events


async def ended(ground: Ground, events: Iterable[UUID]) -> None:
    """Wait until each of these events has ended on the live route."""
    keys = [f"outbound:{LIVE}:{event}" for event in events]
    await ground.until(ENDED, keys, within=3 * PATIENCE, pause=0.05)


# -- events ------------------------------------------------------------------------------------------------------


@fault("poison events", bound=1)
async def poison(ground: Ground) -> AsyncIterator[None]:
    """Two or more events of one route always fail: they become dead letters, and all other events are delivered."""
    events = await written(ground, ground.dice.choices(POISON, k=ground.dice.randint(2, 8)))
    yield
    await ended(ground, events)


@fault("events that end the process", bound=LEASE + 2)
async def killing(ground: Ground) -> AsyncIterator[None]:
    """Each attempt ends its consumer. Such an event is identified, attempted alone, and becomes a dead letter."""
    events = await written(ground, ground.dice.choices(KILLS, k=1 if ground.brief else ground.dice.randint(1, 3)))
    yield
    await ended(ground, events)


@fault("huge payloads", bound=1)
async def huge(ground: Ground) -> AsyncIterator[None]:
    """Events whose payload text is larger than payload_max are written among events with a permitted size."""
    events = await written(ground, ground.dice.choices(HUGE, k=ground.dice.randint(1, 3)))
    yield
    await ended(ground, events)


# -- outcomes ----------------------------------------------------------------------------------------------------


@fault("outcomes that cannot be recorded as they are", bound=1)
async def odd(ground: Ground) -> AsyncIterator[None]:
    """Reasons and codes contain NUL or half a surrogate pair, and delays are not numbers."""
    events = await written(ground, ground.dice.choices(ODD, k=ground.dice.randint(2, 8)))
    yield
    await ended(ground, events)


@fault("a CHECK refuses attempts for a while", bound=1)
async def refused(ground: Ground) -> AsyncIterator[None]:
    """A CHECK of the application on iu_route_attempt refuses one kind of failure, and the success of some events."""
    await ground.rows(REFUSE)
    try:
        events = await written(ground, ground.dice.choices((UNWANTED, ARRIVES), k=ground.dice.randint(2, 6)))
        yield
        await asyncio.sleep(ground.dice.uniform(0, 1))
    finally:
        await ground.rows("alter table iu_route_attempt drop constraint storm_refused")
    await ended(ground, events)


# -- locks -------------------------------------------------------------------------------------------------------


@fault("a lock on event_outbox for longer than the deadlines", bound=DEADLINE + RECONNECT_MAX + 1)
async def outbox_locked(ground: Ground) -> AsyncIterator[None]:
    """ALTER TABLE of another application: nothing can be read or written, and sessions stay bounded (background.py)."""
    assert ground.writers is not None
    session = await ground.connect("storm migration")
    try:
        # The lock is taken when every writer has finished: a writer that holds the table lock and waits for another
        # writer would cause a deadlock with this session.
        async with ground.writers.still():
            await session.execute("begin")
            await session.execute("lock table event_outbox in access exclusive mode")
        longest = DEADLINE + 2 if ground.brief else BATCH_DEADLINE + 10
        await asyncio.sleep(ground.dice.uniform(DEADLINE + 1, longest))
        await session.execute("commit")
    finally:
        session.terminate()
    yield


@asynccontextmanager
async def strange_session(ground: Ground) -> AsyncIterator[asyncpg.Connection]:
    """A session of a role that may only connect, under the application name of the worker."""
    await ground.rows("do $$ begin create role storm_stranger login; exception when duplicate_object then null; end $$")
    session = await asyncpg.connect(
        ground.dsn, user="storm_stranger", server_settings={"application_name": f"iu-listen worker {WORKER}"}
    )
    try:
        yield session
    finally:
        session.terminate()


@fault("a stranger holds the lock of the lease", bound=2 * LEASE + RECONNECT_MAX)
async def strangers_lock(ground: Ground) -> AsyncIterator[None]:
    """Another role gets the lock of the lease when the lease holder's session ends; then a row represents the lease."""
    mine = "select exists (select from fn_iu_lease_holders($1, $2) where stranger = $3)"
    async with strange_session(ground) as stranger:
        ground.notes["no lock"] = True
        try:
            taken = asyncio.create_task(
                stranger.fetchval("select pg_advisory_lock($1, hashtext($2))", LEASE_KEY, WORKER)
            )
            await asyncio.sleep(0.2)
            async with asyncio.timeout(PATIENCE):
                while not taken.done():
                    if holder := await ground.lease_holder():
                        await ground.rows("select pg_terminate_backend($1)", holder)
                    await asyncio.sleep(0.2)
            await taken
            yield
            await asyncio.sleep(ground.dice.uniform(0, 1 if ground.brief else 2 * LEASE))
            await stranger.execute("select pg_advisory_unlock_all()")
            await ground.until(mine, LEASE_KEY, WORKER, False)
        finally:
            ground.notes["no lock"] = False
