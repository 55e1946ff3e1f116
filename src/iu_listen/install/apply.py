"""Applies the package durably: applies its files, proves and verifies it, and removes it again after a failure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

import anyio

from iu_listen.install.migrate import apply_files, is_lock_conflict, roll_back_files
from iu_listen.install.package import Package, added, package_state
from iu_listen.install.preflight import PreflightResult
from iu_listen.install.probe import run_probe
from iu_listen.install.verify import Check, verify
from iu_listen.model.errors import Refused
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection
from iu_listen.postgres.sqlfiles import package_files

#: Number of tries of the probe of a large outbox if it cannot run. A wrong figure is not tried again.
MAX_PROBE_TRIES: Final = 5


class ApplyProgress(Protocol):
    """Receives the progress of an application; it is called with the name of each file."""

    def __call__(self, name: str, /) -> None:
        """Receive the name of the next file."""

    def batch(self, name: str, what: str, rows: int, /) -> None:
        """Receive the number of rows that a repeated statement has changed so far."""


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """The state after a successful application.

    Attributes:
        applied: The names of the files that were applied.
        added: The number of new objects by kind, for the files of the seed and for the others.
        row_counts: For each business table the number of rows before and after.
        checks: The results of the W checks.
    """

    applied: list[str]
    added: dict[str, dict[str, int]]
    row_counts: dict[str, dict[str, int]]
    checks: list[Check]


class ProbeNotRun(Refused):
    """The probe could not run to its end, so it has no result."""


async def apply_durably(
    connection: Connection,
    before: Package,
    preflight: PreflightResult,
    session: Callable[[], AbstractAsyncContextManager[Connection]],
    lock_timeout: float,
    progress: ApplyProgress,
) -> ApplyReport:
    """Apply all pending files, and verify them.

    Args:
        connection: The session.
        before: The state of the package before.
        preflight: The results of the preflight checks, which have passed.
        session: Opens another session, for the probe.
        lock_timeout: Longest wait of the probe for a lock, in seconds.
        progress: Receives the progress.

    Raises:
        Refused: A file, a check or the probe failed. The files of this run were removed again, except after a problem
            that another run can solve; the hint describes the state.
    """
    counts_before = await _row_counts(connection)
    # A worker that has run is not fresh any more. Then verify() accepts the state of a running worker.
    first = any(m.number == "060" for m in before.pending)

    async def must_verify() -> None:
        wrong = [c for c in await verify(connection, live=not first) if not c.passed]
        if wrong:
            raise Refused(
                f"{wrong[0].id} {wrong[0].label}: expected {wrong[0].expected}, observed {wrong[0].observed}",
                "W8 needs the master gate: iu-listen gate open master" if wrong[0].id == "W8" else "",
            )

    try:
        await apply_files(connection, before.pending, preflight.evidence(), progress, must_verify, progress.batch)
        if preflight.probe_last:
            progress("probe")
            await _require_proof(connection, session, lock_timeout)
    except Refused as error:
        # If only a lock was missing, or the probe could not run, the applied files stay: numbering and indexing a
        # large outbox again would take long.
        keep = preflight.probe_last and (isinstance(error, ProbeNotRun) or is_lock_conflict(error))
        state = await _applied_state(connection) if keep else await _roll_back_run(connection, before)
        raise Refused(error.message, f"{state} {error.hint}".strip(), error.sqlstate) from error
    after = await package_state(connection)
    checks = await verify(connection, live=not first)
    counts_after = await _row_counts(connection)
    return ApplyReport(
        applied=[m.name for m in before.pending],
        added=added(before, after),
        row_counts={name: {"before": counts_before[name], "after": counts_after[name]} for name in counts_before},
        checks=checks,
    )


async def _row_counts(connection: Connection) -> dict[str, int]:
    """The numbers of rows of the business tables of IU Core; empty on the neutral base."""
    if not await queries.value(connection, "is_iu_core"):
        return {}
    return (await queries.rows(connection, "row_counts"))[0]


async def _require_proof(
    connection: Connection, session: Callable[[], AbstractAsyncContextManager[Connection]], lock_timeout: float
) -> None:
    """Run the probe on the applied files.

    Raises:
        ProbeNotRun: The probe could not run in any of its tries.
        Refused: A figure of the probe is wrong.
    """
    for tries_left in reversed(range(MAX_PROBE_TRIES)):
        try:
            proof = await run_probe(connection, session, lock_timeout=lock_timeout)
            break
        except Refused as error:
            # The probe could not run; this is not a wrong figure.
            if not tries_left:
                raise ProbeNotRun(f"the probe could not run: {error.message}", error.hint) from error
            await anyio.sleep(1)
    wrong = [f"{f.id}: expected {f.expected}, observed {f.observed}" for f in proof.findings if not f.passed]
    if wrong:
        raise Refused("; ".join(wrong[:3]))


async def _roll_back_run(connection: Connection, before: Package) -> str:
    """After a failed group of files, roll back the groups that were applied in this run; returns a description."""
    now = await package_state(connection)
    ours = [m for m in package_files() if m.name in now.recorded and m.name not in before.recorded]
    try:
        if ours:
            await roll_back_files(connection, ours, lambda _: None)
    except Refused as error:
        return f"The files of this run could not be rolled back: {error.message}. {await _applied_state(connection)}"
    replaced = [name for name, checksum in before.recorded.items() if now.recorded.get(name, checksum) != checksum]
    if replaced:
        return f"All changes were rolled back, except the new text of {', '.join(replaced)}."
    return "All changes were rolled back."


async def _applied_state(connection: Connection) -> str:
    """The number of applied files, and the commands to go on or to go back."""
    done = len((await package_state(connection)).recorded)
    return (
        f"{done} of {len(package_files())} files are applied; they change nothing until the gate is opened. To "
        "go on: `iu-listen apply`. To test them: `iu-listen probe`. To remove them: `iu-listen rollback --yes`."
    )
