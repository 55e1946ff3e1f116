"""`make storm`: reads the command line, runs a storm and prints the report."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
from pathlib import Path

from iu_listen.cli import output
from storm import faults, run
from storm.report import Plan, Report, as_json, print_report


async def run_until_sigterm(plan: Plan) -> Report:
    """Run a storm; SIGTERM cancels it as Ctrl-C does, so that no process and no server remains."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run.storm(plan)


def main() -> int:
    """Read the command line, run a storm and print the report. The exit code is 1 after a failure or an interrupt."""
    parser = argparse.ArgumentParser(prog="make storm", description=run.__doc__.splitlines()[0])
    parser.add_argument(
        "--seed", type=int, default=None, help="seed of all random numbers; default: a random one, which is printed"
    )
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--pg", type=int, default=18, help="major version of the embedded PostgreSQL: 16 or 18")
    parser.add_argument(
        "--bulk", type=int, help="events in a bulk transaction; default: 10 000 for each minute, 100 000 at most"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="FAULT", help="inject only this fault; may be repeated"
    )
    parser.add_argument("--strict", action="store_true", help="fail if a recovery takes longer than its bound")
    parser.add_argument("--keep", action="store_true", help="keep the logs also if the storm passes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file, as JSON")
    parser.add_argument("--list", action="store_true", help="list the faults and exit")
    options = parser.parse_args()
    if options.list:
        table = [(f.name, f.bound, f.unavailable(options.pg)) for f in faults.FAULTS.values()]
        output.table(("fault", "bound, s", "not possible here, because"), table)
        return 0
    if unknown := set(options.only) - set(faults.FAULTS):
        parser.error(f"unknown fault: {', '.join(unknown)}; --list shows the faults")
    bulk = options.bulk if options.bulk is not None else min(100_000, int(10_000 * options.minutes))
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    print(f"seed {seed}", flush=True)
    plan = Plan(
        seed, options.minutes, options.pg, bulk,
        only=tuple(options.only), strict=options.strict, keep=options.keep,
    )  # fmt: skip
    try:
        report = asyncio.run(run_until_sigterm(plan))
    except (KeyboardInterrupt, asyncio.CancelledError):
        output.note("the storm was interrupted; there is no verdict")
        return 1
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print_report(report)
    if options.json:
        options.json.write_text(as_json(report))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
