"""Deliveries to a webhook on the same machine, beside bare requests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from common import ROUTE
from suite.bench import Bench
from suite.measurements.deliveries import deliver
from suite.measurements.measurement import Measurement, Metric, Outcome, Run
from suite.systems import OURS, WORKERS

DATABASE = "bench_webhooks"
TO_ADDRESS = """
update iu_outbound_route
   set target_kind = 'external_endpoint', target_ref = $2,
       delivery_policy = '{"concurrency": 50, "deadline": 30}'
 where route_code = $1
"""
#: The time of the first attempt, in seconds since 1970.
FIRST = "select extract(epoch from min(created_at))::float8 from iu_route_attempt"


@asynccontextmanager
async def _receiver() -> AsyncIterator[str]:
    """The port of a receiver that answers every request with 200."""
    process = subprocess.Popen([sys.executable, WORKERS / "run_receiver.py"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


async def _ours(bench: Bench) -> Outcome:
    events = bench.sizes.webhooks
    await bench.clear(OURS, DATABASE)
    async with _receiver() as port:
        connection = await bench.connect(DATABASE)
        await connection.execute(TO_ADDRESS, ROUTE, f"http://127.0.0.1:{port}/")
        await connection.fetch(OURS.enqueue, 1, events)
        await connection.close()
        await bench.settle(DATABASE)
        allowed = {"IU_LISTEN_ALLOW_PRIVATE": "127.0.0.1"}
        return await deliver(bench, OURS, DATABASE, events, began=FIRST, environ=allowed)


async def _client(bench: Bench) -> Outcome:
    """Fifty connections send requests of the same size one after another, without a database and without parsing."""
    request = b"POST / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 450\r\n\r\n" + b" " * 450
    left = iter(range(bench.sizes.webhooks))
    async with _receiver() as port:

        async def post() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in left:
                writer.write(request)
                await reader.readuntil(b"\r\n\r\n")
            writer.close()

        began = time.perf_counter()
        await asyncio.gather(*(post() for _ in range(50)))
    return Outcome({"deliveries": bench.sizes.webhooks / (time.perf_counter() - began)})


def _subjects(bench: Bench) -> dict[str, Run]:
    if OURS not in bench.systems:
        return {}
    return {"iu-listen": lambda: _ours(bench), "bound: bare requests": lambda: _client(bench)}


WEBHOOKS = Measurement(
    key="webhooks",
    title="Webhooks",
    text="A backlog is delivered to an address on the same machine, 50 requests at once: from the first attempt until "
    "every event is settled. The bound is as many requests, without a database and without reading the answers.",
    metrics=lambda _: (Metric("deliveries", "/s", better="higher"), Metric("memory", "MB")),
    subjects=_subjects,
    quick=False,
)
