"""Applies the package, file by file, records what it applied, and takes it back.

Files between two ``transaction: none`` files are applied in one transaction, each such file by itself. All of it
happens under one advisory lock, with a short lock_timeout and retries, so that a busy table is never queued on.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Final

import anyio
import asyncpg

from iu_listen.model.errors import Refused
from iu_listen.model.facts import DEFAULT_WORKER
from iu_listen.postgres.session import Connection, errors_become_ours
from iu_listen.postgres.sqlfiles import Migration, base_files, package_files, query

#: Advisory lock that serialises migrators.
MIGRATOR_KEY: Final = (726004, 1)
#: How long a file may wait for a lock, in milliseconds, and how often it is tried. Writers wait behind it meanwhile.
LOCK_TIMEOUT_MS: Final = 500
TRIES: Final = 40
#: The same for a "transaction: none" file: CONCURRENTLY waits for every older snapshot, and holds up nobody meanwhile.
ALONE_TIMEOUT_MS: Final = 600_000
#: The files whose objects are counted as the seed counts them: 2 tables, 5 functions, 3 views, 1 key, 1 row.
SEED_FILES: Final = (
    "worker/008_route_worker_substrate",
    "worker/009_route_worker_functions",
    "runtime/060_activate_inert",
)

Report = Callable[[str], None]
#: Called with the file, what it does, and how many rows it has done so far.
Progress = Callable[[str, str, int], None]

_CONCURRENTLY: Final = re.compile(r"\bconcurrently\b")
#: Says of a statement that it is to be executed until it changes no row, and what to call that.
_REPEAT: Final = re.compile(r"^-- repeat: (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PackageObject:
    """One object of the package: which file makes it, and whether it is here."""

    file: str
    kind: str
    name: str
    present: bool


@dataclass(frozen=True, slots=True)
class Package:
    """What of the package is in a database.

    Attributes:
        objects: Every object that the package would make.
        recorded: Checksum by file, from the ledger; empty without one.
    """

    objects: tuple[PackageObject, ...]
    recorded: Mapping[str, str]

    @property
    def present(self) -> tuple[PackageObject, ...]:
        """The objects that are here."""
        return tuple(o for o in self.objects if o.present)

    @property
    def pending(self) -> tuple[Migration, ...]:
        """The files that are not recorded, in order."""
        return tuple(m for m in package_files() if m.name not in self.recorded)

    @property
    def begun(self) -> tuple[Migration, ...]:
        """The files that are recorded, or of which something is here, in order: what a rollback takes back."""
        files = {o.file for o in self.present} | set(self.recorded)
        return tuple(m for m in package_files() if m.name in files)

    @property
    def complete(self) -> bool:
        """Whether everything is recorded and here."""
        return not self.pending and len(self.present) == len(self.objects)

    def drift(self) -> list[str]:
        """What contradicts the ledger or the files; empty when the package is absent, whole, or cleanly begun."""
        found = []
        known = {m.name: m.checksum for m in package_files()}
        for name, checksum in self.recorded.items():
            if name not in known:
                found.append(f"{name} is recorded, but this version of iu-listen does not know it")
            elif checksum != known[name]:
                found.append(
                    f"{name} was edited after it was applied (checksum {checksum[:8]} recorded, {known[name][:8]} now)"
                )
        names = [m.name for m in package_files()]
        applied = [n for n in names if n in self.recorded]
        if applied != names[: len(applied)]:
            missing = next(n for n in names if n not in self.recorded)
            found.append(f"half applied: {applied[-1]} is recorded, {missing} before it is not")
        # What a "transaction: none" file leaves behind when it is interrupted, it clears away when it runs again.
        alone = {m.name for m in package_files() if m.header("transaction") == "none"}
        for o in self.objects:
            if o.file in self.recorded and not o.present:
                found.append(f"half applied: {o.kind} {o.name} of {o.file} is missing")
            if o.file not in self.recorded and o.present and o.file not in alone:
                found.append(f"half applied: {o.kind} {o.name} exists, but {o.file} is not recorded")
        return found


async def package_state(connection: Connection) -> Package:
    """Look at what of the package is here. Needs the substrate."""
    with errors_become_ours():
        rows = await connection.fetch(query("package_objects"))
        objects = [PackageObject(**row) for row in rows]
        if any(o.present for o in objects if o.name == "iu_route_worker_cursor"):
            registered = await connection.fetchval(query("cursor_exists"), DEFAULT_WORKER)
            objects = [PackageObject(o.file, o.kind, o.name, registered) if o.kind == "row" else o for o in objects]
        recorded = {}
        if await connection.fetchval(query("ledger_exists")):
            recorded = {row["name"]: row["checksum"] for row in await connection.fetch(query("ledger"))}
    return Package(tuple(objects), recorded)


async def substrate_missing(connection: Connection) -> list[str]:
    """What of IU Core is missing here; empty when the package can be applied."""
    with errors_become_ours():
        return [f"{row['kind']} {row['name']}" for row in await connection.fetch(query("substrate_missing"))]


async def substrate_odd(connection: Connection) -> list[str]:
    """Columns of IU Core that have a type which the package cannot work with, and what they may have."""
    with errors_become_ours():
        rows = await connection.fetch(query("substrate_types"))
    return [f"{row['name']} has type {row['type']}, and must have {row['wanted']}" for row in rows]


async def apply_base(connection: Connection) -> None:
    """Create the substrate, in one transaction. For the embedded server and for tests."""
    with errors_become_ours():
        async with connection.transaction():
            for migration in base_files():
                await connection.execute(migration.text())


def in_one_transaction(migration: Migration) -> str:
    """The text of a file as it runs inside a transaction: there an index cannot be built concurrently."""
    text = migration.text()
    return _CONCURRENTLY.sub("", text) if migration.header("transaction") == "none" else text


def spread(statement: str, leaves: list[dict[str, Any]]) -> list[str]:
    """What to execute for a statement about an index of event_outbox, given the tables that the log consists of.

    PostgreSQL builds and drops no partitioned index concurrently. So an index is built on each table by itself, and
    then on the whole, which finds it there and builds nothing. It is dropped the other way round.
    """
    index = re.search(r"\b(event_outbox_\w+_idx)\b", statement)
    if not leaves or not index or not _CONCURRENTLY.search(statement):
        return [statement]
    whole = _CONCURRENTLY.sub("", statement)
    each = [
        re.sub(r"\bon public\.event_outbox\b", f"on {leaf['name']}", statement)
        .replace(f"public.{index[1]}", f"{leaf['schema']}.{index[1]}")
        .replace(index[1], f"{index[1]}_{leaf['oid']}")
        for leaf in leaves
    ]
    return [*each, whole] if re.search(r"\bcreate index\b", statement) else [whole, *each]


@asynccontextmanager
async def only_migrator(connection: Connection) -> AsyncIterator[None]:
    """Be the only one who migrates this database.

    Raises:
        Refused: somebody else is at it.
    """
    # A session lock would stay behind in the pooler, so there the lock is only tested. Two migrations at the same time
    # wait for each other's table locks then, and the second one fails on what the first one has created.
    free = "select pg_try_advisory_xact_lock($1, $2)" if connection.pooled else "select pg_try_advisory_lock($1, $2)"
    if not await connection.fetchval(free, *MIGRATOR_KEY):
        raise Refused(
            "another iu-listen is migrating this database", "Wait for it to end, then look again with --plan."
        )
    try:
        yield
    finally:
        if not connection.pooled and not connection.is_closed():
            await connection.execute("select pg_advisory_unlock($1, $2)", *MIGRATOR_KEY)


async def apply_files(
    connection: Connection,
    pending: Iterable[Migration],
    evidence: Mapping[str, Any],
    report: Report,
    before_commit: Any = None,
    progress: Progress = lambda *_: None,
) -> None:
    """Apply and record files, in order.

    Args:
        connection: A session outside a transaction.
        pending: What to apply.
        evidence: What the gates showed; recorded with every file.
        report: Called with the name of each file before it runs.
        before_commit: Awaited inside the last transaction; raises to undo it.
        progress: Called after every batch of a statement that is repeated.

    Raises:
        Refused: the server's error, or what ``before_commit`` raised. Earlier groups of files stay applied then.
    """
    groups = [list(group) for _, group in groupby(pending, key=lambda m: m.header("transaction") == "none" and m.name)]
    for group in groups:
        if group[0].header("transaction") == "none":
            alone = partial(_apply_alone, connection, group[0], evidence, report, progress)
            await patiently(connection, alone, ALONE_TIMEOUT_MS)
        else:
            check = before_commit if group is groups[-1] else None
            await patiently(connection, partial(_apply_together, connection, group, evidence, report, check))


async def roll_back_files(connection: Connection, applied: Iterable[Migration], report: Report) -> None:
    """Run the down files in reverse order, in one transaction; one refusal and everything stays."""

    async def down() -> None:
        async with connection.transaction():
            for migration in sorted(applied, key=package_files().index, reverse=True):
                report(migration.name)
                await connection.execute(migration.text("down"))
                if await connection.fetchval(query("ledger_exists")):
                    await connection.execute(query("forget_migration"), migration.name)

    await patiently(connection, down)


async def patiently(
    connection: Connection, work: Callable[[], Any], timeout_ms: int = LOCK_TIMEOUT_MS, tries: int = TRIES
) -> None:
    """Do it under a short lock_timeout, again and again: whoever queues for a lock holds up all that come after.

    Raises:
        Refused: the lock could not be had, or the server's error.
    """
    with errors_become_ours():
        await connection.limit_locks(timeout_ms)
        for left in reversed(range(tries)):
            try:
                await work()
                return
            except asyncpg.LockNotAvailableError:
                if not left:
                    raise
                await anyio.sleep(0.2)


def for_want_of_a_lock(error: Refused) -> bool:
    """Whether patiently() gave up because somebody else held a lock."""
    return isinstance(error.__cause__, asyncpg.LockNotAvailableError)


async def _apply_together(
    connection: Connection, group: list[Migration], evidence: Mapping[str, Any], report: Report, check: Any
) -> None:
    async with connection.transaction():
        for migration in group:
            report(migration.name)
            began = time.perf_counter()
            await connection.execute(migration.text())
            await _record(connection, migration, began, evidence)
        if check is not None:
            await check()


async def _apply_alone(
    connection: Connection, migration: Migration, evidence: Mapping[str, Any], report: Report, progress: Progress
) -> None:
    report(migration.name)
    began = time.perf_counter()
    leaves = [dict(row) for row in await connection.fetch(query("outbox_leaves"))]
    for statement in migration.statements:
        if repeat := _REPEAT.search(statement):
            rows = 0
            # The tag of the command ends with how many rows it changed.
            while changed := int((await connection.execute(statement)).rpartition(" ")[2]):
                rows += changed
                progress(migration.name, repeat[1], rows)
            continue
        for one in spread(statement, leaves):
            # What has to be done to the whole log at once must not be queued for as long as what holds up nobody.
            if leaves and not _CONCURRENTLY.search(one):
                await patiently(connection, partial(connection.execute, one))
                await connection.limit_locks(ALONE_TIMEOUT_MS)
            else:
                await connection.execute(one)
    await _record(connection, migration, began, evidence)


async def _record(connection: Connection, migration: Migration, began: float, evidence: Mapping[str, Any]) -> None:
    milliseconds = round((time.perf_counter() - began) * 1000)
    await connection.execute(
        query("record_migration"), migration.name, migration.checksum, milliseconds, json.dumps(evidence)
    )


def added(before: Package, after: Package) -> dict[str, dict[str, int]]:
    """How many objects of each kind came: those that the seed counts, and those listed apart."""
    there = {(o.kind, o.name) for o in before.present}
    counts: dict[str, dict[str, int]] = {"seed": {}, "apart": {}}
    for o in after.present:
        if (o.kind, o.name) not in there:
            of = counts["seed" if o.file in SEED_FILES else "apart"]
            of[o.kind] = of.get(o.kind, 0) + 1
    return counts
