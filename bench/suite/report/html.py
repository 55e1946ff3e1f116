"""The results of a run as one page of HTML that needs nothing else: no script, no font and no picture from elsewhere."""

from __future__ import annotations

from html import escape

from suite.report.charts import chart
from suite.report.run import Run, cell, head, ratio, summary
from suite.runner import Table

STYLE = """
:root { color-scheme: light dark; --text: #1c1f24; --soft: #5c6370; --line: #dfe3e8; --ground: #fff; --ours: #b54700;
        --mark: #fff5ec; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --soft: #9aa1ac; --line: #363b44; --ground: #17191d; --ours: #ff9d5c; --mark: #2b2119; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); margin: 0 auto;
       max-width: 960px; padding: 24px; }
h1 { margin: 0 0 8px; } h2 { margin: 48px 0 4px; } p { margin: 4px 0 12px; }
.soft, figcaption, .tick { color: var(--soft); fill: var(--soft); }
nav a { margin-right: 14px; white-space: nowrap; } a { color: inherit; }
figure { margin: 12px 0; } svg { width: 100%; height: auto; font: 13px system-ui, sans-serif; }
svg text { fill: var(--text); } svg text.tick { fill: var(--soft); font-size: 12px; }
svg text.ours { fill: var(--ours); font-weight: 700; } svg text.bound { fill: var(--soft); }
.grid { stroke: var(--line); } .range { stroke: var(--text); stroke-width: 1.6; }
.curve { fill: none; stroke-width: 1.8; } .curve.ours { stroke-width: 3.2; } .curve.bound { stroke-dasharray: 5 4; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child, .words td { text-align: left; }
td small { color: var(--soft); white-space: nowrap; display: block; }
tr.ours td { background: var(--mark); font-weight: 600; } tr.bound td { color: var(--soft); }
.failed { color: #c0392b; }
"""
EXPLANATION = """Each figure is the median of the rounds, with their range below. In each round every system is measured
once, in an order that changes. The last column is the first figure as a multiple of that of iu-listen: above 1,
iu-listen is better."""


def html(run: Run) -> str:
    """The whole page."""
    links = "".join(f'<a href="#{table.key}">{escape(table.title)}</a> ' for table in run.tables)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Benchmarks of iu-listen</title><style>{STYLE}</style></head><body>",
        f'<h1>Benchmarks of iu-listen</h1><p class="soft">{escape(summary(run.about))}</p>',
        f"<p>{EXPLANATION}</p><nav>{links}</nav>",
        *(_section(table) for table in run.tables),
        _systems(run),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _section(table: Table) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in ["", *(head(m) for m in table.metrics), "× iu-listen"])
    rows = []
    for one in table.ranking():
        cells = [escape(one.subject), *(_small(cell(one, metric)) for metric in table.metrics), ratio(table, one)]
        rows.append(f'<tr class="{one.kind}">' + "".join(f"<td>{text}</td>" for text in cells) + "</tr>")
    failed = "".join(
        f'<p class="failed">{escape(one.subject)} failed in {len(one.errors)} rounds: {escape(one.errors[-1])}</p>'
        for one in table.series
        if one.errors
    )
    return (
        f'<h2 id="{table.key}">{escape(table.title)}</h2><p>{escape(table.text)}</p><figure>{chart(table)}</figure>'
        f'<div class="scroll"><table><tr>{heads}</tr>{"".join(rows)}</table></div>{failed}'
    )


def _small(text: str) -> str:
    """A figure with its range in small letters below it."""
    figure, _, spread = text.partition(" (")
    return f"{figure}<small>{spread.removesuffix(')')}</small>" if spread else figure


def _systems(run: Run) -> str:
    rows = [(one["name"], one["version"] or "–", one["settings"]) for one in run.about["systems"]]
    rows += [(name, "not measured", reason) for name, reason in run.about["missing"].items()]
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return (
        '<h2 id="systems">Systems</h2><div class="scroll words"><table><tr><th>system</th><th>version</th>'
        f"<th>settings</th></tr>{body}</table></div>"
    )
