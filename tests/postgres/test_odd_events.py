"""Unusual events and databases: no event is lost, and no component stops."""

from __future__ import annotations

import anyio
import pytest

from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.model.observation import BatchRan, NotificationMissed
from iu_listen.postgres import queries
from iu_listen.postgres.session import session
from postgres.listener_helpers import NO_CATCH_UP
from postgres.routes import open_live_route
from support import attempted, connected, consuming, drain, insert_event, wait_until

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("created_at", ["infinity", "-infinity", "20000-01-01"])
async def test_an_event_with_an_odd_time_is_routed(live, created_at):
    """An event with a created_at that is infinite or far in the future is routed, and the consumer and status go on.

    Fails when: the high-water mark accepts any created_at.
    """
    async with consuming(live.dsn, catch_up=0.2) as observer, connected(live.dsn) as connection:
        odd = await connection.fetchval(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at)
               values ('iu', 'version_applied', 'update', 'immediate', $1::text::timestamptz) returning id""",
            created_at,
        )
        await observer.wait_for(BatchRan, lambda o: o.batch.seen)
        after = await insert_event(connection)

        async def both() -> bool:
            return await attempted(connection) == [odd, after]

        await wait_until(both, "both are routed")
        (worker,) = await queries.rows(connection, "workers")

        assert worker["backlog"] == 0


async def test_a_decided_event_is_not_delivered_after_a_reset(live):
    """After a reset, an event that has an attempt is not delivered, although its route is live by now.

    Fails when: fn_iu_route_deliver is called before the idempotency key is checked.
    """
    async with connected(live.dsn) as connection:
        event = await insert_event(connection)
        await drain(connection)
        await open_live_route(connection)
        await connection.execute("update iu_route_worker_cursor set prev = '3:3:'")
        await drain(connection)

        assert await attempted(connection) == [event]
        assert await connection.fetchval("select count(*) from iu_route_dead_letter") == 0


async def test_a_backlog_without_a_notification_is_one_missed_notification(live):
    """A backlog of several pages without a notification is one missed notification.

    Fails when: every page of it waits for a late notification and reports a missed notification.
    """
    async with connected(live.dsn) as connection:
        await connection.execute("alter table event_outbox disable trigger zz_event_outbox_bell")
        async with consuming(live.dsn, catch_up=0.3, batch_limit=10) as observer:
            async with connection.transaction():
                for _ in range(45):
                    await insert_event(connection)

            async def all_there() -> bool:
                return len(await attempted(connection)) == 45

            await wait_until(all_there, "all are routed")

        assert len(observer.of(NotificationMissed)) == 1


async def test_a_heartbeat_without_a_slot_shows_polling(live):
    """The heartbeat of a consumer that finds every bell slot taken does not show that it listens.

    Fails when: the heartbeat shows listening as soon as LISTEN works.
    """
    async with connected(live.dsn) as other, connected(live.dsn) as connection:
        await other.execute(
            "select pg_advisory_lock(726002, hashtext('iu/1')), pg_advisory_lock(726002, hashtext('iu/2'))"
        )
        async with consuming(live.dsn, **NO_CATCH_UP):

            async def beaten() -> bool:
                return await connection.fetchval("select count(*) > 0 from iu_consumer_heartbeat")

            await wait_until(beaten, "it has beaten")

            assert not await connection.fetchval("select bool_or(listening) from iu_consumer_heartbeat")


async def test_an_old_snapshot_does_not_fail_the_apply(substrate, monkeypatch):
    """While another session holds an old snapshot, the index build waits for it, longer than for any other lock.

    Fails when: CREATE INDEX CONCURRENTLY runs under the short lock_timeout.
    """
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr(migrate, "LOCK_TRIES", 1)
    waits = """select count(*) from pg_stat_activity
                where datname = current_database() and query like '%index concurrently%' and wait_event_type = 'Lock'"""
    async with connected(substrate.dsn) as reader, connected(substrate.dsn) as admin:
        transaction = reader.transaction(isolation="repeatable_read")
        await transaction.start()
        await reader.fetchval("select count(*) from dot_config")
        async with session(substrate.dsn, name="apply") as connection:
            state = await package_state(connection)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(migrate.apply_files, connection, state.pending, {}, lambda _: None)
                await wait_until(lambda: admin.fetchval(waits), "the index build waits")
                since = "select clock_timestamp() - query_start > interval '0.3 s' from pg_stat_activity where wait_event_type = 'Lock'"
                await wait_until(lambda: admin.fetchval(since), "it has waited longer than the short timeout")
                await transaction.rollback()
            after = await package_state(connection)

    assert after.complete
