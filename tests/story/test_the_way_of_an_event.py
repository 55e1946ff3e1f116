"""Start here: the steps of an event in their order, with one idea in each test."""

from __future__ import annotations

from uuid import uuid4

import pytest

from iu_listen.model.observation import BatchRan
from iu_listen.model.routing import Wake
from postgres.listener_helpers import wait_until_armed
from support import attempted, connected, consuming, drain, insert_event, run_batch, wait_until

pytestmark = pytest.mark.asyncio


async def new_version(connection, unit=None):
    """The transaction of an application: it changes its data without any knowledge of events."""
    unit = unit or await connection.fetchval(
        "insert into information_unit (canonical_address, title) values ($1, 'a unit') returning id", f"story/{uuid4()}"
    )
    await connection.execute(
        "insert into unit_version (unit_id, version_seq) select $1, count(*) + 1 from unit_version where unit_id = $1",
        unit,
    )
    return unit


async def test_a_new_version_writes_an_event(live):
    """A version after the first writes an event to the outbox, in the transaction of the version."""
    async with connected(live.dsn) as connection:
        unit = await new_version(connection)
        await new_version(connection, unit)
        events = await connection.fetch("select event_type, event_subject_ref from event_outbox")

    assert [tuple(row) for row in events] == [("version_applied", unit)]


async def test_an_event_wakes_the_idle_consumer(live):
    """A committed event sends NOTIFY, and the idle consumer routes it a moment later."""
    async with consuming(live.dsn) as observer, connected(live.dsn) as connection:
        await wait_until_armed(connection)
        event = await insert_event(connection)
        batch = await observer.wait_for(BatchRan, lambda o: o.batch.seen)

        assert batch.wake is Wake.NOTIFY
        assert await attempted(connection) == [event]


async def test_every_decision_is_audited(live):
    """The attempt records the route, the decision, and that nothing was delivered."""
    async with connected(live.dsn) as connection:
        event = await insert_event(connection)
        await drain(connection)
        attempt = await connection.fetchrow("select * from iu_route_attempt")

    assert attempt["event_ref"] == event
    assert attempt["route_code"] == "iu.version_applied.workflow"
    assert (attempt["status"], attempt["decision"], attempt["delivered"]) == ("dry_run", "dry_run", False)


async def test_a_closed_gate_stops_the_worker(applied):
    """After the apply the worker gate is closed, and a run reads nothing."""
    async with connected(applied.dsn) as connection:
        await insert_event(connection)
        answer = await run_batch(connection)

        assert answer["status"] == "worker_gate_closed"
        assert await attempted(connection) == []


async def test_a_late_commit_is_not_lost(live):
    """An event of an older transaction is routed when it commits, and no other event waited for it."""
    async with connected(live.dsn) as slow, connected(live.dsn) as quick:
        transaction = slow.transaction()
        await transaction.start()
        late = await insert_event(slow)
        early = await insert_event(quick)
        await drain(quick)
        assert await attempted(quick) == [early]

        await transaction.commit()
        await drain(quick)

        assert await attempted(quick) == [early, late]


async def test_a_backlog_is_routed_after_an_absence(live):
    """Events that were written while no consumer ran are routed when one starts."""
    async with connected(live.dsn) as connection:
        events = [await insert_event(connection) for _ in range(20)]
        async with consuming(live.dsn):

            async def all_decided() -> bool:
                return await attempted(connection) == events

            await wait_until(all_decided, "everything is decided, in order")


async def test_one_poison_event_becomes_a_dead_letter(live):
    """An event that cannot be routed is kept completely, the others are routed, and a replay routes it later."""
    async with connected(live.dsn) as connection:
        good = [await insert_event(connection) for _ in range(3)]
        poison = await insert_event(connection)
        await connection.execute(
            f"alter table iu_route_attempt add constraint poison check (event_ref <> '{poison}' or status = 'failed')"
        )
        await drain(connection)
        letter = await connection.fetchrow("select id, event_ref from v_iu_route_dead_letter_open")
        await connection.execute("alter table iu_route_attempt drop constraint poison")
        replayed = await connection.fetchval("select fn_iu_route_dead_letter_replay($1) ->> 'status'", letter["id"])
        statuses = await connection.fetch("select event_ref, status from iu_route_attempt order by id")

    assert letter["event_ref"] == poison
    assert replayed == "replayed"
    assert [tuple(r) for r in statuses] == [
        *((event, "dry_run") for event in good), (poison, "failed"), (poison, "dry_run")
    ]  # fmt: skip
