"""The completeness check: it finds each event before the cursor that lacks an attempt,
and no other, and can repair it."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from postgres.routes import OPEN, ROUTE, emit, open_live_route, poison, register, route
from support import WORKER, attempted, connect, connected, consuming, drain, insert_event, open_gate, run_batch

pytestmark = pytest.mark.asyncio


async def page(
    connection: asyncpg.Connection, limit: int = 1000, number: int | None = None, worker: str = WORKER
) -> dict[str, Any]:
    """Check one page."""
    return json.loads(
        await connection.fetchval("select fn_iu_completeness_page($1, $2, $3)::text", worker, limit, number)
    )


async def go_on(
    connection: asyncpg.Connection, number: int | None, limit: int = 1000, worker: str = WORKER
) -> list[dict[str, Any]]:
    """Continue a pass to its end, which must come within 1000 pages; return the answer of each page."""
    answers: list[dict[str, Any]] = []
    for _ in range(1000):
        answers.append(await page(connection, limit, number, worker))
        if answers[-1]["status"] not in ("walking", "confirming"):
            assert answers[-1]["status"] == "passed", answers[-1]
            return answers
        number = answers[-1]["pass"]
    raise AssertionError(f"after 1000 steps there is no end: {answers[-1]}")


async def walk(connection: asyncpg.Connection, limit: int = 1000, worker: str = WORKER) -> list[dict[str, Any]]:
    """Run a whole pass from the beginning."""
    return await go_on(connection, 0, limit, worker)


async def missing(connection: asyncpg.Connection, worker: str = WORKER) -> dict[UUID, tuple[int, int]]:
    """Events that are listed as missing: the number of attempts found, and the number wanted."""
    rows = await connection.fetch(
        "select event_ref, found, wanted from v_iu_completeness_missing where worker_name = $1 and accepted_at is null",
        worker,
    )
    return {row["event_ref"]: (row["found"], row["wanted"]) for row in rows}


async def repair(connection: asyncpg.Connection, limit: int = 1000) -> dict[str, Any]:
    return json.loads(await connection.fetchval("select fn_iu_completeness_repair($1, $2)::text", WORKER, limit))


async def confirm(connection: asyncpg.Connection) -> int:
    return json.loads(await connection.fetchval("select fn_iu_completeness_confirm($1)::text", WORKER))["missing"]


async def write(connection: asyncpg.Connection, events: int) -> list[UUID]:
    """Append events in one transaction with one statement."""
    rows = await connection.fetch(
        """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
           select 'iu', 'version_applied', 'update', 'immediate' from generate_series(1, $1::int) returning id""",
        events,
    )
    return [row["id"] for row in rows]


async def lose(connection: asyncpg.Connection, *events: UUID, code: str | None = None) -> None:
    """Delete attempts of these events by hand."""
    await connection.execute(
        "delete from iu_route_attempt where event_ref = any ($1) and ($2::text is null or route_code = $2)",
        list(events), code,
    )  # fmt: skip


async def ballast(connection: asyncpg.Connection, attempts: int) -> None:
    """Add attempts of events that no longer exist, so that later attempts lie far from the beginning of the table."""
    await connection.execute(
        """insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key)
           select e.id, 'outbound', 'ballast', 'dry_run', 'outbound:ballast:' || e.id
             from (select gen_random_uuid() as id from generate_series(1, $1::int)) e""",
        attempts,
    )


# -- events that lack an attempt -----------------------------------------------------------------------------------


async def test_each_deleted_attempt_is_found_and_decided_again(live):
    """The check lists exactly the 25 of 2 000 events that lost their attempt, and a
    repair gives each one attempt again.

    Fails when: the check compares nothing, or the repair does not give the event a new position.
    """
    async with connected(live.dsn) as worker:
        events = await write(worker, 2000)
        await drain(worker)
        assert (await walk(worker, 300))[-1] | {"seconds": 0, "pass": 0} == {
            "status": "passed", "worker_name": WORKER, "pass": 0, "checked": 2000, "missing": 0, "share": 1, "seconds": 0,
        }  # fmt: skip
        lost = random.Random(3).sample(events, 25)
        await lose(worker, *lost)

        assert (await walk(worker, 300))[-1]["missing"] == 25
        assert await missing(worker) == dict.fromkeys(lost, (0, 1))
        view = await worker.fetchrow("select * from v_iu_completeness")
        assert (view["checked"], view["missing"], view["accepted"], view["started_at"]) == (2000, 25, 0, None)

        steps = [await repair(worker, 10) for _ in range(3)]
        assert [(s["restamped"], s["more"]) for s in steps] == [(10, True), (10, True), (5, False)]
        assert await drain(worker) == 25
        assert await confirm(worker) == 0
        assert await missing(worker) == {}
        assert sorted(await attempted(worker)) == sorted(events)
        assert (await walk(worker))[-1]["missing"] == 0


async def test_a_repair_is_idempotent(live):
    """An event that was repaired is not repaired again before it was checked, and a
    needless repair decides nothing twice.

    Fails when: a repair takes events that it has already moved, or idempotency keys do not suppress a second decision.
    """
    async with connected(live.dsn) as worker:
        first, second = await write(worker, 2)
        await drain(worker)
        await lose(worker, first)
        await walk(worker)
        assert await repair(worker) == {"restamped": 1, "accepted": 0, "more": False}
        assert await repair(worker) == {"restamped": 0, "accepted": 0, "more": False}
        assert await drain(worker) == 1
        # The attempt exists by now, and the list of missing events is not updated yet.
        assert await repair(worker) == {"restamped": 0, "accepted": 0, "more": False}
        assert await confirm(worker) == 0
        await worker.execute("update event_outbox set xact_id = pg_current_xact_id()")
        assert await drain(worker) == 2
        assert sorted(await attempted(worker)) == sorted([first, second])


async def test_one_of_two_attempts_is_missed(live):
    """An event that went to two routes and has one attempt left is found, with 1 of 2.

    Fails when: the batch does not record how many attempts a decision consists of, or the
    check does not compare that number.
    """
    async with connected(live.dsn) as worker:
        await route(worker, "second", "version_applied")
        events = await write(worker, 5)
        await drain(worker)
        assert (await walk(worker))[-1]["missing"] == 0
        await lose(worker, events[1], code="second")
        await lose(worker, events[3], code=ROUTE)
        await walk(worker)
        assert await missing(worker) == {events[1]: (1, 2), events[3]: (1, 2)}
        await repair(worker)
        await drain(worker)
        assert await confirm(worker) == 0
        assert await worker.fetchval("select count(*) from iu_route_attempt") == 10


async def test_every_kind_of_attempt_says_how_many_there_are(live):
    """Dry runs, skipped, failed and delivered attempts carry the number of routes that the event went to.

    Fails when: one of the ways to write an attempt leaves route_count out.
    """
    async with connected(live.dsn) as worker:
        await poison(worker)
        await route(worker, "second", "version_applied")
        await route(worker, "dry", "sent")
        await register(worker, "noted")
        await open_live_route(worker)
        await worker.execute(OPEN.format(f"{ROUTE},live"))
        await worker.execute(
            "insert into iu_outbound_route select 'live', event_domain, 'sent', event_stream, target_kind, target_ref, true, false"
            "  from iu_outbound_route where route_code = $1", ROUTE,
        )  # fmt: skip
        await worker.execute(
            """create or replace function fn_iu_route_deliver(p_route_code text, p_event_id uuid, p_event jsonb) returns jsonb
               language plpgsql as $$ begin return case when p_route_code = 'live' then '{}' else 'no json' end; end $$"""
        )
        await insert_event(worker, note="poison P0001")
        await emit(worker, "sent")
        await emit(worker, "noted")
        await drain(worker)
        rows = await worker.fetch("select route_code, status, route_count from iu_route_attempt")
        assert sorted(tuple(row) for row in rows) == [
            ("(none)", "skipped", 1), ("dry", "dry_run", 2), (ROUTE, "failed", 2), ("live", "sent", 2), ("second", "failed", 2),
        ]  # fmt: skip
        assert (await walk(worker))[-1]["missing"] == 0


async def test_attempts_that_were_written_before_the_count(live):
    """If an attempt has no route_count, one attempt is enough and the event is not missing."""
    async with connected(live.dsn) as worker:
        await route(worker, "second", "version_applied")
        events = await write(worker, 3)
        await drain(worker)
        await worker.execute("update iu_route_attempt set route_count = null")
        await lose(worker, events[0], code="second")
        await lose(worker, events[1])
        await walk(worker)
        assert await missing(worker) == {events[1]: (0, 1)}


async def test_no_attempts_at_all(live):
    """If all attempts are deleted, every event is found missing, and all can be decided again."""
    async with connected(live.dsn) as worker:
        await write(worker, 500)
        await drain(worker)
        await worker.execute("truncate iu_route_attempt")
        assert (await walk(worker, 100))[-1]["missing"] == 500
        assert (await repair(worker))["restamped"] == 500
        await drain(worker)
        assert (await walk(worker))[-1]["missing"] == 0


async def test_dead_letters(live):
    """A dead letter counts as an attempt if its attempt could not be written, and not if the attempt was deleted.

    Fails when: the batch does not mark the dead letter without attempt (attempt_no 0), or
    the check does not look there.
    """
    async with connected(live.dsn) as worker:
        await poison(worker, "%")
        unaudited = await insert_event(worker, note="poison P0001")
        await drain(worker)
        assert await worker.fetchval("select attempt_no from iu_route_dead_letter") == 0
        assert [a["missing"] for a in await walk(worker)] == [0]

        await worker.execute("drop trigger test_poison on iu_route_attempt; drop function test_poison()")
        await poison(worker)
        audited = await insert_event(worker, note="poison P0001")
        await drain(worker)
        await lose(worker, audited)
        await walk(worker)
        assert await missing(worker) == {audited: (0, 1)}

        # A replay writes the first attempt; if that is deleted, the event is missing like any other.
        letter = await worker.fetchval("select id from iu_route_dead_letter where event_ref = $1", unaudited)
        await worker.execute("drop trigger test_poison on iu_route_attempt")
        await worker.execute("select fn_iu_route_dead_letter_replay($1)", letter)
        await lose(worker, unaudited)
        await walk(worker)
        assert await missing(worker) == dict.fromkeys([audited, unaudited], (0, 1))


# -- events that are complete --------------------------------------------------------------------------------------


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
async def test_a_route_that_changes_is_no_false_alarm(live, change):
    """Events that were decided by earlier routes are complete, regardless of the present routes.

    Fails when: the wanted attempts are derived from the present routes, or suspected
    events are not confirmed one by one.
    """
    async with connected(live.dsn) as worker:
        # Far from the place that the check reads first: every event has to be looked up by its keys.
        await ballast(worker, 2000)
        await write(worker, 20)
        await drain(worker)
        await worker.execute(change)
        assert (await walk(worker, 21))[-1]["missing"] == 0
        assert await missing(worker) == {}
        # The confirmation has recorded the code of the deleted route, so its events are not suspected again.
        assert [a["status"] for a in await walk(worker, 21)] == ["passed"]


async def test_a_route_that_is_gone_is_learnt_before_all_its_events_are_suspected(live):
    """When 10 000 events are suspected to lack an attempt, the pass confirms or clears them before it goes on.

    The other events of a deleted route are not suspected after that.

    Fails when: suspected events are confirmed only at the end, or the confirmation does not record deleted routes.
    """
    async with connected(live.dsn) as worker:
        await ballast(worker, 50_000)
        await write(worker, 16_000)
        await drain(worker, 5000)
        await worker.execute("delete from iu_outbound_route")
        answers = await walk(worker, 5000)
        assert [(a["status"], a["missing"]) for a in answers] == [
            ("walking", 5000), ("walking", 10_000), ("confirming", 0), ("walking", 0), ("passed", 0),
        ]  # fmt: skip


async def test_a_half_read_tick(live):
    """In a partly read tick the check covers the events that the cursor has passed, and no others.

    Fails when: the check takes all or none of the events of the tick as consumed.
    """
    async with connected(live.dsn) as worker:
        events = await write(worker, 10)
        assert (await run_batch(worker, 4))["more"]
        await walk(worker, 3)
        assert await worker.fetchval("select last_checked from iu_completeness_pass") == 4
        assert await missing(worker) == {}
        await lose(worker, *events)
        await walk(worker, 3)
        assert set(await missing(worker)) == set(events[:4])


async def test_own_events(live):
    """Events of the very transaction that decided them are checked; events that it wrote afterwards are not.

    Fails when: the check ignores the cursor's record of own events.
    """
    async with connected(live.dsn) as worker, worker.transaction():
        events = await write(worker, 3)
        await drain(worker)
        await write(worker, 2)
        assert (await walk(worker))[-1]["checked"] == 3
        await lose(worker, events[2])
        await walk(worker)
        assert set(await missing(worker)) == {events[2]}


async def test_an_event_that_was_not_read_is_not_missing(live):
    """No event is missing for a new cursor, which has read none, or in an empty outbox."""
    async with connected(live.dsn) as worker:
        assert (await walk(worker))[-1]["checked"] == 0
        await write(worker, 5)
        assert [(a["checked"], a["missing"]) for a in await walk(worker, 2)][-1] == (0, 0)


async def test_a_late_commit_behind_the_position_is_seen_by_the_next_pass(live):
    """If an event with a low number commits after a pass has gone past it, the next pass
    checks it, and not the current one."""
    async with connected(live.dsn) as worker, connected(live.dsn) as late:
        transaction = late.transaction()
        await transaction.start()
        event = await insert_event(late)
        await write(worker, 6)
        await drain(worker)
        first = await page(worker, 4, 0)
        await transaction.commit()
        await drain(worker)
        await lose(worker, event)
        assert (await page(worker, 4, first["pass"]))["missing"] == 0
        assert await missing(worker) == {}
        assert (await walk(worker, 4))[-1]["missing"] == 1
        assert set(await missing(worker)) == {event}


async def test_an_event_that_is_pruned_is_missed_no_more(live):
    """A missing event that is deleted leaves the list, and a pass goes on if events are deleted
    before and after its position.

    Fails when: the confirmation keeps events that no longer exist.
    """
    async with connected(live.dsn) as worker:
        events = await write(worker, 20)
        await drain(worker)
        await lose(worker, *events[:3])
        await walk(worker)
        first = await page(worker, 5, 0)
        await worker.execute("delete from event_outbox where id = any ($1)", [*events[:2], *events[4:12]])
        assert (await go_on(worker, first["pass"], 5))[-1]["missing"] == 1
        assert set(await missing(worker)) == {events[2]}
        assert await worker.fetchval("select missing from v_iu_completeness where worker_name = $1", WORKER) == 1


async def test_a_foreign_history_is_not_judged(live):
    """While the cursor does not match the history of the database, the check gives the reason and does not begin.

    Fails when: the check does not test for a foreign history.
    """
    async with connected(live.dsn) as worker:
        await write(worker, 2)
        await drain(worker)
        await worker.execute("update iu_route_worker_cursor set lineage = gen_random_uuid()")
        assert await page(worker) == {"status": "refused", "reason": "foreign_cursor", "worker_name": WORKER}
        assert await worker.fetchval("select count(*) from iu_completeness_pass") == 0


async def test_nothing_in_flight_is_a_false_alarm(live):
    """While producers write and a consumer routes, no pass finds a missing event, not even for a moment.

    Fails when: the check ignores the cursor, or reads it in another snapshot than the attempts.
    """
    stop = asyncio.Event()

    async def keep_writing(seed: int) -> None:
        dice = random.Random(seed)
        async with connected(live.dsn) as writer:
            while not stop.is_set():
                async with writer.transaction():
                    await write(writer, dice.randint(1, 9))
                    if dice.random() < 0.3:
                        await asyncio.sleep(dice.random() / 20)

    async with consuming(live.dsn, batch_limit=7), asyncio.TaskGroup() as tasks, connected(live.dsn) as auditor:
        for seed in range(3):
            tasks.create_task(keep_writing(seed))
        checked = 0
        # Each pass also checks the events that were written and decided during the passes before it.
        while checked < 2000:
            answers = await walk(auditor, 50)
            assert [a for a in answers if a["missing"]] == []
            checked = answers[-1]["checked"]
        stop.set()


# -- passes --------------------------------------------------------------------------------------------------------


async def test_a_pass_goes_on_where_a_killed_one_stopped(live):
    """A session that ends in the middle of a page loses only that page; another session continues the pass.

    Each event is checked once.

    Fails when: the position is not stored with the page, or the other session begins anew.
    """
    async with connected(live.dsn) as worker:
        events = await write(worker, 100)
        await drain(worker)
        await lose(worker, events[5], events[95])
        first = await connect(live.dsn)
        assert [(await page(first, 30))["checked"] for _ in range(2)] == [30, 60]
        await first.execute("begin")
        assert (await page(first, 30))["checked"] == 90
        await worker.execute("select pg_terminate_backend($1, 5000)", first.get_server_pid())
        first.terminate()
        answers = await go_on(worker, None, 30)
        assert [a["checked"] for a in answers] == [90, 100, 100]
        assert set(await missing(worker)) == {events[5], events[95]}


async def test_two_auditors_share_a_pass(live):
    """Two sessions that check one worker take turns in one pass, and both receive its result.

    Fails when: each begins a pass of its own, or the end of a pass begins another one.
    """
    async with connected(live.dsn) as one, connected(live.dsn) as two:
        events = await write(one, 100)
        await drain(one)
        await lose(one, events[50])
        first = await page(one, 20, 0)
        ends = await asyncio.gather(*(go_on(who, first["pass"], 20) for who in (one, two)))
        assert [(e[-1]["status"], e[-1]["checked"], e[-1]["missing"]) for e in ends] == [("passed", 100, 1)] * 2
        assert await one.fetchval("select pass from iu_completeness_pass") == 1


async def test_a_new_pass_supersedes_a_running_one(live):
    """A new pass replaces a running one: a session of the old pass is told so and checks no page of the new one."""
    async with connected(live.dsn) as worker:
        await write(worker, 50)
        await drain(worker)
        old = await page(worker, 20, 0)
        new = await page(worker, 20, 0)
        assert (new["pass"], new["checked"]) == (old["pass"] + 1, 20)
        assert (await page(worker, 20, old["pass"]))["status"] == "superseded"
        assert (await page(worker, 20, new["pass"]))["checked"] == 40


async def test_every_worker_has_its_own_audit(live):
    """Workers of different domains are checked separately; two workers of one domain are
    both responsible for its events."""
    async with connected(live.dsn) as worker:
        await worker.execute(
            """insert into event_type_registry values ('system', 'noted', 'update', 'immediate');
               insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
               select w.name, w.domain, a.lineage
                 from iu_outbox_anchor a, (values ('system', 'system'), ('twin', 'iu')) w(name, domain)"""
        )
        mine = await write(worker, 4)
        noted = await worker.fetchval(
            "insert into event_outbox (event_domain, event_type, event_stream, delivery_lane) "
            "values ('system', 'noted', 'update', 'immediate') returning id"
        )
        for name in (WORKER, "system", "twin"):
            await drain(worker, worker=name)
        await lose(worker, noted, mine[0])
        for name in (WORKER, "system", "twin"):
            await walk(worker, worker=name)
        found = {name: set(await missing(worker, name)) for name in (WORKER, "system", "twin")}
        assert found == {WORKER: {mine[0]}, "system": {noted}, "twin": {mine[0]}}
        with pytest.raises(asyncpg.NoDataFoundError):
            await page(worker, worker="nobody")


async def test_a_page_reads_a_few_blocks_near_those_of_the_page_before_it(live):
    """The first page looks its events up by their keys; the next pages read on from the place where those were found.

    Fails when: a page reads all attempts, or looks up every event by its key, or the place is not recorded.
    """
    async with connected(live.dsn) as worker:
        await ballast(worker, 5000)
        await write(worker, 1000)
        await drain(worker)

        async def reads() -> asyncpg.Record:
            await worker.execute("select pg_stat_force_next_flush()")
            return await worker.fetchrow(
                "select seq_tup_read as blocks, coalesce(idx_tup_fetch, 0) as keys from pg_stat_user_tables where relname = 'iu_route_attempt'"
            )

        counts = [await reads()]
        await page(worker, 100, 0)
        counts.append(await reads())
        for _ in range(5):
            await page(worker, 100, 1)
        counts.append(await reads())
        first, then = (
            {name: after[name] - before[name] for name in ("blocks", "keys")}
            for before, after in itertools.pairwise(counts)
        )
        assert first["keys"] == 100
        assert first["blocks"] < 2000
        assert then["keys"] <= 50
        assert then["blocks"] < 5 * 1000


async def test_pages_of_different_sizes_share_what_they_learn(live):
    """A large page after a small one also reads its attempts in sequence; the consumer and a command can share a pass.

    Fails when: the distance to read is that of the page before, although the sizes differ.
    """
    async with connected(live.dsn) as worker:
        await write(worker, 3000)
        await drain(worker)
        await page(worker, 30, 0)
        await page(worker, 30, 1)
        keys = "select coalesce(idx_tup_fetch, 0) from pg_stat_user_tables where relname = 'iu_route_attempt'"
        await worker.execute("select pg_stat_force_next_flush()")
        before = await worker.fetchval(keys)
        assert (await page(worker, 2500, 1))["checked"] == 2560
        await worker.execute("select pg_stat_force_next_flush()")
        assert await worker.fetchval(keys) - before < 500


# -- repair and acceptance -----------------------------------------------------------------------------------------


async def test_a_closed_gate_stops_the_decision_and_not_the_audit(live):
    """With the worker gate closed the check finds, and a repair moves, the event, which waits in the backlog."""
    async with connected(live.dsn) as worker:
        events = await write(worker, 3)
        await drain(worker)
        await open_gate(live.dsn, "false")
        await lose(worker, events[1])
        assert (await walk(worker))[-1]["missing"] == 1
        assert (await repair(worker))["restamped"] == 1
        assert (await run_batch(worker))["status"] == "worker_gate_closed"
        await confirm(worker)
        rows = await worker.fetch("select event_ref, waiting from v_iu_completeness_missing")
        assert [tuple(row) for row in rows] == [(events[1], True)]
        assert await worker.fetchval("select backlog from v_iu_event_backlog where worker_name = $1", WORKER) == 1
        await open_gate(live.dsn)
        await drain(worker)
        assert await confirm(worker) == 0


async def test_repaired_events_keep_their_order(live):
    """Repaired events are decided in the order in which they were written, and not in the order of the loss.

    Fails when: the repair does not sort by the old positions.
    """
    async with connected(live.dsn) as worker:
        events = [await insert_event(worker) for _ in range(40)]
        await drain(worker)
        lost = events[5:35]
        await lose(worker, *random.Random(1).sample(lost, len(lost)))
        await walk(worker)
        while (await repair(worker, 7))["more"]:
            pass
        await drain(worker, 11)
        assert (await attempted(worker))[-30:] == lost


async def test_what_no_decision_could_complete_is_accepted(live):
    """An event that lacks an attempt of a route that is now disabled is not moved: the repair accepts it as it is.

    Fails when: the repair moves an event that a new decision would not complete, or leaves it
    in the list of missing events.
    """
    async with connected(live.dsn) as worker:
        await route(worker, "second", "version_applied")
        events = await write(worker, 3)
        await drain(worker)
        await worker.execute("update iu_outbound_route set enabled = false where route_code = 'second'")
        await lose(worker, events[0], code="second")
        await lose(worker, events[2])
        await walk(worker)
        rows = await worker.fetch("select event_ref, repairable from v_iu_completeness_missing order by event_seq")
        assert [tuple(row) for row in rows] == [(events[0], False), (events[2], True)]
        assert await repair(worker) == {"restamped": 1, "accepted": 1, "more": False}
        await drain(worker)
        assert (await walk(worker))[-1]["missing"] == 0
        assert tuple(await worker.fetchrow("select missing, accepted from v_iu_completeness")) == (0, 1)
        # Each pass checks it, and it needs no further confirmation.
        assert [a["status"] for a in await walk(worker)] == ["passed"]


async def test_what_was_skipped_on_purpose_is_missing_until_it_is_accepted(live):
    """Events that a cursor skipped when it was reset to the present are missing until they are accepted."""
    async with connected(live.dsn) as worker:
        events = await write(worker, 3)
        await worker.execute("update iu_route_worker_cursor set prev = fn_iu_outbox_tick()")
        assert (await walk(worker))[-1]["missing"] == 3
        assert set(await missing(worker)) == set(events)
        await worker.execute("update iu_completeness_missing set accepted_at = now()")
        assert (await walk(worker))[-1]["missing"] == 0


async def test_health_tells_what_is_missing(live):
    """Health gives a warning with the number of missing events; without missing events there is no warning."""
    async with connected(live.dsn) as worker:
        for _ in range(5):
            await insert_event(worker)
        await drain(worker)
        await walk(worker)
        told = json.loads(await worker.fetchval("select fn_iu_route_worker_health($1)::text", WORKER))
        assert (told["completeness_missing"], told["warnings"]) == (0, [])
        await worker.execute("delete from iu_route_attempt where id in (select id from iu_route_attempt limit 2)")
        await walk(worker)
        told = json.loads(await worker.fetchval("select fn_iu_route_worker_health($1)::text", WORKER))
        assert [(w["code"], w["figure"]) for w in told["warnings"]] == [("completeness_missing", 2)]
