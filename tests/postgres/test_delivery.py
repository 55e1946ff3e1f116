"""Delivery: the four switches, the guard of the routes, and targets that are SQL functions.

The SQL is in functions/delivery_switches, delivery_guards, live_routes and sql_targets.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import pytest

from postgres.routes import open_sql_function_route
from support import connected, drain, insert_event, run_batch, wait_until

pytestmark = pytest.mark.asyncio

ROUTE = "iu.version_applied.workflow"
KEYS = {
    "master_gate_closed": "iu_core.routes_master_enabled",
    "worker_gate_closed": "iu_core.route_worker_enabled",
    "delivery_gate_closed": "iu_core.delivery_enabled",
    "route_not_listed": "iu_core.delivery_live_routes",
}


async def lock(connection: asyncpg.Connection) -> str | None:
    found: str | None = await connection.fetchval("select fn_iu_delivery_closed_switch($1)", ROUTE)
    return found


async def is_live(connection: asyncpg.Connection) -> bool:
    return bool(
        await connection.fetchval("select enabled and not dry_run from iu_outbound_route where route_code = $1", ROUTE)
    )


async def delivered(connection: asyncpg.Connection) -> list[UUID]:
    """The events that arrived at the target, in order."""
    return [row["event_ref"] for row in await connection.fetch("select event_ref from arrived order by n")]


async def outcomes(connection: asyncpg.Connection) -> list[tuple[str, str, bool]]:
    rows = await connection.fetch("select status, decision, delivered from iu_route_attempt order by id")
    return [tuple(row) for row in rows]


# -- the path of a delivery ------------------------------------------------------------------------------------------


async def test_a_function_is_called_in_the_transaction_of_the_decision(live):
    """With all switches open the function is called once for each event, with key and event, and the attempt is sent.

    The call happens in the transaction of the batch.
    """
    async with connected(live.dsn) as connection:
        await open_sql_function_route(connection)
        events = [await insert_event(connection, note=str(n)) for n in range(3)]
        answer = await run_batch(connection)
        assert (answer["attempts_written"], answer["dead_lettered"]) == (3, 0)
        assert await delivered(connection) == events
        assert await outcomes(connection) == [("sent", "delivered", True)] * 3
        rows = await connection.fetch("select key, note from arrived order by n")
        assert [tuple(row) for row in rows] == [(f"outbound:{ROUTE}:{e}", str(n)) for n, e in enumerate(events)]
        # Reading the events again delivers none of them twice.
        await connection.execute("update iu_route_worker_cursor set prev = '3:3:', tick = null")
        await drain(connection)
        assert await delivered(connection) == events


async def test_an_exception_of_a_function_affects_only_its_event(live):
    """An exception of the target undoes its writes and makes its event a dead letter; the other events are delivered.

    Fails when: only data errors count as the fault of the event, or a deferred constraint
    is checked only at the commit.
    """
    faults = ["22012", "42501", "42P01", "23505", "P0001", "0A000", "2F005", "55000", "deferred"]
    async with connected(live.dsn) as connection:
        await open_sql_function_route(connection)
        events = {
            fault: await insert_event(connection, note=f"raise {fault}" if fault else "") for fault in ["", *faults]
        }
        answer = await run_batch(connection)
        assert answer["dead_lettered"] == len(faults)
        assert await delivered(connection) == [events[""]]
        letters = await connection.fetch("select event_ref, failure_detail from iu_route_dead_letter")
        assert {row["event_ref"] for row in letters} == {events[fault] for fault in faults}
        # They are replayed after the target was repaired.
        await connection.execute(
            "create or replace function public.misbehave(note text) returns void language sql as ''"
        )
        for row in await connection.fetch("select id from iu_route_dead_letter order by id"):
            await connection.fetchval("select fn_iu_route_dead_letter_replay($1)", row["id"])
        assert set(await delivered(connection)) == set(events.values())


async def test_an_error_without_a_faulty_event_fails_the_batch(live):
    """A deadlock, a full disk or a cancellation is not the fault of an event: the batch
    fails, and delivers when repeated.

    Fails when: every error of a target makes a dead letter.
    """
    async with connected(live.dsn) as connection:
        await open_sql_function_route(connection)
        event = await insert_event(connection, note="raise 40P01")
        with pytest.raises(asyncpg.DeadlockDetectedError):
            await run_batch(connection)
        await connection.execute(
            "create or replace function public.misbehave(note text) returns void language sql as ''"
        )
        await drain(connection)
        assert await delivered(connection) == [event]
        assert await connection.fetchval("select count(*) from iu_route_dead_letter") == 0


# -- the switches ----------------------------------------------------------------------------------------------------


GATES = [None, "missing", "", "True", "true "]
LISTS = [None, "missing", "", "a,,b", "a;drop", f"{ROUTE},", f"x {ROUTE}"]


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
@pytest.mark.parametrize(
    ("closed", "value"),
    [(lock, value) for lock in KEYS for value in (LISTS if lock == "route_not_listed" else GATES)],
)
async def test_a_closed_missing_or_malformed_switch_stops_deliveries(live, closed, value):
    """If any of the four switches is closed, missing or malformed, no event is delivered, and the switch is named.

    Fails when: a switch is not read, or is open by default.
    """
    async with connected(live.dsn) as connection:
        await open_sql_function_route(connection)
        assert await lock(connection) is None
        if value == "missing":
            await connection.execute("delete from dot_config where key = $1", KEYS[closed])
        else:
            await connection.execute("update dot_config set value = $2 where key = $1", KEYS[closed], value)
        assert await lock(connection) == closed
        # As if the guard were missing.
        await connection.execute(
            """alter table iu_outbound_route disable trigger zz_iu_outbound_route_guard;
               update iu_outbound_route set enabled = true, dry_run = false"""
        )
        await insert_event(connection)
        answer = await run_batch(connection)
        assert await delivered(connection) == []
        if closed in ("master_gate_closed", "worker_gate_closed"):
            assert answer["status"] == closed
        else:
            why = await connection.fetchval("select failure_detail from iu_route_dead_letter")
            assert closed in why
            assert await outcomes(connection) == [("failed", "dead_letter", False)]


CLOSING = {
    "update dot_config set value = 'false' where key = 'iu_core.delivery_enabled'": ("failed", "dead_letter", False),
    f"select fn_iu_route_live('{ROUTE}', false, 'a test')": ("dry_run", "dry_run", False),
    "update iu_outbound_route set enabled = false": ("skipped", "route_disabled", False),
}


@pytest.mark.parametrize("closing", CLOSING)
async def test_a_switch_that_closes_during_a_batch_stops_the_next_event(live, closing):
    """Switches are read for each event: one that closes during a delivery stops the next event of the batch.

    Fails when: the switches, or the route, are read once for a batch.
    """
    async with connected(live.dsn) as connection, connected(live.dsn) as operator:
        await open_sql_function_route(connection)
        events = [await insert_event(connection, note="wait" if n == 1 else "") for n in range(3)]
        await operator.execute("select pg_advisory_lock(4711)")
        running = asyncio.create_task(run_batch(connection))

        async def waiting() -> bool:
            return bool(
                await operator.fetchval(
                    "select exists (select from pg_locks where locktype = 'advisory' and not granted)"
                )
            )

        await wait_until(waiting, "the second event is being delivered")
        await operator.execute(closing)
        await operator.execute("select pg_advisory_unlock(4711)")
        answer = await running
        assert await delivered(connection) == events[:2]
        assert await outcomes(connection) == [("sent", "delivered", True)] * 2 + [CLOSING[closing]]
        assert (answer["attempts_written"], answer["skipped"]) == (
            3,
            int(CLOSING[closing][0] == "skipped"),
        )


@pytest.mark.parametrize(
    ("setup", "why"),
    [
        (
            "update dot_config set value = '' where key = 'iu_core.delivery_sql_functions'",
            "is not on the list of functions",
        ),
        ("drop function public.arrive(text, jsonb)", "there is no function"),
        ("alter function public.arrive(text, jsonb) security definer", "there is no function"),
        (
            "update iu_outbound_route set target_ref = 'public.arrive; drop table arrived'",
            "is not on the list of functions",
        ),
        ("update iu_outbound_route set target_ref = 'arrive'", "is not on the list of functions"),
        ("update iu_outbound_route set target_kind = 'vector'", "cannot be delivered to"),
    ],
)
async def test_only_an_allowed_function_is_called(live, setup, why):
    """Only a function that is on the list, has the signature and runs with the rights of its caller is called."""
    async with connected(live.dsn) as connection:
        await open_sql_function_route(connection)
        await connection.execute(setup)
        await insert_event(connection)
        await run_batch(connection)
        assert await delivered(connection) == []
        assert why in await connection.fetchval("select failure_detail from iu_route_dead_letter")


# -- the guard -------------------------------------------------------------------------------------------------------


async def test_a_route_is_live_only_while_it_is_listed(live):
    """Only a listed route can become live, and a route that is taken off the list is a dry run in the same transaction.

    Fails when: the guard or the trigger of the list is missing.
    """
    async with connected(live.dsn) as connection:
        for statement in (
            "update iu_outbound_route set dry_run = false",
            """insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref,
                                              enabled, dry_run) values ('new', 'iu', 'x', 'update', 'workflow', 'x', true, false)""",
        ):
            with pytest.raises(asyncpg.CheckViolationError, match="not on the list of live routes"):
                await connection.execute(statement)
        for take_off in (
            "update dot_config set value = 'other' where key = 'iu_core.delivery_live_routes'",
            "update dot_config set value = 'other,;' where key = 'iu_core.delivery_live_routes'",
            "delete from dot_config where key = 'iu_core.delivery_live_routes'",
            "truncate dot_config",
        ):
            kept = await connection.fetch("select key, value, description from dot_config")
            await open_sql_function_route(connection)
            assert await is_live(connection)
            await connection.execute(take_off)
            assert not await is_live(connection)
            await connection.executemany(
                "insert into dot_config (key, value, description) values ($1, $2, $3) on conflict (key) do nothing",
                [tuple(row) for row in kept],
            )
        with pytest.raises(asyncpg.CheckViolationError):
            await open_sql_function_route(connection)
            await connection.execute("update iu_outbound_route set route_code = 'renamed'")


async def test_a_simultaneous_change_of_list_and_route_ends_as_a_dry_run(live):
    """Taking a route off the list waits for a transaction that makes it live, and then makes it a dry run.

    So no route stays live without being listed.

    Fails when: the guard reads the list without locking it.
    """
    async with connected(live.dsn) as connection, connected(live.dsn) as other:
        await open_sql_function_route(connection)
        await connection.execute("update iu_outbound_route set dry_run = true")
        await connection.execute("begin")
        await connection.execute("update iu_outbound_route set dry_run = false")
        taking = asyncio.create_task(
            other.execute("update dot_config set value = '' where key = 'iu_core.delivery_live_routes'")
        )

        async def waits() -> bool:
            return bool(await connection.fetchval("select exists (select from pg_locks where not granted)"))

        await wait_until(waits, "the other one waits")
        await connection.execute("commit")
        await taking
        assert not await is_live(connection)


async def test_each_change_of_a_live_route_records_actor_and_reason(live):
    """Every way to make a route live, or a dry run, leaves a row with the actor and the reason."""
    async with connected(live.dsn) as connection:
        await open_sql_function_route(connection)
        await connection.fetchval("select fn_iu_route_live($1, false, 'incident 7', 'ann')", ROUTE)
        await connection.fetchval("select fn_iu_route_live($1, true, 'mended', 'bob')", ROUTE)
        await connection.execute("update dot_config set value = '' where key = 'iu_core.delivery_live_routes'")
        rows = await connection.fetch("select live, actor, why from iu_delivery_change order by id")
        assert await connection.fetchval("select bool_and(login = session_user) from iu_delivery_change")
        user = await connection.fetchval("select session_user")
        assert [tuple(row) for row in rows] == [
            (True, "tester", "a test"), (False, "ann", "incident 7"), (True, "bob", "mended"), (False, user, None),
        ]  # fmt: skip


async def test_a_route_can_be_stopped_without_the_right_to_record_it(live):
    """A role that may only change settings can take a route off the list; one that may only change routes can stop it.

    Fails when: a missing right to record the stop, or to change the route, prevents it.
    """
    async with connected(live.dsn) as connection:
        name = "stop_" + (await connection.fetchval("select current_database()"))[-12:]
        await open_sql_function_route(connection)
        await connection.execute(
            f"""create role {name};
                grant select, update on dot_config to {name};
                grant execute on all functions in schema public to {name}"""
        )
        try:
            async with connection.transaction():
                await connection.execute(f"set local role {name}")
                await connection.execute("update dot_config set value = '' where key = 'iu_core.delivery_live_routes'")
            assert await lock(connection) == "route_not_listed"
            await open_sql_function_route(connection)
            await connection.execute(
                f"revoke all on dot_config from {name}; grant select, update on iu_outbound_route to {name}"
            )
            async with connection.transaction():
                await connection.execute(f"set local role {name}")
                await connection.execute("update iu_outbound_route set dry_run = true")
            assert not await is_live(connection)
        finally:
            await connection.execute(f"drop owned by {name}; drop role {name}")
