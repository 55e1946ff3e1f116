"""Routing a page in one statement: decisions, keys, events that cannot be routed, other failures, gates."""

from __future__ import annotations

import json

import asyncpg
import pytest

from postgres.routes import (
    OPEN_DELIVERY,
    ROUTE,
    add_dry_run_route,
    add_poison_trigger,
    append_event,
    open_live_route,
    register_event_type,
)
from support import WORKER, attempted, connected, drain, insert_event, run_batch

pytestmark = pytest.mark.asyncio


async def attempts(connection: asyncpg.Connection) -> list[tuple]:
    """All attempts, in the order of the audit."""
    rows = await connection.fetch(
        "select event_ref, route_code, status, decision, delivered, failure_code, attempt_no from iu_route_attempt order by id"
    )
    return [tuple(row) for row in rows]


async def dead_letters(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    """All dead letters, in the order of their events."""
    return await connection.fetch(
        "select d.* from iu_route_dead_letter d join event_outbox o on o.id = d.event_ref order by o.event_seq"
    )


async def untouched(connection: asyncpg.Connection) -> bool:
    """Whether no event has been consumed or decided."""
    return await connection.fetchval(
        """select total_seen = 0 and prev::text = '3:3:' and tick is null
                  and not exists (select from iu_route_attempt) and not exists (select from iu_route_dead_letter)
             from iu_route_worker_cursor"""
    )


# Decisions ----------------------------------------------------------------------------------------------


async def test_an_enabled_route_is_a_dry_run(live):
    """An event with an enabled route is recorded as a dry run, and is not delivered."""
    async with connected(live.dsn) as worker:
        event = await insert_event(worker)
        answer = await run_batch(worker)
        assert {k: answer[k] for k in ("seen", "attempts_written", "skipped", "dead_lettered", "more")} == {
            "seen": 1, "attempts_written": 1, "skipped": 0, "dead_lettered": 0, "more": False,
        }  # fmt: skip
        assert answer["cursor_event_id"] == str(event)
        assert await attempts(worker) == [(event, ROUTE, "dry_run", "dry_run", False, None, 1)]
        key = await worker.fetchval("select idempotency_key from iu_route_attempt")
        assert key == f"outbound:{ROUTE}:{event}"


async def test_an_event_without_a_route_is_skipped(live):
    """An event that no route selects gets one skipped attempt with the decision no_route."""
    async with connected(live.dsn) as worker:
        await register_event_type(worker, "born")
        event = await append_event(worker, "born")
        assert (await run_batch(worker))["skipped"] == 1
        assert await attempts(worker) == [(event, "(none)", "skipped", "no_route", False, None, 1)]


async def test_an_event_with_disabled_routes_is_skipped(live):
    """An event with only disabled routes gets one skipped attempt with the decision route_disabled."""
    async with connected(live.dsn) as worker:
        await add_dry_run_route(worker, "a", "born", enabled=False)
        await add_dry_run_route(worker, "b", "born", enabled=False)
        event = await append_event(worker, "born")
        assert (await run_batch(worker))["skipped"] == 1
        assert await attempts(worker) == [(event, "(none)", "skipped", "route_disabled", False, None, 1)]


async def test_each_matching_route_gets_an_attempt(live):
    """An event that two enabled routes select gets one attempt for each; a disabled third route gets none."""
    async with connected(live.dsn) as worker:
        await add_dry_run_route(worker, "a", "born")
        await add_dry_run_route(worker, "b", "born")
        await add_dry_run_route(worker, "c", "born", enabled=False)
        events = [await append_event(worker, "born") for _ in range(2)]
        answer = await run_batch(worker)
        assert (answer["seen"], answer["attempts_written"], answer["skipped"]) == (2, 4, 0)
        found = await attempts(worker)
        assert sorted(a[:2] for a in found) == sorted((e, r) for e in events for r in ("a", "b"))
        assert [a[0] for a in found] == [events[0]] * 2 + [events[1]] * 2


async def test_a_second_reading_writes_no_second_decision(live):
    """A cursor that was set back reads its events again and writes no second decision.

    Fails when: the idempotency key of an attempt is not unique, or not a function of event and route.
    """
    async with connected(live.dsn) as worker:
        await register_event_type(worker, "born")
        for _ in range(3):
            await insert_event(worker)
            await append_event(worker, "born")
        assert (await run_batch(worker))["attempts_written"] == 6
        before = await attempts(worker)
        await worker.execute("update iu_route_worker_cursor set prev = '3:3:'")
        answer = await run_batch(worker)
        assert (answer["seen"], answer["attempts_written"], answer["skipped"]) == (6, 0, 0)
        assert await attempts(worker) == before


async def test_the_cursor_keeps_totals_and_the_latest_event(live):
    """The cursor counts the events seen, attempts, skipped and dead-lettered events, and
    names the latest routed event."""
    async with connected(live.dsn) as worker:
        await add_poison_trigger(worker)
        await register_event_type(worker, "born")
        for note in ("", "poison 23514", ""):
            await insert_event(worker, note=note)
        last = await append_event(worker, "born")
        await drain(worker, 2)
        row = await worker.fetchrow("select * from iu_route_worker_cursor")
        assert row["last_event_id"] == last
        assert row["last_created_at"] == await worker.fetchval(
            "select created_at from event_outbox where id = $1", last
        )
        assert [row[f"total_{c}"] for c in ("seen", "attempts", "skipped", "dead_lettered")] == [4, 4, 1, 1]
        assert json.loads(row["last_run_summary"])["status"] == "ran"


# Events that cannot be routed ---------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [[0], [999], [500], [0, 1, 499, 500, 501, 999]])
async def test_one_poison_event_among_a_thousand_becomes_one_dead_letter(live, bad):
    """An event for which no attempt can be written becomes one dead letter and one failed attempt;
    all others are routed in order.

    Fails when: a page that fails is given up as a whole, or stops the worker, instead of being halved.
    """
    async with connected(live.dsn) as worker:
        await add_poison_trigger(worker)
        events = [await insert_event(worker, note="poison P0001" if n in bad else "") for n in range(1000)]
        answer = await run_batch(worker)
        assert (answer["seen"], answer["attempts_written"], answer["dead_lettered"]) == (1000, 1000, len(bad))
        found = await attempts(worker)
        assert [a[0] for a in found if a[2] == "dry_run"] == [e for n, e in enumerate(events) if n not in bad]
        assert [a for a in found if a[2] != "dry_run"] == [
            (events[n], ROUTE, "failed", "dead_letter", False, "worker_process_error", 1) for n in bad
        ]
        letters = await dead_letters(worker)
        assert [d["event_ref"] for d in letters] == [events[n] for n in bad]
        assert {(d["failure_code"], d["failure_detail"], d["worker_name"], d["route_code"]) for d in letters} == {
            ("worker_process_error", "P0001: cannot swallow this", WORKER, ROUTE)
        }
        assert await drain(worker) == 0


@pytest.mark.parametrize("status", ["dry_run", "%"], ids=["decision", "and-its-failure"])
@pytest.mark.parametrize("sqlstate", ["22012", "23514", "44000", "54000", "P0001", "P0002"])
async def test_an_error_of_an_event_makes_it_a_dead_letter(live, sqlstate, status):
    """An error that an event can cause makes that event a dead letter, even if the failed attempt cannot be written.

    Fails when: a class of errors is missing where the page is halved, or where the failed attempt is written.
    """
    async with connected(live.dsn) as worker:
        await add_poison_trigger(worker, status)
        events = [await insert_event(worker, note=note) for note in ("", f"poison {sqlstate}", "")]
        assert (await run_batch(worker))["dead_lettered"] == 1
        good = [(e, ROUTE, "dry_run", "dry_run", False, None, 1) for e in (events[0], events[2])]
        failed = (events[1], ROUTE, "failed", "dead_letter", False, "worker_process_error", 1)
        assert await attempts(worker) == (good if status == "%" else [*good, failed])
        (letter,) = await dead_letters(worker)
        detail = f"{sqlstate}: cannot swallow this"
        assert letter["failure_detail"] == (f"{detail}; audit: cannot swallow this" if status == "%" else detail)


async def test_an_event_that_violates_a_check_becomes_a_dead_letter(live):
    """An event becomes a dead letter if its attempt violates a CHECK, and the other events of the page do not."""
    async with connected(live.dsn) as worker:
        events = [await insert_event(worker) for _ in range(5)]
        await worker.execute(
            f"alter table iu_route_attempt add constraint test_chk check (event_ref <> '{events[2]}' or status = 'failed')"
        )
        assert (await run_batch(worker))["dead_lettered"] == 1
        assert [a[0] for a in await attempts(worker) if a[2] == "dry_run"] == events[:2] + events[3:]
        (letter,) = await dead_letters(worker)
        assert (letter["event_ref"], letter["failure_detail"][:6]) == (events[2], "23514:")


async def test_a_poison_event_of_two_routes_becomes_two_dead_letters(live):
    """A poison event that two routes select is one dead letter for each of them."""
    async with connected(live.dsn) as worker:
        await add_dry_run_route(worker, "second", "version_applied")
        await add_poison_trigger(worker)
        await insert_event(worker, note="poison 22012")
        assert (await run_batch(worker))["dead_lettered"] == 2
        assert {d["route_code"] for d in await dead_letters(worker)} == {ROUTE, "second"}


async def test_a_dead_letter_contains_the_whole_event(live):
    """A dead letter contains every column of its event, so that a replay needs no other data."""
    async with connected(live.dsn) as worker:
        await add_poison_trigger(worker)
        event = await insert_event(worker, note="poison 22012")
        await run_batch(worker)
        (letter,) = await dead_letters(worker)
        whole = await worker.fetchval("select to_jsonb(o)::text from event_outbox o where id = $1", event)
        assert json.loads(letter["event_snapshot"]) == json.loads(whole)
        assert letter["idempotency_key"] == f"outbound:{ROUTE}:{event}"


@pytest.mark.parametrize("sqlstate", ["53100", "42501", "40001", "55P03", "57P01", "0A000", "XX000"])
async def test_an_environment_error_fails_the_batch(live, sqlstate):
    """A full disk, a missing privilege or a lost lock is not the fault of an event: the
    batch fails and consumes no event.

    Fails when: the SQLSTATE of an error is not checked before an event is given up.
    """
    async with connected(live.dsn) as worker:
        await add_poison_trigger(worker)
        events = [await insert_event(worker, note=note) for note in ("", f"poison {sqlstate}", "")]
        with pytest.raises(asyncpg.PostgresError) as error:
            await run_batch(worker)
        assert error.value.sqlstate == sqlstate
        assert await untouched(worker)
        await worker.execute("drop trigger test_poison on iu_route_attempt")
        assert await drain(worker) == 3
        assert await attempted(worker) == events


# -- targets that are not implemented --------------------------------------------------------------------


async def test_a_live_route_without_a_target_kind_makes_a_dead_letter(live):
    """A live route to a kind of target that is not implemented makes a dead letter and a failed
    attempt; nothing is delivered.

    Fails when: fn_iu_route_deliver returns instead of raising.
    """
    async with connected(live.dsn) as worker:
        await open_live_route(worker)
        await add_dry_run_route(worker, "dry", "version_applied")
        events = [await insert_event(worker) for _ in range(2)]
        answer = await run_batch(worker)
        assert (answer["seen"], answer["attempts_written"], answer["dead_lettered"]) == (2, 4, 2)
        assert await attempts(worker) == [(e, "dry", "dry_run", "dry_run", False, None, 1) for e in events] + [
            (e, ROUTE, "failed", "dead_letter", False, "worker_process_error", 1) for e in events
        ]
        assert [d["failure_detail"].split(":")[:2] for d in await dead_letters(worker)] == [
            ["0A000", f" the target kind of route {ROUTE} cannot be delivered to"]
        ] * 2


async def test_an_environment_error_during_a_delivery_fails_the_batch(live):
    """A delivery that fails for lack of disk space, memory or a lock is not the fault of the event: the batch fails.

    Fails when: every error of fn_iu_route_deliver counts as the fault of the event.
    """
    async with connected(live.dsn) as worker:
        await open_live_route(worker)
        await worker.execute(
            """create or replace function fn_iu_route_deliver(p_route_code text, p_event_id uuid, p_event jsonb)
               returns jsonb language plpgsql as $$ begin raise exception 'full' using errcode = '53100'; end $$"""
        )
        await insert_event(worker)
        with pytest.raises(asyncpg.DiskFullError):
            await run_batch(worker)
        assert await untouched(worker)


async def test_a_route_that_changes_during_a_batch_has_no_effect_on_it(live):
    """A batch decides all its events by the routes that it found at its start, even if a route changes meanwhile.

    So no route gets an event twice or misses one.

    Fails when: each statement of a batch reads the routes anew.
    """
    async with connected(live.dsn) as worker:
        await add_poison_trigger(worker)
        await worker.execute(
            OPEN_DELIVERY.format(ROUTE)
            + """create function test_open() returns trigger language plpgsql as
               $$ begin update public.iu_outbound_route set dry_run = false; return null; end $$;
               create trigger test_open after insert on iu_route_attempt execute function test_open()"""
        )
        events = [await insert_event(worker, note=note) for note in ("poison 23514", "", "", "")]
        assert (await run_batch(worker))["dead_lettered"] == 1
        assert [a[:3] for a in await attempts(worker)] == [
            *((event, ROUTE, "dry_run") for event in events[1:]),
            (events[0], ROUTE, "failed"),
        ]


# Gates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["false", "TRUE", "true ", " true", "t", "1", "", None])
@pytest.mark.parametrize("gate", ["routes_master_enabled", "route_worker_enabled"])
async def test_a_gate_is_open_only_with_the_exact_value_true(live, gate, value):
    """Only the exact word true opens a gate; behind a closed gate no event is read or decided, and no lock is taken.

    Fails when: a gate is not read, or its value is read as a boolean.
    """
    async with connected(live.dsn) as worker:
        await insert_event(worker)
        await worker.execute("update dot_config set value = $2 where key = 'iu_core.' || $1", gate, value)
        async with worker.transaction():
            answer = await run_batch(worker)
            assert await worker.fetchval("select pg_current_xact_id_if_assigned() is null")
        status = "master_gate_closed" if gate == "routes_master_enabled" else "worker_gate_closed"
        assert answer == {"status": status, "worker_name": WORKER, "seen": 0}
        assert await untouched(worker)


@pytest.mark.parametrize("gate", ["routes_master_enabled", "route_worker_enabled"])
async def test_a_missing_gate_is_closed(live, gate):
    """A gate that does not exist is closed."""
    async with connected(live.dsn) as worker:
        await insert_event(worker)
        await worker.execute("delete from dot_config where key = 'iu_core.' || $1", gate)
        assert (await run_batch(worker))["status"].endswith("_gate_closed")
        assert await untouched(worker)
