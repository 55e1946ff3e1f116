"""The trigger of the bell: when a producer notifies, when it stays silent, and that it never fails."""

from __future__ import annotations

from uuid import uuid4

import anyio
import asyncpg
import pytest

from iu_listen.postgres.sqlfiles import package_files
from postgres.listener_helpers import armed_session, count_armed_locks, count_shared_locks, counting_notifications
from support import connected, drain, insert_event, wait_until

pytestmark = pytest.mark.asyncio

MANY = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref)
    select 'iu', 'version_applied', 'update', 'immediate', gen_random_uuid() from generate_series(1, $1)"""


@pytest.mark.parametrize("slot", [1, 2])
async def test_a_producer_notifies_only_while_a_consumer_is_armed(applied, slot):
    """A commit notifies once while a bell lock is held, in either slot, and not at all while none is.

    Fails when: the try-lock is taken out (it always notifies), or a slot is not checked.
    """
    async with connected(applied.dsn) as writer, counting_notifications(applied.dsn) as heard:
        for _ in range(20):
            await insert_event(writer)
        assert await heard() == 0
        async with armed_session(applied.dsn, slot):
            await insert_event(writer)
            assert await heard() == 1
        key = f"726001, hashtext('iu/{slot}')"
        await writer.fetchval(f"select pg_advisory_lock({key}), pg_advisory_unlock({key})")
        await insert_event(writer)
        assert await heard() == 0


async def test_concurrent_producers_do_not_cause_a_notify(applied):
    """Two silent transactions at the same time do not take each other for an idle consumer.

    Fails when: the producer's try-lock is exclusive instead of shared.
    """
    async with (
        connected(applied.dsn) as first,
        connected(applied.dsn) as second,
        counting_notifications(applied.dsn) as heard,
    ):
        transaction = first.transaction()
        await transaction.start()
        await insert_event(first)
        await first.execute("set constraints all immediate")
        await insert_event(second)
        await transaction.commit()
        assert await heard() == 0


async def test_a_producer_checks_for_an_armed_consumer_at_commit(applied):
    """A producer checks for an idle consumer when it commits, and holds no lock before that.

    Fails when: the trigger is not deferred.
    """
    async with (
        connected(applied.dsn) as writer,
        connected(applied.dsn) as sleeper,
        counting_notifications(applied.dsn) as heard,
    ):
        async with writer.transaction():
            await insert_event(writer)
            assert await count_shared_locks(sleeper) == 0
            assert await sleeper.fetchval("select pg_try_advisory_lock(726001, hashtext('iu/1'))")
        assert await heard() == 1
        async with writer.transaction():
            await insert_event(writer)
            await sleeper.fetchval("select pg_advisory_unlock(726001, hashtext('iu/1'))")
        assert await heard() == 0


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_producer_with_an_old_snapshot_sees_an_armed_consumer(applied, isolation):
    """A producer notifies if a consumer is armed at its commit, even if its snapshot is older than the arming.

    It does not notify after the disarming, even if its snapshot is older than that.

    Fails when: the armed state is a row, which a producer sees as it was at its snapshot.
    """
    async with connected(applied.dsn) as writer, counting_notifications(applied.dsn) as heard:
        look = "select count(*) from event_outbox, iu_consumer_heartbeat"
        transaction = writer.transaction(isolation=isolation)
        await transaction.start()
        await writer.fetchval(look)
        async with armed_session(applied.dsn):
            await insert_event(writer)
            await transaction.commit()
            assert await heard() == 1
            transaction = writer.transaction(isolation=isolation)
            await transaction.start()
            await writer.fetchval(look)
        await wait_until(lambda: nobody_asleep(writer), "nobody sleeps any more")
        await insert_event(writer)
        await transaction.commit()
        assert await heard() == 0


async def nobody_asleep(connection) -> bool:
    return await count_armed_locks(connection) == 0


async def test_a_bulk_insert_notifies_once(applied):
    """Ten thousand rows in one transaction queue the trigger once and notify once.

    Fails when: the setting iu.bell is taken out of WHEN.
    """
    async with (
        connected(applied.dsn) as writer,
        counting_notifications(applied.dsn) as heard,
        armed_session(applied.dsn),
    ):
        async with writer.transaction():
            await writer.execute("set local track_functions = 'all'")
            await writer.execute(MANY, 10_000)
            await insert_event(writer)
            await writer.execute("set constraints all immediate")
            calls = await writer.fetchval(
                "select calls from pg_stat_xact_user_functions where funcname = 'fn_iu_ring_bell'"
            )
        assert calls == 1
        assert await heard() == 1


async def test_each_transaction_of_a_session_notifies(applied):
    """The setting iu.bell of one transaction does not silence the next transaction of the same session.

    Fails when: iu.bell is set for the session.
    """
    async with (
        connected(applied.dsn) as writer,
        counting_notifications(applied.dsn) as heard,
        armed_session(applied.dsn),
    ):
        for _ in range(5):
            await insert_event(writer)
            assert await heard() == 1


async def test_a_rolled_back_transaction_sends_no_notify(applied):
    """A transaction that is rolled back sends no notification and leaves no lock."""
    async with (
        connected(applied.dsn) as writer,
        counting_notifications(applied.dsn) as heard,
        armed_session(applied.dsn),
    ):
        transaction = writer.transaction()
        await transaction.start()
        await insert_event(writer)
        await writer.execute("set constraints all immediate")
        await transaction.rollback()
        assert await heard() == 0
        assert await count_shared_locks(writer) == 0


async def test_an_insert_after_a_rolled_back_savepoint_notifies(applied):
    """Rolling back a savepoint also resets iu.bell, so that a later insert notifies.

    Fails when: iu.bell keeps its value after the rollback of its savepoint.
    """
    async with (
        connected(applied.dsn) as writer,
        counting_notifications(applied.dsn) as heard,
        armed_session(applied.dsn),
    ):
        async with writer.transaction():
            inner = writer.transaction()
            await inner.start()
            await insert_event(writer)
            await inner.rollback()
            await insert_event(writer)
        assert await heard() == 1


async def test_a_bell_trigger_fires_again_after_its_savepoint_is_rolled_back(applied):
    """After SET CONSTRAINTS IMMEDIATE in a savepoint that is rolled back, the lock is
    released and the commit checks again.

    Fails when: the lock, iu.bell or the fired state is not undone with the savepoint.
    """
    async with (
        connected(applied.dsn) as writer,
        connected(applied.dsn) as admin,
        counting_notifications(applied.dsn) as heard,
    ):
        transaction = writer.transaction()
        await transaction.start()
        inner = writer.transaction()
        await inner.start()
        await insert_event(writer)
        await writer.execute("set constraints all immediate")
        assert await count_shared_locks(admin) > 0
        await inner.rollback()
        assert await count_shared_locks(admin) == 0
        await insert_event(writer)
        async with armed_session(applied.dsn):
            await transaction.commit()
            assert await heard() == 1


async def test_a_session_in_replica_role_notifies(applied):
    """The trigger notifies under session_replication_role = replica, which logical replication uses.

    Fails when: ENABLE ALWAYS is taken out.
    """
    async with (
        connected(applied.dsn) as writer,
        counting_notifications(applied.dsn) as heard,
        armed_session(applied.dsn),
    ):
        await writer.execute("set session_replication_role = replica")
        await insert_event(writer)
        assert await heard() == 1


OTHER = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
    values ($1, 'alert', 'alert', 'immediate') returning id"""
WORKER_OF = """
    insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
    select 'of ' || $1, $1, c.lineage from iu_route_worker_cursor c"""
REGISTER = """
    insert into event_type_registry (event_domain, event_type, event_stream, delivery_lane)
    values ('crm', 'alert', 'alert', 'immediate'), ('cr', 'alert', 'alert', 'immediate')"""


async def test_only_events_of_a_domain_with_a_worker_notify(applied):
    """Events of a domain without a worker, and statements that insert nothing, do not notify; an
    event that moves into iu does.

    Fails when: WHEN does not name the domains that have a worker.
    """
    async with (
        connected(applied.dsn) as writer,
        counting_notifications(applied.dsn) as heard,
        armed_session(applied.dsn),
    ):
        other = await writer.fetchval(OTHER, "system")
        await writer.execute(MANY, 0)
        assert await heard() == 0
        await writer.execute(
            """update event_outbox set event_domain = 'iu', event_type = 'version_applied', event_stream = 'update'
                where id = $1""",
            other,
        )
        assert await heard() == 1


async def test_events_of_every_domain_with_a_worker_notify(applied):
    """A worker of another domain is notified from its registration on, also if the
    transaction wrote other events before.

    Fails when: WHEN knows domain iu only, or iu.bell records the transaction without its domains.
    """
    async with (
        connected(applied.dsn) as writer,
        counting_notifications(applied.dsn) as heard,
        armed_session(applied.dsn),
        armed_session(applied.dsn, domain="crm"),
    ):
        await writer.execute(REGISTER)
        await writer.fetchval(OTHER, "crm")
        assert await heard() == 0
        await writer.execute(WORKER_OF, "crm")
        await writer.fetchval(OTHER, "crm")
        assert await heard() == 1
        async with writer.transaction():
            for domain in ("system", "cr", "system", "crm", "system"):
                await writer.fetchval(OTHER, domain)
        assert await heard() == 1
        async with writer.transaction():
            await writer.fetchval(OTHER, "system")
            await insert_event(writer)
        assert await heard() == 1


async def test_an_armed_consumer_of_another_domain_does_not_matter(applied):
    """Producers notify only for an armed consumer of their own domain.

    Fails when: all domains share the locks, so an idle consumer of one makes the producers of all of them notify.
    """
    async with (
        connected(applied.dsn) as writer,
        counting_notifications(applied.dsn) as heard,
        armed_session(applied.dsn, domain="crm"),
    ):
        await writer.execute(REGISTER)
        await writer.execute(WORKER_OF, "crm")
        await insert_event(writer)
        assert await heard() == 0
        await writer.fetchval(OTHER, "crm")
        assert await heard() == 1


async def test_producers_of_a_domain_without_a_worker_hold_no_bell_lock(applied):
    """A producer of events that no worker reads does not keep the consumers of other domains busy.

    Fails when: WHEN does not name the domains that have a worker.
    """
    async with connected(applied.dsn) as writer, connected(applied.dsn) as admin, writer.transaction():
        await writer.fetchval(OTHER, "system")
        await writer.execute("set constraints all immediate")
        assert await count_shared_locks(admin) == 0
        await insert_event(writer)
        await writer.execute("set constraints all immediate")
        assert await count_shared_locks(admin) > 0


CALLS = "select coalesce(sum(calls), 0)::int from pg_stat_xact_user_functions where funcname = 'fn_iu_ring_bell'"
TRIGGER = "select oid from pg_trigger where tgname = 'zz_event_outbox_bell' and tgparentid = 0"


async def test_a_domain_without_a_worker_does_not_call_the_bell(applied):
    """The bell's function is called for the domains that have a worker: from its addition until its removal.

    Fails when: WHEN does not name the domains, or a removed worker leaves its domain there.
    """

    async def calls(writer) -> int:
        async with writer.transaction():
            await writer.execute("set local track_functions = 'all'; set constraints all immediate")
            before = await writer.fetchval(CALLS)
            await writer.fetchval(OTHER, "crm")
            return await writer.fetchval(CALLS) - before

    async with connected(applied.dsn) as writer:
        await writer.execute(REGISTER)
        assert await calls(writer) == 0
        await writer.execute(WORKER_OF, "crm")
        assert await calls(writer) == 1
        await writer.execute("delete from iu_route_worker_cursor where event_domain = 'crm'")
        assert await calls(writer) == 0


async def test_a_second_worker_of_a_domain_leaves_the_trigger_alone(applied):
    """A change of the workers that does not change the domains takes no lock on the outbox.

    Fails when: the trigger is created again after every change of the cursor table.
    """
    async with connected(applied.dsn) as admin, connected(applied.dsn) as writer, writer.transaction():
        await insert_event(writer)
        before = await admin.fetchval(TRIGGER)
        await admin.execute(WORKER_OF, "iu")
        await admin.execute("delete from iu_route_worker_cursor where worker_name = 'of iu'")
        assert await admin.fetchval(TRIGGER) == before


async def test_two_workers_that_are_added_at_once_are_both_in_the_bell(applied):
    """A transaction that adds a worker waits for another one that changes the domains, and then sees its worker.

    Fails when: the advisory lock is taken out, so the second change reads the workers before the first one commits.
    """
    async with connected(applied.dsn) as first, connected(applied.dsn) as second:
        await first.execute("insert into iu_route_worker_cursor (worker_name, event_domain, lineage)"
                            " select 'one', 'crm', lineage from iu_outbox_anchor")  # fmt: skip
        async with anyio.create_task_group() as tasks, first.transaction():
            await first.execute("insert into iu_route_worker_cursor (worker_name, event_domain, lineage)"
                                " select 'two', 'crm', lineage from iu_outbox_anchor")  # fmt: skip
            tasks.start_soon(second.execute, "delete from iu_route_worker_cursor where worker_name = 'one'")
            await anyio.sleep(0.1)
        definition = await first.fetchval(f"select pg_get_triggerdef(({TRIGGER}))")
        assert "'{crm,iu}'" in definition


async def test_producers_wait_only_briefly_for_a_new_worker(applied):
    """While another session holds the outbox, adding a worker of a new domain fails within the lock timeout.

    Fails when: the change waits for its lock as long as the session allows, and producers wait behind it.
    """
    async with connected(applied.dsn) as admin, connected(applied.dsn) as writer:
        async with writer.transaction():
            await insert_event(writer)
            with anyio.fail_after(5), pytest.raises(asyncpg.LockNotAvailableError):
                await admin.execute(WORKER_OF, "crm")
        await admin.execute(WORKER_OF, "crm")


async def test_an_upgrade_does_not_wait_for_a_busy_outbox(applied):
    """While a producer holds the outbox, 022 keeps the trigger of 010, which works; a later change replaces it.

    Fails when: the upgrade fails or waits for as long as producers keep transactions open.
    """
    (file,) = [m for m in package_files() if m.name == "worker/022_bell_domains"]
    definition = f"select pg_get_triggerdef(({TRIGGER}))"
    async with (
        connected(applied.dsn) as admin,
        connected(applied.dsn) as writer,
        counting_notifications(applied.dsn) as heard,
        armed_session(applied.dsn),
    ):
        await admin.execute(file.text("down"))
        async with writer.transaction():
            await insert_event(writer)
            await admin.execute("set lock_timeout = '100ms'")
            await admin.execute(file.text())
        assert "fn_iu_bell_due" not in await admin.fetchval(definition)
        assert await heard() == 1
        assert {row["pass"] for row in await admin.fetch(file.text("verify"))} == {True}
        await admin.execute("update iu_route_worker_cursor set event_domain = event_domain where false")
        assert "fn_iu_bell_due" in await admin.fetchval(definition)
        await insert_event(writer)
        assert await heard() == 1


async def test_the_bell_requires_no_privilege_of_producers(applied):
    """A role that may only insert events can write those of every domain.

    Fails when: the function reads a table of the package.
    """
    name = f"writer_{uuid4().hex[:8]}"
    async with (
        connected(applied.dsn) as admin,
        counting_notifications(applied.dsn) as heard,
        armed_session(applied.dsn, domain="crm"),
    ):
        await admin.execute(REGISTER)
        await admin.execute(WORKER_OF, "crm")
        await admin.execute(f"create role {name}; grant insert, select on event_outbox to {name}")
        await admin.execute(f"grant select on event_type_registry to {name}")
        try:
            async with connected(applied.dsn) as writer:
                await writer.execute(f"set role {name}")
                for domain in ("system", "crm"):
                    await writer.fetchval(OTHER, domain)
            assert await heard() == 1
        finally:
            await admin.execute(f"drop owned by {name}; drop role {name}")


async def test_a_changed_gate_notifies_and_other_settings_do_not(applied):
    """A change of a gate notifies, a change of any other key does not."""
    async with (
        connected(applied.dsn) as writer,
        counting_notifications(applied.dsn) as heard,
        armed_session(applied.dsn),
    ):
        await writer.execute("insert into dot_config (key, value, description) values ('other', 'true', 'a test')")
        assert await heard() == 0
        await writer.execute("update dot_config set value = 'true' where key = 'iu_core.route_worker_enabled'")
        assert await heard() == 1


@pytest.mark.parametrize("asleep", [False, True], ids=["awake", "asleep"])
@pytest.mark.parametrize("spelling", ["prepare transaction '{}'", "PREPARE\n\t TRANSACTION '{}'"])
async def test_a_prepared_transaction_never_fails_and_keeps_no_bell_lock(live, asleep, spelling):
    """A two-phase transaction can be prepared whether or not a consumer is idle, and does not keep the lock.

    Fails when: the PREPARE guard is taken out of the trigger.
    """
    async with connected(live.dsn) as writer, connected(live.dsn) as admin:
        if await admin.fetchval("show max_prepared_transactions") == "0":
            pytest.skip("max_prepared_transactions is 0")
        sleeper = armed_session(live.dsn) if asleep else connected(live.dsn)
        async with sleeper:
            name = uuid4().hex
            await writer.execute("begin")
            event = await insert_event(writer)
            await writer.execute("update dot_config set value = 'true' where key = 'iu_core.route_worker_enabled'")
            await writer.execute(spelling.format(name))
            try:
                assert await count_shared_locks(admin) == 0
            finally:
                await admin.execute(f"commit prepared '{name}'")
            assert await drain(admin) == 1
            assert await admin.fetchval("select event_ref from iu_route_attempt") == event
