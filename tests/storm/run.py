"""Runs a storm (producers, faults, naive cursors) and gives the verdict.

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
    environment,
    faults,
    faults_heavy,
    faults_internal,
    naive_cursors,
    periodic_actions,
)
from storm.call_log import CallLog
from storm.environment import CONNECTION_ERRORS, ROUTES, WAIT_TIMEOUT, Environment
from storm.model import TARGET_CALLS, Model, TransactionState, Verdict, Verifier
from storm.producers import Producers
from storm.report import CHECKS, MIN_NAIVE_LOSS, Plan, Recovery, Report, as_json
from storm.transaction_kinds import BULK
from support import WORKER

#: Size of the filesystem for the data, in megabytes; unused space takes no room on the real disk.
DISK = 16_000
#: Required ratio of wake-ups by NOTIFY to missed notifications.
MIN_NOTIFY_RATIO = 5
#: Time after a fault during which an event may be late because of it, in seconds.
DISTURBANCE = 2.0
#: The audit in its order, and the time of each decision; only the last attempt of each event and route.
AUDIT = """
    select uuid_send(event_ref), route_code, decision, coalesce(failure_code, ''), extract(epoch from finished_at)::float8
      from iu_route_attempt
     where decision not in ('retry', 'outage')
     order by id
"""
#: Every dead letter; the routes of the storm write nothing else into this table.
DEAD_LETTERS = "select uuid_send(event_ref), route_code, failure_code from iu_route_dead_letter"
#: Number of wake-ups by reason; "lost" counts events that the catch-up poll found and that no NOTIFY announced.
WAKES = """
    select w.key, sum(w.value::bigint)::bigint
      from iu_consumer_heartbeat h
     cross join lateral jsonb_each_text(h.wakes) w
     group by w.key
"""
#: Details of a wrong event that is still in the outbox.
VIOLATION_DETAILS = """
    select o.xact_id::text, o.event_seq, o.created_at, pg_xact_commit_timestamp(o.xmin) as committed_at,
           (select string_agg(format('attempt %s of %s', a.id, a.route_code), ', ' order by a.id)
              from iu_route_attempt a where a.event_ref = o.id) as attempts
      from event_outbox o where o.id = $1
"""


class Storm:
    """One storm in one environment.

    Args:
        plan: The parameters.
        environment: The environment.
    """

    def __init__(self, plan: Plan, environment: Environment) -> None:
        self.plan = plan
        self.environment = environment
        self.model = Model(random.Random(f"{plan.seed} keys"))
        bulk_every = max(10.0, plan.minutes * 60 / 4)
        self.producers = Producers(environment, self.model, plan.seed, plan.bulk_rows, bulk_every)
        environment.producers = self.producers
        environment.short = plan.minutes < 1
        self.naive_cursors = naive_cursors.create_naive_cursors()
        self.recoveries: list[Recovery] = []
        # Periods of trouble, from and to, by the wall clock. They include the times before and after the storm, because
        # a clock that is set may put timestamps there.
        self.disturbed: list[tuple[float, float]] = [(-inf, time.time())]
        self.report = Report(plan.seed)
        self.began = time.monotonic()
        self.step = ""
        self._background: list[asyncio.Task[None]] = []

    async def run(self) -> Report:
        """Run all steps from the first event to the verdict."""
        self.report.postgresql = await self.environment.value("show server_version")
        self.producers.start()
        self._background = [
            *(asyncio.create_task(n.keep_reading(self.environment)) for n in self.naive_cursors),
            *(
                asyncio.create_task(periodic_actions.repeat_action(*a, self.environment))
                for a in periodic_actions.ACTIONS
            ),
            asyncio.create_task(self._print_progress()),
        ]
        # If a step fails, the later steps still run, because their findings are useful, too.
        for name, step in (
            ("injecting faults", self._inject_faults),
            ("waiting for the producers", self.producers.stop),
            ("waiting for the deliveries", self._wait_for_deliveries),
            ("ending background tasks", self._end_background_tasks),
            ("verifying the audit", self._verify),
        ):
            try:
                self.step = name
                await step()
            except Exception as error:
                self.report.failures.append(f"{self.step}: {type(error).__name__}: {error}")
        self.report.failures += self._failures()
        return self.report

    async def _end_background_tasks(self) -> None:
        """Let the naive cursors read once more, and end the background tasks."""
        await asyncio.sleep(10 * naive_cursors.PAUSE)
        self._check()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    # -- faults --------------------------------------------------------------------------------------------------

    async def _inject_faults(self) -> None:
        """Run faults one after the other until the time is over; each of the table once before any is repeated."""
        rng = self.environment.rng
        table = [f for f in faults.FAULTS.values() if not self.plan.only or f.name in self.plan.only]
        self.report.skipped_faults = {f.name: why for f in table if (why := f.unavailable(self.plan.major))}
        table = [f for f in table if f.name not in self.report.skipped_faults]
        deck: list[faults.Fault] = []
        until, rounds = self.began + 60 * self.plan.minutes, 0
        while time.monotonic() < until or rounds == 0:
            self.step = "no fault"
            await asyncio.sleep(rng.uniform(*self.plan.pause_between_faults))
            self._check()
            if not table:
                continue
            if not deck:
                deck = rng.sample(table, len(table))
            fault = deck.pop()
            rounds += not deck
            await self._inject(fault)

    async def _inject(self, fault: faults.Fault) -> None:
        environment, self.step, began = self.environment, fault.name, time.time()
        environment.cuts_sessions, environment.errors_allowed = fault.cuts_producers, fault.producers_may_fail
        try:
            async with fault.inject(environment):
                ended, environment.measuring = time.monotonic(), True
                backlog = await environment.value("select coalesce(sum(backlog), 0)::bigint from v_iu_event_backlog")
                await self._measure_recovery()
                self.recoveries.append(Recovery(fault.name, time.monotonic() - ended, fault.bound, backlog))
                environment.measuring = False
        finally:
            if environment.cuts_sessions:
                environment.repaired_at = time.monotonic()
            environment.cuts_sessions = environment.errors_allowed = environment.measuring = False
            self.disturbed.append((began, time.time() + DISTURBANCE))

    async def _measure_recovery(self) -> None:
        """Commit an event, and wait until it is routed."""
        tx = self.model.begin("probe")
        event = tx.event(*tx.add())
        while tx.state is not TransactionState.COMMITTED:
            session = None
            try:
                session = await self.environment.connect("storm probe")
                await session.execute(
                    """insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane)
                       values ($1, 'iu', 'version_applied', 'update', 'immediate') on conflict do nothing""",
                    event,
                )
                tx.state = TransactionState.COMMITTED
            except CONNECTION_ERRORS:
                await asyncio.sleep(0.02)
            finally:
                if session:
                    session.terminate()
        # Only the dry-run route is measured: the live route has its own backlog and its own speed.
        await self.environment.until(
            "select exists (select from iu_route_attempt where idempotency_key = $1)", f"outbound:{ROUTES[0]}:{event}"
        )

    def _check(self) -> None:
        """Raise the error of a producer or background task that has failed."""
        self.producers.check()
        for task in self._background:
            if task.done() and (error := task.exception()):
                raise error

    # -- the end -------------------------------------------------------------------------------------------------

    async def _wait_for_deliveries(self) -> None:
        await self.environment.until(
            "select coalesce(sum(backlog), 0) = 0 from v_iu_event_backlog", within=2 * WAIT_TIMEOUT, pause=0.5
        )
        await self.environment.until(
            "select not exists (select from iu_route_delivery)", within=10 * WAIT_TIMEOUT, pause=0.5
        )
        # Nothing is left that needs an operator.
        await self.environment.until("select (fn_iu_route_worker_health($1) ->> 'healthy')::boolean", WORKER)
        await self.environment.until("select not exists (select from v_iu_delivery where paused_by is not null)")

    async def _verify(self) -> None:
        report, model, environment = self.report, self.model, self.environment
        self.disturbed.append((time.time(), inf))
        verifier = Verifier(model, (*ROUTES, TARGET_CALLS))
        session, waited = await environment.connect("storm judge"), array("f")
        async with session.transaction(isolation="repeatable_read"):
            async for event, route, decision, code, decided_at in session.cursor(AUDIT, prefetch=20_000):
                report.attempts += 1
                verifier.add_attempt(event, route, decision, code)
                tx = model.transactions.get(int.from_bytes(event[:8]))
                if tx and tx.rows == 1 and route == ROUTES[0] and self._undisturbed(tx.ended, decided_at):
                    waited.append(max(0.0, decided_at - tx.ended))
        # The first successful calls are verified: calls are at least once, each key counts once, and a subject's first calls are in
        # order.
        call_log = CallLog.read(
            (c.call_log_file for c in environment.consumers), environment.notes.get("promotions", ())
        )
        for event in call_log.first:
            verifier.add_attempt(event.bytes, TARGET_CALLS, "delivered")
        report.calls, report.repeated_calls = call_log.calls, call_log.repeated_calls
        report.failures += [
            f"overlapping calls of subject {subject}: {how}" for subject, how in sorted(call_log.overlapping.items())
        ]
        read = await session.fetchval("select sum(total_seen)::bigint from iu_route_worker_cursor")
        report.dead_letters = verifier.compare_dead_letters(await session.fetch(DEAD_LETTERS))
        verdict = verifier.verdict(read)
        report.wakes = dict(await session.fetch(WAKES))
        await self._compare_turns(session)
        await self._describe_violations(session, verdict)
        session.terminate()

        report.minutes = round((time.monotonic() - self.began) / 60, 2)
        report.events = model.events
        report.transactions = {
            name: {state.name.lower(): count for state, count in states.items()}
            for name, states in self.producers.counts_by_kind().items()
        }
        report.retried, report.sessions_cut = dict(model.retried), model.sessions_cut
        report.removed = environment.notes.get("removed", 0)
        report.lost_by_promotion = len(model.of(TransactionState.LOST_BY_PROMOTION))
        report.sessions = environment.notes.get("sessions", 0)
        report.producer_errors = len(model.errors)
        for check in CHECKS:
            setattr(report, check, getattr(verdict, check))
        waited = sorted(waited)
        report.decided_after = {
            name: round(waited[min(len(waited) - 1, int(len(waited) * part))], 4)
            for name, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
            if waited
        }
        report.faults = self._recoveries_by_fault()
        single = report.events - sum(tx.counting for tx in model.of(TransactionState.COMMITTED) if tx.kind == BULK)
        report.naive_lost = {n.name: round(1 - n.read / max(1, single), 4) for n in self.naive_cursors}
        report.consumer_starts = sum(c.starts for c in environment.consumers)

    def _undisturbed(self, *moments: float) -> bool:
        """Whether these times lie in the same period without a fault nearby."""
        before = {bisect_right(self.disturbed, (moment, inf)) - 1 for moment in moments}
        return len(before) == 1 and min(moments) >= self.disturbed[before.pop()][1]

    async def _compare_turns(self, session: environment.Session) -> None:
        """Compare the model's turns with the counters of the subjects, to verify its committed transactions."""
        drawn = dict(await session.fetch("select id, turn from storm.subject where turn > 0"))
        known: dict[int, int] = {}
        for tx in self.model.of(TransactionState.COMMITTED):
            for _, subject, turn in tx.turns:
                known[subject] = max(turn, known.get(subject, 0))
        if self.model.gaps() or known != drawn:
            self.report.failures.append("the model is wrong: its turns differ from those of the subjects")

    async def _describe_violations(self, session: environment.Session, verdict: Verdict) -> None:
        for violation in verdict.violations:
            found = await session.fetchrow(VIOLATION_DETAILS, violation.event)
            self.report.violations.append({**asdict(violation), **dict(found or {})})
        if verdict.violations:
            cursor = await session.fetchrow("select * from iu_route_worker_cursor where worker_name = $1", WORKER)
            self.report.violations.append({"cursor": {k: str(v) for k, v in cursor.items()}})

    def _recoveries_by_fault(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name in sorted({r.fault for r in self.recoveries}):
            of_it = [r for r in self.recoveries if r.fault == name]
            seconds = sorted(r.seconds for r in of_it)
            found[name] = {
                "times": len(of_it), "p50": round(seconds[len(seconds) // 2], 3), "max": round(seconds[-1], 3),
                "bound": of_it[0].bound, "over": sum(r.exceeds_bound for r in of_it),
                "backlog": max(r.backlog for r in of_it),
            }  # fmt: skip
        return found

    def _failures(self) -> list[str]:
        report, model = self.report, self.model
        failures = [f"{check}: {count}" for check in CHECKS if (count := getattr(report, check))]
        failures += [f"a producer got an error: {error}" for error in model.errors[:10]]
        failures += [f"{len(tx)} transactions are still {state.name.lower()}" for state in (TransactionState.OPEN, TransactionState.UNKNOWN)
                     if (tx := model.of(state))]  # fmt: skip
        failures += [
            f"too little concurrency: a naive cursor on {name} lost only {share:.1%}"
            for name, share in report.naive_lost.items()
            if share < MIN_NAIVE_LOSS
        ]
        # Some wake-ups are lost by design: the bell is disabled for a while, and PREPARE TRANSACTION sends no NOTIFY.
        lost, rung = report.wakes.get("lost", 0), report.wakes.get("notify", 0)
        if lost * MIN_NOTIFY_RATIO > rung:
            failures.append(f"too many missed notifications: {lost} were lost, and {rung} came by NOTIFY")
        if self.plan.strict:
            failures += [
                f"{name}: recovery took {f['max']} s, and the bound is {f['bound']} s"
                for name, f in report.faults.items()
                if f["over"]
            ]
        return failures

    # -- progress ------------------------------------------------------------------------------------------------

    async def _print_progress(self) -> None:
        live, known = sys.stderr.isatty(), 0
        while True:
            await asyncio.sleep(0.5 if live else 5)
            for recovery in self.recoveries[known:]:
                known += 1
                if recovery.exceeds_bound:
                    took = f"recovered after {recovery.seconds:.1f} s with {recovery.backlog} events waiting"
                    print(f"{time.strftime('%H:%M:%S')}  {recovery.fault}: {took}", file=sys.stderr)
            line = (
                f"{time.monotonic() - self.began:5.0f} s  {len(self.model.transactions):8} transactions  "
                f"{self.producers.load_level:7} {len(self.recoveries):3} faults  {len(self.model.errors)} errors  {self.step}"
            )
            print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)


# -- entry point -------------------------------------------------------------------------------------------------


async def storm(plan: Plan) -> Report:
    """Prepare an environment and run a storm in it. The logs are kept if it failed, or if the plan asks for it."""
    logs = Path(tempfile.mkdtemp(prefix="iu-storm-logs-"))
    rng = random.Random(f"{plan.seed} faults")
    with disk.own_disk(DISK) as home:
        async with environment.prepare_environment(plan.major, home, logs, rng, plan.consumers) as prepared:
            report = await Storm(plan, prepared).run()
            shutil.copy(prepared.server.log, logs / "postgresql.log")
    if report.failures or plan.keep:
        report.logs = str(logs)
        (logs / "report.json").write_text(as_json(report))
    else:
        shutil.rmtree(logs)
    return report
