"""An outbox that receives events from a subscription: they are routed, and wake a consumer, like any other event."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from clusters import psql
from history.conftest import Pair
from iu_listen.install import migrate
from iu_listen.model.observation import BatchRan
from iu_listen.model.routing import Wake
from iu_listen.postgres.session import session
from postgres.listener_helpers import NO_CATCH_UP, count_shared_locks, wait_until_armed
from support import apply_package, attempted, connected, consuming, insert_event, open_gate, wait_until

# Only the far cluster writes logical WAL; its transaction ids lie far beyond those of the subscriber.
pytestmark = [pytest.mark.asyncio, pytest.mark.slow, pytest.mark.parametrize("pair", ["lower"], indirect=True)]

#: Larger than the memory after which the publisher streams a transaction, which is set to 64 kB below.
LARGE = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, safe_payload)
    select 'iu', 'version_applied', 'update', 'immediate', jsonb_build_object('n', n, 'text', repeat('x', 100))
      from generate_series(1, 2000) n
"""


@asynccontextmanager
async def fed(pair: Pair, *, stamped: bool = True, **options: str) -> AsyncIterator[tuple[str, str]]:
    """A database whose outbox is fed by that of another one; yields the connection strings of publisher and subscriber.

    Args:
        pair: The clusters of publisher and subscriber.
        stamped: Whether the publisher has the package too, so that it sends positions.
        options: Options of the subscription.
    """
    database = pair.new()
    source, target = pair.source.dsn(database), pair.target.dsn(database)
    psql(pair.target, f"create database {database}")
    if stamped:
        await apply_package(source)
    else:
        async with session(source, name="tests") as connection:
            await migrate.apply_base(connection)
    await apply_package(target)
    await open_gate(target)
    psql(pair.source, "create publication events for table event_outbox", database)
    path = f"host={pair.source.socket_dir} port={pair.source.port} user=postgres dbname={database}"
    given = ", ".join(f"{name} = {value}" for name, value in options.items())
    # The name must be unique in the cluster, because a subscription names its replication slot.
    psql(
        pair.target,
        f"""create subscription {database} connection '{path} options=''-c logical_decoding_work_mem=64kB'''
                publication events with ({given})""",
        database,
    )
    try:
        async with connected(target) as admin:
            ready = "select bool_and(srsubstate = 'r') from pg_subscription_rel"
            await wait_until(lambda: admin.fetchval(ready), "the subscription is in step", 30)
        yield source, target
    finally:
        psql(pair.target, f"drop subscription {database}", database)


async def routed(connection: asyncpg.Connection, events: list[UUID]) -> None:
    """Wait until exactly these events were attempted."""

    async def all_there() -> bool:
        return len(await attempted(connection)) >= len(events)

    await wait_until(all_there, f"{len(events)} events are attempted", 30)
    assert Counter(await attempted(connection)) == Counter(events)


@pytest.mark.parametrize(
    ("stamped", "streaming"),
    [(True, "off"), (True, "on"), (False, "parallel")],
    ids=["positions-sent-along", "large-ones-streamed", "large-ones-applied-in-parallel"],
)
async def test_replicated_events_are_routed_when_they_commit(pair: Pair, stamped: bool, streaming: str):
    """Events of a subscription wake an idle consumer and are routed once, late and large transactions included.

    Fails when: stamp or bell are not ENABLE ALWAYS, or the position that the publisher sends is kept.
    """
    async with (
        fed(pair, stamped=stamped, streaming=streaming) as (source, target),
        connected(source) as writer,
        connected(source) as late,
        connected(target) as admin,
        consuming(target, **NO_CATCH_UP) as seen,
    ):
        await wait_until_armed(admin)
        events = [await insert_event(writer)]
        await routed(admin, events)
        transaction = late.transaction()
        await transaction.start()
        old = await insert_event(late)
        events.append(await insert_event(writer))
        await routed(admin, events)
        async with admin.transaction():
            events.append(await insert_event(admin))
        await transaction.commit()
        events.append(old)
        await routed(admin, events)
        await writer.execute(LARGE)
        events += [row["id"] for row in await writer.fetch("select id from event_outbox where safe_payload ? 'text'")]
        await routed(admin, events)
        assert Wake.CATCH_UP not in {b.wake for b in seen.of(BatchRan) if b.batch.seen}
        streamed = "select stream_txns > 0 from pg_stat_replication_slots where slot_name = current_database()"
        if streaming != "off":
            await wait_until(lambda: writer.fetchval(streamed), "the publisher has counted the streamed one")


@pytest.mark.parametrize("asleep", [True, False], ids=["asleep", "awake"])
async def test_events_prepared_by_a_subscription_are_found(pair: Pair, asleep: bool):
    """A subscription with two_phase can prepare a transaction with events; the catch-up
    poll finds them after its commit.

    Fails when: the trigger does not recognize an apply worker that is about to prepare. Its NOTIFY would fail the
    PREPARE again and again, and so stop the replication while a consumer is idle.
    """
    async with (
        fed(pair, two_phase="on") as (source, target),
        connected(source) as writer,
        connected(target) as admin,
        consuming(target, catch_up=0.3, listen=asleep, listening=asleep),
    ):
        enabled = "select subtwophasestate = 'e' from pg_subscription where subname = current_database()"
        await wait_until(lambda: admin.fetchval(enabled), "two_phase is enabled", 30)
        if asleep:
            await wait_until_armed(admin)
        gid = await writer.fetchval("select current_database()")
        await writer.execute("begin")
        event = await insert_event(writer)
        await writer.execute(f"prepare transaction '{gid}'")
        prepared = "select count(*) = 1 from pg_prepared_xacts where database = current_database()"
        try:
            await wait_until(lambda: admin.fetchval(prepared), "it is prepared here too")
            assert await count_shared_locks(admin) == 0
        finally:
            await writer.execute(f"commit prepared '{gid}'")
        await routed(admin, [event])
