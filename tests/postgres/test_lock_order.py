"""The lock order of delivery: two functions that lock the same rows never wait for each other in a cycle."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from iu_listen.model.delivery import Delivery, Event, Outcome, Result, TakenDelivery, TakeRequest
from iu_listen.model.settings import Settings
from iu_listen.postgres.delivery import DeliverySession
from postgres.delivery_helpers import ROUTE, open_route
from support import WORKER, connected, insert_event, run_batch

pytestmark = pytest.mark.asyncio

#: The order of the tables, with a statement by which another session locks a row of each.
ORDER = {
    "iu_delivery_lease": "select from iu_delivery_lease for update",
    "iu_route_worker_cursor": "select from iu_route_worker_cursor for update",
    "iu_outbound_route": f"select from iu_outbound_route where route_code = '{ROUTE}' for update",
    "iu_delivery_breaker": f"select from iu_delivery_breaker where route_code = '{ROUTE}' for update",
    # A settlement deletes. A row that is only locked would not show a function that waits for it.
    "iu_route_delivery": "delete from iu_route_delivery",
    "iu_route_dead_letter": "select from iu_route_dead_letter for update",
    "iu_route_attempt": """
        insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key, attempt_no)
        select event_ref, route_kind, route_code, 'failed', idempotency_key, n
          from iu_route_dead_letter cross join generate_series(2, 3) n
    """,
}


Facts = dict[str, Any]
Action = Callable[[asyncpg.Connection, Facts], Awaitable[object]]


@dataclass(frozen=True)
class Call:
    """A function that locks rows of these tables, the tables on which it can wait, and
    the SQL that prepares the call."""

    action: Action
    waits_for: frozenset[str]
    setup: str = ""


def sql(statement: str) -> Action:
    """An action that executes the statement with the facts filled in."""

    async def action(connection: asyncpg.Connection, facts: Facts) -> object:
        return await connection.fetchval(statement.format(**facts))

    return action


def deliveries(connection: asyncpg.Connection, facts: Facts) -> DeliverySession:
    """The delivery session of the lease holder, in the transaction of this connection."""
    return DeliverySession(connection, connection, Settings(dsn="postgresql:///"), facts["owner"])


def settle(result: Result) -> Action:
    """An action that settles the delivery with this result."""

    async def action(connection: asyncpg.Connection, facts: Facts) -> object:
        event = Event(id=facts["event"], domain="iu", type="version_applied", stream="update")
        delivery = Delivery(
            id=facts["id"], route=ROUTE, idempotency_key=facts["key"], attempt=2, event=event, deadline=30
        )
        outcome = Outcome(taken=TakenDelivery(delivery), result=result, began=0, ended=0, code="x", detail="x")
        dead = await deliveries(connection, facts).settle([outcome])
        assert dead is not None
        return dead

    return action


async def take(connection: asyncpg.Connection, facts: Facts) -> object:
    """Take deliveries, at most nine."""
    want = TakeRequest(route=ROUTE, capacity=9, position=0, deadline=30)
    return await deliveries(connection, facts).take([want], [], [])


#: No decision can be recorded as a dry run.
POISON = """
    create function poison() returns trigger language plpgsql as $$ begin raise exception 'poisoned'; end $$;
    create trigger poison before insert on iu_route_attempt for each row
        when (new.status = 'dry_run') execute function poison()
"""
#: Without a delivery, the dead letter is not queued.
NOT_QUEUED = "delete from iu_route_delivery"
HELD = f"update iu_delivery_breaker set opened_at = now(), trial_at = now() where route_code = '{ROUTE}'"
LETTERS = frozenset({"iu_route_dead_letter"})
LEASE = frozenset({"iu_delivery_lease"})
CALLS = {
    "settle what arrived": Call(
        settle(Result.SENT), LEASE | LETTERS | {"iu_route_delivery"}, "update iu_route_delivery set replayed_by = 'ann'"
    ),
    "settle what failed": Call(settle(Result.FAILED), LEASE | {"iu_delivery_breaker", "iu_route_delivery"}),
    "settle what was rejected": Call(
        settle(Result.REJECTED), LEASE | LETTERS | {"iu_delivery_breaker", "iu_route_delivery"}
    ),
    "settle a probe that arrived": Call(
        settle(Result.SENT), LEASE | LETTERS | {"iu_delivery_breaker", "iu_route_delivery"},
        HELD + "; update iu_route_delivery set replayed_by = 'ann'",
    ),
    "settle what cannot be recorded": Call(
        sql("select fn_iu_delivery_unrecorded('{worker}', '{owner}', '{route}', {id}, 'x', 'x')"),
        LEASE | LETTERS | {"iu_delivery_breaker", "iu_route_delivery"}, "update iu_route_delivery set tries = 4",
    ),
    "take the lease after an unclean end": Call(
        sql("select fn_iu_delivery_lease('{worker}', gen_random_uuid(), 60, false, null)"),
        LEASE | LETTERS | {"iu_delivery_breaker", "iu_route_delivery"},
        "update iu_route_delivery set tries = 4; update iu_delivery_lease set renewed_at = now() - interval '1 hour', "
        "in_flight_routes = (select array_agg(route_code) from iu_route_delivery), "
        "in_flight_ids = (select array_agg(id) from iu_route_delivery)",
    ),
    "record a call that was ahead": Call(
        sql("select fn_iu_delivery_of_call('{worker}', '{owner}', '{route}', gen_random_uuid(), true)"), LEASE
    ),
    "cancel": Call(
        sql("select fn_iu_delivery_cancel('{route}', null, 'a test')"),
        LEASE | LETTERS | {"iu_outbound_route", "iu_route_delivery"}, HELD,
    ),
    "replay, queued": Call(sql("select fn_iu_route_dead_letter_replay('{letter}')"), LETTERS, NOT_QUEUED),
    "replay, on its way": Call(sql("select fn_iu_route_dead_letter_replay('{letter}')"), LETTERS),
    "replay, dry run": Call(
        sql("select fn_iu_route_dead_letter_replay('{letter}')"), LETTERS,
        NOT_QUEUED + "; update iu_outbound_route set dry_run = true",
    ),
    "replay all": Call(
        sql("select fn_iu_dead_letters_replay('{route}', null, null, null, null, 'ann', null, null, null)"),
        LEASE | LETTERS, NOT_QUEUED,
    ),
    "resolve": Call(
        sql("select fn_iu_dead_letters_resolve('{{{letter}}}', 'a test')"), LEASE | LETTERS, NOT_QUEUED
    ),
    "take a probe": Call(take, frozenset({"iu_delivery_breaker"}), HELD),
    "run": Call(sql("select fn_iu_route_worker_run('{worker}', 10)"), frozenset({"iu_route_worker_cursor"})),
    "run, an event given up": Call(
        sql("select fn_iu_route_worker_run('{worker}', 10)"), LETTERS | {"iu_route_worker_cursor"},
        NOT_QUEUED + "; delete from iu_route_attempt; update iu_outbound_route set dry_run = true; " + POISON
        + "; update iu_route_worker_cursor set prev = '3:3:', hi_seq = 0",
    ),
    "live": Call(sql("select fn_iu_route_live('{route}', false, 'a test')"), frozenset({"iu_outbound_route"})),
    "resume": Call(sql("select fn_iu_route_resume('{route}')"), frozenset({"iu_delivery_breaker"}), HELD),
}  # fmt: skip


@asynccontextmanager
async def transaction(dsn: str):
    """A session in a transaction that is rolled back."""
    async with connected(dsn) as connection:
        await connection.execute("begin")
        yield connection


async def waits(connection: asyncpg.Connection, task: asyncio.Task[object], pid: int, holder: int) -> bool:
    """Whether the task, in the session `pid`, begins to wait for the session `holder`;
    False: it ended without waiting."""
    with anyio.fail_after(15):
        while not task.done():
            if await connection.fetchval("select $2 = any (pg_blocking_pids($1))", pid, holder):
                return True
            await asyncio.sleep(0.005)
    return False


async def held(dsn: str, table: str) -> bool:
    """Whether another session has locked the row of this table."""
    async with transaction(dsn) as other:
        await other.execute("set local lock_timeout = '50ms'")
        try:
            await other.execute(ORDER[table])
        except asyncpg.LockNotAvailableError:
            return True
        return False


async def populate(connection: asyncpg.Connection) -> dict[str, object]:
    """Create a row in each of the tables for one event: a failed attempt, a dead letter, and a
    delivery that is queued again."""
    await open_route(connection, attempts=5)
    event = await insert_event(connection)
    await run_batch(connection)
    owner = uuid4()
    await connection.execute(
        "insert into iu_delivery_lease (worker_name, owner, seconds) values ($1, $2, 60)", WORKER, owner
    )
    await connection.execute("insert into iu_delivery_breaker (route_code) values ($1)", ROUTE)
    key = f"outbound:{ROUTE}:{event}"
    await connection.execute(
        """insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key)
           values ($1, 'outbound', $2, 'failed', $3)""",
        event, ROUTE, key,
    )  # fmt: skip
    letter: UUID = await connection.fetchval(
        """insert into iu_route_dead_letter (worker_name, event_ref, route_code, idempotency_key, event_snapshot, failure_code)
           select $1, o.id, $3, $4, to_jsonb(o), 'x' from event_outbox o where o.id = $2 returning id""",
        WORKER, event, ROUTE, key,
    )  # fmt: skip
    await connection.execute("update iu_route_delivery set attempt_no = 2, due_at = now(), failed_at = now()")
    id = await connection.fetchval("select id from iu_route_delivery")
    await insert_event(connection)
    return {"worker": WORKER, "owner": owner, "route": ROUTE, "event": event, "id": id, "letter": letter, "key": key}


@pytest.mark.parametrize("name", CALLS)
async def test_functions_take_row_locks_in_one_order(live, name):
    """A function that waits for a row of one table holds no row of a table that comes later in the lock order.

    Fails when: a function locks out of order (cancel: attempts before dead letters, or without the lease).
    """
    call = CALLS[name]
    waited, wrong = set(), []
    async with connected(live.dsn) as look, transaction(live.dsn) as holder:
        facts = await populate(look)
        if call.setup:
            await look.execute(call.setup)
        for position, table in enumerate(ORDER):
            async with transaction(live.dsn) as caller:
                await holder.execute(ORDER[table])
                task = asyncio.create_task(call.action(caller, facts))
                blocked = await waits(look, task, caller.get_server_pid(), holder.get_server_pid())
                if blocked:
                    waited.add(table)
                    wrong += [
                        f"waits for {table}, holds {later}"
                        for later in list(ORDER)[position + 1 :]
                        if await held(live.dsn, later)
                    ]
                await holder.execute("rollback; begin")
                await task
                await caller.execute("rollback")
    assert wrong == []
    assert waited - {"iu_route_attempt"} == call.waits_for


#: Functions of the package that write or lock rows of two or more of these tables, and the calls above that run them.
#: The empty name stands for a function on whose locks no other session can wait: it skips locked rows, or holds the
#: lease or the cursor of its caller.
COVERED = {
    "fn_iu_batch_dead_letters": "run, an event given up",
    "fn_iu_batch_enqueue": "",
    "fn_iu_breaker_success": "settle a probe that arrived",
    "fn_iu_delivery_cancel": "cancel",
    "fn_iu_delivery_dead_letter": "settle what was rejected",
    "fn_iu_delivery_of_call": "record a call that was ahead",
    "fn_iu_delivery_settle_failed": "settle what failed",
    "fn_iu_delivery_settle_sent": "settle what arrived",
    "fn_iu_delivery_unrecorded": "settle what cannot be recorded",
    "fn_iu_dead_letters_queue": "replay all",
    "fn_iu_dead_letters_replay": "replay all",
    "fn_iu_dead_letters_resolve": "resolve",
    "fn_iu_route_dead_letter_replay": "replay, queued",
}


def locked(source: str) -> set[str]:
    """The tables of which this function body writes or locks rows."""
    tables = "|".join(ORDER)
    written = re.findall(rf"(?:update|insert into|delete from) public\.({tables})\b", source)
    held = re.findall(rf"from public\.({tables})\b[^;]*?for (?:update|share)", source)
    return {*written, *held}


async def test_each_function_that_locks_two_tables_is_tested(live):
    """Each function that writes or locks rows of two of these tables is called above, directly or by another function.

    Fails when: a function is added that is not.
    """
    async with connected(live.dsn) as connection:
        functions = await connection.fetch(
            "select proname, prosrc from pg_proc where pronamespace = 'public'::regnamespace"
        )
    found = {row["proname"] for row in functions if len(locked(row["prosrc"])) >= 2}
    assert found == set(COVERED)
    assert {name for name in COVERED.values() if name} <= set(CALLS)
