"""The commands of the package: probe, apply, verify and rollback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import adoption
from iu_listen.admin.gates import all_gates
from iu_listen.cli import output
from iu_listen.cli.confirm import not_confirmed
from iu_listen.cli.context import CommandContext, ConnectionOptions, connected
from iu_listen.cli.parameters import Plan, Yes, in_range
from iu_listen.cli.progress import step_progress
from iu_listen.install import requirements
from iu_listen.install.apply import ApplyReport, apply_durably
from iu_listen.install.migrate import exclusive_migration, roll_back_files
from iu_listen.install.package import package_state
from iu_listen.install.preflight import ApplyOptions, PreflightCheck, PreflightResult, run_preflight_checks
from iu_listen.install.probe import SCENARIOS, ProbeReport, ProbeResult, run_probe
from iu_listen.install.verify import Check, verify
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.version import SCHEMA
from iu_listen.postgres.session import Connection

LockTimeout = Annotated[
    float,
    Parameter(help="Longest wait for a lock, and longest hold of one, in seconds.", validator=in_range(0.01, 3600)),
]


def register(app: App) -> None:
    """Add these commands."""
    app.command(probe)
    app.command(apply)
    app.command(check, name="verify")
    app.command(rollback)


# -- probe -------------------------------------------------------------------------------------------------------


def probe(*, lock_timeout: LockTimeout = 2.0, options: ConnectionOptions | None = None) -> int:
    """Prove the worker on this database, in one transaction that is rolled back.

    The probe creates the package, runs the scenarios SETUP and A to H, and rolls back; a new connection then checks
    that nothing was left behind. If the package is installed, the installed objects are tested. Exit 1 if a figure
    differs.
    """

    async def run() -> int:
        async with connected(options) as (context, connection):
            await requirements.require_base(connection)
            await requirements.require_primary(connection)
            with step_progress("probe", len(SCENARIOS)) as step:
                proof = await run_probe(
                    connection, context.session, lock_timeout=lock_timeout, found=lambda finding: step(finding.id)
                )
        if options and options.json:
            output.as_json(proof.as_json())
        else:
            print_proof(proof)
        return 0 if proof.passed else 1

    return anyio.run(run)


def print_proof(proof: ProbeReport) -> None:
    """Print the table of scenarios with expected and observed figures, and the footprint."""

    def rows(findings: list[ProbeResult]) -> Iterator[tuple[Any, ...]]:
        return ((f.id, f.scenario, f.expected, f.observed, output.mark(f.passed)) for f in findings)

    def observed(finding: ProbeResult) -> str:
        return finding.observed if finding.passed else f"{finding.observed} (expected: {finding.expected})"

    tested = "the installed package" if proof.installed else "the package, created for the probe"
    output.table(
        ("probe", "scenario", "expected", "observed", "result"),
        rows(proof.probes),
        f"Probe of {tested}; rolled back",
        narrow=(
            ("probe", "scenario", "observed", "result"),
            ((f.id, f.scenario, observed(f), output.mark(f.passed)) for f in proof.probes),
        ),
    )
    output.table(
        ("item", "before", "after", "result"),
        ((f.scenario, f.expected, f.observed, output.mark(f.passed)) for f in proof.footprint),
        "Footprint, seen from a new connection",
        narrow=(
            ("item", "after", "result"),
            ((f.scenario, observed(f), output.mark(f.passed)) for f in proof.footprint),
        ),
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
    expect_database: Annotated[str | None, Parameter(help="Expected name of the database.")] = None,
    backup_dir: Annotated[Path | None, Parameter(help="Take a backup into this directory first (pg_dump -Fc).")] = None,
    no_backup: Annotated[str, Parameter(help="Reason why no backup is needed; recorded. Overrides --backup-dir.")] = "",
    base: Annotated[
        bool,
        Parameter(help="Create the base of IU Core first, if it is absent. For another base: init.", negative=()),
    ] = False,
    plan: Plan = False,
    lock_timeout: LockTimeout = 2.0,
    options: ConnectionOptions | None = None,
) -> int:
    """Apply the package durably after eight preflight checks (gates 1 to 8), and verify it.

    The package is inert afterwards. Every gate is shown with its evidence. If one gate is closed, the command changes
    nothing (exit 1).
    """

    async def run() -> int:
        async with connected(options, create=True) as (context, connection):
            apply_options = ApplyOptions(
                dsn=context.settings.dsn, expect_database=expect_database, backup_dir=backup_dir, no_backup=no_backup,
                plan=plan, base="iu_core" if base else None, programs=context.programs, lock_timeout=lock_timeout,
            )  # fmt: skip
            return await apply_on(context, connection, apply_options, machine=bool(options and options.json))

    return anyio.run(run)


async def apply_on(
    context: CommandContext, connection: Connection, apply_options: ApplyOptions, *, machine: bool
) -> int:
    """Run the whole command apply on an open session, and return the exit code."""
    answer = await applied(context, connection, apply_options, quiet=machine)
    if machine:
        output.as_json(answer)
    return 0 if answer["pass"] else 1


async def applied(
    context: CommandContext, connection: Connection, apply_options: ApplyOptions, *, quiet: bool
) -> dict[str, Any]:
    """Run the whole command apply on an open session, and return the answer; with ``quiet`` nothing is printed."""
    answer: dict[str, Any] = {"plan": apply_options.plan, "applied": []}
    async with exclusive_migration(connection):
        preflight = await _run_preflight(connection, context, apply_options, quiet=quiet)
        answer["gates"] = [
            {"number": g.number, "name": g.name, "pass": g.passed, "evidence": g.evidence, "hint": g.hint}
            for g in preflight.found
        ]
        if preflight.base:
            answer["base"] = preflight.base
        before = preflight.package
        pending = before.pending if before else ()
        answer["pending"] = [m.name for m in pending]
        passed = preflight.passed
        if not quiet:
            _print_plan(preflight, apply_options)
        if passed and not apply_options.plan and before is not None:
            with step_progress("apply", len(pending)) as progress:
                report = await apply_durably(
                    connection, before, preflight, context.session, apply_options.lock_timeout, progress
                )
            answer |= await _end_state(connection, report)
            passed = all(c.passed for c in report.checks)
            if not quiet:
                _print_end_state(answer)
                print_checks(report.checks)
    return answer | {"pass": passed}


async def _run_preflight(
    connection: Connection, context: CommandContext, apply_options: ApplyOptions, *, quiet: bool
) -> PreflightResult:
    def found(gate: PreflightCheck) -> None:
        if quiet:
            return
        output.line(f"{output.mark(gate.passed, 'PASS', 'FAIL')}  gate {gate.number}  {gate.name}", markup=True)
        output.line(f"      {gate.evidence}")
        if gate.hint:
            output.line(f"      → {gate.hint}")

    return await run_preflight_checks(connection, apply_options, context.session, found)


def _print_plan(preflight: PreflightResult, apply_options: ApplyOptions) -> None:
    if not preflight.passed:
        closed = ", ".join(f"{g.number} {g.name}" for g in preflight.found if not g.passed)
        changed = "Only the base was created." if preflight.created else "Nothing was changed."
        output.line(f"Closed gates: {closed}. {changed}")
    elif apply_options.plan:
        pending = preflight.package.pending if preflight.package else ()
        replaced = preflight.package.changed if preflight.package else ()
        for migration in pending:
            if migration in replaced:
                output.line(f"would apply again {migration.name}: changed")
                continue
            locks = migration.header("locks")
            output.line(f"would apply {migration.name}: {migration.title}" + (f" (locks: {locks})" if locks else ""))
        output.line(f"Plan: {output.plural(len(pending), 'file')} would be applied; nothing was changed.")


async def _end_state(connection: Connection, report: ApplyReport) -> dict[str, Any]:
    """The machine-readable form of a report, with the gates."""
    return {
        "applied": report.applied,
        "added": report.added,
        "gates_after": [{"gate": g["gate"], "open": g["open"]} for g in await all_gates(connection)],
        "row_counts": report.row_counts,
        "verify": checks_as_json(report.checks),
    }


def _print_end_state(report: dict[str, Any]) -> None:
    def words(counts: dict[str, int]) -> str:
        return (
            ", ".join(f"{n} {kind if n == 1 else kind.replace('index', 'indexe') + 's'}" for kind, n in counts.items())
            or "nothing"
        )

    output.line("")
    output.line("State after the apply")
    output.line(f"  added by files 008, 009, 060  {words(report['added']['seed'])}")
    output.line(f"  added by the other files      {words(report['added']['apart'])}")
    for gate in report["gates_after"]:
        output.line(f"  {gate['gate']} gate  {'open' if gate['open'] else 'closed'}")
    for name, counts in report["row_counts"].items():
        same = "unchanged" if counts["before"] == counts["after"] else "CHANGED"
        output.line(f"  rows of {name}  {counts['before']} → {counts['after']}  {same}")
    output.line("")


# -- verify ------------------------------------------------------------------------------------------------------


def check(
    *,
    live: Annotated[
        bool, Parameter(help="The worker has been switched on: do not expect an inert and new worker.", negative=())
    ] = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Verify the applied package by the W checks, and the adopted tables. The command only reads. Exit 1 if one fails.

    W4, W5, W8 and W9 expect the inert state directly after the apply; with --live they accept the state of a running
    worker.
    """

    async def run() -> int:
        async with connected(options) as (_, connection):
            checks = await verify(connection, live=live) + await adoption.checks(connection)
        passed = all(c.passed for c in checks)
        if options and options.json:
            output.as_json({"pass": passed, "checks": checks_as_json(checks)})
        else:
            print_checks(checks)
            if not live and not passed and {c.id for c in checks if not c.passed} <= {"W4", "W5", "W8", "W9"}:
                output.note("The worker has been switched on since the apply. Use `iu-listen verify --live`.")
        return 0 if passed else 1

    return anyio.run(run)


def print_checks(checks: list[Check]) -> None:
    """Print the checks as a table."""
    output.table(
        ("check", "meaning", "expected", "observed", "result"),
        ((c.id, c.label, c.expected, c.observed, output.mark(c.passed)) for c in checks),
        narrow=(
            ("check", "meaning", "observed", "result"),
            (
                (
                    c.id,
                    c.label,
                    c.observed if c.passed else f"{c.observed} (expected: {c.expected})",
                    output.mark(c.passed),
                )
                for c in checks
            ),
        ),
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
    yes: Yes = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Remove the package, file by file, in one transaction. If one file refuses, the whole package stays (exit 1).

    The files refuse while the worker gate is open, or dead letters are open.
    """

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_base(connection)
            await requirements.require_primary(connection)
            package = await package_state(connection)
            if package.newer:
                raise Refused(
                    f"schema {package.version} of this database is newer than this iu-listen (schema {SCHEMA})",
                    "Use the version of iu-listen that applied it; it knows all its files.",
                )
            applied = list(reversed(package.to_roll_back))
            if not applied:
                raise ConfigurationError("no file of the package is applied", "iu-listen apply --plan shows the state.")
            if adopted := await adoption.adopted_names(connection):
                raise Refused(
                    f"adopted tables: {', '.join(adopted)}; without the package every INSERT into them would fail",
                    f"End the adoption first: iu-listen adopt --table {adopted[0]} --remove",
                )
            if plan or not yes:
                if options and options.json:
                    output.as_json({"would_roll_back": [m.name for m in applied]})
                else:
                    for migration in applied:
                        output.line(f"would roll back {migration.name}")
                if not plan:
                    raise not_confirmed()
                return 0
            async with exclusive_migration(connection):
                with step_progress("rollback", len(applied)) as step:
                    await roll_back_files(connection, applied, step)
        if options and options.json:
            output.as_json({"rolled_back": [m.name for m in applied]})
        else:
            output.line(f"Rolled back {output.plural(len(applied), 'file')}; the package is removed.")
        return 0

    return anyio.run(run)
