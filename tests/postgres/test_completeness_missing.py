"""The completeness check finds each event before the cursor that lacks an attempt."""

from __future__ import annotations

import random

import pytest

from postgres.completeness_helpers import append_events, confirm, delete_attempts, missing_events, repair, run_pass
from postgres.routes import (
    OPEN_DELIVERY,
    ROUTE,
    add_dry_run_route,
    add_poison_trigger,
    append_event,
    open_live_route,
    register_event_type,
)
from support import WORKER, attempted, connected, drain, insert_event

pytestmark = pytest.mark.asyncio


async def test_each_deleted_attempt_is_found_and_repaired(live):
    """The check lists exactly the 25 of 2 000 events that lost their attempt, and a
    repair gives each one attempt again.

    Fails when: the check compares nothing, or the repair does not give the event a new position.
    """
    async with connected(live.dsn) as worker:
        events = await append_events(worker, 2000)
        await drain(worker)
        assert (await run_pass(worker, 300))[-1] | {"seconds": 0, "pass": 0} == {
            "status": "passed", "worker_name": WORKER, "pass": 0, "checked": 2000, "missing": 0, "share": 1, "seconds": 0,
        }  # fmt: skip
        lost = random.Random(3).sample(events, 25)
        await delete_attempts(worker, *lost)

        assert (await run_pass(worker, 300))[-1]["missing"] == 25
        assert await missing_events(worker) == dict.fromkeys(lost, (0, 1))
        view = await worker.fetchrow("select * from v_iu_completeness")
        assert (view["checked"], view["missing"], view["accepted"], view["started_at"]) == (2000, 25, 0, None)

        steps = [await repair(worker, 10) for _ in range(3)]
        assert [(s["restamped"], s["more"]) for s in steps] == [(10, True), (10, True), (5, False)]
        assert await drain(worker) == 25
        assert await confirm(worker) == 0
        assert await missing_events(worker) == {}
        assert sorted(await attempted(worker)) == sorted(events)
        assert (await run_pass(worker))[-1]["missing"] == 0


async def test_a_repair_is_idempotent(live):
    """An event that was repaired is not repaired again before it was checked, and a
    needless repair decides nothing twice.

    Fails when: a repair takes events that it has already moved, or idempotency keys do not suppress a second decision.
    """
    async with connected(live.dsn) as worker:
        first, second = await append_events(worker, 2)
        await drain(worker)
        await delete_attempts(worker, first)
        await run_pass(worker)
        assert await repair(worker) == {"restamped": 1, "accepted": 0, "more": False}
        assert await repair(worker) == {"restamped": 0, "accepted": 0, "more": False}
        assert await drain(worker) == 1
        # The attempt exists by now, and the list of missing events is not updated yet.
        assert await repair(worker) == {"restamped": 0, "accepted": 0, "more": False}
        assert await confirm(worker) == 0
        await worker.execute("update event_outbox set xact_id = pg_current_xact_id()")
        assert await drain(worker) == 2
        assert sorted(await attempted(worker)) == sorted([first, second])


async def test_one_missing_attempt_of_two_is_found(live):
    """An event that went to two routes and has one attempt left is found, with 1 of 2.

    Fails when: the batch does not record how many attempts a decision consists of, or the
    check does not compare that number.
    """
    async with connected(live.dsn) as worker:
        await add_dry_run_route(worker, "second", "version_applied")
        events = await append_events(worker, 5)
        await drain(worker)
        assert (await run_pass(worker))[-1]["missing"] == 0
        await delete_attempts(worker, events[1], code="second")
        await delete_attempts(worker, events[3], code=ROUTE)
        await run_pass(worker)
        assert await missing_events(worker) == {events[1]: (1, 2), events[3]: (1, 2)}
        await repair(worker)
        await drain(worker)
        assert await confirm(worker) == 0
        assert await worker.fetchval("select count(*) from iu_route_attempt") == 10


async def test_every_kind_of_attempt_records_the_number_of_routes(live):
    """Dry runs, skipped, failed and delivered attempts carry the number of routes that the event went to.

    Fails when: one of the ways to write an attempt leaves route_count out.
    """
    async with connected(live.dsn) as worker:
        await add_poison_trigger(worker)
        await add_dry_run_route(worker, "second", "version_applied")
        await add_dry_run_route(worker, "dry", "sent")
        await register_event_type(worker, "noted")
        await open_live_route(worker)
        await worker.execute(OPEN_DELIVERY.format(f"{ROUTE},live"))
        await worker.execute(
            "insert into iu_outbound_route select 'live', event_domain, 'sent', event_stream, target_kind, target_ref, true, false"
            "  from iu_outbound_route where route_code = $1", ROUTE,
        )  # fmt: skip
        await worker.execute(
            """create or replace function fn_iu_route_deliver(p_route_code text, p_event_id uuid, p_event jsonb) returns jsonb
               language plpgsql as $$ begin return case when p_route_code = 'live' then '{}' else 'no json' end; end $$"""
        )
        await insert_event(worker, note="poison P0001")
        await append_event(worker, "sent")
        await append_event(worker, "noted")
        await drain(worker)
        rows = await worker.fetch("select route_code, status, route_count from iu_route_attempt")
        assert sorted(tuple(row) for row in rows) == [
            ("(none)", "skipped", 1), ("dry", "dry_run", 2), (ROUTE, "failed", 2), ("live", "sent", 2), ("second", "failed", 2),
        ]  # fmt: skip
        assert (await run_pass(worker))[-1]["missing"] == 0


async def test_an_attempt_without_a_route_count_is_sufficient(live):
    """If an attempt has no route_count, one attempt is enough and the event is not missing."""
    async with connected(live.dsn) as worker:
        await add_dry_run_route(worker, "second", "version_applied")
        events = await append_events(worker, 3)
        await drain(worker)
        await worker.execute("update iu_route_attempt set route_count = null")
        await delete_attempts(worker, events[0], code="second")
        await delete_attempts(worker, events[1])
        await run_pass(worker)
        assert await missing_events(worker) == {events[1]: (0, 1)}


async def test_all_events_are_found_missing_when_all_attempts_are_deleted(live):
    """If all attempts are deleted, every event is found missing, and all can be decided again."""
    async with connected(live.dsn) as worker:
        await append_events(worker, 500)
        await drain(worker)
        await worker.execute("truncate iu_route_attempt")
        assert (await run_pass(worker, 100))[-1]["missing"] == 500
        assert (await repair(worker))["restamped"] == 500
        await drain(worker)
        assert (await run_pass(worker))[-1]["missing"] == 0


async def test_a_dead_letter_counts_only_if_its_attempt_could_not_be_written(live):
    """A dead letter counts as an attempt if its attempt could not be written, and not if the attempt was deleted.

    Fails when: the batch does not mark the dead letter without attempt (attempt_no 0), or
    the check does not look there.
    """
    async with connected(live.dsn) as worker:
        await add_poison_trigger(worker, "%")
        unaudited = await insert_event(worker, note="poison P0001")
        await drain(worker)
        assert await worker.fetchval("select attempt_no from iu_route_dead_letter") == 0
        assert [a["missing"] for a in await run_pass(worker)] == [0]
        # The confirmation counts it as well.
        await worker.execute(
            "insert into iu_completeness_missing (worker_name, event_ref) values ($1, $2)", WORKER, unaudited
        )
        assert await confirm(worker) == 0

        await worker.execute("drop trigger test_poison on iu_route_attempt; drop function test_poison()")
        await add_poison_trigger(worker)
        audited = await insert_event(worker, note="poison P0001")
        await drain(worker)
        await delete_attempts(worker, audited)
        await run_pass(worker)
        assert await missing_events(worker) == {audited: (0, 1)}

        # A replay writes the first attempt; if that is deleted, the event is missing like any other.
        letter = await worker.fetchval("select id from iu_route_dead_letter where event_ref = $1", unaudited)
        await worker.execute("drop trigger test_poison on iu_route_attempt")
        await worker.execute("select fn_iu_route_dead_letter_replay($1)", letter)
        await delete_attempts(worker, unaudited)
        await run_pass(worker)
        assert await missing_events(worker) == dict.fromkeys([audited, unaudited], (0, 1))
