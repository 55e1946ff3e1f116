"""What a measurement is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from suite.bench import Bench
from suite.sizes import Sizes
from suite.systems import System


@dataclass
class Outcome:
    """The result of one subject in one round.

    Attributes:
        figures: Its figures, by the name of the metric; a figure that the subject does not have is left out.
        samples: The single values from which the first figure was computed, for a plot of their distribution.
    """

    figures: dict[str, float]
    samples: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Metric:
    """One column of the results. ``better`` is ``lower`` or ``higher``."""

    name: str
    unit: str
    better: str = "lower"


#: Measures one subject once.
Run = Callable[[], Awaitable[Outcome]]


@dataclass(frozen=True)
class Measurement:
    """One measurement.

    Attributes:
        key: Its name on the command line.
        title: Its title.
        text: What is measured, and how.
        metrics: Its metrics for the sizes of a run; the first one decides the ranking.
        subjects: What is measured, by name: systems or variants. Each is measured once in each round.
        chart: ``bars`` of the first metric, ``distribution`` of its samples, or ``lines`` over the metrics.
        quick: True: part of a quick run.
    """

    key: str
    title: str
    text: str
    metrics: Callable[[Sizes], tuple[Metric, ...]]
    subjects: Callable[[Bench], Mapping[str, Run]]
    chart: str = "bars"
    quick: bool = True


def of_each_system(
    measure: Callable[[Bench, System], Awaitable[Outcome]],
) -> Callable[[Bench], dict[str, Run]]:
    """The subjects of a measurement that is the same for each system."""

    def subjects(bench: Bench) -> dict[str, Run]:
        return {system.name: (lambda system=system: measure(bench, system)) for system in bench.systems}

    return subjects
