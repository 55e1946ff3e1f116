"""Latency: the time from the answer to the commit of an event to the first line of its handler."""

from __future__ import annotations

import asyncio
import time

import asyncpg

from common import percentile
from suite.bench import Bench
from suite.measurements.measurement import Measurement, Metric, Outcome, of_each_system
from suite.sizes import Sizes
from suite.systems import System

#: Connections of the producer that writes at a rate; a commit takes longer than the interval between two events.
PRODUCERS = 8


async def _single(bench: Bench, system: System) -> Outcome:
    """Single events, 20 ms apart, by one connection."""
    database = await bench.clear(system)
    await bench.settle(database)
    connection = await bench.connect(database)
    began, committed = {}, {}
    async with bench.worker(system, "latency") as worker:
        await bench.ready(worker, connection, system)
        for number in range(1, bench.sizes.single + 1):
            began[number] = time.time()
            await connection.fetch(system.enqueue, number, number)
            committed[number] = time.time()
            await asyncio.sleep(0.02)
        called = await worker.called(bench.sizes.single, 20)
    await connection.close()
    waits = [1000 * (called[n] - committed[n]) for n in committed]
    whole = [1000 * (called[n] - began[n]) for n in committed]
    figures = {"p50": percentile(waits, 0.5), "p90": percentile(waits, 0.9), "p99": percentile(waits, 0.99)}
    return Outcome(figures | {"from the begin of the insert": percentile(whole, 0.5)}, samples=waits)


async def _at_rates(bench: Bench, system: System) -> Outcome:
    """Events at each rate, by several connections in turn."""
    database = await bench.clear(system)
    await bench.settle(database)
    producers = [await bench.connect(database) for _ in range(PRODUCERS)]
    figures = {}
    async with bench.worker(system, "latency") as worker:
        await bench.ready(worker, producers[0], system)
        first = 1
        for rate in bench.sizes.rates:
            count = max(5, int(rate * bench.sizes.seconds_at_rate))
            committed = await _produce(producers, system.enqueue, first, count, rate)
            called = await worker.called(first + count - 1, 30)
            waits = [1000 * (called[number] - at) for number, at in committed.items()]
            figures[f"p50 at {rate}/s"], figures[f"p99 at {rate}/s"] = percentile(waits, 0.5), percentile(waits, 0.99)
            first += count
            await asyncio.sleep(0.5)
    for connection in producers:
        await connection.close()
    return Outcome(figures)


async def _produce(
    producers: list[asyncpg.Connection], enqueue: str, first: int, count: int, rate: int
) -> dict[int, float]:
    """Write events at a rate; return the times of the answers to the commits, by number.

    A producer that is behind its schedule does not skip events, so a system with slow commits gets them later.
    """
    committed: dict[int, float] = {}
    began = time.monotonic()

    async def write(connection: asyncpg.Connection, share: int) -> None:
        for place in range(share, count, len(producers)):
            await asyncio.sleep(max(0.0, began + place / rate - time.monotonic()))
            await connection.fetch(enqueue, first + place, first + place)
            committed[first + place] = time.time()

    await asyncio.gather(*(write(connection, share) for share, connection in enumerate(producers)))
    return committed


def _metrics_at_rates(sizes: Sizes) -> tuple[Metric, ...]:
    return tuple(Metric(f"{part} at {rate}/s", "ms") for part in ("p50", "p99") for rate in sizes.rates)


LATENCY = Measurement(
    key="latency",
    title="Live latency",
    text="The time from the answer to a commit to the first line of the handler, for single events 20 ms apart. It can "
    "be negative, because a worker may hear of a commit before the producer does. The bound is NOTIFY, then one durable "
    "INSERT, then the call.",
    metrics=lambda _: (
        Metric("p50", "ms"),
        Metric("p90", "ms"),
        Metric("p99", "ms"),
        Metric("from the begin of the insert", "ms"),
    ),
    subjects=of_each_system(_single),
    chart="distribution",
)
RATES = Measurement(
    key="rates",
    title="Latency at a rate",
    text="The same time for events that come at a rate, by eight connections in turn, one commit each.",
    metrics=_metrics_at_rates,
    subjects=of_each_system(_at_rates),
    chart="lines",
    quick=False,
)
