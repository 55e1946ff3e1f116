"""Adopted tables of the four presets, whose writers know nothing of the outbox, while the consumer is killed.

ADOPTED_EVENTS makes the test longer: `make kills`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import defaultdict
from uuid import UUID, uuid4

import asyncpg
import pytest

from cli.command import run
from postgres.delivery_helpers import open_route, wait_until_settled
from storm.call_log import CallLog
from storm.environment import Consumer
from support import connected

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

EVENTS, SUBJECTS, KILLS = int(os.environ.get("ADOPTED_EVENTS", "600")), 10, 2
ROUTE = """
    with kind as (insert into event_type_registry (event_type) values ($2))
    insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref)
    values ($1, 'iu', $2, 'event', 'workflow', 'storm')"""
SENT = "select count(*) from iu_route_attempt where status = 'sent'"
#: For each preset: its table, the statement of its writer ($1 subject, $2 payload), and its type.
WRITERS = {
    "debezium": (
        """create table debezium (id uuid primary key, aggregatetype varchar(255) not null,
               aggregateid varchar(255) not null, type varchar(255) not null, payload jsonb)""",
        "insert into debezium values (gen_random_uuid(), 'Order', $1, 'OrderPlaced', $2::text::jsonb)",
        "OrderPlaced",
    ),
    "django-outbox-pattern": (
        """create table published (id uuid primary key, version varchar(100), destination varchar(255) not null,
               body jsonb not null, added timestamptz not null, headers jsonb not null)""",
        "insert into published values (gen_random_uuid(), $1, '/topic/orders', $2::text::jsonb, now(), '{}')",
        "topic-orders",
    ),
    "eventsourcing": (
        """create table stored_events (originator_id uuid not null, originator_version bigint not null, topic text,
               state bytea, notification_id bigserial, primary key (originator_id, originator_version))""",
        "insert into stored_events values ($1::text::uuid, ($2::text::jsonb ->> 'n')::bigint, 'shop:Placed', convert_to($2::text, 'UTF8'))",
        "shop-Placed",
    ),
    "plain": (
        "create table plain (id bigserial primary key, type text not null, subject text, payload text)",
        "insert into plain (type, subject, payload) values ('placed', $1, $2)",
        "placed",
    ),
}
TABLES = {"django-outbox-pattern": "published", "eventsourcing": "stored_events"}


async def write(dsn: str, preset: str, subjects: list[str], count: int) -> None:
    """Write rows in small transactions, each subject in one transaction at a time; one in ten is rolled back."""
    rng = random.Random(preset)
    statement = WRITERS[preset][1]
    number: dict[str, int] = defaultdict(int)
    written = 0
    connection = await asyncpg.connect(dsn)
    while written < count:
        transaction = connection.transaction()
        await transaction.start()
        chosen = rng.choices(subjects, k=rng.randint(1, 5))
        before = dict(number)
        for subject in chosen:
            number[subject] += 1
            await connection.execute(statement, subject, json.dumps({"n": number[subject]}))
        if rng.random() < 0.1:
            await transaction.rollback()
            number = defaultdict(int, before)
        else:
            if preset == "debezium":
                await connection.execute("delete from debezium")
            await transaction.commit()
            written += len(chosen)
    await connection.close()


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_adopted_tables_lose_nothing_and_keep_their_order(empty, tmp_path):
    """Each committed row of each preset is delivered, in the order of its subject, although the consumer is killed.

    Fails when: the trigger is not in the transaction of the row, the event has no subject, or a row is copied twice.
    """

    async def command(*args: str) -> None:
        done = await asyncio.to_thread(run, *args, dsn=empty.dsn)
        assert done.code == 0, done.out + done.err

    await command("init")
    subjects = {preset: [str(uuid4()) for _ in range(SUBJECTS)] for preset in WRITERS}
    consumer = Consumer("consumer", empty.dsn, tmp_path)
    async with connected(empty.dsn) as connection:
        for preset, (table, _, type_) in WRITERS.items():
            await connection.execute(table)
            extra = ("--map", "subject=version") if preset == "django-outbox-pattern" else ()
            await command("adopt", "--table", TABLES.get(preset, preset), "--preset", preset, *extra, "--yes")
            await connection.execute(ROUTE, preset, type_)
            await open_route(connection, preset, order="subject", concurrency=50, attempts=1000, backoff=0.01)
        await connection.execute("update dot_config set value = 'true' where key = 'iu_core.route_worker_enabled'")
        consumer.begin()
        writers = [asyncio.create_task(write(empty.dsn, preset, subjects[preset], EVENTS // 4)) for preset in WRITERS]
        try:
            for kill in range(1, KILLS + 1):
                async with asyncio.timeout(60 + EVENTS / 100):
                    while await connection.fetchval(SENT) < EVENTS * kill // (KILLS + 1):
                        await asyncio.sleep(0.01)
                        for task in writers:
                            assert not task.done() or task.exception() is None, task.exception()
                await consumer.kill_and_wait()
            await asyncio.gather(*writers)
            await wait_until_settled(connection, 60 + EVENTS / 100)
        finally:
            for task in writers:
                task.cancel()
            await consumer.end()
        events = await connection.fetch(
            "select id, event_subject_ref, (safe_payload ->> 'n')::int as n from event_outbox"
        )
        assert await connection.fetchval("select count(*) from iu_route_dead_letter") == 0
        assert await connection.fetchval(SENT) == len(events)
        rows = await connection.fetchval("select (select count(*) from published) + (select count(*) from stored_events) + (select count(*) from plain)")  # fmt: skip
    assert consumer.starts > KILLS
    assert len(events) >= EVENTS
    assert len(events) - rows >= EVENTS // 4, "the rows that Debezium's writer deleted at once are events"
    known: dict[UUID, tuple[str, int]] = {row["id"]: (row["event_subject_ref"], row["n"]) for row in events}
    noted = CallLog.read([consumer.call_log_file])
    assert noted.overlapping == {}
    arrived: dict[str, list[int]] = defaultdict(list)
    for event in noted.first:
        subject, n = known[event]
        arrived[subject].append(n)
    assert sum(map(len, arrived.values())) == len(events)
    for subject, numbers in arrived.items():
        assert numbers == list(range(1, len(numbers) + 1)), subject
