"""The records that the harness reads: latencies of the last 30 seconds in bounded memory, rates, and lines of JSON."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

#: The manifest, which the harness reads before it starts the adapter.
MANIFEST = json.loads(Path(__file__).with_name("adapter.json").read_text())
#: Length of the window of latencies, in seconds.
WINDOW = 30
#: Logarithm of the ratio of neighbouring values: three significant figures.
STEP = math.log(1.001)
#: Metrics about the whole system; only the replica 0 reports them.
GLOBAL = ("queue_depth", "producer_target_rate")


class Latencies:
    """Latencies of the last WINDOW seconds: for each second, the number of each value with three significant figures."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, Counter[int]]] = deque()

    def add(self, milliseconds: float, now: float) -> None:
        """Add a latency, at a monotonic time in seconds."""
        if not self._seconds or self._seconds[-1][0] != int(now):
            self._seconds.append((int(now), Counter()))
            self._forget(now)
        self._seconds[-1][1][round(math.log(max(milliseconds, 0.001)) / STEP)] += 1

    def percentiles(self, *parts: float, now: float) -> list[float]:
        """The values, in milliseconds, below or at which these parts of the latencies lie; 0 if there are none."""
        self._forget(now)
        counts: Counter[int] = Counter()
        for _, counter in self._seconds:
            counts.update(counter)
        ordered, total = sorted(counts.items()), counts.total()
        found = []
        for part in parts:
            left = math.ceil(part * total)
            value = 0.0
            for step, count in ordered:
                left -= count
                if left <= 0:
                    value = math.exp(step * STEP)
                    break
            found.append(value)
        return found

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] <= now - WINDOW:
            self._seconds.popleft()


@dataclass
class Measured:
    """What a replica has measured since its start.

    Attributes:
        enqueued: Number of events whose commit was answered.
        completed: Number of calls of the target that ended.
        depth: Number of events that were committed and not settled when the database was last asked.
        offered: Events a second that the producer aims at; 0 if it aims at a depth.
        claim: Latencies from the begin of the insert to the first line of the target.
        end_to_end: Latencies from the begin of the insert to the last line of the target.
    """

    enqueued: int = 0
    completed: int = 0
    depth: int = 0
    offered: float = 0.0
    claim: Latencies = field(default_factory=Latencies)
    end_to_end: Latencies = field(default_factory=Latencies)


class Sampler:
    """Turns measurements into samples.

    The harness multiplies a rate by its window, and takes the windows of all replicas as equal. So a rate is the number
    of events since the sample before, divided by `every` seconds, also if that time was shorter, as for the first one.
    """

    def __init__(self, measured: Measured, instance: int, every: float) -> None:
        self._measured, self._instance, self._every = measured, instance, every
        self._enqueued = self._completed = 0

    def samples(self) -> Iterator[dict[str, object]]:
        """The samples of the time since the samples before."""
        now, measured = time.monotonic(), self._measured
        values: list[tuple[str, float, float]] = []
        for name, latencies in (("claim", measured.claim), ("end_to_end", measured.end_to_end)):
            for part, value in zip((50, 95, 99), latencies.percentiles(0.5, 0.95, 0.99, now=now), strict=True):
                values.append((f"{name}_p{part}_ms", value, WINDOW))
        values += [
            ("enqueue_rate", (measured.enqueued - self._enqueued) / self._every, self._every),
            ("completion_rate", (measured.completed - self._completed) / self._every, self._every),
            ("queue_depth", measured.depth, 0),
            ("producer_target_rate", measured.offered, 0),
        ]
        self._enqueued, self._completed = measured.enqueued, measured.completed
        at = timestamp()
        for metric, value, seconds in values:
            if metric not in GLOBAL or self._instance == 0:
                yield {
                    "t": at, "system": MANIFEST["system"], "instance_id": self._instance, "kind": "adapter",
                    "subject_kind": "adapter", "subject": "", "metric": metric, "value": value, "window_s": seconds,
                }  # fmt: skip


def timestamp() -> str:
    """The time, as the harness writes times."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def emit(record: dict[str, object]) -> None:
    """Write one record to stdout."""
    print(json.dumps(record), flush=True)
