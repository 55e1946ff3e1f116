"""Export of a backlog of attempts as traces, beside the SDK's exporter for as many spans."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import traces
from suite.bench import Bench
from suite.measurements.drain import DRY
from suite.measurements.measurement import Measurement, Metric, Outcome, Run
from suite.systems import OURS


@contextmanager
def _receiver() -> Iterator[dict[str, str]]:
    """A receiver that only counts; the environment of an exporter that sends to it."""
    here, there = multiprocessing.Pipe()
    receiver = multiprocessing.get_context("spawn").Process(target=traces.count, args=(there,), daemon=True)
    receiver.start()
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "IU_LISTEN_"))}
    try:
        yield own | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{here.recv()}"}
    finally:
        receiver.terminate()
        receiver.join()


async def _ours(bench: Bench) -> Outcome:
    await bench.clear(OURS, DRY, live=False)
    await traces.backlog(bench.dsn(DRY), bench.sizes.spans)
    command = [sys.executable, "-m", "iu_listen", "trace-export", "--dsn", bench.dsn(DRY), "--json"]
    with _receiver() as environ:
        said, _, used, memory = await asyncio.to_thread(traces.timed, command, environ)
    answer = json.loads(said)
    assert answer["exported"] == 2 * bench.sizes.spans, answer
    spans = answer["exported"]
    return Outcome({"spans for a second of processor time": spans / used, "spans": spans / answer["seconds"],
                    "memory": memory})  # fmt: skip


async def _sdk(bench: Bench) -> Outcome:
    command = [sys.executable, "-c", traces.SDK, str(min(bench.sizes.spans, 50_000))]
    with _receiver() as environ:
        said, _, _, memory = await asyncio.to_thread(traces.timed, command, environ)
    wall, processor = map(float, said.split())
    return Outcome({"spans for a second of processor time": processor, "spans": wall, "memory": memory})


def _subjects(bench: Bench) -> dict[str, Run]:
    if OURS not in bench.systems:
        return {}
    return {"iu-listen": lambda: _ours(bench), "the SDK's exporter": lambda: _sdk(bench)}


TRACES = Measurement(
    key="traces",
    title="Export of traces",
    text="A backlog of attempts is sent as spans to a receiver that only counts, beside the exporter of the "
    "OpenTelemetry SDK for spans with as many attributes.",
    metrics=lambda _: (
        Metric("spans for a second of processor time", "", better="higher"),
        Metric("spans", "/s", better="higher"),
        Metric("memory", "MB"),
    ),
    subjects=_subjects,
    quick=False,
)
