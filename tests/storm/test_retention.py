"""Retention under load: producers of every kind, a consumer, and retention runs that keep only 50 ms."""

from __future__ import annotations

import json
import random
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from iu_listen.admin import retention
from iu_listen.model.settings import Settings
from iu_listen.postgres.session import session
from support import connected, consuming, wait_until

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

INSERT = """
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane, created_at)
    select e.id, 'iu', 'version_applied', 'update', 'immediate', {created} from unnest($1::uuid[]) e(id)
"""
#: Values of created_at: the usual one several times, and unusual ones.
CREATED = ("now()", "now()", "now()", "now() - interval '1 year'", "'-infinity'", "now() + interval '1 second'")


class Producers:
    """Writers with short and long transactions, batches and rollbacks; they keep committed events and errors."""

    def __init__(self, dsn: str, seed: int) -> None:
        self.dsn = dsn
        self.rng = random.Random(seed)
        self.committed: set[UUID] = set()
        self.errors: list[BaseException] = []
        self.over = False

    async def write(self) -> None:
        async with connected(self.dsn) as connection:
            while not self.over:
                try:
                    await self._once(connection)
                except asyncpg.PostgresError as error:
                    self.errors.append(error)

    async def _once(self, connection: asyncpg.Connection) -> None:
        ids = [uuid4() for _ in range(self.rng.choice([1, 1, 1, 5, 200]))]
        statement = INSERT.format(created=self.rng.choice(CREATED))
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(statement, ids)
        if self.rng.random() < 0.2:
            # Commits late: other events are routed and removed meanwhile.
            await connection.execute("select pg_sleep($1)", self.rng.random() * 0.3)
        if self.rng.random() < 0.1:
            await transaction.rollback()
            return
        await transaction.commit()
        self.committed |= set(ids)


async def test_retention_removes_no_unrouted_event(live):
    """While retention removes old events, every committed event gets exactly one attempt, and no producer fails.

    Fails when: the age alone decides which events are removed.
    """
    await storm(live.dsn)


async def test_retention_removes_no_unrouted_event_from_partitions(partitioned):
    """Nothing unrouted is removed from a partitioned outbox whose default partition takes events of other years.

    Fails when: the age alone decides which events are removed.
    """
    async with connected(partitioned.dsn) as c:
        await c.execute("create table event_outbox_rest partition of event_outbox default")
    await storm(partitioned.dsn)


async def storm(dsn: str) -> None:
    """Write, consume and remove at the same time; then compare."""
    producers = Producers(dsn, seed=4)
    gone = 0

    async def clean() -> None:
        nonlocal gone
        settings = Settings.load({}, {"dsn": dsn})
        async with session(dsn, name="retention") as connection:
            over = False
            while not over:
                # One more pass begins after all have written: the progress of the passes before depends on the machine.
                over = producers.over
                async for answer in retention.batches(
                    connection, "events", "50 ms", 300, 0.001, settings.batch_deadline
                ):
                    gone += answer["gone"]

    async with consuming(dsn), connected(dsn) as c:
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(producers.write)
            for _ in range(2):
                tasks.start_soon(clean)
            await wait_until(lambda: _enough(c), "4 000 events were decided", timeout=60)
            producers.over = True

        async def all_decided() -> bool:
            return await c.fetchval("select count(distinct event_ref) from iu_route_attempt") >= len(
                producers.committed
            )

        await wait_until(all_decided, "every committed event is decided", timeout=30)
        rows = await c.fetch("select event_ref, count(*) as n from iu_route_attempt group by 1")
        left = await c.fetchval("select count(*) from event_outbox")
        deadlocks = await c.fetchval("select deadlocks from pg_stat_database where datname = current_database()")
    assert {row["event_ref"] for row in rows} == producers.committed
    assert {row["n"] for row in rows} == {1}
    assert producers.errors == []
    assert deadlocks == 0
    assert gone == len(producers.committed) - left
    assert gone > 1000, json.dumps({"gone": gone, "left": left})


async def _enough(connection: asyncpg.Connection) -> bool:
    return await connection.fetchval("select count(*) from iu_route_attempt") >= 4000
