"""The adapter of the public benchmark harness: the records that it prints, without the harness."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from conventions.files import ROOT

FOLDER = ROOT / "bench" / "harness"
#: The metrics that the harness requires in every sample.
REQUIRED = {"claim_p50_ms", "claim_p95_ms", "claim_p99_ms", "enqueue_rate", "completion_rate", "queue_depth"}


@pytest.fixture
def samples(monkeypatch) -> ModuleType:
    """The module of the records, which is no part of iu-listen."""
    monkeypatch.syspath_prepend(FOLDER)
    import samples

    return samples


@contextmanager
def adapter(dsn: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """The process as the harness starts it; it is killed if it still runs at the end of the block."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "IU_LISTEN_"))}
    with subprocess.Popen(
        [sys.executable, FOLDER / "adapter.py"],
        env=own | {"DATABASE_URL": dsn} | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def counted(records: list[dict], metric: str) -> float:
    """The number of events in all samples of a rate, as the harness computes it."""
    return sum(record["value"] * record["window_s"] for record in records if record["metric"] == metric)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_the_records_are_true(empty):
    """20 events for one call of 100 ms at a time: the rates add up to them, and latencies and depth are those of a queue.

    The last event waits for 19 calls, and the process ends with all of them delivered.

    Fails when: a metric is missing, counts an event twice or not at all, or has another unit; when WORKER_COUNT,
    JOB_WORK_MS or the lines on stdin have no effect; or when the process does not end after SIGTERM.
    """
    manifest = json.loads((FOLDER / "adapter.json").read_text())
    options = {"PRODUCER_PACING": "harness", "WORKER_COUNT": "1", "JOB_WORK_MS": "100", "SAMPLE_EVERY_S": "1"}
    with adapter(empty.dsn, **options) as process:
        descriptor = json.loads(process.stdout.readline())
        began = time.monotonic()
        process.stdin.write("ENQUEUE 15\nENQUEUE 5\n")
        process.stdin.flush()
        records: list[dict] = []
        for line in process.stdout:
            records.append(json.loads(line))
            settled = records[-1]["metric"] == "queue_depth" and records[-1]["value"] == 0
            if settled and round(counted(records, "completion_rate")) >= 20:
                break
            assert time.monotonic() - began < 30, records[-10:]
        took = 1000 * (time.monotonic() - began)
        process.terminate()
        records += [json.loads(line) for line in process.stdout]
        assert process.wait(5) == 0

    assert descriptor["kind"] == "descriptor"
    assert {key: descriptor[key] for key in ("system", "event_tables", "extensions")} == {
        key: manifest[key] for key in ("system", "event_tables", "extensions")
    }
    assert {(record["kind"], record["subject_kind"], record["instance_id"]) for record in records} == {
        ("adapter", "adapter", 0)
    }
    values = defaultdict(list)
    for record in records:
        values[record["metric"]].append(record["value"])
    assert set(values) >= REQUIRED
    assert len({len(found) for found in values.values()}) == 1, "every sample has every metric"
    assert round(counted(records, "enqueue_rate"), 6) == round(counted(records, "completion_rate"), 6) == 20
    assert values["claim_p50_ms"][-1] < values["claim_p95_ms"][-1] <= values["claim_p99_ms"][-1]
    assert 1900 <= values["claim_p99_ms"][-1] < took
    assert values["claim_p99_ms"][-1] + 100 <= values["end_to_end_p99_ms"][-1] * 1.002 < took
    assert 0 < max(values["queue_depth"]) <= 20
    assert values["queue_depth"][-1] == 0
    with adapter(empty.dsn, SCENARIO="drain") as process:
        account = json.loads(process.stdout.readline())
    assert account == {
        "kind": "account", "events": 20, "delivered": 20, "lost": 0, "repeated": 0, "dead_letters": 0,
    }  # fmt: skip


def test_percentiles_have_three_figures(samples):
    """The percentiles of 1 ms to 1 000 ms are right to one part in a thousand, and old latencies are forgotten.

    Fails when: values are put into coarser classes, or the window does not move.
    """
    latencies = samples.Latencies()
    for number in range(1, 1001):
        latencies.add(number, now=100 + number / 1000)

    assert latencies.percentiles(0.5, 0.95, 0.99, now=101) == pytest.approx([500, 950, 990], rel=0.001)
    assert latencies.percentiles(0.5, now=101 + samples.WINDOW) == [0]


def test_only_one_replica_reports_the_depth(samples):
    """The depth is that of the whole system, so the harness gets it from replica 0 only.

    Fails when: each replica reports it, so that the harness adds the same depth several times.
    """
    sampled = [{r["metric"] for r in samples.Sampler(samples.Measured(), n, 5).samples()} for n in (0, 1)]

    assert sampled[0] >= REQUIRED
    assert sampled[0] - sampled[1] == {"queue_depth", "producer_target_rate"}
