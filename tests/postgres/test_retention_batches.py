"""Batches of a retention run: their size, their order, locked rows, and invalid arguments."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from postgres.retention_helpers import add_worker, old_event, remaining_events, remove, run_retention
from support import connected, drain

pytestmark = pytest.mark.asyncio


async def test_a_batch_is_bounded_and_continues_after_the_previous_one(live):
    """A batch reads no more rows than its limit, and a run reads each row once, kept rows included.

    Fails when: a page has no limit, or each batch begins at the start.
    """
    async with connected(live.dsn) as c, connected(live.dsn) as writer:
        await add_worker(c)
        for _ in range(7):
            await old_event(c)
        await drain(c, worker="second")
        async with writer.transaction():
            # This event is not committed, so retention does not see it.
            await old_event(writer)
            for _ in range(8):
                await old_event(c)
            await drain(c)
            answers = await run_retention(c, limit=4)
        assert [a["looked"] for a in answers] == [4, 4, 4, 3]
        assert [a["gone"] for a in answers] == [4, 3, 0, 0]


async def test_pages_are_ordered_by_number_and_id(live):
    """Events with equal numbers, after a sequence was set back, are all found with any page size.

    Fails when: the position between two batches is the number alone.
    """
    async with connected(live.dsn) as c:
        for _ in range(3):
            await c.execute("select setval('event_outbox_event_seq', 1, false)")
            await old_event(c)
        await c.execute("alter table event_outbox disable trigger zz_event_outbox_stamp")
        await c.execute("update event_outbox set event_seq = 7")
        await drain(c)
        assert await remove(c, limit=1) == 3


async def test_locked_rows_are_left_for_the_next_run(live):
    """A run waits for no row lock, and a row that moves to another domain meanwhile is judged by its new state.

    Fails when: SKIP LOCKED is missing, so that the run waits until it is cancelled.
    """
    async with connected(live.dsn) as c, connected(live.dsn) as other:
        first, second, third = [await old_event(c) for _ in range(3)]
        await drain(c)
        move = other.transaction()
        await move.start()
        await other.execute(
            """update event_outbox set event_domain = 'system', event_type = 'alert', event_stream = 'alert'
                where id = $1""",
            second,
        )
        await c.execute("set statement_timeout = '5s'")
        assert await remove(c) == 2
        await move.commit()
        assert await remove(c) == 0
        assert await remaining_events(c) == {second}
        assert {first, third}.isdisjoint(await remaining_events(c))


async def test_two_simultaneous_runs_remove_each_row_once(live):
    """Two runs at the same time remove all rows between them, each row once, and do not wait for each other."""
    async with connected(live.dsn) as c, connected(live.dsn) as one, connected(live.dsn) as two:
        await c.execute(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at)
               select 'iu', 'version_applied', 'update', 'immediate', now() - interval '100 days'
                 from generate_series(1, 4000)"""
        )
        await drain(c)
        removed = await asyncio.gather(*(remove(each, limit=50) for each in (one, two)))
        assert sum(removed) + await remove(c) == 4000
        assert await remaining_events(c) == set()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rubbish", 10, "1 day"), "there is no retention policy rubbish"),
        ((None, 10, "1 day"), "there is no retention policy null"),
        (("events", 0, "1 day"), "batch limit must be 1 or more, not 0"),
        (("events", None, "1 day"), "batch limit must be 1 or more, not null"),
        (("events", 10, "-1 day"), "the interval must be positive, not -1 day"),
        (("events", 10, "0"), "the interval must be positive, not 00:00:00"),
    ],
)
async def test_invalid_arguments_are_refused(live, arguments, says):
    """An invalid argument raises InvalidParameterValue with a message that names it."""
    what, limit, keep = arguments
    async with connected(live.dsn) as c:
        with pytest.raises(asyncpg.InvalidParameterValueError, match=says):
            await c.fetchval("select fn_iu_retention_run($1, $2, $3::text::interval)", what, limit, keep)


async def test_an_invalid_policy_is_refused(live):
    """The table rejects an unknown policy and a duration that is not positive."""
    async with connected(live.dsn) as c:
        for statement in (
            "insert into iu_retention_policy (what, keep) values ('units', '1 day')",
            "update iu_retention_policy set keep = '-1 day'",
            "update iu_retention_policy set keep = '0'",
        ):
            with pytest.raises(asyncpg.CheckViolationError):
                await c.execute(statement)
