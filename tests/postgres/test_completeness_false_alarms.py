"""The completeness check reports no event that is complete, was not read, or cannot be judged."""

from __future__ import annotations

import asyncio
import random

import pytest

from postgres.completeness_helpers import (
    add_unrelated_attempts,
    append_events,
    check_page,
    continue_pass,
    delete_attempts,
    missing_events,
    run_pass,
)
from support import WORKER, connected, consuming, drain, insert_event, run_batch

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(
    "change",
    [
        "insert into iu_outbound_route select 'new', event_domain, event_type, event_stream, target_kind, target_ref, true, true from iu_outbound_route",
        "update iu_outbound_route set enabled = false",
        "update iu_outbound_route set event_type = 'other'",
        "delete from iu_outbound_route",
    ],
    ids=["added", "disabled", "moved", "deleted"],
)
async def test_a_changed_route_causes_no_missing_event(live, change):
    """Events that were decided by earlier routes are complete, regardless of the present routes.

    Fails when: the wanted attempts are derived from the present routes, or suspected
    events are not confirmed one by one.
    """
    async with connected(live.dsn) as worker:
        # Far from the place that the check reads first: every event has to be looked up by its keys.
        await add_unrelated_attempts(worker, 2000)
        await append_events(worker, 20)
        await drain(worker)
        await worker.execute(change)
        assert (await run_pass(worker, 21))[-1]["missing"] == 0
        assert await missing_events(worker) == {}
        # The confirmation has recorded the code of the deleted route, so its events are not suspected again.
        assert [a["status"] for a in await run_pass(worker, 21)] == ["passed"]


async def test_a_deleted_route_is_recorded_before_all_its_events_are_suspected(live):
    """When 10 000 events are suspected to lack an attempt, the pass confirms or clears them before it goes on.

    The other events of a deleted route are not suspected after that.

    Fails when: suspected events are confirmed only at the end, or the confirmation does not record deleted routes.
    """
    async with connected(live.dsn) as worker:
        await add_unrelated_attempts(worker, 50_000)
        await append_events(worker, 16_000)
        await drain(worker, 5000)
        await worker.execute("delete from iu_outbound_route")
        answers = await run_pass(worker, 5000)
        assert [(a["status"], a["missing"]) for a in answers] == [
            ("walking", 5000), ("walking", 10_000),
            # It reads the attempts, and judges the events in two pages; the third one finds no more.
            ("confirming", 10_000), ("confirming", 10_000), ("confirming", 10_000), ("confirming", 0),
            ("walking", 0), ("passed", 0),
        ]  # fmt: skip


async def test_in_a_partly_read_tick_only_consumed_events_are_checked(live):
    """In a partly read tick the check covers the events that the cursor has passed, and no others.

    Fails when: the check takes all or none of the events of the tick as consumed.
    """
    async with connected(live.dsn) as worker:
        events = await append_events(worker, 10)
        assert (await run_batch(worker, 4))["more"]
        await run_pass(worker, 3)
        assert await worker.fetchval("select last_checked from iu_completeness_pass") == 4
        assert await missing_events(worker) == {}
        await delete_attempts(worker, *events)
        await run_pass(worker, 3)
        assert set(await missing_events(worker)) == set(events[:4])


async def test_events_that_the_run_wrote_itself_are_checked(live):
    """Events of the very transaction that decided them are checked; events that it wrote afterwards are not.

    Fails when: the check ignores the cursor's record of own events.
    """
    async with connected(live.dsn) as worker, worker.transaction():
        events = await append_events(worker, 3)
        await drain(worker)
        await append_events(worker, 2)
        assert (await run_pass(worker))[-1]["checked"] == 3
        await delete_attempts(worker, events[2])
        await run_pass(worker)
        assert set(await missing_events(worker)) == {events[2]}


async def test_an_unread_event_is_not_missing(live):
    """No event is missing for a new cursor, which has read none, or in an empty outbox."""
    async with connected(live.dsn) as worker:
        assert (await run_pass(worker))[-1]["checked"] == 0
        await append_events(worker, 5)
        assert [(a["checked"], a["missing"]) for a in await run_pass(worker, 2)][-1] == (0, 0)


async def test_a_late_commit_is_checked_by_the_next_pass(live):
    """If an event with a low number commits after a pass has gone past it, the next pass
    checks it, and not the current one."""
    async with connected(live.dsn) as worker, connected(live.dsn) as late:
        transaction = late.transaction()
        await transaction.start()
        event = await insert_event(late)
        await append_events(worker, 6)
        await drain(worker)
        first = await check_page(worker, 4, 0)
        await transaction.commit()
        await drain(worker)
        await delete_attempts(worker, event)
        assert (await check_page(worker, 4, first["pass"]))["missing"] == 0
        assert await missing_events(worker) == {}
        assert (await run_pass(worker, 4))[-1]["missing"] == 1
        assert set(await missing_events(worker)) == {event}


async def test_a_deleted_event_leaves_the_list_of_missing_events(live):
    """A missing event that is deleted leaves the list, and a pass goes on if events are deleted
    before and after its position.

    Fails when: the confirmation keeps events that no longer exist.
    """
    async with connected(live.dsn) as worker:
        events = await append_events(worker, 20)
        await drain(worker)
        await delete_attempts(worker, *events[:3])
        await run_pass(worker)
        first = await check_page(worker, 5, 0)
        await worker.execute("delete from event_outbox where id = any ($1)", [*events[:2], *events[4:12]])
        assert (await continue_pass(worker, first["pass"], 5))[-1]["missing"] == 1
        assert set(await missing_events(worker)) == {events[2]}
        assert await worker.fetchval("select missing from v_iu_completeness where worker_name = $1", WORKER) == 1


async def test_a_foreign_history_is_not_checked(live):
    """While the cursor does not match the history of the database, the check gives the reason and does not begin.

    Fails when: the check does not test for a foreign history.
    """
    async with connected(live.dsn) as worker:
        await append_events(worker, 2)
        await drain(worker)
        await worker.execute("update iu_route_worker_cursor set lineage = gen_random_uuid()")
        assert await check_page(worker) == {"status": "refused", "reason": "foreign_cursor", "worker_name": WORKER}
        assert await worker.fetchval("select count(*) from iu_completeness_pass") == 0


async def test_events_in_progress_are_not_missing(live):
    """While producers write and a consumer routes, no pass finds a missing event, not even for a moment.

    Fails when: the check ignores the cursor, or reads it in another snapshot than the attempts.
    """
    stop = asyncio.Event()

    async def keep_writing(seed: int) -> None:
        dice = random.Random(seed)
        async with connected(live.dsn) as writer:
            while not stop.is_set():
                async with writer.transaction():
                    await append_events(writer, dice.randint(1, 9))
                    if dice.random() < 0.3:
                        await asyncio.sleep(dice.random() / 20)

    async with consuming(live.dsn, batch_limit=7), asyncio.TaskGroup() as tasks, connected(live.dsn) as auditor:
        for seed in range(3):
            tasks.create_task(keep_writing(seed))
        checked = 0
        # Each pass also checks the events that were written and decided during the passes before it.
        while checked < 2000:
            answers = await run_pass(auditor, 50)
            assert [a for a in answers if a["missing"]] == []
            checked = answers[-1]["checked"]
        stop.set()
