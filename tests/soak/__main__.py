"""`make soak`: runs a burst of events with each fault, and prints a verdict for each."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import astuple, fields

from clusters import cluster, psql
from iu_listen.cli import output
from soak.burst import Verdict, soak
from soak.faults import FAULTS
from support import apply_package


def main() -> int:
    """Read the command line, run the bursts, and print the verdicts."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000, help="number of events of each burst")
    parser.add_argument("--seconds", type=float, default=60.0, help="shortest duration of a fault")
    parser.add_argument(
        "--only", action="append", default=[], choices=FAULTS, help="run only this fault; may be repeated"
    )
    parser.add_argument("--protocol", default="http/protobuf", choices=("http/protobuf", "grpc"))
    parser.add_argument("--pg", type=int, default=18, help="major version of the embedded PostgreSQL: 16 or 18")
    options = parser.parse_args()
    verdicts = []
    with cluster(options.pg) as server:
        for number, fault in enumerate(options.only or FAULTS):
            psql(server, f"create database soak_{number}")
            dsn = server.dsn(f"soak_{number}")
            asyncio.run(apply_package(dsn))
            found = asyncio.run(
                soak(dsn, fault, events=options.events, seconds=options.seconds, protocol=options.protocol)
            )
            print(found, flush=True)
            verdicts.append(found)
    output.table(tuple(f.name for f in fields(Verdict)), map(astuple, verdicts))
    return 1 if any(v.missing or v.invented for v in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
