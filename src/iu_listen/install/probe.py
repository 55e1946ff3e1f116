"""The probe A to H: the package is created, exercised and rolled back in one transaction, and leaves nothing behind.

The transaction is REPEATABLE READ. Its snapshot does not change, so the cursor of the probe, which starts at the
present, sees only the events of the probe, however busy the database is. If the package is installed, the probe
exercises the installed objects.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import anyio
import asyncpg

from iu_listen.install.package import Package, missing_base_objects, package_state
from iu_listen.install.script import in_one_transaction
from iu_listen.model.errors import Refused
from iu_listen.model.routing import GATES
from iu_listen.postgres.session import Connection, translate_driver_errors
from iu_listen.postgres.sqlfiles import query

#: Longest wait of a probe for a lock, and longest time that it holds a lock for which readers wait, in seconds.
LOCK_TIMEOUT: Final = 2.0
BATCH_LIMIT: Final = 1000


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One row of the result: the expected and the observed figures of a scenario."""

    id: str
    scenario: str
    expected: str
    observed: str

    @property
    def passed(self) -> bool:
        """Whether the observed figures are the expected ones."""
        return self.expected == self.observed


@dataclass(slots=True)
class ProbeReport:
    """All results of a probe.

    Attributes:
        probes: The findings of SETUP and of A to H.
        footprint: Facts about the database before the probe (expected) and after it (observed).
        installed: Whether the package was installed, so that the installed objects were exercised.
    """

    probes: list[ProbeResult] = field(default_factory=list)
    footprint: list[ProbeResult] = field(default_factory=list)
    installed: bool = False

    @property
    def findings(self) -> list[ProbeResult]:
        """All findings: SETUP, A to H and the footprint."""
        return [*self.probes, *self.footprint]

    @property
    def passed(self) -> bool:
        """Whether all scenarios ran with the expected figures and the footprint did not change."""
        return len(self.probes) == len(SCENARIOS) and all(f.passed for f in [*self.probes, *self.footprint])

    def as_json(self) -> dict[str, Any]:
        """The machine-readable form; it is a stable interface (docs/reference/json.md)."""

        def rows(findings: list[ProbeResult]) -> list[dict[str, Any]]:
            names = ("id", "scenario", "expected", "observed")
            return [{**{n: getattr(f, n) for n in names}, "pass": f.passed} for f in findings]

        footprint = {
            f.scenario: {"expected": f.expected, "observed": f.observed, "pass": f.passed} for f in self.footprint
        }
        return {"pass": self.passed, "installed": self.installed, "probes": rows(self.probes), "footprint": footprint}


async def run_probe(
    connection: Connection,
    fresh: Callable[[], Any],
    *,
    lock_timeout: float = LOCK_TIMEOUT,
    found: Callable[[ProbeResult], None] = lambda _: None,
) -> ProbeReport:
    """Run the probe on the database of ``connection``.

    Args:
        connection: A session outside a transaction.
        fresh: Opens another session (an async context manager), for the check of the footprint after the probe.
        lock_timeout: Longest wait for a lock, and longest time that the probe holds a lock for which readers wait, in
            seconds.
        found: Called with each finding.

    Raises:
        Refused: The base is missing, the package has drift, a lock was not available or was held too long, or a gate or
            a route was changed during the probe.
    """
    if missing := await missing_base_objects(connection):
        raise Refused(
            f"the base is missing: {missing[0]} does not exist",
            "Check the connection string. To create an outbox for your application: iu-listen init",
        )
    package = await package_state(connection)
    if drift := package.drift():
        raise Refused("; ".join(drift[:3]), "Remove the package with iu-listen rollback, or see docs/how-to/repair.md.")
    report = ProbeReport(installed=package.complete)
    with translate_driver_errors():
        probe = _ProbeRun(connection, package, lock_timeout, report, found)
        try:
            before = await _footprint(connection, [], lock_timeout)
            await probe.run()
        except asyncpg.LockNotAvailableError as error:
            raise Refused(
                f"a lock was not available within {lock_timeout:g} s: {error}",
                "Try again when the database is less busy, or give a longer --lock-timeout.",
            ) from error
        except asyncpg.SerializationError as error:
            raise Refused(f"a gate or a route was changed during the probe: {error}", "Try again.") from error
        async with fresh() as other:
            after = await _footprint(other, probe.events, lock_timeout)
    for item, value in before.items():
        report.footprint.append(ProbeResult("footprint", item, value, str(after.get(item))))
    return report


async def _footprint(connection: Connection, events: list[UUID], lock_timeout: float) -> dict[str, str]:
    """The facts of the footprint, by item. The query waits for a lock at most ``lock_timeout`` seconds."""
    async with connection.transaction():
        await _limit(connection, lock_timeout)
        return {row["item"]: str(row["value"]) for row in await connection.fetch(query("probe/footprint"), events)}


async def _limit(connection: Connection, lock_timeout: float) -> None:
    """Set the limits of the current transaction of the connection."""
    await connection.fetch(query("probe/limits"), f"{round(lock_timeout * 1000)}ms")


class _ProbeRun:
    """The scenarios in their order. Each returns the expected and the observed figures, as texts."""

    def __init__(
        self,
        connection: Connection,
        package: Package,
        lock_timeout: float,
        report: ProbeReport,
        found: Callable[[ProbeResult], None],
    ) -> None:
        self._connection = connection
        self._pending = package.pending
        self._lock_timeout = lock_timeout
        self._report = report
        self._found = found
        self._worker = f"iu_probe_{secrets.token_hex(4)}"
        self._first: list[UUID] = []
        self._second: list[UUID] = []
        self._base = {"dry_run": 0, "failed": 0}

    @property
    def events(self) -> list[UUID]:
        """The ids of all events that the probe wrote."""
        return self._first + self._second

    async def run(self) -> None:
        """Create the pending objects, run the scenarios, and roll everything back."""
        transaction = self._connection.transaction(isolation="repeatable_read")
        await transaction.start()
        try:
            await _limit(self._connection, self._lock_timeout)
            # If the package is installed, no other session waits for the probe before E. E locks the route table
            # against readers, for example a running consumer. If files are pending, the probe holds locks from the
            # start, with 005 also on the outbox.
            without_locks = [] if self._pending else [s for s in SCENARIOS if s.id < "E" or s.id == "SETUP"]
            for scenario in without_locks:
                await self._try(scenario)
            with anyio.move_on_after(self._lock_timeout) as lock_scope:
                for migration in self._pending:
                    await self._connection.execute(in_one_transaction(migration))
                for scenario in SCENARIOS[len(without_locks) :]:
                    await self._try(scenario)
            if lock_scope.cancelled_caught:
                raise Refused(
                    f"the probe held locks for longer than {self._lock_timeout:g} s and was ended, so no session waits",
                    "Try again when the database is less busy, or give a longer --lock-timeout.",
                )
        finally:
            with anyio.CancelScope(shield=True):
                if not self._connection.is_closed():
                    await transaction.rollback()

    async def _try(self, scenario: Scenario) -> None:
        """Run one scenario in a savepoint. An error becomes its finding, and the next scenario still runs."""
        try:
            async with self._connection.transaction():
                expected, observed = await scenario.run(self)
        except (asyncpg.LockNotAvailableError, asyncpg.SerializationError):
            raise
        except asyncpg.PostgresError as error:
            expected, observed = scenario.expected, f"error {error.sqlstate}: {error}"
        finding = ProbeResult(scenario.id, scenario.title, expected, observed)
        self._report.probes.append(finding)
        self._found(finding)

    # -- scenarios -----------------------------------------------------------------------------------------------

    async def setup(self) -> tuple[str, str]:
        await self._connection.execute(query("probe/setup_gates"))
        await self._connection.execute(query("probe/setup_route"))
        await self._connection.execute(query("probe/setup_cursor"), self._worker)
        self._base = {status: await self._value("probe/summary", status) for status in self._base}
        gates = await self._connection.fetchrow(query("probe/gates"))
        assert gates is not None
        return SCENARIOS[0].expected, f"master {_tf(gates['master'])}, worker {_tf(gates['worker'])}"

    async def a_emit(self) -> tuple[str, str]:
        self._first = await self._emit()
        return SCENARIOS[1].expected, f"event_outbox iu rows = {await self._value('probe/events', self._first)}"

    async def b_run(self) -> tuple[str, str]:
        ran = await self._run()
        total, fitting = await self._attempts(self._first, "dry_run")
        cursor = await self._connection.fetchrow(query("probe/cursor"), self._worker)
        advanced = cursor is not None and cursor["last_event_id"] in self._first and total == fitting
        return SCENARIOS[2].expected, (
            f"seen={ran['seen']}, attempts_written={ran['attempts_written']}, skipped={ran['skipped']}, "
            f"dead_lettered={ran['dead_lettered']}; {fitting} rows outbound/dry_run/iu.version_applied.workflow; "
            f"cursor {'advanced' if advanced else 'not advanced'}"
        )

    async def c_again(self) -> tuple[str, str]:
        ran = await self._run()
        total, _ = await self._attempts(self._first, "dry_run")
        return SCENARIOS[3].expected, f"seen={ran['seen']}; attempts still {total}"

    async def d_reset(self) -> tuple[str, str]:
        await self._connection.execute(query("probe/setup_cursor"), self._worker)
        ran = await self._run()
        total, _ = await self._attempts(self._first, "dry_run")
        return SCENARIOS[4].expected, f"seen={ran['seen']} but table still {total}"

    async def e_fail(self) -> tuple[str, str]:
        self._second = await self._emit()
        await self._connection.execute(query("probe/unlist"))
        await self._connection.execute(query("probe/drop_safety_check"))
        await self._connection.execute(query("probe/drop_safety_guard"))
        await self._connection.execute(query("probe/route_dry_run"), False)
        ran = await self._run()
        _, failed = await self._attempts(self._second, "failed", "worker_process_error")
        letters = await self._connection.fetch(query("probe/open_dead_letters"), self._second)
        return SCENARIOS[5].expected, (
            f"dead_lettered={ran['dead_lettered']}; {failed} failed attempts; "
            f"failure_code={'worker_process_error' if failed == 3 else 'other'}; "
            f"seam_failclosed={_tf(await self._seam_raises())}; v_iu_route_dead_letter_open = {len(letters)}"
        )

    async def f_replay(self) -> tuple[str, str]:
        await self._connection.execute(query("probe/route_dry_run"), True)
        letters = await self._connection.fetch(query("probe/open_dead_letters"), self._second)
        if not letters:
            return SCENARIOS[6].expected, "there is no dead letter to replay"
        answer = json.loads(await self._value("replay_dead_letter", letters[0]["id"], "iu-listen probe", None))
        resolved = await self._value("probe/resolved_dead_letters", self._second)
        left = await self._connection.fetch(query("probe/open_dead_letters"), self._second)
        return SCENARIOS[6].expected, (
            f"status={answer['status']}, decision={answer.get('decision')}, "
            f"resolved={str(answer['resolved']).lower()}, attempt_no={answer.get('attempt_no')}; "
            f"dlq resolved={resolved} / open={len(left)}"
        )

    async def g_look(self) -> tuple[str, str]:
        health = json.loads(await self._value("worker_health", self._worker))
        now = {status: await self._value("probe/summary", status) - base for status, base in self._base.items()}
        backlog = await self._value("probe/backlog", self._worker)
        return SCENARIOS[7].expected, (
            f"health.healthy={str(health['healthy']).lower()}; v_iu_route_attempt_summary = "
            f"dry_run {now['dry_run']} / failed {now['failed']}; backlog {backlog}"
        )

    async def h_gates(self) -> tuple[str, str]:
        seen = []
        for gate in ("worker", "master"):
            await self._connection.execute(query("probe/close_gate"), GATES[gate])
            seen.append(f"{gate} gate off → {(await self._run())['status']}")
        return SCENARIOS[8].expected, "; ".join(seen)

    # -- common steps --------------------------------------------------------------------------------------------

    async def _value(self, name: str, *args: Any) -> Any:
        return await self._connection.fetchval(query(name), *args)

    async def _emit(self) -> list[UUID]:
        ids = [await self._value("probe/emit", n) for n in (1, 2, 3)]
        return [i for i in ids if i is not None]

    async def _run(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"seen": None, "attempts_written": None, "skipped": None, "dead_lettered": None}
        answer.update(json.loads(await self._value("run_batch", self._worker, BATCH_LIMIT)))
        return answer

    async def _attempts(self, events: list[UUID], status: str, code: str | None = None) -> tuple[int, int]:
        row = await self._connection.fetchrow(query("probe/attempts"), events, status, code)
        assert row is not None
        return row["total"], row["fitting"]

    async def _seam_raises(self) -> bool:
        try:
            async with self._connection.transaction():
                await self._connection.fetchval(query("probe/deliver"))
        except asyncpg.FeatureNotSupportedError:
            return True
        return False


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the seed's table of scenarios."""

    id: str
    title: str
    expected: str
    run: Callable[[_ProbeRun], Awaitable[tuple[str, str]]]


#: The seed's table, with its exact figures.
SCENARIOS: Final = (
    Scenario("SETUP", "open worker gate", "master t, worker t", _ProbeRun.setup),
    Scenario("A", "emit 3 synthetic iu events via fn_iu_emit_event", "event_outbox iu rows = 3", _ProbeRun.a_emit),
    Scenario(
        "B",
        "fn_iu_route_worker_run dry-run pass",
        "seen=3, attempts_written=3, skipped=0, dead_lettered=0; "
        "3 rows outbound/dry_run/iu.version_applied.workflow; cursor advanced",
        _ProbeRun.b_run,
    ),
    Scenario("C", "re-run (cursor idempotency)", "seen=0; attempts still 3", _ProbeRun.c_again),
    Scenario("D", "reset cursor, re-run (key idempotency)", "seen=3 but table still 3", _ProbeRun.d_reset),
    Scenario(
        "E",
        "dead-letter + fail-closed delivery (dry_run=false)",
        "dead_lettered=3; 3 failed attempts; failure_code=worker_process_error; "
        "seam_failclosed=t; v_iu_route_dead_letter_open = 3",
        _ProbeRun.e_fail,
    ),
    Scenario(
        "F",
        "fn_iu_route_dead_letter_replay",
        "status=replayed, decision=dry_run, resolved=true, attempt_no=2; dlq resolved=1 / open=2",
        _ProbeRun.f_replay,
    ),
    Scenario(
        "G",
        "healthcheck + 3 observability views",
        "health.healthy=true; v_iu_route_attempt_summary = dry_run 4 / failed 3; backlog 0",
        _ProbeRun.g_look,
    ),
    Scenario(
        "H",
        "gate fail-closed",
        "worker gate off → worker_gate_closed; master gate off → master_gate_closed",
        _ProbeRun.h_gates,
    ),
)


def _tf(value: bool) -> str:
    return "t" if value else "f"
