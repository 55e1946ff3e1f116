"""Runs a storm (writers, faults, naive cursors) and gives the verdict.

Usage: `make storm SEED=… MINUTES=… PG=18`; see docs/how-to/storm.md.

The seed and the tables determine the actions; their exact times depend on the machine. So a seed repeats the plan of a
storm, and not the storm itself.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
import time
from array import array
from bisect import bisect_right
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from faults import disk
from storm import (  # noqa: F401 by being there it fills the table
    background,
    contrast,
    faults,
    faults_heavy,
    faults_inside,
    ground,
)
from storm.arrivals import Arrivals
from storm.ground import LOST, PATIENCE, ROUTES, Ground
from storm.kinds import BULK
from storm.model import ARRIVED, Fate, Judge, Model, Verdict
from storm.report import HARD_ENOUGH, WRONGS, Plan, Recovery, Report, as_json
from storm.writers import Writers
from support import WORKER

#: Size of the filesystem for the data, in megabytes; unused space takes no room on the real disk.
DISK = 16_000
#: Required ratio of wake-ups by NOTIFY to lost wake-ups.
MOSTLY_RUNG = 5
#: Time after a fault during which an event may be late because of it, in seconds.
AFTERMATH = 2.0
#: The audit in its order, and the time of each decision; only the last attempt of each event and route.
AUDIT = """
    select uuid_send(event_ref), route_code, decision, coalesce(failure_code, ''), extract(epoch from finished_at)::float8
      from iu_route_attempt
     where decision not in ('retry', 'outage')
     order by id
"""
#: Every dead letter; the routes of the storm write nothing else into this table.
LETTERS = "select uuid_send(event_ref), route_code, failure_code from iu_route_dead_letter"
#: Number of wake-ups by reason; "lost" counts events that the catch-up poll found and that no NOTIFY announced.
WAKES = """
    select w.key, sum(w.value::bigint)::bigint
      from iu_consumer_heartbeat h
     cross join lateral jsonb_each_text(h.wakes) w
     group by w.key
"""
#: Details of a wrong event that is still in the outbox.
CULPRIT = """
    select o.xact_id::text, o.event_seq, o.created_at, pg_xact_commit_timestamp(o.xmin) as committed_at,
           (select string_agg(format('attempt %s of %s', a.id, a.route_code), ', ' order by a.id)
              from iu_route_attempt a where a.event_ref = o.id) as attempts
      from event_outbox o where o.id = $1
"""


class Storm:
    """One storm on one ground.

    Args:
        plan: The parameters.
        ground: The environment.
    """

    def __init__(self, plan: Plan, ground: Ground) -> None:
        self.plan = plan
        self.ground = ground
        self.model = Model(random.Random(f"{plan.seed} keys"))
        bulk_every = max(10.0, plan.minutes * 60 / 4)
        self.writers = Writers(ground, self.model, plan.seed, plan.bulk_rows, bulk_every)
        ground.writers = self.writers
        ground.brief = plan.minutes < 1
        self.naive = contrast.naive()
        self.recoveries: list[Recovery] = []
        # Periods of trouble, from and to, by the wall clock. They include the times before and after the storm, because
        # a clock that is set may put timestamps there.
        self.troubled: list[tuple[float, float]] = [(-inf, time.time())]
        self.report = Report(plan.seed)
        self.began = time.monotonic()
        self.doing = ""
        self._beside: list[asyncio.Task[None]] = []

    async def run(self) -> Report:
        """Run all steps from the first event to the verdict."""
        self.report.postgresql = await self.ground.value("show server_version")
        self.writers.start()
        self._beside = [
            *(asyncio.create_task(n.keep_looking(self.ground)) for n in self.naive),
            *(asyncio.create_task(background.keep_doing(*a, self.ground)) for a in background.ACTIONS),
            asyncio.create_task(self._say_how_it_goes()),
        ]
        # If a step fails, the later steps still run, because their findings are useful, too.
        for name, step in (
            ("strike", self._strike),
            ("writers finish", self.writers.stop),
            ("the backlog is drained", self._drained),
            ("the end", self._wind_up),
            ("verdict", self._judge),
        ):
            try:
                self.doing = name
                await step()
            except Exception as error:
                self.report.failures.append(f"{self.doing}: {type(error).__name__}: {error}")
        self.report.failures += self._failures()
        return self.report

    async def _wind_up(self) -> None:
        """Let the naive cursors read once more, and end the background tasks."""
        await asyncio.sleep(10 * contrast.PAUSE)
        self._check()
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)

    # -- faults --------------------------------------------------------------------------------------------------

    async def _strike(self) -> None:
        """Run faults one after the other until the time is over; each of the table once before any is repeated."""
        dice = self.ground.dice
        table = [f for f in faults.FAULTS.values() if not self.plan.only or f.name in self.plan.only]
        self.report.skipped_faults = {f.name: why for f in table if (why := f.missing(self.plan.major))}
        table = [f for f in table if f.name not in self.report.skipped_faults]
        deck: list[faults.Fault] = []
        until, rounds = self.began + 60 * self.plan.minutes, 0
        while time.monotonic() < until or rounds == 0:
            self.doing = "no fault"
            await asyncio.sleep(dice.uniform(*self.plan.lull))
            self._check()
            if not table:
                continue
            if not deck:
                deck = dice.sample(table, len(table))
            fault = deck.pop()
            rounds += not deck
            await self._suffer(fault)

    async def _suffer(self, fault: faults.Fault) -> None:
        ground, self.doing, began = self.ground, fault.name, time.time()
        ground.cutting, ground.forgiving = fault.cuts_writers, fault.writers_may_fail
        try:
            async with fault.strike(ground):
                ended, ground.measuring = time.monotonic(), True
                backlog = await ground.value("select coalesce(sum(backlog), 0)::bigint from v_iu_event_backlog")
                await self._probe()
                self.recoveries.append(Recovery(fault.name, time.monotonic() - ended, fault.bound, backlog))
                ground.measuring = False
        finally:
            if ground.cutting:
                ground.healed_at = time.monotonic()
            ground.cutting = ground.forgiving = ground.measuring = False
            self.troubled.append((began, time.time() + AFTERMATH))

    async def _probe(self) -> None:
        """Commit an event, and wait until it is routed."""
        tx = self.model.begin("probe")
        event = tx.event(*tx.add())
        while tx.fate is not Fate.COMMITTED:
            session = None
            try:
                session = await self.ground.connect("storm probe")
                await session.execute(
                    """insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane)
                       values ($1, 'iu', 'version_applied', 'update', 'immediate') on conflict do nothing""",
                    event,
                )
                tx.fate = Fate.COMMITTED
            except LOST:
                await asyncio.sleep(0.02)
            finally:
                if session:
                    session.terminate()
        # Only the dry-run route is measured: the live route has its own backlog and its own speed.
        await self.ground.until(
            "select exists (select from iu_route_attempt where idempotency_key = $1)", f"outbound:{ROUTES[0]}:{event}"
        )

    def _check(self) -> None:
        """Raise the error of a writer or background task that has failed."""
        self.writers.check()
        for task in self._beside:
            if task.done() and (error := task.exception()):
                raise error

    # -- the end -------------------------------------------------------------------------------------------------

    async def _drained(self) -> None:
        await self.ground.until(
            "select coalesce(sum(backlog), 0) = 0 from v_iu_event_backlog", within=2 * PATIENCE, pause=0.5
        )
        await self.ground.until("select not exists (select from iu_route_delivery)", within=10 * PATIENCE, pause=0.5)
        # Nothing is left that needs an operator.
        await self.ground.until("select (fn_iu_route_worker_health($1) ->> 'healthy')::boolean", WORKER)
        await self.ground.until("select not exists (select from v_iu_delivery where paused_by is not null)")

    async def _judge(self) -> None:
        report, model, ground = self.report, self.model, self.ground
        self.troubled.append((time.time(), inf))
        judge = Judge(model, (*ROUTES, ARRIVED))
        session, waited = await ground.connect("storm judge"), array("f")
        async with session.transaction(isolation="repeatable_read"):
            async for event, route, decision, code, decided_at in session.cursor(AUDIT, prefetch=20_000):
                report.attempts += 1
                judge.hear(event, route, decision, code)
                tx = model.transactions.get(int.from_bytes(event[:8]))
                if tx and tx.rows == 1 and route == ROUTES[0] and self._undisturbed(tx.ended, decided_at):
                    waited.append(max(0.0, decided_at - tx.ended))
        # First arrivals are judged: calls are at least once, each key counts once, and a subject's first calls are in
        # order.
        arrivals = Arrivals.read((c.arrived for c in ground.consumers), ground.notes.get("promotions", ()))
        for event in arrivals.first:
            judge.hear(event.bytes, ARRIVED, "delivered")
        report.calls, report.again = arrivals.calls, arrivals.again
        report.failures += [
            f"two of subject {subject} at once: {how}" for subject, how in sorted(arrivals.crowded.items())
        ]
        read = await session.fetchval("select sum(total_seen)::bigint from iu_route_worker_cursor")
        report.dead_letters = judge.compare_letters(await session.fetch(LETTERS))
        verdict = judge.verdict(read)
        report.wakes = dict(await session.fetch(WAKES))
        await self._compare_turns(session)
        await self._name_culprits(session, verdict)
        session.terminate()

        report.minutes = round((time.monotonic() - self.began) / 60, 2)
        report.events = model.events
        report.transactions = {
            name: {fate.name.lower(): count for fate, count in fates.items()}
            for name, fates in self.writers.kinds().items()
        }
        report.retried, report.cut = dict(model.retried), model.cut
        report.removed = ground.notes.get("removed", 0)
        report.gone = len(model.of(Fate.GONE))
        report.sessions = ground.notes.get("sessions", 0)
        report.writer_errors = len(model.errors)
        for wrong in WRONGS:
            setattr(report, wrong, getattr(verdict, wrong))
        waited = sorted(waited)
        report.decided_after = {
            name: round(waited[min(len(waited) - 1, int(len(waited) * part))], 4)
            for name, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
            if waited
        }
        report.faults = self._recoveries_by_fault()
        single = report.events - sum(tx.counting for tx in model.of(Fate.COMMITTED) if tx.kind == BULK)
        report.naive_lost = {n.name: round(1 - n.read / max(1, single), 4) for n in self.naive}
        report.consumer_starts = sum(c.starts for c in ground.consumers)

    def _undisturbed(self, *moments: float) -> bool:
        """Whether these times lie in the same period without a fault nearby."""
        before = {bisect_right(self.troubled, (moment, inf)) - 1 for moment in moments}
        return len(before) == 1 and min(moments) >= self.troubled[before.pop()][1]

    async def _compare_turns(self, session: ground.Session) -> None:
        """Compare the model's turns with the counters of the subjects, to verify its committed transactions."""
        drawn = dict(await session.fetch("select id, turn from storm.subject where turn > 0"))
        known: dict[int, int] = {}
        for tx in self.model.of(Fate.COMMITTED):
            for _, subject, turn in tx.turns:
                known[subject] = max(turn, known.get(subject, 0))
        if self.model.holes() or known != drawn:
            self.report.failures.append("the storm's own record is wrong: its turns are not those of the subjects")

    async def _name_culprits(self, session: ground.Session, verdict: Verdict) -> None:
        for blocker in verdict.blockers:
            found = await session.fetchrow(CULPRIT, blocker.event)
            self.report.blockers.append({**asdict(blocker), **dict(found or {})})
        if verdict.blockers:
            cursor = await session.fetchrow("select * from iu_route_worker_cursor where worker_name = $1", WORKER)
            self.report.blockers.append({"cursor": {k: str(v) for k, v in cursor.items()}})

    def _recoveries_by_fault(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name in sorted({r.fault for r in self.recoveries}):
            of_it = [r for r in self.recoveries if r.fault == name]
            seconds = sorted(r.seconds for r in of_it)
            found[name] = {
                "times": len(of_it), "p50": round(seconds[len(seconds) // 2], 3), "max": round(seconds[-1], 3),
                "bound": of_it[0].bound, "over": sum(r.over for r in of_it),
                "backlog": max(r.backlog for r in of_it),
            }  # fmt: skip
        return found

    def _failures(self) -> list[str]:
        report, model = self.report, self.model
        failures = [f"{wrong}: {count}" for wrong in WRONGS if (count := getattr(report, wrong))]
        failures += [f"a writer was told: {error}" for error in model.errors[:10]]
        failures += [f"{len(tx)} transactions are {fate.name.lower()}" for fate in (Fate.OPEN, Fate.UNKNOWN)
                     if (tx := model.of(fate))]  # fmt: skip
        failures += [
            f"too mild a storm: a cursor on {name} lost only {share:.1%}"
            for name, share in report.naive_lost.items()
            if share < HARD_ENOUGH
        ]
        # Some wake-ups are lost by design: the bell is disabled for a while, and PREPARE TRANSACTION sends no NOTIFY.
        lost, rung = report.wakes.get("lost", 0), report.wakes.get("notify", 0)
        if lost * MOSTLY_RUNG > rung:
            failures.append(f"nobody rings: {lost} wake-ups were lost, and {rung} were not")
        if self.plan.strict:
            failures += [
                f"{name} took {f['max']} s of {f['bound']} s" for name, f in report.faults.items() if f["over"]
            ]
        return failures

    # -- progress ------------------------------------------------------------------------------------------------

    async def _say_how_it_goes(self) -> None:
        live, known = sys.stderr.isatty(), 0
        while True:
            await asyncio.sleep(0.5 if live else 5)
            for recovery in self.recoveries[known:]:
                known += 1
                if recovery.over:
                    took = f"recovered after {recovery.seconds:.1f} s with {recovery.backlog} events waiting"
                    print(f"{time.strftime('%H:%M:%S')}  {recovery.fault}: {took}", file=sys.stderr)
            line = (
                f"{time.monotonic() - self.began:5.0f} s  {len(self.model.transactions):8} transactions  "
                f"{self.writers.weather:7} {len(self.recoveries):3} faults  {len(self.model.errors)} errors  {self.doing}"
            )
            print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)


# -- entry point -------------------------------------------------------------------------------------------------


async def storm(plan: Plan) -> Report:
    """Prepare a ground and run a storm on it. The logs are kept if it failed, or if the plan asks for it."""
    logs = Path(tempfile.mkdtemp(prefix="iu-storm-logs-"))
    dice = random.Random(f"{plan.seed} faults")
    with disk.own_disk(DISK) as home:
        async with ground.prepared(plan.major, home, logs, dice, plan.consumers) as prepared:
            report = await Storm(plan, prepared).run()
            shutil.copy(prepared.server.log, logs / "postgresql.log")
    if report.failures or plan.keep:
        report.logs = str(logs)
        (logs / "report.json").write_text(as_json(report))
    else:
        shutil.rmtree(logs)
    return report
