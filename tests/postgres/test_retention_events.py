"""Events that retention may remove from the outbox, and events that it must keep: functions/retention."""

from __future__ import annotations

import pytest

from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.postgres.session import session
from postgres.retention_helpers import (
    add_worker,
    age_attempts,
    old_event,
    planned_counts,
    remaining_events,
    remove,
    run_retention,
)
from support import WORKER, connected, drain, insert_event, open_gate, run_batch

pytestmark = pytest.mark.asyncio


async def test_no_event_is_removed_until_a_policy_is_enabled(live):
    """After the install every policy is disabled, and a run of a disabled policy removes nothing.

    Fails when: a policy is enabled by default, or is not read.
    """
    async with connected(live.dsn) as c:
        await old_event(c)
        await drain(c)
        assert await c.fetchval("select count(*) from iu_retention_policy where enabled") == 0
        assert [a["status"] for a in await run_retention(c, keep=None)] == ["disabled"]
        assert len(await remaining_events(c)) == 1
        await c.execute("update iu_retention_policy set enabled = true where what = 'events'")
        assert await remove(c, keep=None) == 1
        policy = await c.fetchrow("select * from iu_retention_policy where what = 'events'")
        assert (policy["last_gone"], policy["total_gone"], policy["last_run_at"] is None) == (1, 1, False)


async def test_a_late_commit_is_never_removed_unread(live):
    """An event with an old created_at that commits late is kept until it was read.

    Fails when: age alone decides, without fn_iu_outbox_consumed.
    """
    async with connected(live.dsn) as c, connected(live.dsn) as writer:
        late = writer.transaction()
        await late.start()
        event = await old_event(writer)
        before = await old_event(c)
        assert await drain(c) == 1
        assert await remove(c) == 1
        await late.commit()
        assert await remove(c) == 0
        assert await remaining_events(c) == {event}
        assert await planned_counts(c) == {("events", "unread", WORKER): 1}
        assert await drain(c) == 1
        assert await remove(c) == 1
        attempts = await c.fetch("select event_ref from iu_route_attempt order by id")
        assert [row["event_ref"] for row in attempts] == [before, event]


async def test_an_event_is_kept_until_every_cursor_has_read_it(live):
    """If a domain has two workers, an event is kept until the slower one has read it, and the plan names that worker.

    Fails when: one cursor is enough.
    """
    async with connected(live.dsn) as c:
        await add_worker(c)
        for _ in range(3):
            await old_event(c)
        await drain(c)
        assert await remove(c) == 0
        assert await planned_counts(c) == {("events", "unread", "second"): 3}
        await run_batch(c, limit=2, worker="second")
        assert await remove(c) == 2
        await drain(c, worker="second")
        assert await remove(c) == 1


async def test_unread_events_of_a_partly_read_tick_are_kept(live):
    """While a tick is read in pages, only events before the position may be removed.

    Fails when: the tick counts as read as soon as it is taken.
    """
    async with connected(live.dsn) as c:
        events = [await old_event(c) for _ in range(5)]
        await run_batch(c, limit=2)
        assert await remove(c) == 2
        assert await remaining_events(c) == set(events[2:])
        assert await drain(c) == 3
        assert await remove(c) == 3


async def test_own_events_are_removed_when_they_are_read(live):
    """Events that a transaction wrote and routed itself count as read; those that it wrote afterwards do not.

    Fails when: the cursor's record of own events is ignored, or applies to the whole transaction.
    """
    async with connected(live.dsn) as c, connected(live.dsn) as other:
        # The tick does not cover the own transaction at once.
        async with c.transaction():
            await old_event(c)
            await run_batch(c)
            after = await old_event(c)
        assert await remove(other) == 1
        assert await remaining_events(other) == {after}
        assert await drain(other) == 1
        assert await remove(other) == 1


async def test_a_refusing_worker_stops_retention_of_its_domain(live):
    """While a cursor is refused, no event of its domain and no attempt is removed, and
    the plan gives worker and reason.

    Fails when: retention does not test whether a worker refuses.
    """
    async with connected(live.dsn) as c:
        await add_worker(c)
        await add_worker(c, "third", "system")
        event = await old_event(c)
        await old_event(c, domain="system")
        for worker in (WORKER, "second", "third"):
            await drain(c, worker=worker)
        await c.execute("delete from event_outbox where id = $1", event)
        await old_event(c)
        for worker in (WORKER, "second"):
            await drain(c, worker=worker)
        await age_attempts(c)
        await c.execute("update iu_route_worker_cursor set lineage = gen_random_uuid() where worker_name = 'second'")
        assert await remove(c, "attempts") == 0
        assert await remove(c) == 1
        assert await c.fetchval("select count(*) from event_outbox where event_domain = 'iu'") == 1
        assert await planned_counts(c) == {
            ("events", "refusing", "second: foreign_cursor"): 1,
            ("attempts", "refusing", "second: foreign_cursor"): 3,
        }


async def test_events_of_domains_without_a_worker_are_kept(live):
    """Events of a domain without a cursor are kept at any age; with a cursor they are subject to retention.

    Fails when: the domain is not checked.
    """
    async with connected(live.dsn) as c:
        theirs = await old_event(c, domain="system")
        await old_event(c)
        await drain(c)
        assert await remove(c) == 1
        assert await remaining_events(c) == {theirs}
        assert await planned_counts(c) == {}
        await add_worker(c, "second", "system")
        assert await remove(c) == 0
        await drain(c, worker="second")
        assert await remove(c) == 1


async def test_a_run_visits_every_domain_with_a_worker(live):
    """A run goes through all domains that have a cursor, page by page."""
    async with connected(live.dsn) as c:
        await add_worker(c, "second", "system")
        for _ in range(5):
            await old_event(c)
            await old_event(c, domain="system")
        await drain(c)
        await drain(c, worker="second")
        answers = await run_retention(c, limit=2)
        assert sum(a["gone"] for a in answers) == 10
        assert max(a["looked"] for a in answers) == 2
        assert await remaining_events(c) == set()


@pytest.mark.parametrize("created", ["'infinity'", "now() + interval '1 year'", "now() + interval '1 minute'"])
async def test_an_event_of_the_future_is_kept_and_stops_no_run(live, created):
    """An event with created_at in the future is kept, and the events behind it are removed all the same.

    Fails when: any event that is not old ends the run, or the future counts as past.
    """
    async with connected(live.dsn) as c:
        await old_event(c)
        future = await old_event(c, created)
        await old_event(c)
        await drain(c)
        assert (await planned_counts(c))["events", "created_in_the_future", None] == 1
        assert await remove(c, limit=1) == 2
        assert await remaining_events(c) == {future}


@pytest.mark.parametrize("created", ["'-infinity'", "'epoch'", "now() - interval '100 days'"])
async def test_the_age_of_an_event_is_the_age_of_its_insert(live, created):
    """An event that was written after a young one is young, even if its created_at is old.

    Such a created_at is a faked past, or comes from a very old transaction.

    Fails when: created_at alone is the age.
    """
    async with connected(live.dsn) as c:
        young = await insert_event(c)
        faked = await old_event(c, created)
        await drain(c)
        assert await planned_counts(c) == {}
        assert await remove(c) == 0
        assert await remaining_events(c) == {young, faked}
        # As if time had passed.
        await c.execute("update event_outbox set created_at = now() - interval '91 days' where id = $1", young)
        assert await remove(c) == 2


@pytest.mark.parametrize("created", ["'-infinity'", "'epoch'"])
async def test_an_event_with_a_faked_past_is_kept_until_it_is_read(live, created):
    """An event with a very old created_at is kept until every cursor has read it. Fails when: age alone decides."""
    async with connected(live.dsn) as c:
        event = await old_event(c, created)
        assert await remove(c) == 0
        assert await remaining_events(c) == {event}
        await drain(c)
        assert await remove(c) == 1


async def test_events_older_than_the_package_are_removed_after_reading(substrate):
    """Events from before the install are numbered below zero, read first, and removed like other events."""
    async with session(substrate.dsn, name="test") as c:
        await c.execute("set search_path = public")
        for days in (100, 99, 98):
            await old_event(c, f"now() - interval '{days} days'")
        await migrate.apply_files(c, (await package_state(c)).pending, {}, lambda _: None)
        await open_gate(substrate.dsn)
        assert await remove(c) == 0
        assert await drain(c) == 3
        assert await remove(c) == 3
