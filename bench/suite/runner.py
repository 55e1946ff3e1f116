"""The rounds: in each round of a measurement every subject is measured once, and the order differs between rounds.

A machine that becomes slower or busier then affects all subjects alike, and a comparison of medians stays fair.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from suite.bench import Bench
from suite.measurements.measurement import Measurement, Metric, Outcome

#: The longest time that one subject may take in one round, in seconds.
LONGEST = 240


@dataclass
class Series:
    """The outcomes of one subject in the rounds of one measurement."""

    subject: str
    kind: str
    outcomes: list[Outcome] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def figures(self, metric: str) -> list[float]:
        """The figure of each round."""
        return [outcome.figures[metric] for outcome in self.outcomes if metric in outcome.figures]

    def median(self, metric: str) -> float | None:
        """Median of the rounds; None if there is no figure."""
        return statistics.median(found) if (found := self.figures(metric)) else None


@dataclass
class Table:
    """The results of one measurement."""

    key: str
    title: str
    text: str
    chart: str
    metrics: list[Metric]
    series: list[Series]

    def ranking(self) -> list[Series]:
        """The subjects from the best to the worst by the first metric; those without a figure at the end."""
        first = self.metrics[0]
        sign = 1 if first.better == "lower" else -1
        found = [(one.median(first.name), one) for one in self.series]
        ranked = sorted((pair for pair in found if pair[0] is not None), key=lambda pair: sign * (pair[0] or 0))
        return [one for _, one in ranked] + [one for value, one in found if value is None]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Table:
        series = [
            Series(one["subject"], one["kind"], [Outcome(**outcome) for outcome in one["outcomes"]], one["errors"])
            for one in data["series"]
        ]
        return cls(**data | {"metrics": [Metric(**metric) for metric in data["metrics"]], "series": series})


def order(subjects: Sequence[str], number: int) -> list[str]:
    """The order of the subjects in a round: rotated in each round, and reversed in every other one."""
    turned = [*subjects[number % len(subjects) :], *subjects[: number % len(subjects)]]
    return turned[::-1] if number % 2 else turned


async def measure(bench: Bench, measurement: Measurement, rounds: int, step: Callable[[str], None]) -> Table:
    """Run the rounds of one measurement; ``step`` is told the name of each subject after it was measured."""
    runs = dict(measurement.subjects(bench))
    kinds = {system.name: system.kind for system in bench.systems} | {"bound": "bound"}
    series = {name: Series(name, kinds.get(re.split("[,:]", name)[0], "variant")) for name in runs}
    for number in range(rounds):
        for name in order(list(runs), number):
            began = time.monotonic()
            try:
                async with asyncio.timeout(LONGEST):
                    series[name].outcomes.append(await runs[name]())
            except Exception as error:  # noqa: BLE001  One system that fails must not end the run; the report names it.
                series[name].errors.append(f"{type(error).__name__}: {error}"[:600])
            step(f"{measurement.title}: {name} ({time.monotonic() - began:.0f} s)")
    return Table(
        key=measurement.key,
        title=measurement.title,
        text=measurement.text,
        chart=measurement.chart,
        metrics=list(measurement.metrics(bench.sizes)),
        series=list(series.values()),
    )
