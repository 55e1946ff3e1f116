"""The eight preflight checks, which its code and output call gates. If one of them fails, nothing is changed.

Each check is shown with its evidence.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio.to_thread

from iu_listen.install.backup import client_programs, take_backup
from iu_listen.install.migrate import apply_base
from iu_listen.install.package import Package, missing_base_objects, package_state, unsupported_base_types
from iu_listen.install.probe import ProbeReport, run_probe
from iu_listen.model.errors import IuListenError, SessionLost
from iu_listen.model.version import SCHEMA
from iu_listen.postgres.session import Connection, translate_driver_errors
from iu_listen.postgres.sqlfiles import Base, all_files, package_files, query

#: Largest outbox, in bytes, that is numbered and indexed inside the transaction of the probe. Producers wait meanwhile.
SMALL_OUTBOX_BYTES: Final = 4 << 20
#: Major versions of PostgreSQL that are supported.
SUPPORTED: Final = range(15, 19)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyOptions:
    """The options of the operator.

    Attributes:
        dsn: Connection string, for pg_dump.
        expect_database: Required name of the database; None: any name.
        backup_dir: Directory for the backup; None: no backup is taken.
        no_backup: Reason why no backup is taken, which is recorded; empty: a backup is required.
        plan: Change nothing, and take no backup.
        base: The base to create if it is absent and the checks before have passed; None: none.
        programs: Directories in which pg_dump is searched, besides PATH.
        lock_timeout: Longest wait of the probe for a lock, in seconds.
    """

    dsn: str | None
    expect_database: str | None = None
    backup_dir: Path | None = None
    no_backup: str = ""
    plan: bool = False
    base: Base | None = None
    programs: tuple[Path, ...] = ()
    lock_timeout: float = 2.0


@dataclass(frozen=True, slots=True)
class PreflightCheck:
    """The result of one preflight check."""

    number: int
    name: str
    passed: bool
    evidence: str
    hint: str = ""


@dataclass(slots=True)
class PreflightResult:
    """The results of the preflight checks, in order, and facts that later steps need.

    Attributes:
        found: The results.
        target: The row of the query ``target``: database, user, server version and further facts.
        package: The state of the package; None: not known yet.
        report: The result of the probe; None: it did not run.
        base: ``created`` or ``would be created``; empty: the base was there, or is missing.
        probe_last: Whether the outbox is too large to be indexed in the transaction of the probe, so that the probe
            runs after the files are applied.
        worker_gate_open: Whether the worker gate is open.
    """

    found: list[PreflightCheck] = field(default_factory=list)
    target: Mapping[str, Any] = field(default_factory=dict)
    package: Package | None = None
    report: ProbeReport | None = None
    base: str = ""
    probe_last: bool = False
    worker_gate_open: bool = False

    @property
    def created(self) -> bool:
        """Whether the base was created."""
        return self.base == "created"

    @property
    def upgrade(self) -> bool:
        """Whether the package is installed already: the gates and the routes then stay as they are."""
        return self.package is not None and self.package.installed

    @property
    def passed(self) -> bool:
        """Whether all eight checks have passed."""
        return len(self.found) == len(PREFLIGHT_CHECKS) and all(gate.passed for gate in self.found)

    def evidence(self) -> dict[str, str]:
        """The evidence by name of the check, as recorded with each applied file."""
        return {gate.name: gate.evidence for gate in self.found}


CheckAnswer = tuple[bool, str, str]
_POLICIES_HINT: Final = (
    "Give the role BYPASSRLS, or disable row level security on these tables; the role of the consumer needs the same."
)
_NO_TARGET: Final = (False, "not checked: gate 1 has not identified the target", "")
_NOT_CHECKED: Final = (False, "not checked: gate 4 is closed", "")


class _Inspector:
    """One method for each check; each returns (passed, evidence, hint)."""

    def __init__(
        self, connection: Connection, options: ApplyOptions, fresh: Callable[[], Any], gates: PreflightResult
    ) -> None:
        self._connection = connection
        self._options = options
        self._fresh = fresh
        self._gates = gates

    async def target(self) -> CheckAnswer:
        row = dict(await self._connection.fetchrow(query("target")) or {})
        self._gates.target = row
        evidence = (
            f"database {row['database']}, PostgreSQL {row['server_version']}, "
            f"system identifier {row['system_identifier']}"
        )
        expected = self._options.expect_database
        if expected and expected != row["database"]:
            return (
                False,
                f"{evidence}; expected database {expected}",
                "Check the connection string, or --expect-database.",
            )
        if row["version_num"] // 10000 not in SUPPORTED:
            return False, evidence, f"PostgreSQL {SUPPORTED[0]} to {SUPPORTED[-1]} are supported."
        if row["encoding"] == "SQL_ASCII":
            hint = "It stores bytes that no client can decode as text. Use a database with another encoding, as UTF8."
            return False, f"{evidence}; encoding SQL_ASCII", hint
        return True, evidence, ""

    async def primary(self) -> CheckAnswer:
        row = self._gates.target
        if not row:
            return _NO_TARGET
        if why := await self._connection.fetchrow(query("takes_no_writes")):
            return False, why["problem"], why["hint"]
        if not row["may_create"]:
            return False, f"{row['user']} may not create objects in schema public", "Connect as the owner of IU Core."
        return True, f"writable primary, as {row['user']}", ""

    async def backup(self) -> CheckAnswer:
        options, row = self._options, self._gates.target
        if not row:
            return _NO_TARGET
        if options.no_backup:
            return True, f"none, because: {options.no_backup}", ""
        if options.backup_dir is None:
            hint = 'Give --backup-dir DIR to take a backup now, or --no-backup "the reason why none is needed".'
            return False, "no backup", hint
        major = row["version_num"] // 10000
        programs = client_programs(major, options.programs)
        if programs is None:
            return (
                False,
                f"no pg_dump of version {major} or newer was found",
                "Install postgresql-client, or use --no-backup.",
            )
        if options.plan:
            where = next(p for p in (options.backup_dir, *options.backup_dir.parents) if p.exists())
            writable = where.is_dir() and os.access(where, os.W_OK)
            return (
                writable,
                f"would be taken with {programs}/pg_dump into {options.backup_dir}",
                f"{where} is not writable.",
            )
        if not all(gate.passed for gate in self._gates.found):
            return False, "not taken: a gate before this one is closed", ""
        taken = await anyio.to_thread.run_sync(take_backup, options.dsn, row["database"], programs, options.backup_dir)
        return True, f"{taken['file']}, {taken['bytes']} bytes, {taken['entries']} entries by pg_restore -l", ""

    async def drift(self) -> CheckAnswer:
        if self._options.base and (refusal := await self._create_base()):
            return refusal
        if missing := await missing_base_objects(self._connection):
            return (
                False,
                f"the base is missing: {', '.join(missing[:3])} not found",
                "Check that this is the database of IU Core. For an empty database, use --base.",
            )
        if odd := await unsupported_base_types(self._connection):
            return False, "; ".join(odd[:3]), "Only the types of IU Core are supported; sql/base has them."
        policies = await self._connection.fetch(query("row_security"))
        if hidden := ", ".join(row["name"] for row in policies if row["active"]):
            role = self._gates.target.get("user", "this role")
            return False, f"row level security hides rows of {hidden} from {role}", _POLICIES_HINT
        self._gates.package = package = await package_state(self._connection)
        if found := package.drift():
            return (
                False,
                "; ".join(found[:3]),
                "iu-listen rollback removes a half-applied package; docs/how-to/repair.md describes all cases.",
            )
        state = _package_words(package)
        here = "created" if self._gates.base else "in the expected shape"
        evidence = f"base {here}; package {state}"
        if policies:
            evidence += (
                f"; row level security on {', '.join(row['name'] for row in policies)}: other roles need BYPASSRLS"
            )
        return True, evidence, ""

    async def _create_base(self) -> CheckAnswer | None:
        """Create the base if it is completely absent and the checks before have passed.

        Returns:
            None if the base is there; otherwise the failed result of the check.
        """
        missing = await missing_base_objects(self._connection)
        if not missing:
            return None
        if "column event_outbox.id" not in missing:
            evidence = f"the base is incomplete: {missing[0]} is missing"
            return False, evidence, "--base creates the base only if all of it is absent."
        if self._options.plan:
            self._gates.base = "would be created"
            return False, "the base is absent and would be created", "The gates after this one need it."
        if not all(gate.passed for gate in self._gates.found):
            return False, "the base is absent, and was not created: a gate before this one is closed", ""
        assert self._options.base is not None
        await apply_base(self._connection, self._options.base)
        self._gates.base = "created"
        return None

    async def integrity(self) -> CheckAnswer:
        files = all_files()
        unpaired = [m.name for m in files if not m.path("down").exists()]
        if unpaired:
            return False, f"no rollback for {', '.join(unpaired)}", "Install iu-listen again."
        applied = package_files()
        commands = " and ".join(m.short_name for m in files if m not in applied)
        checksums = ", ".join(f"{m.short_name} {m.checksum[:8]}" for m in files)
        return True, f"{len(applied)} files and the commands {commands}, each with its rollback; {checksums}", ""

    async def disable_boundary(self) -> CheckAnswer:
        if self._gates.package is None:
            return _NOT_CHECKED
        by_number = {m.number: m for m in all_files()}
        if "080" not in by_number or "060" not in by_number:
            return False, "runtime/060 or runtime/080 is missing", "Install iu-listen again."
        rows = await self._connection.fetch(query("gate_values"))
        value = {row["key"]: row["value"] for row in rows}.get("iu_core.route_worker_enabled")
        self._gates.worker_gate_open = value == "true"
        if self._gates.upgrade:
            return True, f"an upgrade keeps the gates: the worker gate is {'open' if value == 'true' else 'closed'}", ""
        if value == "true":
            return False, "the worker gate is open", "Close it first: iu-listen gate close worker"
        if value is None and "'iu_core.route_worker_enabled', 'false'" not in by_number["060"].text():
            return False, "runtime/060 would not leave the worker gate closed", "Install iu-listen again."
        return True, f"worker gate {'is' if value else 'will be'} false; 060 has its rollback, 080 is present", ""

    async def delivery_safety(self) -> CheckAnswer:
        if self._gates.package is None:
            return _NOT_CHECKED
        unsafe = [row["route_code"] for row in await self._connection.fetch(query("unsafe_routes"))]
        if unsafe and self._gates.upgrade:
            return True, f"an upgrade keeps the live routes: {', '.join(unsafe)}", ""
        if unsafe:
            return (
                False,
                f"enabled routes that are not dry runs: {', '.join(unsafe)}",
                "Set dry_run, or disable the route.",
            )
        if not await self._connection.fetchval(query("safety_check_exists")):
            return (
                False,
                "iu_outbound_route_safe_chk is missing",
                "Without this check, a route could be set to deliver. Create it again: sql/base/003_route.up.sql.",
            )
        return True, "every enabled route is a dry run; the safety check exists", ""

    async def probe(self) -> CheckAnswer:
        if not all(gate.passed for gate in self._gates.found):
            return False, "not run: a gate before this one is closed", ""
        if self._gates.upgrade and self._gates.worker_gate_open:
            # The probe would hold locks for which a running consumer waits. The checks W1 and following run at the end
            # of the transaction of the upgrade.
            return True, "not run beside an open worker gate; the W checks verify the upgrade before its commit", ""
        size = await self._connection.fetchval(query("outbox_size"))
        if (
            size > SMALL_OUTBOX_BYTES
            and self._gates.package
            and any(m.number == "006" for m in self._gates.package.pending)
        ):
            self._gates.probe_last = True
            return (
                True,
                f"event_outbox has {size >> 20} MiB: the probe runs after the files, and a failure removes them",
                "",
            )
        self._gates.report = report = await run_probe(
            self._connection, self._fresh, lock_timeout=self._options.lock_timeout
        )
        wrong = [f"{f.id}: {f.observed}" for f in [*report.probes, *report.footprint] if not f.passed]
        if wrong:
            return False, "; ".join(wrong), "iu-listen probe shows all results."
        return True, f"SETUP and A to H as expected, footprint zero, on {self._gates.target['database']}", ""


def _package_words(package: Package) -> str:
    """The state of the package as a phrase."""
    done, of = len(package.recorded), len(package_files())
    if not done:
        return "absent"
    own = f"schema {package.version}"
    if package.newer:
        return f"{own} is newer than this iu-listen ({SCHEMA}): nothing to apply"
    if package.missing:
        return f"incomplete: {done} of {of} files"
    if not package.pending:
        return f"present with the recorded checksums, {own}"
    again = "".join(f"; would apply again {m.name}: changed" for m in package.changed)
    new = [m.name for m in package.pending if m not in package.changed]
    added = f"; would apply {', '.join(new)}" if new else ""
    return f"present, {own}{f', would become {SCHEMA}' if package.version != SCHEMA else ''}{added}{again}"


PREFLIGHT_CHECKS: Final[tuple[tuple[str, Callable[[_Inspector], Awaitable[CheckAnswer]]], ...]] = (
    ("target identity", _Inspector.target),
    ("writable primary", _Inspector.primary),
    ("fresh backup", _Inspector.backup),
    ("no drift", _Inspector.drift),
    ("package integrity", _Inspector.integrity),
    ("disable boundary", _Inspector.disable_boundary),
    ("delivery safety", _Inspector.delivery_safety),
    ("probe passed", _Inspector.probe),
)


async def run_preflight_checks(
    connection: Connection,
    options: ApplyOptions,
    fresh: Callable[[], Any],
    found: Callable[[PreflightCheck], None] = lambda _: None,
) -> PreflightResult:
    """Run the eight preflight checks in order. A failed check does not stop the others.

    Args:
        connection: A session outside a transaction.
        options: The options of the operator.
        fresh: Opens another session, for the check after the probe.
        found: Called with the result of each check.

    Raises:
        SessionLost: The session was lost.
    """
    gates = PreflightResult()
    inspector = _Inspector(connection, options, fresh, gates)
    for number, (name, look) in enumerate(PREFLIGHT_CHECKS, start=1):
        try:
            with translate_driver_errors():
                passed, evidence, hint = await look(inspector)
        except SessionLost:
            # A lost session is not the result of a check, and no further check can run.
            raise
        except IuListenError as error:
            passed, evidence, hint = False, error.message, error.hint
        gate = PreflightCheck(number, name, passed, evidence, "" if passed else hint)
        gates.found.append(gate)
        found(gate)
    return gates
