"""Routing a backlog without deliveries, with the attempts counted; and history that grows."""

from __future__ import annotations

import asyncio
import time

from common import SPAN
from suite.bench import Bench
from suite.measurements.deliveries import deliver
from suite.measurements.measurement import Measurement, Metric, Outcome, Run
from suite.systems import OURS

#: The bound: the same attempts, without a cursor, routing, or idempotency, in one commit.
RAW = """
insert into iu_route_attempt (event_ref, route_kind, route_code, status, decision, delivered, idempotency_key, attempt_no)
select o.id, 'outbound', 'iu.version_applied.workflow', 'dry_run', 'dry_run', false,
       'outbound:iu.version_applied.workflow:' || o.id, 1
  from event_outbox o where o.event_domain = 'iu' order by o.event_seq
"""
DRY = "bench_dry"


async def _written(bench: Bench) -> None:
    """Write the backlog into a database whose route is not live, and whose cursor has read an event before.

    The first batch of a cursor inserts its attempts with ON CONFLICT, because it cannot know that its events are new.
    """
    await bench.clear(OURS, DRY, live=False)
    connection = await bench.connect(DRY)
    await connection.fetch(OURS.enqueue, 1, 1)
    await connection.fetchval("select fn_iu_route_worker_run('iu_outbound_default')")
    await bench.clear(OURS, DRY, live=False)
    await connection.fetch(OURS.enqueue, 1, bench.sizes.drain)
    await connection.close()
    await bench.settle(DRY)


async def _bound(bench: Bench) -> Outcome:
    await _written(bench)
    connection = await bench.connect(DRY)
    began = time.perf_counter()
    await connection.execute(RAW)
    rate = bench.sizes.drain / (time.perf_counter() - began)
    await connection.close()
    return Outcome({"routed": rate})


async def _ours(bench: Bench) -> Outcome:
    events = bench.sizes.drain
    await _written(bench)
    connection = await bench.connect(DRY)
    async with bench.worker(OURS, "throughput", database=DRY) as worker:
        while await connection.fetchval("select total_seen from iu_route_worker_cursor") < events:
            worker.check()
            await asyncio.sleep(0.05)
    span = await connection.fetchrow(SPAN)
    await connection.close()
    assert span["attempts"] == span["events"] == events, dict(span)
    return Outcome({"routed": events / span["seconds"], "memory": worker.peak_mb})


def _drain(bench: Bench) -> dict[str, Run]:
    if OURS not in bench.systems:
        return {}
    return {"bound: one INSERT … SELECT": lambda: _bound(bench), "iu-listen": lambda: _ours(bench)}


async def _beside_history(bench: Bench, attempts: int) -> Outcome:
    """Deliver a backlog into a database that has so many attempts, or a few more in later rounds."""
    database = f"bench_history_{attempts}"
    await bench.prepare(OURS, database)
    connection = await bench.connect(database)
    seen = await connection.fetchval("select total_seen from iu_route_worker_cursor")
    for events in (attempts, bench.sizes.backlog) if not seen else (bench.sizes.backlog,):
        for first in range(1, events + 1, 100_000):
            await connection.fetch(OURS.enqueue, first, min(first + 99_999, events))
        await bench.settle(database)
        outcome = await deliver(bench, OURS, database, events, before=seen)
        seen += events
    await connection.close()
    return outcome


def _history(bench: Bench) -> dict[str, Run]:
    if OURS not in bench.systems:
        return {}
    return {
        f"iu-listen, {attempts:_} attempts before".replace("_", " "): (
            lambda attempts=attempts: _beside_history(bench, attempts)
        )
        for attempts in bench.sizes.history
    }


DRAIN = Measurement(
    key="drain",
    title="Routing a backlog",
    text="A backlog is routed to a route in dry run: one attempt for each event, and no delivery. The bound is one "
    "INSERT … SELECT of the same attempts.",
    metrics=lambda _: (Metric("routed", "/s", better="higher"), Metric("memory", "MB")),
    subjects=_drain,
)
HISTORY = Measurement(
    key="history",
    title="Deliveries beside a history",
    text="Deliveries a second of the same backlog in a database that has few attempts already, and in one that has "
    "many.",
    metrics=lambda _: (Metric("deliveries", "/s", better="higher"), Metric("memory", "MB")),
    subjects=_history,
    quick=False,
)
