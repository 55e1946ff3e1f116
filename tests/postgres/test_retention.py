"""Rows that retention may remove from the outbox and the audit, and rows that it must keep: the functions of 016."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from iu_listen.install import migrate
from iu_listen.install.verify import verify
from iu_listen.postgres.session import session
from postgres.routes import open_live_route
from support import WORKER, connected, drain, insert_event, open_gate, run_batch

pytestmark = pytest.mark.asyncio

KEEP = "90 days"


async def old_event(
    connection: asyncpg.Connection, created: str = "now() - interval '100 days'", domain: str = "iu"
) -> UUID:
    """Insert an event with a given created_at."""
    kind = {"iu": "'version_applied', 'update'", "system": "'alert', 'alert'"}[domain]
    return await connection.fetchval(
        f"""insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at)
            values ('{domain}', {kind}, 'immediate', {created}) returning id"""
    )


async def retain(
    connection: asyncpg.Connection, what: str = "events", keep: str | None = KEEP, limit: int = 1000
) -> list[dict[str, Any]]:
    """Run retention batch by batch; return the answers."""
    answers: list[dict[str, Any]] = []
    after = None
    while len(answers) < 1000:
        answer = json.loads(
            await connection.fetchval(
                "select fn_iu_retention_run($1, $2, $3::text::interval, $4::text::jsonb)::text",
                what, limit, keep, after and json.dumps(after),
            )
        )  # fmt: skip
        answers.append(answer)
        after = answer["after"]
        if after is None:
            return answers
    raise AssertionError(f"no end after 1000 batches: {answers[-3:]}")


async def gone(connection: asyncpg.Connection, what: str = "events", keep: str | None = KEEP, limit: int = 1000) -> int:
    """Run retention; return the number of removed rows."""
    return sum(answer["gone"] for answer in await retain(connection, what, keep, limit))


async def left(connection: asyncpg.Connection) -> set[UUID]:
    """The events of the outbox."""
    return {row["id"] for row in await connection.fetch("select id from event_outbox")}


async def verdicts(connection: asyncpg.Connection, keep: str = KEEP) -> dict[tuple[str, str, str | None], int]:
    """The plan as a table of counts."""
    rows = await connection.fetch("select * from fn_iu_retention_plan($1::text::interval)", keep)
    return {(row["what"], row["verdict"], row["who"]): row["count"] for row in rows}


async def second_worker(connection: asyncpg.Connection, name: str = "second", domain: str = "iu") -> None:
    """Register a further cursor, at the beginning."""
    await connection.execute(
        "insert into iu_route_worker_cursor (worker_name, event_domain, lineage) select $1, $2, lineage from iu_outbox_anchor",
        name, domain,
    )  # fmt: skip


async def dead_letter(
    connection: asyncpg.Connection, created: str = "now() - interval '100 days'"
) -> tuple[UUID, UUID]:
    """Create an old event that became a dead letter; return both ids. The route is a dry run afterwards."""
    await open_live_route(connection)
    event = await old_event(connection, created)
    assert (await run_batch(connection))["dead_lettered"] == 1
    await connection.execute("update iu_outbound_route set dry_run = true")
    return event, await connection.fetchval("select id from iu_route_dead_letter where event_ref = $1", event)


async def age(connection: asyncpg.Connection) -> None:
    """Make all attempts and dead letters 100 days older."""
    await connection.execute("update iu_route_attempt set created_at = created_at - interval '100 days'")
    await connection.execute(
        """update iu_route_dead_letter set created_at = created_at - interval '100 days',
                  resolved_at = resolved_at - interval '100 days'"""
    )


# -- events ------------------------------------------------------------------------------------------------------


async def test_nothing_goes_until_a_policy_is_set(live):
    """After the install every policy is disabled, and a run of a disabled policy removes nothing.

    Fails when: a policy is enabled by default, or is not read.
    """
    async with connected(live.dsn) as c:
        await old_event(c)
        await drain(c)
        assert await c.fetchval("select count(*) from iu_retention_policy where enabled") == 0
        assert [a["status"] for a in await retain(c, keep=None)] == ["disabled"]
        assert len(await left(c)) == 1
        await c.execute("update iu_retention_policy set enabled = true where what = 'events'")
        assert await gone(c, keep=None) == 1
        policy = await c.fetchrow("select * from iu_retention_policy where what = 'events'")
        assert (policy["last_gone"], policy["total_gone"], policy["last_run_at"] is None) == (1, 1, False)


async def test_a_late_commit_is_never_removed_unseen(live):
    """An event with an old created_at that commits late is kept until it was read.

    Fails when: age alone decides, without fn_iu_outbox_consumed.
    """
    async with connected(live.dsn) as c, connected(live.dsn) as writer:
        late = writer.transaction()
        await late.start()
        event = await old_event(writer)
        before = await old_event(c)
        assert await drain(c) == 1
        assert await gone(c) == 1
        await late.commit()
        assert await gone(c) == 0
        assert await left(c) == {event}
        assert await verdicts(c) == {("events", "unread", WORKER): 1}
        assert await drain(c) == 1
        assert await gone(c) == 1
        attempts = await c.fetch("select event_ref from iu_route_attempt order by id")
        assert [row["event_ref"] for row in attempts] == [before, event]


async def test_every_cursor_of_a_domain_must_have_read_it(live):
    """If a domain has two workers, an event is kept until the slower one has read it, and the plan names that worker.

    Fails when: one cursor is enough.
    """
    async with connected(live.dsn) as c:
        await second_worker(c)
        for _ in range(3):
            await old_event(c)
        await drain(c)
        assert await gone(c) == 0
        assert await verdicts(c) == {("events", "unread", "second"): 3}
        await run_batch(c, limit=2, worker="second")
        assert await gone(c) == 2
        await drain(c, worker="second")
        assert await gone(c) == 1


async def test_a_half_read_tick_protects_its_rest(live):
    """While a tick is read in pages, only events before the position may be removed.

    Fails when: the tick counts as read as soon as it is taken.
    """
    async with connected(live.dsn) as c:
        events = [await old_event(c) for _ in range(5)]
        await run_batch(c, limit=2)
        assert await gone(c) == 2
        assert await left(c) == set(events[2:])
        assert await drain(c) == 3
        assert await gone(c) == 3


async def test_own_events_of_a_worker_may_go_when_they_are_read(live):
    """Events that a transaction wrote and routed itself count as read; those that it wrote afterwards do not.

    Fails when: the cursor's record of own events is ignored, or applies to the whole transaction.
    """
    async with connected(live.dsn) as c, connected(live.dsn) as other:
        # The tick does not cover the own transaction at once.
        async with c.transaction():
            await old_event(c)
            await run_batch(c)
            after = await old_event(c)
        assert await gone(other) == 1
        assert await left(other) == {after}
        assert await drain(other) == 1
        assert await gone(other) == 1


async def test_a_refusing_worker_holds_its_domain_and_the_audit(live):
    """While a cursor is refused, no event of its domain and no attempt is removed, and
    the plan gives worker and reason.

    Fails when: retention does not test whether a worker refuses.
    """
    async with connected(live.dsn) as c:
        await second_worker(c)
        await second_worker(c, "third", "system")
        event = await old_event(c)
        await old_event(c, domain="system")
        for worker in (WORKER, "second", "third"):
            await drain(c, worker=worker)
        await c.execute("delete from event_outbox where id = $1", event)
        await old_event(c)
        for worker in (WORKER, "second"):
            await drain(c, worker=worker)
        await age(c)
        await c.execute("update iu_route_worker_cursor set lineage = gen_random_uuid() where worker_name = 'second'")
        assert await gone(c, "attempts") == 0
        assert await gone(c) == 1
        assert await c.fetchval("select count(*) from event_outbox where event_domain = 'iu'") == 1
        assert await verdicts(c) == {
            ("events", "refusing", "second: foreign_cursor"): 1,
            ("attempts", "refusing", "second: foreign_cursor"): 3,
        }


async def test_other_domains_are_never_touched(live):
    """Events of a domain without a cursor are kept at any age; with a cursor they are subject to retention.

    Fails when: the domain is not checked.
    """
    async with connected(live.dsn) as c:
        theirs = await old_event(c, domain="system")
        await old_event(c)
        await drain(c)
        assert await gone(c) == 1
        assert await left(c) == {theirs}
        assert await verdicts(c) == {}
        await second_worker(c, "second", "system")
        assert await gone(c) == 0
        await drain(c, worker="second")
        assert await gone(c) == 1


async def test_every_domain_has_its_turn(live):
    """A run goes through all domains that have a cursor, page by page."""
    async with connected(live.dsn) as c:
        await second_worker(c, "second", "system")
        for _ in range(5):
            await old_event(c)
            await old_event(c, domain="system")
        await drain(c)
        await drain(c, worker="second")
        answers = await retain(c, limit=2)
        assert sum(a["gone"] for a in answers) == 10
        assert max(a["looked"] for a in answers) == 2
        assert await left(c) == set()


@pytest.mark.parametrize("created", ["'infinity'", "now() + interval '1 year'", "now() + interval '1 minute'"])
async def test_a_date_in_the_future_is_kept_and_proves_nothing(live, created):
    """An event with created_at in the future is kept, and the events behind it are removed all the same.

    Fails when: any event that is not old ends the run, or the future counts as past.
    """
    async with connected(live.dsn) as c:
        await old_event(c)
        future = await old_event(c, created)
        await old_event(c)
        await drain(c)
        assert (await verdicts(c))["events", "created_in_the_future", None] == 1
        assert await gone(c, limit=1) == 2
        assert await left(c) == {future}


@pytest.mark.parametrize("created", ["'-infinity'", "'epoch'", "now() - interval '100 days'"])
async def test_age_is_that_of_the_writing(live, created):
    """An event that was written after a young one is young, even if its created_at is old.

    Such a created_at is a faked past, or comes from a very old transaction.

    Fails when: created_at alone is the age.
    """
    async with connected(live.dsn) as c:
        young = await insert_event(c)
        faked = await old_event(c, created)
        await drain(c)
        assert await verdicts(c) == {}
        assert await gone(c) == 0
        assert await left(c) == {young, faked}
        # As if time had passed.
        await c.execute("update event_outbox set created_at = now() - interval '91 days' where id = $1", young)
        assert await gone(c) == 2


@pytest.mark.parametrize("created", ["'-infinity'", "'epoch'"])
async def test_a_faked_past_goes_only_when_it_was_read(live, created):
    """An event with a very old created_at is kept until every cursor has read it. Fails when: age alone decides."""
    async with connected(live.dsn) as c:
        event = await old_event(c, created)
        assert await gone(c) == 0
        assert await left(c) == {event}
        await drain(c)
        assert await gone(c) == 1


async def test_events_older_than_the_package_go_when_they_were_read(substrate):
    """Events from before the install are numbered below zero, read first, and removed like other events."""
    async with session(substrate.dsn, name="test") as c:
        await c.execute("set search_path = public")
        for days in (100, 99, 98):
            await old_event(c, f"now() - interval '{days} days'")
        await migrate.apply_files(c, (await migrate.package_state(c)).pending, {}, lambda _: None)
        await open_gate(substrate.dsn)
        assert await gone(c) == 0
        assert await drain(c) == 3
        assert await gone(c) == 3


# -- batches -----------------------------------------------------------------------------------------------------


async def test_a_batch_is_bounded_and_goes_on_where_the_last_one_ended(live):
    """A batch reads no more rows than its limit, and a run reads each row once, kept rows included.

    Fails when: a page has no limit, or each batch begins at the start.
    """
    async with connected(live.dsn) as c, connected(live.dsn) as writer:
        await second_worker(c)
        for _ in range(7):
            await old_event(c)
        await drain(c, worker="second")
        async with writer.transaction():
            # This event is not committed, so retention does not see it.
            await old_event(writer)
            for _ in range(8):
                await old_event(c)
            await drain(c)
            answers = await retain(c, limit=4)
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
        assert await gone(c, limit=1) == 3


async def test_what_somebody_has_locked_is_left_for_the_next_run(live):
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
        assert await gone(c) == 2
        await move.commit()
        assert await gone(c) == 0
        assert await left(c) == {second}
        assert {first, third}.isdisjoint(await left(c))


async def test_two_runs_at_once_do_each_row_once(live):
    """Two runs at the same time remove all rows between them, each row once, and do not wait for each other."""
    async with connected(live.dsn) as c, connected(live.dsn) as one, connected(live.dsn) as two:
        await c.execute(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at)
               select 'iu', 'version_applied', 'update', 'immediate', now() - interval '100 days'
                 from generate_series(1, 4000)"""
        )
        await drain(c)
        removed = await asyncio.gather(*(gone(each, limit=50) for each in (one, two)))
        assert sum(removed) + await gone(c) == 4000
        assert await left(c) == set()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rubbish", 10, "1 day"), "there is no retention of rubbish"),
        ((None, 10, "1 day"), "there is no retention of null"),
        (("events", 0, "1 day"), "batch limit must be 1 or more, not 0"),
        (("events", None, "1 day"), "batch limit must be 1 or more, not null"),
        (("events", 10, "-1 day"), "must be kept for some time, not for -1 day"),
        (("events", 10, "0"), "must be kept for some time, not for 00:00:00"),
    ],
)
async def test_nonsense_is_refused(live, arguments, says):
    """An invalid argument raises InvalidParameterValue with a message that names it."""
    what, limit, keep = arguments
    async with connected(live.dsn) as c:
        with pytest.raises(asyncpg.InvalidParameterValueError, match=says):
            await c.fetchval("select fn_iu_retention_run($1, $2, $3::text::interval)", what, limit, keep)


async def test_a_policy_holds_no_nonsense(live):
    """The table rejects an unknown policy and a duration that is not positive."""
    async with connected(live.dsn) as c:
        for statement in (
            "insert into iu_retention_policy (what, keep) values ('units', '1 day')",
            "update iu_retention_policy set keep = '-1 day'",
            "update iu_retention_policy set keep = '0'",
        ):
            with pytest.raises(asyncpg.CheckViolationError):
                await c.execute(statement)


# -- attempts and dead letters -----------------------------------------------------------------------------------


async def test_attempts_stay_while_their_event_does(live):
    """Attempts are removed only after their event, because an event without attempts would look undecided.

    Fails when: age alone decides about attempts.
    """
    async with connected(live.dsn) as c:
        kept = await insert_event(c)
        for _ in range(3):
            await old_event(c)
        await drain(c)
        await age(c)
        assert await gone(c, "attempts") == 0
        assert (await verdicts(c))["attempts", "event_still_there", None] == 4
        await c.execute("update event_outbox set created_at = 'infinity' where id = $1", kept)
        assert await gone(c) == 3
        assert await gone(c, "attempts", limit=2) == 3
        rest = await c.fetch("select event_ref from iu_route_attempt")
        assert [row["event_ref"] for row in rest] == [kept]


async def test_attempts_younger_than_the_policy_stay(live):
    """The age of an attempt is counted from its decision."""
    async with connected(live.dsn) as c:
        await old_event(c)
        await drain(c)
        assert await gone(c) == 1
        assert await gone(c, "attempts") == 0
        assert await c.fetchval("select count(*) from iu_route_attempt") == 1


async def test_attempts_that_the_worker_did_not_write_stay(live):
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
        assert await gone(c, "attempts") == 0
        assert await c.fetchval("select count(*) from iu_route_attempt") == 2


async def test_an_open_dead_letter_keeps_its_attempts_and_itself(live):
    """The event of an open dead letter may be removed; its attempts are kept, so that a replay continues their numbers.

    After the dead letter is resolved, it and its attempts may be removed.

    Fails when: retention does not check for open dead letters.
    """
    async with connected(live.dsn) as c:
        _, letter = await dead_letter(c)
        await age(c)
        assert await gone(c) == 1
        assert await gone(c, "attempts") == 0
        assert await gone(c, "dead_letters") == 0
        plan = await verdicts(c)
        assert plan["attempts", "open_dead_letter", None] == plan["dead_letters", "open_dead_letter", None] == 1

        answer = json.loads(await c.fetchval("select fn_iu_route_dead_letter_replay($1)::text", letter))
        assert (answer["status"], answer["decision"], answer["attempt_no"]) == ("replayed", "dry_run", 2)
        assert await gone(c, "dead_letters") == 0
        await age(c)
        assert await gone(c, "attempts") == 2
        assert await gone(c, "dead_letters") == 1


async def test_a_dead_letter_that_is_the_only_proof_stays_with_its_event(live):
    """While its event exists, a dead letter is kept as proof of the decision if its attempt
    could not be written (attempt 0).

    Fails when: a resolved dead letter is removed by its age alone.
    """
    async with connected(live.dsn) as c:
        _, letter = await dead_letter(c)
        await c.execute(
            "update iu_route_dead_letter set attempt_no = 0, resolved_at = 'epoch', resolution = 'by hand' where id = $1",
            letter,
        )
        assert await gone(c, "dead_letters") == 0
        assert (await verdicts(c))["dead_letters", "event_still_there", None] == 1
        assert await gone(c) == 1
        assert await gone(c, "dead_letters") == 1


@pytest.mark.parametrize("audit_too", [False, True])
async def test_a_cursor_that_is_set_back_afterwards_decides_nothing_again(live, audit_too):
    """After retention, a cursor that is set back decides no event again, whether or not the
    attempts were removed as well.

    Fails when: attempts are removed before their events.
    """
    async with connected(live.dsn) as c:
        for _ in range(3):
            await old_event(c)
        await insert_event(c)
        await drain(c)
        assert await gone(c) == 3
        if audit_too:
            await age(c)
            assert await gone(c, "attempts") == 3
        before = await c.fetchval("select count(*) from iu_route_attempt")
        await c.execute(
            "update iu_route_worker_cursor set prev = '3:3:', tick = null, tick_floor = null, pos_seq = null, pos_id = null"
        )
        answer = await run_batch(c)
        assert (answer["seen"], answer["attempts_written"]) == (1, 0)
        assert await c.fetchval("select count(*) from iu_route_attempt") == before


async def test_another_reader_of_the_audit_has_one_place_to_object(live):
    """If fn_iu_retention_releasable returns false for an event, the event, its attempts and its dead letter are kept.

    Fails when: one of the three policies does not call it.
    """
    async with connected(live.dsn) as c:
        event, letter = await dead_letter(c)
        await old_event(c)
        await drain(c)
        await c.execute("select fn_iu_route_dead_letter_replay($1)", letter)
        await age(c)
        await c.execute(
            f"""create or replace function fn_iu_retention_releasable(p_event_ref uuid) returns boolean
                language sql stable return p_event_ref <> '{event}'"""
        )
        assert [await gone(c, what) for what in ("events", "attempts", "dead_letters")] == [1, 1, 0]
        assert await left(c) == {event}
        await c.execute("delete from event_outbox")
        assert [await gone(c, what) for what in ("attempts", "dead_letters")] == [0, 0]
        plan = await verdicts(c)
        assert plan == {("attempts", "not_released", None): 2, ("dead_letters", "not_released", None): 1}


async def test_what_the_audit_misses_stays(live):
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
        assert await gone(c) == 1
        assert await left(c) == {broken}
        assert await verdicts(c) == {("events", "not_released", None): 1}
        await c.execute("update iu_completeness_missing set accepted_at = now() where event_ref = $1", broken)
        assert await gone(c) == 1
        assert whole not in await left(c)


# -- the plan, and the migration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
async def test_the_plan_says_what_a_run_does(live, seed):
    """For any outbox, a run removes exactly the rows of the plan, and the plan is empty afterwards."""
    dice = random.Random(seed)
    created = [
        "now()",
        "now() - interval '100 days'",
        "'epoch'",
        "'infinity'",
        "now() + interval '1 day'",
        "now() - interval '89 days'",
    ]
    async with connected(live.dsn) as c, connected(live.dsn) as writer:
        await second_worker(c)
        await second_worker(c, "third", "system")
        late = writer.transaction()
        await late.start()
        for n in range(60):
            session_ = writer if dice.random() < 0.1 else c
            # Mostly old events in the first half, any kind in the second.
            when = created[1] if n < 30 and dice.random() < 0.8 else dice.choice(created)
            await old_event(session_, when, dice.choice(["iu", "iu", "system"]))
            if dice.random() < 0.2:
                await run_batch(c, limit=dice.randint(1, 20), worker=dice.choice([WORKER, "second", "third"]))
        if dice.random() < 0.5:
            await drain(c)
            await drain(c, worker="second")
        await late.commit()
        await c.execute("update iu_route_attempt set created_at = now() - random() * interval '200 days'")
        for what in ("events", "attempts"):
            planned = sum(n for (w, verdict, _), n in (await verdicts(c)).items() if (w, verdict) == (what, "goes"))
            assert await gone(c, what, limit=dice.randint(1, 30)) == planned
            assert not [key for key in await verdicts(c) if key[:2] == (what, "goes")]


async def test_the_file_is_verified_and_goes_back(applied):
    """The checks W22 and W23 pass; the rollback refuses while a policy is enabled, and
    removes all its objects otherwise."""
    async with session(applied.dsn, name="test") as c:
        await c.execute("set search_path = public")
        checks = {check.id: check.passed for check in await verify(c)}
        assert checks["W22"] is checks["W23"] is True
        await c.execute("update iu_retention_policy set enabled = true where what = 'attempts'")
        names = ("worker/016_retention_policy", "functions/retention")
        files = [m for m in (await migrate.package_state(c)).begun if m.name in names]
        assert len(files) == len(names)
        with pytest.raises(Exception, match="a retention policy is enabled"):
            await migrate.roll_back_files(c, files, lambda _: None)
        await c.execute("update iu_retention_policy set enabled = false")
        await migrate.roll_back_files(c, files, lambda _: None)
        assert not [o.name for o in (await migrate.package_state(c)).present if o.file in names]
