"""A database with a past: every kind of event that a dump can contain, read, partly read and unread."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from iu_listen.install import migrate
from iu_listen.postgres.session import session
from support import WORKER, apply_package, connected, insert_event, run_batch

#: Events of another domain, which no worker reads.
FOREIGN_DOMAIN = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
    values ('system', 'alert', 'alert', 'immediate') returning id
"""
#: An event type that is registered and that no route takes.
UNROUTED = """
    insert into event_type_registry (event_domain, event_type, event_stream, delivery_lane)
    values ('iu', 'noted', 'update', 'immediate')
"""


@dataclass(frozen=True)
class EventHistory:
    """The events that the worker had read, and those that it had not."""

    read: tuple[UUID, ...]
    unread: tuple[UUID, ...]


async def create_event_history(dsn: str) -> EventHistory:
    """Fill an empty database: a partly read tick, late commits, and own events of the worker."""
    async with session(dsn, name="tests") as connection:
        await migrate.apply_base(connection)
    async with connected(dsn) as worker, connected(dsn) as late, connected(dsn) as later:
        legacy = [await insert_event(worker) for _ in range(3)]
        await apply_package(dsn)
        await worker.execute(UNROUTED)

        # In progress both at `prev` and at the tick.
        await late.execute("begin")
        unread = [await insert_event(late)]
        async with worker.transaction():
            own = [await insert_event(worker)]
            assert (await run_batch(worker))["seen"] == len(legacy) + 1
            own.append(await insert_event(worker))
        await later.execute("begin")
        unread.append(await insert_event(later))
        page = [await insert_event(worker) for _ in range(6)]
        await worker.execute("update event_outbox set event_type = 'noted' where id = $1", page[0])
        assert (await run_batch(worker, 4))["seen"] == 4
        await late.execute("commit")
        await later.execute("commit")
        await worker.execute(FOREIGN_DOMAIN)
        after = [await insert_event(worker) for _ in range(2)]
        cursor = await worker.fetchrow("select tick, own_xid from iu_route_worker_cursor")
        assert None not in tuple(cursor)
    return EventHistory(tuple(legacy + own + page[:3]), tuple(unread + page[3:] + after))


async def add_partial_reader(connection: asyncpg.Connection, worker: str, limit: int) -> list[UUID]:
    """Register another worker and let it read one page from the beginning; return the events that it has not read."""
    await connection.execute(
        """insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
           select $1, event_domain, lineage from iu_route_worker_cursor where worker_name = $2""",
        worker,
        WORKER,
    )
    assert (await run_batch(connection, limit, worker))["seen"] == limit
    rows = await connection.fetch(
        """select o.id from event_outbox o, iu_route_worker_cursor w
            where o.event_domain = w.event_domain and w.worker_name = $1
              and not fn_iu_outbox_consumed(w, o.xact_id, o.event_seq, o.id)""",
        worker,
    )
    return [row["id"] for row in rows]


async def reanchor(
    connection: asyncpg.Connection, since: datetime | None = None, *, force: bool = False, plan: bool = False
) -> dict[str, Any]:
    """The answer of fn_iu_outbox_reanchor; like the command, it waits at most 10 s for a lock."""
    await connection.execute("set lock_timeout = '10s'")
    answer: dict[str, Any] = json.loads(
        await connection.fetchval("select fn_iu_outbox_reanchor($1, $2, $3)::text", since, force, plan)
    )
    return answer


async def planned_figures(
    connection: asyncpg.Connection, since: datetime | None = None, worker: str = WORKER
) -> dict[str, Any]:
    """The figures of the plan for one worker."""
    plan = await reanchor(connection, since, plan=True)
    return next(w for w in plan["workers"] if w["worker_name"] == worker)


async def changeable_rows(connection: asyncpg.Connection) -> list[Any]:
    """All rows that a reanchor may change, except the sequence."""
    return [
        await connection.fetch(f"select x.xmin, x::text from {table} x order by 2")
        for table in ("event_outbox", "iu_outbox_anchor", "iu_route_worker_cursor")
    ]


async def refusal(connection: asyncpg.Connection, worker: str = WORKER) -> str | None:
    """The reason why this worker refuses; None: it does not refuse."""
    why: str | None = await connection.fetchval(
        "select fn_iu_outbox_refusal(lineage, prev) from iu_route_worker_cursor where worker_name = $1", worker
    )
    return why


async def assert_complete(connection: asyncpg.Connection) -> None:
    """Assert that every event of the domain has exactly one attempt, and that there is no backlog."""
    wrong = await connection.fetch(
        """select o.id, count(a.id) from event_outbox o left join iu_route_attempt a on a.event_ref = o.id
            where o.event_domain = 'iu' group by o.id having count(a.id) <> 1"""
    )
    assert [dict(row) for row in wrong] == []
    assert await connection.fetchval("select count(*) from iu_route_attempt") == await connection.fetchval(
        "select count(*) from event_outbox where event_domain = 'iu'"
    )
    assert await connection.fetchval("select sum(backlog) from v_iu_event_backlog") == 0
