"""Attempts and dead letters that retention may remove, and those that it must keep."""

from __future__ import annotations

import json

import pytest

from postgres.retention_helpers import (
    age_attempts,
    old_dead_letter,
    old_event,
    planned_counts,
    remaining_events,
    remove,
)
from support import WORKER, connected, drain, insert_event, run_batch

pytestmark = pytest.mark.asyncio


async def test_attempts_are_kept_while_their_event_exists(live):
    """Attempts are removed only after their event, because an event without attempts would look undecided.

    Fails when: age alone decides about attempts.
    """
    async with connected(live.dsn) as c:
        kept = await insert_event(c)
        for _ in range(3):
            await old_event(c)
        await drain(c)
        await age_attempts(c)
        assert await remove(c, "attempts") == 0
        assert (await planned_counts(c))["attempts", "event_still_there", None] == 4
        await c.execute("update event_outbox set created_at = 'infinity' where id = $1", kept)
        assert await remove(c) == 3
        assert await remove(c, "attempts", limit=2) == 3
        rest = await c.fetch("select event_ref from iu_route_attempt")
        assert [row["event_ref"] for row in rest] == [kept]


async def test_attempts_younger_than_the_policy_are_kept(live):
    """The age of an attempt is counted from its decision."""
    async with connected(live.dsn) as c:
        await old_event(c)
        await drain(c)
        assert await remove(c) == 1
        assert await remove(c, "attempts") == 0
        assert await c.fetchval("select count(*) from iu_route_attempt") == 1


async def test_attempts_of_other_programs_are_kept(live):
    """Attempts with other idempotency keys, inbound ones among them, are never removed,
    because the table belongs to IU Core.

    Fails when: the idempotency key is not checked.
    """
    async with connected(live.dsn) as c:
        await c.execute(
            """insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key, created_at)
               values (gen_random_uuid(), 'inbound', 'theirs', 'sent', 'inbound:theirs:1', 'epoch'),
                      (gen_random_uuid(), 'outbound', 'theirs', 'sent', 'something else', 'epoch')"""
        )
        assert await remove(c, "attempts") == 0
        assert await c.fetchval("select count(*) from iu_route_attempt") == 2


async def test_an_open_dead_letter_and_its_attempts_are_kept(live):
    """The event of an open dead letter may be removed; its attempts are kept, so that a replay continues their numbers.

    After the dead letter is resolved, it and its attempts may be removed.

    Fails when: retention does not check for open dead letters.
    """
    async with connected(live.dsn) as c:
        _, letter = await old_dead_letter(c)
        await age_attempts(c)
        assert await remove(c) == 1
        assert await remove(c, "attempts") == 0
        assert await remove(c, "dead_letters") == 0
        plan = await planned_counts(c)
        assert plan["attempts", "open_dead_letter", None] == plan["dead_letters", "open_dead_letter", None] == 1

        answer = json.loads(await c.fetchval("select fn_iu_route_dead_letter_replay($1)::text", letter))
        assert (answer["status"], answer["decision"], answer["attempt_no"]) == ("replayed", "dry_run", 2)
        assert await remove(c, "dead_letters") == 0
        await age_attempts(c)
        assert await remove(c, "attempts") == 2
        assert await remove(c, "dead_letters") == 1


async def test_a_dead_letter_without_an_attempt_is_kept_with_its_event(live):
    """While its event exists, a dead letter is kept as proof of the decision if its attempt
    could not be written (attempt 0).

    Fails when: a resolved dead letter is removed by its age alone.
    """
    async with connected(live.dsn) as c:
        _, letter = await old_dead_letter(c)
        await c.execute(
            "update iu_route_dead_letter set attempt_no = 0, resolved_at = 'epoch', resolution = 'by hand' where id = $1",
            letter,
        )
        assert await remove(c, "dead_letters") == 0
        assert (await planned_counts(c))["dead_letters", "event_still_there", None] == 1
        assert await remove(c) == 1
        assert await remove(c, "dead_letters") == 1


@pytest.mark.parametrize("audit_too", [False, True])
async def test_a_cursor_reset_after_retention_decides_no_event_again(live, audit_too):
    """After retention, a cursor that is set back decides no event again, whether or not the
    attempts were removed as well.

    Fails when: attempts are removed before their events.
    """
    async with connected(live.dsn) as c:
        for _ in range(3):
            await old_event(c)
        await insert_event(c)
        await drain(c)
        assert await remove(c) == 3
        if audit_too:
            await age_attempts(c)
            assert await remove(c, "attempts") == 3
        before = await c.fetchval("select count(*) from iu_route_attempt")
        await c.execute(
            "update iu_route_worker_cursor set prev = '3:3:', tick = null, tick_floor = null, pos_seq = null, pos_id = null"
        )
        answer = await run_batch(c)
        assert (answer["seen"], answer["attempts_written"]) == (1, 0)
        assert await c.fetchval("select count(*) from iu_route_attempt") == before


async def test_an_application_can_prevent_the_removal_of_an_event(live):
    """If fn_iu_retention_releasable returns false for an event, the event, its attempts and its dead letter are kept.

    Fails when: one of the three policies does not call it.
    """
    async with connected(live.dsn) as c:
        event, letter = await old_dead_letter(c)
        await old_event(c)
        await drain(c)
        await c.execute("select fn_iu_route_dead_letter_replay($1)", letter)
        await age_attempts(c)
        await c.execute(
            f"""create or replace function fn_iu_retention_releasable(p_event_ref uuid) returns boolean
                language sql stable return p_event_ref <> '{event}'"""
        )
        assert [await remove(c, what) for what in ("events", "attempts", "dead_letters")] == [1, 1, 0]
        assert await remaining_events(c) == {event}
        await c.execute("delete from event_outbox")
        assert [await remove(c, what) for what in ("attempts", "dead_letters")] == [0, 0]
        plan = await planned_counts(c)
        assert plan == {("attempts", "not_released", None): 2, ("dead_letters", "not_released", None): 1}


async def test_an_incomplete_event_is_kept(live):
    """An event that lacks attempts is kept until it is repaired or accepted, because a
    removed event cannot be repaired.

    Fails when: fn_iu_retention_releasable does not read the completeness check.
    """
    async with connected(live.dsn) as c:
        broken, whole = await old_event(c), await old_event(c)
        await drain(c)
        await c.execute("delete from iu_route_attempt where event_ref = $1", broken)
        for _ in range(10):
            if json.loads(await c.fetchval("select fn_iu_completeness_page($1)::text", WORKER))["status"] == "passed":
                break
        assert await remove(c) == 1
        assert await remaining_events(c) == {broken}
        assert await planned_counts(c) == {("events", "not_released", None): 1}
        await c.execute("update iu_completeness_missing set accepted_at = now() where event_ref = $1", broken)
        assert await remove(c) == 1
        assert whole not in await remaining_events(c)
