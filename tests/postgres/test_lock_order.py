"""The lock order of delivery: two functions that lock the same rows never wait for each other in a circle."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from postgres.couriers import ROUTE, open_route
from support import WORKER, connected, insert_event, run_batch

pytestmark = pytest.mark.asyncio

#: The order, and how a row of each table is locked by somebody else.
ORDER = {
    "iu_delivery_lease": "select from iu_delivery_lease for update",
    "iu_route_worker_cursor": "select from iu_route_worker_cursor for update",
    "iu_outbound_route": f"select from iu_outbound_route where route_code = '{ROUTE}' for update",
    "iu_delivery_breaker": f"select from iu_delivery_breaker where route_code = '{ROUTE}' for update",
    "iu_route_delivery": "select from iu_route_delivery for update",
    "iu_route_dead_letter": "select from iu_route_dead_letter for update",
    "iu_route_attempt": """
        insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key, attempt_no)
        select event_ref, route_kind, route_code, 'failed', idempotency_key, n
          from iu_route_dead_letter cross join generate_series(2, 3) n
    """,
}


@dataclass(frozen=True)
class Call:
    """A function that locks rows of at least two of these tables, what has to be so before, and which it waits for."""

    statement: str
    waits_for: frozenset[str]
    setup: str = ""


def settle(result: str) -> str:
    """The statement that settles the delivery in this way."""
    one, none = "'{{{route}}}', '{{{id}}}'", "'{{}}', '{{}}'"
    sent = f"{one}, '{{{{0}}}}', '{{{{0}}}}', {none}, '{{{{}}}}', {none}, {none}, '{{{{}}}}'"
    other = (
        f"{none}, {none}, {one}, '{{{{{result}}}}}', '{{{{0}}}}', '{{{{0}}}}', '{{{{x}}}}', '{{{{x}}}}', '{{{{null}}}}'"
    )
    return f"select fn_iu_delivery_settle('{{worker}}', '{{owner}}', {sent if result == 'sent' else other})"


#: No decision can be audited as a dry run.
POISON = """
    create function poison() returns trigger language plpgsql as $$ begin raise exception 'poisoned'; end $$;
    create trigger poison before insert on iu_route_attempt for each row
        when (new.status = 'dry_run') execute function poison()
"""
#: No delivery: the dead letter is not on its way.
NOT_QUEUED = "delete from iu_route_delivery"
HELD = f"update iu_delivery_breaker set opened_at = now(), probe_at = now() where route_code = '{ROUTE}'"
LETTERS = frozenset({"iu_route_dead_letter"})
LEASE = frozenset({"iu_delivery_lease"})
CALLS = {
    "settle what arrived": Call(
        settle("sent"), LEASE | LETTERS | {"iu_route_delivery"}, "update iu_route_delivery set replayed_by = 'ann'"
    ),
    "settle what failed": Call(settle("failed"), LEASE | {"iu_delivery_breaker", "iu_route_delivery"}),
    "settle what was rejected": Call(
        settle("rejected"), LEASE | LETTERS | {"iu_delivery_breaker", "iu_route_delivery"}
    ),
    "cancel": Call(
        "select fn_iu_delivery_cancel('{route}', null, 'a test')",
        LEASE | LETTERS | {"iu_outbound_route", "iu_route_delivery"}, HELD,
    ),
    "replay, queued": Call("select fn_iu_route_dead_letter_replay('{letter}')", LETTERS, NOT_QUEUED),
    "replay, on its way": Call("select fn_iu_route_dead_letter_replay('{letter}')", LETTERS),
    "replay, dry run": Call(
        "select fn_iu_route_dead_letter_replay('{letter}')", LETTERS,
        NOT_QUEUED + "; update iu_outbound_route set dry_run = true",
    ),
    "replay all": Call(
        "select fn_iu_dead_letters_replay('{route}', null, null, null, null, 'ann', null, null, null)",
        LEASE | LETTERS, NOT_QUEUED,
    ),
    "resolve": Call(
        "select fn_iu_dead_letters_resolve('{{{letter}}}', 'a test')", LEASE | LETTERS, NOT_QUEUED
    ),
    "take a probe": Call(
        "select count(*) from fn_iu_delivery_take('{worker}', '{{{route}}}', '{{1}}', '{{0}}', '{{}}', '{{}}', '{{}}')",
        frozenset({"iu_delivery_breaker"}), HELD,
    ),
    "run": Call("select fn_iu_route_worker_run('{worker}', 10)", frozenset({"iu_route_worker_cursor"})),
    "run, an event given up": Call(
        "select fn_iu_route_worker_run('{worker}', 10)", LETTERS | {"iu_route_worker_cursor"},
        NOT_QUEUED + "; delete from iu_route_attempt; update iu_outbound_route set dry_run = true; " + POISON
        + "; update iu_route_worker_cursor set prev = '3:3:', hi_seq = 0",
    ),
    "live": Call("select fn_iu_route_live('{route}', false, 'a test')", frozenset({"iu_outbound_route"})),
    "resume": Call("select fn_iu_route_resume('{route}')", frozenset({"iu_delivery_breaker"}), HELD),
}  # fmt: skip


@asynccontextmanager
async def transaction(dsn: str):
    """A session in a transaction that is rolled back."""
    async with connected(dsn) as connection:
        await connection.execute("begin")
        yield connection


async def waits(connection: asyncpg.Connection, task: asyncio.Task[object], pid: int, holder: int) -> bool:
    """Whether this task, in that session, comes to wait for that other one; False: it ended before."""
    with anyio.fail_after(15):
        while not task.done():
            if await connection.fetchval("select $2 = any (pg_blocking_pids($1))", pid, holder):
                return True
            await asyncio.sleep(0.005)
    return False


async def held(dsn: str, table: str) -> bool:
    """Whether somebody holds the row of this table."""
    async with transaction(dsn) as other:
        await other.execute("set local lock_timeout = '50ms'")
        try:
            await other.execute(ORDER[table])
        except asyncpg.LockNotAvailableError:
            return True
        return False


async def populate(connection: asyncpg.Connection) -> dict[str, object]:
    """A row in each of the tables, all of one event: delivered once in vain, a dead letter, and on its way again."""
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
    return {"worker": WORKER, "owner": owner, "route": ROUTE, "id": id, "letter": letter, "key": key}


@pytest.mark.parametrize("name", CALLS)
async def test_who_waits_for_a_lock_holds_none_that_comes_later(live, name):
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
                task = asyncio.create_task(caller.fetchval(call.statement.format(**facts)))
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
