"""Plots as inline SVG: bars with the range of the rounds, distributions, and lines over a rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

from suite.report.run import number
from suite.runner import Series, Table

WIDTH, RIGHT = 860, 90
#: Colours of the peers and variants, in the order of their names.
PALETTE = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#8c6d1f", "#7b5ea7", "#5f9ea0", "#b8860b", "#6b8e23", "#a0522d")
OURS, BOUND = "#d55e00", "#8a8f98"
#: Above this ratio of the largest to the smallest figure the axis is logarithmic.
LOGARITHMIC = 15.0


def colour(table: Table, series: Series) -> str:
    """The colour of a subject; the same in each plot that has the same subjects."""
    if series.kind in ("ours", "bound"):
        return OURS if series.kind == "ours" else BOUND
    others = sorted(one.subject for one in table.series if one.kind not in ("ours", "bound"))
    return PALETTE[others.index(series.subject) % len(PALETTE)]


def chart(table: Table) -> str:
    """The plot of a table, or nothing if it has no figures."""
    draw = {"distribution": _distribution, "lines": _lines, "bars": _bars}[table.chart]
    return draw(table)


def _scale(low: float, high: float, start: float, end: float) -> tuple[Callable[[float], float], bool]:
    """A function from figures to positions, and whether it is logarithmic."""
    if low > 0 and high / low > LOGARITHMIC:
        first, last = math.log10(low), math.log10(high)
        return lambda x: start + (end - start) * (math.log10(max(x, low)) - first) / (last - first), True
    return lambda x: start + (end - start) * x / (high or 1), False


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if len(powers) <= 4 else (1,)
        return [tick for power in powers for step in steps if low <= (tick := step * 10.0**power) <= high]
    step = 10 ** math.floor(math.log10(high)) if high > 0 else 1
    step = step / 5 if high / step < 2 else step / 2 if high / step < 5 else step
    return [n * step for n in range(math.floor(high / step) + 1)]


def _tick(value: float) -> str:
    return f"{value:g}" if value < 1000 else number(value)


def _text(x: float, y: float, content: str, *, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(content)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _svg(height: float, title: str, parts: list[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
    return head + "".join(parts) + "</svg>"


def _bars(table: Table) -> str:
    """One bar for each subject: the median of the rounds, and a thin line for their range."""
    metric = table.metrics[0]
    shown = [one for one in table.ranking() if one.figures(metric.name)]
    if not shown:
        return ""
    figures = [figure for one in shown for figure in one.figures(metric.name)]
    low, high = min(figures), max(figures)
    left = 24 + 7.6 * max(len(one.subject) for one in shown)
    at, logarithmic = _scale(low / 1.6, high * 1.05, left, WIDTH - RIGHT)
    floor, bottom = (low / 1.6 if logarithmic else 0.0), 26 * len(shown) + 8
    parts = []
    for tick in _ticks(floor, high * 1.05, logarithmic):
        parts.append(_line(at(tick), 4, at(tick), bottom, "grid"))
        parts.append(_text(at(tick), bottom + 16, _tick(tick), anchor="middle", kind="tick"))
    for place, one in enumerate(shown):
        y, middle, found = 8 + 26 * place, one.median(metric.name) or 0.0, one.figures(metric.name)
        parts.append(_text(left - 10, y + 14, one.subject, anchor="end", kind=one.kind))
        width = max(1.0, at(middle) - left)
        parts.append(
            f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="18" rx="2" fill="{colour(table, one)}"/>'
        )
        if len(found) > 1:
            parts.append(_line(at(min(found)), y + 9, at(max(found)), y + 9, "range"))
        parts.append(_text(at(max(found)) + 8, y + 14, number(middle), kind=f"value {one.kind}"))
    axis = f"{metric.name}, {metric.unit}" + (", logarithmic" if logarithmic else "")
    parts.append(_text(left, bottom + 36, f"{axis} ({metric.better} is better)", kind="tick"))
    return _svg(bottom + 44, table.title, parts)


def _legend(table: Table, shown: list[Series], y: float) -> tuple[list[str], float]:
    """Names with their colours, in the order of the ranking; and the place below them."""
    parts, x = [], 60.0
    for one in shown:
        width = 34 + 7.4 * len(one.subject)
        if x + width > WIDTH - 20:
            x, y = 60.0, y + 20
        parts.append(f'<rect x="{x}" y="{y - 9}" width="14" height="10" rx="2" fill="{colour(table, one)}"/>')
        parts.append(_text(x + 20, y, one.subject, kind=one.kind))
        x += width
    return parts, y + 14


def _curve(table: Table, one: Series, points: list[tuple[float, float]]) -> str:
    path = "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    kind = f"curve {one.kind}"
    return f'<path d="{path}" class="{kind}" stroke="{colour(table, one)}"><title>{escape(one.subject)}</title></path>'


def _distribution(table: Table) -> str:
    """For each subject the share of the samples of all rounds that lie below a value."""
    shown = [one for one in table.ranking() if any(outcome.samples for outcome in one.outcomes)]
    if not shown:
        return ""
    samples = {one.subject: sorted(x for outcome in one.outcomes for x in outcome.samples) for one in shown}
    low = max(0.05, min(values[len(values) // 50] for values in samples.values()))
    high = max(values[-1 - len(values) // 100] for values in samples.values())
    at, logarithmic = _scale(low, max(high, low * 20), 60, WIDTH - 30)
    top, bottom = 10, 300
    parts = []
    for tick in _ticks(low, high, logarithmic):
        parts.append(_line(at(tick), top, at(tick), bottom, "grid"))
        parts.append(_text(at(tick), bottom + 16, _tick(tick), anchor="middle", kind="tick"))
    for share in (0, 25, 50, 75, 100):
        y = bottom - (bottom - top) * share / 100
        parts.append(_line(60, y, WIDTH - 30, y, "grid"))
        parts.append(_text(52, y + 4, f"{share} %", anchor="end", kind="tick"))
    for one in reversed(shown):
        values = samples[one.subject]
        points = [
            (at(min(high, max(low, value))), bottom - (bottom - top) * (place + 1) / len(values))
            for place, value in enumerate(values)
        ]
        parts.append(_curve(table, one, points[:: max(1, len(points) // 250)] + points[-1:]))
    parts.append(
        _text(60, bottom + 36, "share of the events that were called within so many ms, logarithmic", kind="tick")
    )
    legend, height = _legend(table, shown, bottom + 62)
    return _svg(height, table.title, parts + legend)


def _lines(table: Table) -> str:
    """The metrics that begin like the first one, over the number in their names."""
    kind = table.metrics[0].name.partition(" at ")[0]
    metrics = [metric for metric in table.metrics if metric.name.startswith(f"{kind} at ")]
    shown = [one for one in table.ranking() if one.median(metrics[0].name) is not None]
    if not shown:
        return ""
    places = {metric.name: float(metric.name.partition(" at ")[2].partition("/")[0]) for metric in metrics}
    values = [v for one in shown for m in metrics if (v := one.median(m.name)) is not None]
    low, high = min(values) / 1.2, max(values) * 1.2
    top, bottom = 10, 300
    at, _ = _scale(min(places.values()), max(places.values()), 80, WIDTH - 60)
    up, logarithmic = _scale(low, high, bottom, top)
    parts = []
    for name, place in places.items():
        parts.append(_line(at(place), top, at(place), bottom, "grid"))
        parts.append(_text(at(place), bottom + 16, name.partition(" at ")[2], anchor="middle", kind="tick"))
    for tick in _ticks(low, high, logarithmic):
        parts.append(_line(60, up(tick), WIDTH - 30, up(tick), "grid"))
        parts.append(_text(52, up(tick) + 4, _tick(tick), anchor="end", kind="tick"))
    for one in reversed(shown):
        points = [(at(places[m.name]), up(v)) for m in metrics if (v := one.median(m.name)) is not None]
        parts.append(_curve(table, one, points))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour(table, one)}"/>' for x, y in points]
    axis = f"{kind}, {table.metrics[0].unit}" + (", logarithmic" if logarithmic else "")
    parts.append(_text(60, bottom + 36, axis, kind="tick"))
    legend, height = _legend(table, shown, bottom + 62)
    return _svg(height, table.title, parts + legend)
