"""The results of a run, and the form of figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from suite.measurements.measurement import Metric
from suite.runner import Series, Table


@dataclass
class Run:
    """Facts about a run, and its tables."""

    about: dict[str, Any]
    tables: list[Table]


def number(value: float) -> str:
    """A figure with three significant digits at least."""
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(series: Series, metric: Metric) -> str:
    """Median of the rounds, and their range."""
    found = series.figures(metric.name)
    if not found:
        return "–"
    middle = series.median(metric.name) or 0.0
    if len(found) == 1:
        return number(middle)
    return f"{number(middle)} ({number(min(found))} – {number(max(found))})"


def head(metric: Metric) -> str:
    return f"{metric.name}, {metric.unit}" if metric.unit else metric.name


def ratio(table: Table, series: Series) -> str:
    """The first metric as a multiple of that of iu-listen: more than 1 is worse than iu-listen."""
    first = table.metrics[0]
    ours = next((one for one in table.series if one.kind == "ours"), None)
    base, own = ours and ours.median(first.name), series.median(first.name)
    if not base or not own or series is ours:
        return ""
    return f"{own / base if first.better == 'lower' else base / own:.2f}"


def summary(about: dict[str, Any]) -> str:
    """One paragraph about the conditions of a run."""
    return (
        f"{about['date']}. Interleaved rounds of each measurement: {about['sizes']['rounds']}. "
        f"{about['cores']} cores ({about['processor'] or 'unknown processor'}), load average at the end "
        f"{about['load']:.1f}. "
        f"PostgreSQL {about['postgresql']} with durable commits, Python {about['python']}, "
        "all systems on one machine and one server, through TCP on the loopback address."
    )
