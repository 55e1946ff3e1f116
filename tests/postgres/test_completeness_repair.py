"""Repair and acceptance of the events that the completeness check has found."""

from __future__ import annotations

import json
import random

import pytest

from postgres.completeness_helpers import append_events, confirm, delete_attempts, missing_events, repair, run_pass
from postgres.routes import add_dry_run_route
from support import WORKER, attempted, connected, drain, insert_event, open_gate, run_batch

pytestmark = pytest.mark.asyncio


async def test_a_closed_gate_stops_decisions_but_not_the_completeness_check(live):
    """With the worker gate closed the check finds, and a repair moves, the event, which waits in the backlog."""
    async with connected(live.dsn) as worker:
        events = await append_events(worker, 3)
        await drain(worker)
        await open_gate(live.dsn, "false")
        await delete_attempts(worker, events[1])
        assert (await run_pass(worker))[-1]["missing"] == 1
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
        await delete_attempts(worker, *random.Random(1).sample(lost, len(lost)))
        await run_pass(worker)
        while (await repair(worker, 7))["more"]:
            pass
        await drain(worker, 11)
        assert (await attempted(worker))[-30:] == lost


async def test_a_repair_accepts_events_that_no_decision_can_complete(live):
    """An event that lacks an attempt of a route that is now disabled is not moved: the repair accepts it as it is.

    Fails when: the repair moves an event that a new decision would not complete, or leaves it
    in the list of missing events.
    """
    async with connected(live.dsn) as worker:
        await add_dry_run_route(worker, "second", "version_applied")
        events = await append_events(worker, 3)
        await drain(worker)
        await worker.execute("update iu_outbound_route set enabled = false where route_code = 'second'")
        await delete_attempts(worker, events[0], code="second")
        await delete_attempts(worker, events[2])
        await run_pass(worker)
        rows = await worker.fetch("select event_ref, repairable from v_iu_completeness_missing order by event_seq")
        assert [tuple(row) for row in rows] == [(events[0], False), (events[2], True)]
        assert await repair(worker) == {"restamped": 1, "accepted": 1, "more": False}
        await drain(worker)
        assert (await run_pass(worker))[-1]["missing"] == 0
        assert tuple(await worker.fetchrow("select missing, accepted from v_iu_completeness")) == (0, 1)
        # Each pass checks it, and it needs no further confirmation.
        assert [a["status"] for a in await run_pass(worker)] == ["passed"]


async def test_skipped_events_are_missing_until_they_are_accepted(live):
    """Events that a cursor skipped when it was reset to the present are missing until they are accepted."""
    async with connected(live.dsn) as worker:
        events = await append_events(worker, 3)
        await worker.execute("update iu_route_worker_cursor set prev = fn_iu_outbox_tick()")
        assert (await run_pass(worker))[-1]["missing"] == 3
        assert set(await missing_events(worker)) == set(events)
        await worker.execute("update iu_completeness_missing set accepted_at = now()")
        assert (await run_pass(worker))[-1]["missing"] == 0


async def test_health_warns_about_missing_events(live):
    """Health gives a warning with the number of missing events; without missing events there is no warning."""
    async with connected(live.dsn) as worker:
        for _ in range(5):
            await insert_event(worker)
        await drain(worker)
        await run_pass(worker)
        told = json.loads(await worker.fetchval("select fn_iu_route_worker_health($1)::text", WORKER))
        assert (told["completeness_missing"], told["warnings"]) == (0, [])
        await worker.execute("delete from iu_route_attempt where id in (select id from iu_route_attempt limit 2)")
        await run_pass(worker)
        told = json.loads(await worker.fetchval("select fn_iu_route_worker_health($1)::text", WORKER))
        assert [(w["code"], w["figure"]) for w in told["warnings"]] == [("completeness_missing", 2)]
