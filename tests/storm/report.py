"""The plan of a storm, and its report: as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from iu_listen.cli import output

#: Events of a backlog that add one second to the bound of a recovery: the rate that a shared machine drains at least.
DRAIN_RATE = 20_000
#: The share of events that each naive cursor has to lose at least; if it loses less, the storm had too little concurrency to prove anything.
MIN_NAIVE_LOSS = 0.05
#: Counters that must be zero.
CHECKS = ("lost", "duplicated", "read_twice", "invented", "disordered", "wrong_outcome")


@dataclass(frozen=True)
class Plan:
    """The parameters of a storm.

    Attributes:
        seed: Seed of all random numbers.
        minutes: Duration of the part with faults.
        major: Major version of PostgreSQL.
        bulk_rows: Events in a bulk transaction.
        consumers: Number of consumers.
        pause_between_faults: Shortest and longest pause between two faults, in seconds.
        only: Names of the faults to use; empty: all.
        strict: Whether a recovery beyond its bound is a failure.
        keep: Whether the logs of a storm that passed are kept.
    """

    seed: int
    minutes: float = 2.0
    major: int = 18
    bulk_rows: int = 100_000
    consumers: int = 2
    pause_between_faults: tuple[float, float] = (0.5, 3.0)
    only: tuple[str, ...] = ()
    strict: bool = False
    keep: bool = False


@dataclass
class Recovery:
    """The recovery from one fault.

    Attributes:
        fault: Name of the fault.
        seconds: Duration of the recovery.
        bound: Its bound in seconds, on an idle machine and without a backlog.
        backlog: Number of waiting events at its start.
    """

    fault: str
    seconds: float
    bound: float
    backlog: int

    @property
    def exceeds_bound(self) -> bool:
        """Whether the recovery took longer than its bound and the time for its backlog."""
        return self.seconds > self.bound + self.backlog / DRAIN_RATE


@dataclass
class Report:
    """The figures and the result of a storm.

    Attributes:
        seed: Seed of all random numbers.
        postgresql: Version of the server.
        minutes: Duration of the storm.
        events: Number of committed events.
        attempts: Number of last attempts, of all routes.
        calls: Number of calls of the target.
        repeated_calls: Number of successful calls for an event that had already arrived.
        removed: Number of events that retention removed during the storm.
        transactions: Number of transactions by kind and state.
        retried: Number of serialization failures and deadlocks, by SQLSTATE.
        sessions_cut: Number of producers' sessions that faults ended.
        producer_errors: Number of other errors of producers; must be 0.
        faults: Figures of the recoveries, by fault.
        skipped_faults: Reason why a fault was not possible, by fault.
        lost: Events without an attempt; this and the next five must be 0, and are explained in model.py (Verdict).
        duplicated: Events with two attempts on a route.
        read_twice: Events that the cursor read twice.
        invented: Attempts for events that were not committed, or on a wrong route.
        disordered: Events in the wrong order of their subject.
        wrong_outcome: Events with an outcome that is not permitted.
        dead_letters: Number of dead letters.
        lost_by_promotion: Number of committed transactions that a promoted standby lacks.
        sessions: Largest number of sessions of the consumers.
        naive_lost: Share of events that each naive cursor lost, bulk excluded.
        decided_after: p50, p99 and maximum of the time from commit to attempt, in seconds, without a fault nearby.
        wakes: Number of wake-ups by reason.
        consumer_starts: Number of starts of consumer processes.
        failures: Reasons why the storm failed; empty if it passed.
        violations: Details of the violations.
        logs: Directory of the logs, if they are kept.
    """

    seed: int
    postgresql: str = ""
    minutes: float = 0.0
    events: int = 0
    attempts: int = 0
    calls: int = 0
    repeated_calls: int = 0
    removed: int = 0
    transactions: dict[str, dict[str, int]] = field(default_factory=dict)
    retried: dict[str, int] = field(default_factory=dict)
    sessions_cut: int = 0
    producer_errors: int = 0
    faults: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped_faults: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    duplicated: int = 0
    read_twice: int = 0
    invented: int = 0
    disordered: int = 0
    wrong_outcome: int = 0
    dead_letters: int = 0
    gone: int = 0
    sessions: int = 0
    naive_lost: dict[str, float] = field(default_factory=dict)
    decided_after: dict[str, float] = field(default_factory=dict)
    wakes: dict[str, int] = field(default_factory=dict)
    consumer_starts: int = 0
    failures: list[str] = field(default_factory=list)
    violations: list[dict[str, Any]] = field(default_factory=list)
    logs: str = ""


def as_json(report: Report) -> str:
    """The report as JSON."""
    return json.dumps(asdict(report), indent=2, default=str)


def print_report(report: Report) -> None:
    """Print the report as tables."""
    states = ("committed", "rolled_back")
    rows = [(name, *(t.get(state, 0) for state in states)) for name, t in report.transactions.items()]
    output.table(("transactions", "committed", "rolled back"), rows)
    output.table(
        ("fault", "times", "p50, s", "max, s", "bound, s", ""),
        [
            (name, f["times"], f"{f['p50']:.2f}", f"{f['max']:.2f}", f"{f['bound']:.1f}",
             output.mark(not f["over"], "", f"{f['over']} beyond"))
            for name, f in report.faults.items()
        ],
    )  # fmt: skip
    for name, why in report.skipped_faults.items():
        output.line(f"not possible here: {name}: {why}")
    totals: list[tuple[str, Any]] = [
        ("seed", str(report.seed)), ("PostgreSQL", report.postgresql), ("minutes", report.minutes),
        ("events", report.events), ("attempts", report.attempts),
        ("calls of the target", report.calls), ("repeated successful calls of the target", report.repeated_calls),
        ("events removed by retention", report.removed),
        ("transactions repeated (serialization, deadlock)", sum(report.retried.values())),
        ("sessions of producers ended by faults", report.sessions_cut), ("starts of consumers", report.consumer_starts),
        ("largest number of sessions of consumers", report.sessions), ("dead letters", report.dead_letters),
        ("transactions lost by a promotion", report.lost_by_promotion),
        ("wake-ups by NOTIFY / missed notifications", f"{report.wakes.get('notify', 0)} / {report.wakes.get('lost', 0)}"),
    ]  # fmt: skip
    for name, seconds in report.decided_after.items():
        totals.append((f"time from commit to attempt without a fault, {name}", f"{1000 * seconds:.0f} ms"))
    for zero in ("producer_errors", *CHECKS):
        count = getattr(report, zero)
        totals.append((zero.replace("_", " "), output.mark(not count, "0", str(count))))
    for name, share in report.naive_lost.items():
        totals.append((f"events that a cursor on {name} would have lost (without bulk)", f"{share:.1%}"))
    output.table(("total", ""), totals)
    for violation in report.violations:
        output.line("  " + ", ".join(f"{k} {v}" for k, v in violation.items()))
    for failure in report.failures:
        output.line(f"FAILED: {failure}")
    if report.logs:
        output.line(f"logs: {report.logs}")
