"""Deliveries a second to a handler that does nothing, out of a backlog; and the memory of the worker meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import MappingProxyType

from suite.bench import Bench
from suite.measurements.measurement import Measurement, Metric, Outcome, of_each_system
from suite.systems import System


async def deliver(
    bench: Bench,
    system: System,
    database: str,
    events: int,
    *,
    before: int = 0,
    began: str = "",
    environ: Mapping[str, str] = MappingProxyType({}),
) -> Outcome:
    """Deliver a backlog that is written already: from the first call until the system has settled all events.

    Args:
        bench: The place.
        system: The system.
        database: Its database.
        events: Number of events of the backlog.
        before: Number of events that the system has settled before.
        began: Query for the time of the first call, where the target does not record it.
        environ: Added to the environment of the worker.
    """
    connection = await bench.connect(database)
    async with bench.worker(system, "throughput", database=database, record="first", environ=environ) as worker:
        deadline = time.monotonic() + 120
        while await connection.fetchval(system.unfinished, before + events):
            worker.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{system.name} has not settled {events} events in 120 s")
            await asyncio.sleep(0.01)
        settled = time.time()
        first = await connection.fetchval(began) if began else min(worker.calls().values())
    await connection.close()
    return Outcome({"deliveries": events / (settled - first), "memory": worker.peak_mb})


async def _backlog(bench: Bench, system: System) -> Outcome:
    events = int(bench.sizes.backlog * system.share)
    database = await bench.clear(system)
    connection = await bench.connect(database)
    for first in range(1, events + 1, 10_000):
        await connection.fetch(system.enqueue, first, min(first + 9_999, events))
    await connection.close()
    await bench.settle(database)
    return await deliver(bench, system, database, events)


DELIVERIES = Measurement(
    key="deliveries",
    title="Deliveries a second",
    text="A backlog is delivered to a handler that does nothing: from the first call until every event is settled "
    "durably. Slow systems get a tenth or a fifth of the backlog. The memory is the largest of the worker's processes "
    "meanwhile.",
    metrics=lambda _: (Metric("deliveries", "/s", better="higher"), Metric("memory", "MB")),
    subjects=of_each_system(_backlog),
)
