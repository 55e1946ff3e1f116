"""The commands of the package: probe, apply, verify and rollback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import anyio
from cyclopts import App, Parameter

from iu_listen.admin.gates import all_gates
from iu_listen.cli import output
from iu_listen.cli.ask import steps
from iu_listen.cli.context import CommandContext, ConnectionOptions, between, looking
from iu_listen.install import requirements
from iu_listen.install.migrate import (
    Package,
    added,
    apply_files,
    for_want_of_a_lock,
    only_migrator,
    package_state,
    roll_back_files,
)
from iu_listen.install.preflight import ApplyOptions, PreflightCheck, PreflightResult, inspect
from iu_listen.install.probe import SCENARIOS, ProbeResult, Proof, run_probe
from iu_listen.install.verify import Check, verify
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection
from iu_listen.postgres.sqlfiles import package_files

LockTimeout = Annotated[
    float,
    Parameter(help="Longest wait for a lock, and longest hold of one, in seconds.", validator=between(0.01, 3600)),
]
Plan = Annotated[bool, Parameter(help="Show everything, and change nothing.", negative=())]


def register(app: App) -> None:
    """Add these commands."""
    app.command(probe)
    app.command(apply)
    app.command(check, name="verify")
    app.command(rollback)


#: Number of tries of the probe of a large outbox if it cannot run. A wrong figure is not tried again.
PROBES: Final = 5


# -- probe -------------------------------------------------------------------------------------------------------


def probe(*, lock_timeout: LockTimeout = 2.0, where: ConnectionOptions | None = None) -> int:
    """Prove the worker on this database, in one transaction that is rolled back.

    The package is created, exercised (SETUP, A to H) and rolled back; a fresh connection then shows that nothing
    was left behind. Where it is installed, the installed objects are exercised. Exit 1 when one figure differs.
    """

    async def run() -> int:
        async with looking(where) as (door, connection):
            await requirements.require_substrate(connection)
            await requirements.require_primary(connection)
            with steps("probe", len(SCENARIOS)) as step:
                proof = await run_probe(
                    connection, door.session, lock_timeout=lock_timeout, found=lambda finding: step(finding.id)
                )
        if where and where.json:
            output.as_json(proof.as_json())
        else:
            print_proof(proof)
        return 0 if proof.passed else 1

    return anyio.run(run)


def print_proof(proof: Proof) -> None:
    """Print the table of scenarios with expected and observed figures, and the footprint."""

    def rows(findings: list[ProbeResult]) -> Iterator[tuple[Any, ...]]:
        return ((f.id, f.scenario, f.expected, f.observed, output.mark(f.passed)) for f in findings)

    exercised = "the installed package" if proof.installed else "the package, created for the probe"
    output.table(
        ("probe", "scenario", "expected", "observed", ""), rows(proof.probes), f"Probe of {exercised}; rolled back"
    )
    output.table(
        ("what", "before", "after", ""),
        ((f.scenario, f.expected, f.observed, output.mark(f.passed)) for f in proof.footprint),
        "Footprint, seen from a fresh connection",
    )
    wrong = [
        f.id if f.id != "footprint" else f"footprint: {f.scenario}"
        for f in [*proof.probes, *proof.footprint]
        if not f.passed
    ]
    output.line(f"{output.mark(proof.passed, 'PASS', 'FAIL')} {', '.join(wrong)}", markup=True)


# -- apply -------------------------------------------------------------------------------------------------------


def apply(
    *,
    expect_database: Annotated[str | None, Parameter(help="The database that it must be.")] = None,
    backup_dir: Annotated[Path | None, Parameter(help="Take a backup into this directory first (pg_dump -Fc).")] = None,
    no_backup: Annotated[str, Parameter(help="Why there need be no backup; recorded. Wins over --backup-dir.")] = "",
    base: Annotated[
        bool, Parameter(help="Create the substrate first, where it is absent. A step of its own.", negative=())
    ] = False,
    plan: Plan = False,
    lock_timeout: LockTimeout = 2.0,
    where: ConnectionOptions | None = None,
) -> int:
    """Apply the package durably, behind eight gates, and verify it. It is inert afterwards.

    Every gate is shown with its evidence. One that is closed, and nothing is changed (exit 1).
    """

    async def run() -> int:
        async with looking(where) as (door, connection):
            terms = ApplyOptions(
                dsn=door.settings.dsn, expect_database=expect_database, backup_dir=backup_dir, no_backup=no_backup,
                plan=plan, base=base, programs=door.programs, lock_timeout=lock_timeout,
            )  # fmt: skip
            return await apply_on(door, connection, terms, machine=bool(where and where.json))

    return anyio.run(run)


async def apply_on(door: CommandContext, connection: Connection, terms: ApplyOptions, *, machine: bool) -> int:
    """Run the whole command apply on an open session, and return the exit code."""
    answer = await applied(door, connection, terms, quiet=machine)
    if machine:
        output.as_json(answer)
    return 0 if answer["pass"] else 1


async def applied(door: CommandContext, connection: Connection, terms: ApplyOptions, *, quiet: bool) -> dict[str, Any]:
    """Run the whole command apply on an open session, and return the answer; with ``quiet`` nothing is printed."""
    machine = quiet
    answer: dict[str, Any] = {"plan": terms.plan, "applied": []}
    async with only_migrator(connection):
        gates = await _show_gates(connection, door, terms, machine=machine)
        answer["gates"] = [
            {"number": g.number, "name": g.name, "pass": g.passed, "evidence": g.evidence, "hint": g.hint}
            for g in gates.found
        ]
        if gates.base:
            answer["base"] = gates.base
        before = gates.package
        pending = before.pending if before else ()
        answer["pending"] = [m.name for m in pending]
        code = 0 if gates.passed else 1
        if not machine:
            _show_plan(gates, terms)
        if gates.passed and not terms.plan and before is not None:
            answer |= await _apply_durably(connection, before, gates, door, terms, machine=machine)
            code = 0 if all(c["pass"] for c in answer["verify"]) else 1
    return answer | {"pass": code == 0}


async def _show_gates(
    connection: Connection, door: CommandContext, terms: ApplyOptions, *, machine: bool
) -> PreflightResult:
    def found(gate: PreflightCheck) -> None:
        if machine:
            return
        output.line(f"{output.mark(gate.passed, 'PASS', 'FAIL')}  gate {gate.number}  {gate.name}", markup=True)
        output.line(f"      {gate.evidence}")
        if gate.hint:
            output.line(f"      → {gate.hint}")

    return await inspect(connection, terms, door.session, found)


def _show_plan(gates: PreflightResult, terms: ApplyOptions) -> None:
    if not gates.passed:
        shut = ", ".join(f"{g.number} {g.name}" for g in gates.found if not g.passed)
        changed = "The substrate was created, and nothing else" if gates.created else "Nothing"
        output.line(f"Closed: {shut}. {changed} was changed.")
    elif terms.plan:
        pending = gates.package.pending if gates.package else ()
        for migration in pending:
            if gates.package and migration in gates.package.changed:
                output.line(f"would apply again {migration.name}: changed")
                continue
            locks = migration.header("locks")
            output.line(f"would apply {migration.name}: {migration.title}" + (f" (locks: {locks})" if locks else ""))
        output.line(f"Plan: {len(pending)} file(s) would be applied; nothing was changed.")


async def _apply_durably(
    connection: Connection,
    before: Package,
    gates: PreflightResult,
    door: CommandContext,
    terms: ApplyOptions,
    *,
    machine: bool,
) -> dict[str, Any]:
    counts_before = (await queries.rows(connection, "row_counts"))[0]
    # A worker that has run is not fresh any more. Then verify() accepts the state of a running worker.
    first = any(m.number == "060" for m in before.pending)

    async def must_verify() -> None:
        wrong = [c for c in await verify(connection, live=not first) if not c.passed]
        if wrong:
            raise Refused(
                f"{wrong[0].id} {wrong[0].label}: expected {wrong[0].expected}, observed {wrong[0].observed}",
                "W8 needs the master gate: iu-listen gate open master" if wrong[0].id == "W8" else "",
            )

    with steps("apply", len(before.pending)) as step:
        try:
            await apply_files(connection, before.pending, gates.evidence(), step, must_verify, step.batch)
            if gates.probe_last:
                step("probe")
                await _must_prove(connection, door, terms)
        except Refused as error:
            # If only a lock was missing, or the probe could not run, the applied files stay: numbering and indexing a
            # large outbox again would take long.
            keep = gates.probe_last and (isinstance(error, _Unproven) or for_want_of_a_lock(error))
            left = await _what_is_left(connection) if keep else await _take_back(connection, before)
            raise Refused(error.message, f"{left} {error.hint}".strip(), error.sqlstate) from error
    after = await package_state(connection)
    checks = await verify(connection, live=not first)
    counts_after = (await queries.rows(connection, "row_counts"))[0]
    report = {
        "applied": [m.name for m in before.pending],
        "added": added(before, after),
        "gates_after": [{"gate": g["gate"], "open": g["open"]} for g in await all_gates(connection)],
        "row_counts": {name: {"before": counts_before[name], "after": counts_after[name]} for name in counts_before},
        "verify": checks_as_json(checks),
    }
    if not machine:
        _print_end_state(report)
        print_checks(checks)
    return report


class _Unproven(Refused):
    """The probe could not run to its end, so it has no result."""


async def _must_prove(connection: Connection, door: CommandContext, terms: ApplyOptions) -> None:
    for left in reversed(range(PROBES)):
        try:
            proof = await run_probe(connection, door.session, lock_timeout=terms.lock_timeout)
            break
        except Refused as error:
            # The probe could not run; this is not a wrong figure.
            if not left:
                raise _Unproven(f"the probe could not run: {error.message}", error.hint) from error
            await anyio.sleep(1)
    wrong = [f"{f.id}: expected {f.expected}, observed {f.observed}" for f in proof.findings if not f.passed]
    if wrong:
        raise Refused("; ".join(wrong[:3]))


async def _take_back(connection: Connection, before: Package) -> str:
    """After a failed group of files, roll back the groups that were applied in this run; returns a description."""
    now = await package_state(connection)
    ours = [m for m in package_files() if m.name in now.recorded and m.name not in before.recorded]
    try:
        if ours:
            await roll_back_files(connection, ours, lambda _: None)
    except Refused as stuck:
        return f"It could not be taken back: {stuck.message}. {await _what_is_left(connection)}"
    replaced = [name for name, checksum in before.recorded.items() if now.recorded.get(name, checksum) != checksum]
    if replaced:
        return f"Everything was taken back, except the new text of {', '.join(replaced)}."
    return "Everything was taken back."


async def _what_is_left(connection: Connection) -> str:
    done = len((await package_state(connection)).recorded)
    return (
        f"{done} of {len(package_files())} files are applied, and inert. iu-listen apply goes on, "
        "iu-listen probe proves them, iu-listen rollback takes them back."
    )


def _print_end_state(report: dict[str, Any]) -> None:
    def words(counts: dict[str, int]) -> str:
        return (
            ", ".join(f"{n} {kind if n == 1 else kind.replace('index', 'indexe') + 's'}" for kind, n in counts.items())
            or "nothing"
        )

    output.line("")
    output.line("Durable end state")
    output.line(f"  added by 008 + 009 + 060      {words(report['added']['seed'])}")
    output.line(f"  added beside them             {words(report['added']['apart'])}")
    for gate in report["gates_after"]:
        output.line(f"  {gate['gate']} gate  {'open' if gate['open'] else 'closed'}")
    for name, counts in report["row_counts"].items():
        same = "unchanged" if counts["before"] == counts["after"] else "CHANGED"
        output.line(f"  {name}  {counts['before']} → {counts['after']}  {same}")
    output.line("")


# -- verify ------------------------------------------------------------------------------------------------------


def check(
    *,
    live: Annotated[
        bool, Parameter(help="The worker has been switched on: do not expect it inert and fresh.", negative=())
    ] = False,
    where: ConnectionOptions | None = None,
) -> int:
    """Verify the applied package: W1 to W9 of the seed, and those that came after. Reads only. Exit 1 on a failure.

    W4, W5, W8 and W9 expect the inert state right after the apply; --live accepts what a worker looks like that runs.
    """

    async def run() -> int:
        async with looking(where) as (_, connection):
            checks = await verify(connection, live=live)
        passed = all(c.passed for c in checks)
        if where and where.json:
            output.as_json({"pass": passed, "checks": checks_as_json(checks)})
        else:
            print_checks(checks)
            if not live and not passed and {c.id for c in checks if not c.passed} <= {"W4", "W5", "W8", "W9"}:
                output.note(
                    "The worker has been switched on since the apply. To verify a running one: iu-listen verify --live"
                )
        return 0 if passed else 1

    return anyio.run(run)


def print_checks(checks: list[Check]) -> None:
    """Print the checks as a table."""
    output.table(
        ("check", "what", "expected", "observed", ""),
        ((c.id, c.label, c.expected, c.observed, output.mark(c.passed)) for c in checks),
    )


def checks_as_json(checks: list[Check]) -> list[dict[str, Any]]:
    """The machine-readable form of the checks."""
    return [
        {"id": c.id, "check": c.label, "expected": c.expected, "observed": c.observed, "pass": c.passed} for c in checks
    ]


# -- rollback ----------------------------------------------------------------------------------------------------


def rollback(
    *,
    plan: Plan = False,
    yes: Annotated[bool, Parameter(help="Really do it.", negative=())] = False,
    where: ConnectionOptions | None = None,
) -> int:
    """Take the package back, file by file, in one transaction. One refusal, and everything stays (exit 1).

    The down files refuse while the worker gate is open or dead letters are open.
    """

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_substrate(connection)
            await requirements.require_primary(connection)
            package = await package_state(connection)
            applied = list(reversed(package.begun))
            if not applied:
                raise ConfigurationError("nothing of the package is here", "iu-listen apply --plan shows what is here.")
            if plan or not yes:
                if where and where.json:
                    output.as_json({"would_roll_back": [m.name for m in applied]})
                else:
                    for migration in applied:
                        output.line(f"would take back {migration.name}")
                if not plan:
                    raise Refused("nothing was changed", "Say --yes to do it, or --plan to only look.")
                return 0
            async with only_migrator(connection):
                with steps("rollback", len(applied)) as step:
                    await roll_back_files(connection, applied, step)
        if where and where.json:
            output.as_json({"rolled_back": [m.name for m in applied]})
        else:
            output.line(f"{len(applied)} files taken back; the package is gone.")
        return 0

    return anyio.run(run)
