"""Batches that fail as a whole: the next pages isolate the event that causes it, and it alone becomes a dead letter."""

from __future__ import annotations

import platform
from uuid import UUID

import asyncpg
import pytest

from iu_listen.model.observation import HeartbeatWritten, LeaseTaken, SessionFailed
from iu_listen.model.routing import State
from iu_listen.postgres import queries
from postgres.routes import add_dry_run_route, append_event, open_sql_function_route, register_event_type
from support import WORKER, attempted, connected, consuming, drain, insert_event, run_batch, wait_until

pytestmark = pytest.mark.asyncio

#: Bodies of the SQL function of a route for one event. A savepoint of the batch must catch none of them.
EVIL = {
    "a serialization failure": "raise exception 'x' using errcode = '40001'",
    "a deadlock": "raise exception 'x' using errcode = '40P01'",
    "a full disk": "raise exception 'x' using errcode = '53100'",
    "a cancellation": "raise exception 'x' using errcode = '57014'",
    "a lost connection to another server": "raise exception 'x' using errcode = '08006'",
    "an internal error": "raise exception 'x' using errcode = 'XX000'",
    "an assertion": "assert false, 'x'",
    "too long": "perform pg_sleep(60)",
    "its own end": "perform pg_terminate_backend(pg_backend_pid()), pg_sleep(60)",
}


async def _evil(connection: asyncpg.Connection, body: str) -> None:
    """Two routes to SQL functions for events of the type "thing"; the route "evil" misbehaves for the note "evil"."""
    await register_event_type(connection, "thing")
    for code in ("evil", "calm"):
        await add_dry_run_route(connection, code, "thing")
        await open_sql_function_route(connection, code)
    await connection.execute(
        f"""create function public.evil(idempotency_key text, event jsonb) returns void language plpgsql as $$
            begin
                if event -> 'safe_payload' ->> 'note' = 'evil' then
                    {body};
                end if;
            end $$;
            update dot_config set value = 'public.arrive,public.evil' where key = 'iu_core.delivery_sql_functions';
            update iu_outbound_route set target_ref = 'public.evil' where route_code = 'evil'"""
    )


async def _thing(connection: asyncpg.Connection, note: str) -> UUID:
    return await connection.fetchval(
        """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, safe_payload)
           values ('iu', 'thing', 'update', 'immediate', jsonb_build_object('note', $1::text)) returning id""",
        note,
    )


async def _letters(connection: asyncpg.Connection) -> list[tuple]:
    rows = await connection.fetch(
        "select event_ref, route_code, failure_code from iu_route_dead_letter order by event_ref, route_code"
    )
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("body", EVIL.values(), ids=EVIL)
async def test_an_event_that_fails_its_batch_becomes_one_dead_letter(live, body):
    """An event becomes a dead letter alone if its function fails the batch, ends the server process or takes too long.

    Events before and after it are routed, and its other routes too, if the error names the route.

    Fails when: a batch that failed is repeated unchanged.
    """
    async with connected(live.dsn) as connection:
        await _evil(connection, body)
        before = [await _thing(connection, "") for _ in range(3)]
        evil = await _thing(connection, "evil")
        after = [await _thing(connection, "") for _ in range(5)]
        others = [await insert_event(connection) for _ in range(10)]

        async with consuming(live.dsn, batch_deadline=1, reconnect_max=0.1, catch_up=0.2, session_timeout=2):

            async def all_routed() -> bool:
                return set(await attempted(connection)) == {*before, evil, *after, *others}

            await wait_until(all_routed, "every event is routed", timeout=30)
        sent = await connection.fetch("select event_ref, route_code from iu_route_attempt where status = 'sent'")
        letters = await _letters(connection)

    assert {r["event_ref"] for r in sent if r["route_code"] == "evil"} == {*before, *after}
    if "pg_terminate" in body:
        assert letters == [(evil, "calm", "batch_failed"), (evil, "evil", "batch_failed")]
    else:
        assert letters == [(evil, "evil", "worker_process_error" if "assert" in body else "batch_failed")]
        assert {r["event_ref"] for r in sent if r["route_code"] == "calm"} == {*before, evil, *after}


async def test_halving_the_page_isolates_an_event_whose_attempt_fails(live):
    """Among hundreds of events, halving the page finds the event for which no attempt can be written.

    Its failure cannot be recorded as an attempt either; its dead letter has the reason.

    Fails when: the next page is not halved, or giving up writes the same attempt.
    """
    async with connected(live.dsn) as connection:
        await connection.execute(
            """create function test_trap() returns trigger language plpgsql as $$
               begin
                   if exists (select from public.event_outbox o where o.id = new.event_ref and o.safe_payload ->> 'note' = 'evil') then
                       raise exception 'the trap' using errcode = '40001';
                   end if;
                   return new;
               end $$;
               create trigger test_trap before insert on iu_route_attempt for each row execute function test_trap()"""
        )
        events = [await insert_event(connection, note="evil" if n in (40, 41, 200) else "") for n in range(300)]

        async with consuming(live.dsn, reconnect_max=0.1, catch_up=0.2, session_timeout=2):

            async def all_routed() -> bool:
                return await connection.fetchval("select total_seen from iu_route_worker_cursor") == 300

            await wait_until(all_routed, "every event is routed", timeout=30)
        letters = await connection.fetch(
            "select event_ref, attempt_no, failure_code, failure_detail from iu_route_dead_letter"
        )

        assert {letter["event_ref"] for letter in letters} == {events[40], events[41], events[200]}
        assert {letter["failure_code"] for letter in letters} == {"batch_failed"}
        assert all("the trap" in letter["failure_detail"] and letter["attempt_no"] == 0 for letter in letters)
        assert len(await attempted(connection)) == 297


async def test_an_attempt_that_exists_is_no_failure_of_its_event(live):
    """A new event that has an attempt already, written by hand, keeps it; the other events of its page are decided.

    Fails when: the attempt makes the event a dead letter, or the page fail.
    """
    async with connected(live.dsn) as connection:
        await insert_event(connection)
        await drain(connection)
        events = [await insert_event(connection) for _ in range(5)]
        await connection.execute(
            """insert into iu_route_attempt
                   (event_ref, route_kind, route_code, status, decision, delivered, idempotency_key, attempt_no)
               select event_ref, route_kind, route_code, status, 'by_hand', delivered,
                      replace(idempotency_key, event_ref::text, $1::text), attempt_no
                 from iu_route_attempt""",
            str(events[2]),
        )
        await connection.execute("update iu_route_attempt set event_ref = $1 where decision = 'by_hand'", events[2])
        answer = await run_batch(connection)
        assert (answer["seen"], answer["attempts_written"], answer["dead_lettered"]) == (5, 4, 0)
        decisions = await connection.fetch(
            "select event_ref, decision from iu_route_attempt where event_ref = any($1)", events
        )
        assert {row["event_ref"]: row["decision"] for row in decisions} == {
            event: "by_hand" if event == events[2] else "dry_run" for event in events
        }


async def test_failure_counts_survive_the_end_of_the_consumer(live):
    """The database counts the failures, so consumers that each end after one failure isolate the event as well.

    A consumer that starts after a failure takes half of the page.

    Fails when: failures are counted in the memory of the consumer.
    """
    async with connected(live.dsn) as connection:
        await _evil(connection, EVIL["its own end"])
        evil = await _thing(connection, "evil")
        rest = [await _thing(connection, "") for _ in range(7)]

        async def state() -> int:
            return await connection.fetchval(
                "select coalesce(failed_events, 0) + 100 * failures + total_seen from iu_route_worker_cursor"
            )

        for _ in range(20):
            noted = await state()
            async with consuming(live.dsn, listening=False, reconnect_max=0.1, catch_up=0.2, session_timeout=2) as seen:

                async def changed(noted: int = noted) -> bool:
                    return await state() != noted

                await wait_until(changed, "a failure is noted, or a batch succeeds")
            if await connection.fetchval("select total_seen from iu_route_worker_cursor") == 8:
                break
        assert set(await attempted(connection)) == {evil, *rest}
        assert seen.of(LeaseTaken)


async def test_an_error_without_a_faulty_event_causes_no_dead_letter(live):
    """A missing table fails every batch and causes no dead letter; all events are routed when the table is back.

    Fails when: an event is given up although giving it up fails in the same way.
    """
    async with connected(live.dsn) as connection:
        async with consuming(live.dsn, reconnect_max=0.1, catch_up=0.2, session_timeout=2) as seen:
            await connection.execute("alter table iu_route_attempt rename to hidden")
            events = [await insert_event(connection) for _ in range(3)]

            async def many() -> bool:
                return await connection.fetchval("select failures > 8 from iu_route_worker_cursor")

            await wait_until(many, "it has failed often")
            assert len(seen.of(SessionFailed)) > 8
            assert await connection.fetchval("select count(*) from iu_route_dead_letter") == 0
            await connection.execute("alter table hidden rename to iu_route_attempt")

            async def all_routed() -> bool:
                return await attempted(connection) == events

            await wait_until(all_routed, "every event is routed")
        row = await connection.fetchrow("select failures, failed_event, failed_events from iu_route_worker_cursor")
        assert tuple(row) == (0, None, None)


async def test_a_page_shrinks_after_a_timeout(live):
    """If a page takes longer than its deadline because attempts are slow, smaller pages follow.

    Fails when: a page is bounded by the number of events or attempts only.
    """
    async with connected(live.dsn) as connection:
        await connection.execute(
            """create function slow() returns trigger language plpgsql as $$
               begin perform pg_sleep(0.004); return new; end $$;
               create trigger slow before insert on iu_route_attempt for each row execute function slow()"""
        )
        await connection.execute(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
               select 'iu', 'version_applied', 'update', 'immediate' from generate_series(1, 600)"""
        )
        async with consuming(live.dsn, batch_deadline=1, reconnect_max=0.1, catch_up=0.2, session_timeout=10):

            async def all_routed() -> bool:
                return await connection.fetchval("select total_seen from iu_route_worker_cursor") == 600

            await wait_until(all_routed, "every event is routed", timeout=120)
        assert await connection.fetchval("select count(*) from iu_route_attempt") == 600
        assert await connection.fetchval("select count(*) from iu_route_dead_letter") == 0


async def test_a_page_is_limited_by_its_number_of_attempts(live):
    """If events go to many routes, a page has at most ten attempts for each event of the requested limit.

    A failure halves the number of events that the page really had.

    Fails when: a page is bounded by the number of its events only, or a failure halves the requested limit.
    """
    async with connected(live.dsn) as connection:
        await register_event_type(connection, "thing")
        await connection.execute(
            """insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled)
               select 'r' || n, 'iu', 'thing', 'update', 'report', 'x', n <= 50 from generate_series(1, 200) n"""
        )
        await connection.execute(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
               select 'iu', 'thing', 'update', 'immediate' from generate_series(1, 30)"""
        )
        answer = await run_batch(connection, 20)
        assert (answer["seen"], answer["attempts_written"], answer["more"]) == (4, 200, True)
        assert (await run_batch(connection, 1))["seen"] == 1

        await connection.execute(f"select fn_iu_route_worker_failed('{WORKER}', 20, 'no answer', true)")
        noted = await connection.fetchrow("select page_limit, failed_events from iu_route_worker_cursor")
        assert tuple(noted) == (2, 4)
        assert await drain(connection, 20) == 25


async def test_events_are_compared_only_with_routes_that_can_match(live):
    """Events of a page are compared only with the routes that events of the page can take; decisions stay the same.

    Fails when: each event of a page is compared with every route of the domain.
    """
    async with connected(live.dsn) as connection:
        for kind in ("thing", "other"):
            await register_event_type(connection, kind)
        await connection.execute(
            """insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled)
               select 'r' || n, 'iu', case n % 3 when 0 then 'thing' when 1 then 'other' else 'third' end, 'update', 'report',
                      'x', n % 3 = 2 or n <= 3
                 from generate_series(0, 99) n where n <> 1"""
        )
        await connection.execute(
            """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
               select 'iu', x, 'update', 'immediate' from unnest(array['thing', 'other', 'version_applied']) x"""
        )
        await connection.execute("set track_functions = 'all'")
        assert (await run_batch(connection))["seen"] == 3
        await connection.execute("select pg_stat_force_next_flush()")
        called = "select calls from pg_stat_user_functions where funcname = 'fn_iu_route_candidates'"
        assert await connection.fetchval(called) == 1
        decided = "select route_code, decision from iu_route_attempt order by 1"
        assert [tuple(row) for row in await connection.fetch(decided)] == [
            ("(none)", "route_disabled"),
            ("iu.version_applied.workflow", "dry_run"),
            ("r0", "dry_run"),
            ("r3", "dry_run"),
        ]
        kept = await connection.fetch(
            """select x.event_type, count(*) filter (where x.enabled) as enabled, count(*) filter (where not x.enabled) as disabled
                 from unnest(fn_iu_route_candidates(array(select r from iu_outbound_route r),
                                                    array['thing', 'thing', 'other'], array['update', 'update', 'update'])) x
                group by 1 order by 1"""
        )
        assert [(row["event_type"], row["enabled"]) for row in kept] == [("other", 0), ("thing", 2)]
        assert kept[0]["disabled"] == 1
        assert kept[1]["disabled"] <= 1


async def test_the_page_grows_again_after_quick_batches(live):
    """After a time-out, each quick full page doubles the next one, up to the requested limit.

    Fails when: the limit remains at the value of the failure.
    """
    async with connected(live.dsn) as connection:
        for _ in range(100):
            await insert_event(connection)
        await connection.execute(
            "select fn_iu_route_worker_failed($1, 32, 'no answer', true)".replace("$1", f"'{WORKER}'")
        )
        seen = [(await run_batch(connection, 32))["seen"] for _ in range(7)]

        # The cause is searched in the 32 events of the page that failed: 16 are left, and half of the rest each time.
        assert seen == [16, 8, 4, 2, 1, 1, 32]
        assert await connection.fetchval("select page_limit from iu_route_worker_cursor") is None
        assert await drain(connection, 32) == 100 - sum(seen)


async def test_the_error_of_a_batch_names_event_and_route(live):
    """The error of a batch names the event and the route in its fields, so no page needs to be halved.

    Fails when: the batch passes on the error of the function unchanged.
    """
    async with connected(live.dsn) as connection:
        await _evil(connection, EVIL["a deadlock"])
        evil = await _thing(connection, "evil")
        with pytest.raises(asyncpg.DeadlockDetectedError) as raised:
            await run_batch(connection)
        error = raised.value

        assert (error.table_name, error.column_name, error.constraint_name) == ("iu_outbound_route", "evil", str(evil))


async def test_a_consumer_with_failing_batches_reports_the_reason(live):
    """While every batch fails, heartbeat and health show failing with the reason, and the lease is reported once.

    Probes of the host and watchdogs see no progress.

    Fails when: only a batch that succeeds writes the heartbeat, each session is reported, or a heartbeat of a failure
    counts as progress.
    """
    async with (
        connected(live.dsn) as connection,
        consuming(live.dsn, reconnect_max=0.1, catch_up=0.2, session_timeout=2) as seen,
    ):
        await connection.execute("alter table iu_route_attempt rename to hidden")
        await append_event(connection, "version_applied")

        async def failing() -> asyncpg.Record:
            return await connection.fetchrow(
                """select h.condition, h.condition_why, h.reasons::text from v_iu_worker_health h
                    where h.state = 'failing' and (select failures > 5 from iu_route_worker_cursor)"""
            )

        health = await wait_until(failing, "health knows")
        assert health["condition"] == "failing"
        assert 'relation "public.iu_route_attempt" does not exist' in health["condition_why"]
        assert "every batch fails" in health["reasons"]
        # A failure does not answer the queries of host probes and watchdogs.
        assert await queries.value(connection, "host_beats", platform.node(), WORKER) is False
        assert not [beat for beat in seen.of(HeartbeatWritten) if beat.state is State.FAILING]
        assert len(seen.of(LeaseTaken)) == 1
        await connection.execute("alter table hidden rename to iu_route_attempt")

        async def healthy() -> bool:
            return await connection.fetchval("select healthy from v_iu_worker_health")

        await wait_until(healthy, "it works again")
        assert len(seen.of(LeaseTaken)) == 2
