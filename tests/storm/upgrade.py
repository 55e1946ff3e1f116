"""Upgrades a released version to the present one in the middle of a storm; `make upgrade-test` and test_upgrade.py.

The storm has no faults. It begins with the SQL package and the consumers of the release. Then the schema and the
consumers are upgraded, in one order or the other, while producers write and routes are live. A metronome commits an
event every PACE seconds; the longest time from its commit to its decision is the longest gap in decisions.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from releases.archive import REPOSITORY, Release, releases
from storm import environment
from storm.environment import ROUTES, Environment
from storm.model import Transaction, TransactionState
from storm.report import Plan, Report, print_report
from storm.run import Storm

#: Interval of the events of the metronome, in seconds.
PACE: Final = 0.05
#: Longest time without a decision on a machine that does nothing else, in seconds.
LONGEST_GAP: Final = 1.0
#: Steps of an upgrade, in the order of their names.
ORDERS: Final = {"schema first": ("schema", "consumers"), "consumers first": ("consumers", "schema")}
#: The rows that an upgrade must not change, except those that routing changes.
KEPT: Final = """
    select (select jsonb_agg(to_jsonb(d) order by d.key) from dot_config d),
           (select jsonb_agg(to_jsonb(r) order by r.route_code) from iu_outbound_route r),
           (select jsonb_agg(jsonb_build_array(m.name, m.checksum) order by m.name) from iu_migration m
             where m.name not like 'functions/%' and m.schema_version = $1)
"""
DELAYS: Final = """
    select extract(epoch from finished_at)::float8 from iu_route_attempt where idempotency_key = $1
"""


@dataclass(frozen=True)
class Result:
    """The result of an upgrade.

    Attributes:
        report: The report of the storm, with all failures.
        longest_gap: Longest time from the commit of an event of the metronome to its decision, in seconds.
        longest_commit: Longest time of a transaction of the metronome, in seconds.
        events: Number of events of the metronome.
    """

    report: Report
    longest_gap: float
    longest_commit: float
    events: int


class Upgrade(Storm):
    """A storm without faults, in which a release is upgraded to the present version.

    Args:
        plan: The parameters; its minutes are divided by the steps.
        environment: The environment, in which the release runs.
        order: The steps.
        schema: The schema version of the release.
    """

    def __init__(self, plan: Plan, environment: Environment, order: tuple[str, ...], schema: str) -> None:
        super().__init__(plan, environment)
        self._order, self._schema = order, schema
        self._beats: list[tuple[Transaction, float]] = []
        self._beating = True
        self.longest_commit = self.longest_gap = 0.0

    async def _inject_faults(self) -> None:
        """Let the release work, make the steps, and let the present version work."""
        pause = 60 * self.plan.minutes / (len(self._order) + 1)
        metronome = asyncio.create_task(self._beat())
        kept = await self.environment.rows(KEPT, self._schema)
        await asyncio.sleep(pause)
        for step in self._order:
            self.step = f"upgrading the {step}"
            await {"schema": self._upgrade_schema, "consumers": self._upgrade_consumers}[step]()
            self._check()
            await asyncio.sleep(pause)
        # Not cancelled: an event might be committed and not be known to the model.
        self._beating = False
        await metronome
        if await self.environment.rows(KEPT, self._schema) != kept:
            self.report.failures.append("the upgrade changed gates, routes or lines of the ledger")

    async def _upgrade_schema(self) -> None:
        await environment.apply(self.environment.dsn, REPOSITORY / "src")

    async def _upgrade_consumers(self) -> None:
        """Replace one consumer after another, as a rolling deployment does."""
        for consumer in self.environment.consumers:
            consumer.environ.pop("PYTHONPATH")
            starts = consumer.starts
            consumer.signal(15)
            while consumer.starts == starts:
                await asyncio.sleep(0.02)
            await self.environment.until(
                "select exists (select from iu_consumer_heartbeat where pid = $1 and state <> 'starting')", consumer.pid
            )

    async def _beat(self) -> None:
        """Commit an event every PACE seconds."""
        session = await self.environment.connect("storm metronome")
        try:
            while self._beating:
                tx = self.model.begin("probe")
                event, began = tx.event(*tx.add()), time.time()
                await session.execute(
                    """insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane)
                       values ($1, 'iu', 'version_applied', 'update', 'immediate')""",
                    event,
                )
                tx.state, ended = TransactionState.COMMITTED, time.time()
                self._beats.append((tx, ended))
                self.longest_commit = max(self.longest_commit, ended - began)
                await asyncio.sleep(max(0.0, PACE - (ended - began)))
        finally:
            session.terminate()

    async def _verify(self) -> None:
        await super()._verify()
        for tx, committed in self._beats:
            key = f"outbound:{ROUTES[0]}:{tx.event(0)}"
            decided = await self.environment.value(DELAYS, key)
            self.longest_gap = max(self.longest_gap, decided - committed)

    @property
    def beats(self) -> int:
        """Number of events of the metronome."""
        return len(self._beats)


async def upgrade(
    release: Release, major: int, order: str, *, seed: int = 1, minutes: float = 0.2, longest_gap: float = LONGEST_GAP
) -> Result:
    """Upgrade a release in a storm.

    Args:
        release: The release.
        major: Major version of PostgreSQL.
        order: A key of ORDERS.
        seed: Seed of the storm.
        minutes: Duration, in minutes.
        longest_gap: Bound on the longest gap in decisions, in seconds.
    """
    plan = Plan(seed, minutes, major, bulk_rows=500)
    with tempfile.TemporaryDirectory(prefix="iu-upgrade-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        modules = release.unpack(root / "release") / "src"
        logs, home = root / "logs", root / "home"
        logs.mkdir()
        rng = random.Random(seed)
        async with environment.prepare_environment(major, home, logs, rng, plan.consumers, modules=modules) as prepared:
            run = Upgrade(plan, prepared, ORDERS[order], str(release.schema))
            report = await run.run()
            if report.failures:
                report.logs = "\n".join(log.read_text() for log in logs.glob("*.log"))[-4000:]
    if run.longest_gap > longest_gap:
        report.failures.append(f"no decision for {run.longest_gap:.2f} s, and the bound is {longest_gap:g} s")
    return Result(report, run.longest_gap, run.longest_commit, run.beats)


def main() -> int:
    """Upgrade the last three releases, in both orders, on both versions of PostgreSQL; exit code 1 after a failure."""
    parser = argparse.ArgumentParser(prog="make upgrade-test", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1.0, help="duration of each upgrade")
    parser.add_argument("--releases", type=int, default=3, help="number of releases, the latest ones")
    options = parser.parse_args()
    failed = False
    for release in releases()[-options.releases :]:
        for major in (16, 18):
            for order in ORDERS:
                result = asyncio.run(upgrade(release, major, order, seed=options.seed, minutes=options.minutes))
                report = replace(result.report)
                print(
                    f"{release.version}, PostgreSQL {major}, {order}: lost {report.lost}, duplicated {report.duplicated} of "
                    f"{report.events} events and {report.calls} calls; longest gap {result.longest_gap:.2f} s, longest "
                    f"commit {result.longest_commit:.2f} s: {'FAIL' if report.failures else 'ok'}",
                    flush=True,
                )
                if report.failures:
                    failed = True
                    print_report(report)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
