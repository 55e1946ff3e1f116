"""The tables of a run, in the terminal and in Markdown."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from suite.report.run import Run, cell, head, ratio, summary
from suite.runner import Series, Table

INTRODUCTION = """# Benchmarks

This page is written by `make bench DOCS=1`; [the benchmarks](../../bench/README.md) describe how to repeat it.
Each figure is the median of the rounds, with their range in brackets.
In each round every system is measured once, in an order that changes, so that other work on the machine affects all alike.
The last column is the first figure as a multiple of that of iu-listen: above 1, iu-listen is better.

"""


def _rows(table: Table) -> list[list[str]]:
    return [
        [one.subject, *(cell(one, metric) for metric in table.metrics), ratio(table, one)] for one in table.ranking()
    ]


def _failures(table: Table) -> list[Series]:
    return [one for one in table.series if one.errors]


def to_terminal(console: Console, run: Run) -> None:
    """Print the tables."""
    for table in run.tables:
        shown = RichTable(title=table.title, box=box.SIMPLE, title_justify="left")
        shown.add_column("", no_wrap=True)
        for metric in table.metrics:
            shown.add_column(head(metric), justify="right")
        shown.add_column("× ours", justify="right")
        for one, row in zip(table.ranking(), _rows(table), strict=True):
            shown.add_row(*row, style="bold" if one.kind == "ours" else "dim" if one.kind == "bound" else "")
        console.print(shown)
        for one in _failures(table):
            console.print(f"  {one.subject} failed in {len(one.errors)} rounds: {one.errors[-1]}", markup=False)
    for name, reason in run.about["missing"].items():
        console.print(f"not measured: {name}: {reason}", markup=False)


def markdown(run: Run) -> str:
    """The page of the documentation."""
    parts = [INTRODUCTION, f"{summary(run.about)}\n"]
    for table in run.tables:
        parts += [f"\n## {table.title}\n\n{table.text}\n\n", _markdown_table(table)]
        parts += [f"\n{one.subject} failed in {len(one.errors)} rounds.\n" for one in _failures(table)]
    parts.append("\n## Systems\n\n| system | version | settings |\n|---|---|---|\n")
    parts += [f"| {one['name']} | {one['version'] or '–'} | {one['settings']} |\n" for one in run.about["systems"]]
    parts += [f"| {name} | not measured | {reason} |\n" for name, reason in run.about["missing"].items()]
    return "".join(parts)


def _markdown_table(table: Table) -> str:
    heads = ["", *(head(metric) for metric in table.metrics), "× iu-listen"]
    lines = ["|---|" + "--:|" * (len(heads) - 1), *("| " + " | ".join(row) + " |" for row in _rows(table))]
    return "\n".join(["| " + " | ".join(heads) + " |", *lines]) + "\n"
