"""Run the suite: `python -m suite --help`."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from suite import report
from suite.bench import opened
from suite.machine import describe
from suite.measurements import MEASUREMENTS
from suite.runner import Table, measure
from suite.sizes import FULL, QUICK
from suite.systems import SYSTEMS, available

KEYS = [measurement.key for measurement in MEASUREMENTS]
NAMES = [system.name for system in SYSTEMS]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="suite", description="iu-listen beside its peers, in interleaved rounds")
    parser.add_argument("--quick", action="store_true", help="small sizes, and the most important measurements only")
    parser.add_argument("--rounds", type=int, help="number of rounds of each measurement")
    parser.add_argument("--only", nargs="+", choices=KEYS, metavar="MEASUREMENT", help=f"of {', '.join(KEYS)}")
    parser.add_argument("--systems", nargs="+", choices=NAMES, metavar="SYSTEM", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="directory of results.json, report.html")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the tables to this page of the documentation")
    parser.add_argument("--again", action="store_true", help="measure nothing: write the reports of results.json anew")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    results = chosen.out / "results.json"
    if chosen.again:
        results_of = json.loads(results.read_text())
        run = report.Run(results_of["about"], [Table.from_json(table) for table in results_of["tables"]])
    else:
        run = measured(chosen, console)
        chosen.out.mkdir(parents=True, exist_ok=True)
        saved = {"about": run.about, "tables": [table.as_json() for table in run.tables]}
        results.write_text(json.dumps(saved, indent=1))
    page = chosen.out / "report.html"
    page.write_text(report.html(run))
    report.to_terminal(console, run)
    if chosen.docs:
        chosen.docs.write_text(report.markdown(run))
    console.print(f"{results}\n{page}", soft_wrap=True)


def measured(chosen: argparse.Namespace, console: Console) -> report.Run:
    """Measure, with a progress bar."""
    sizes = QUICK if chosen.quick else FULL
    if chosen.rounds:
        sizes = replace(sizes, rounds=chosen.rounds)
    found, missing = available(lambda system: not chosen.systems or system.name in chosen.systems)
    wanted = [m for m in MEASUREMENTS if (m.key in chosen.only if chosen.only else m.quick or not chosen.quick)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    began = time.time()
    with opened(tuple(found), sizes) as bench, Progress(*columns, console=console) as progress:
        wanted = [measurement for measurement in wanted if measurement.subjects(bench)]
        task = progress.add_task("starting", total=sum(sizes.rounds * len(m.subjects(bench)) for m in wanted))

        def step(said: str) -> None:
            progress.update(task, advance=1, description=said)
            if not console.is_terminal:
                print(said, flush=True)

        tables = [uvloop.run(measure(bench, measurement, sizes.rounds, step)) for measurement in wanted]
        about = describe(bench, began, found, missing)
    return report.Run(about, tables)


main()
