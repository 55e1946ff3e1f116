"""Head of line: single events while another producer has written an event and keeps its transaction open."""

from __future__ import annotations

import asyncio
import time

import asyncpg

from common import percentile
from suite.bench import Bench
from suite.measurements.measurement import Measurement, Metric, Outcome, of_each_system
from suite.systems import System

#: The number of the event whose transaction stays open.
HELD = 1_000_000


async def _hold(connection: asyncpg.Connection, system: System, seconds: float, written: asyncio.Event) -> float:
    """Write an event and commit it after some seconds; return the time of the answer to the commit."""
    async with connection.transaction():
        await connection.fetch(system.enqueue, HELD, HELD)
        written.set()
        await asyncio.sleep(seconds)
    return time.time()


async def _held(bench: Bench, system: System) -> Outcome:
    database = await bench.clear(system)
    await bench.settle(database)
    producer, holder = await bench.connect(database), await bench.connect(database)
    began, committed = {}, {}
    async with bench.worker(system, "latency") as worker:
        await bench.ready(worker, producer, system)
        written = asyncio.Event()
        holding = asyncio.create_task(_hold(holder, system, bench.sizes.held, written))
        await written.wait()
        number = 0
        while not holding.done():
            number += 1
            began[number] = time.time()
            await producer.fetch(system.enqueue, number, number)
            committed[number] = time.time()
            await asyncio.sleep(0.02)
        called = await worker.called(number + 1, 20)
        released = await holding
    await producer.close()
    await holder.close()
    waits = [1000 * (called[n] - at) for n, at in committed.items()]
    whole = [1000 * (called[n] - at) for n, at in began.items()]
    return Outcome(
        {
            "p50": percentile(waits, 0.5),
            "p99": percentile(waits, 0.99),
            "longest from the begin of an insert": max(whole),
            "the open event, after its commit": 1000 * (called[HELD] - released),
        }
    )


HELD_TRANSACTION = Measurement(
    key="held",
    title="Behind an open transaction",
    text="Live latency of single events while another producer has written an event and keeps its transaction open. "
    "A producer that has to wait for the other one shows in the time from the begin of its insert.",
    metrics=lambda _: (
        Metric("p50", "ms"),
        Metric("p99", "ms"),
        Metric("longest from the begin of an insert", "ms"),
        Metric("the open event, after its commit", "ms"),
    ),
    subjects=of_each_system(_held),
    quick=False,
)
