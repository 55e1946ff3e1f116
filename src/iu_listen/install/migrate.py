"""Applies the files of the package, records them in the ledger, and rolls them back.

A versioned file is applied once. A repeatable file only creates or replaces functions and views, and is applied again
when its text has changed (docs/why/sql-files.md).

Consecutive files are applied in one transaction; a ``transaction: none`` file is applied alone, outside a transaction.
One advisory lock excludes a second migration. Each try has a short lock_timeout and is repeated, so that a migration
never waits long in the lock queue of a busy table, where other sessions would wait behind it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from typing import Any, Final

import anyio
import asyncpg

from iu_listen.install.script import CONCURRENTLY, REPEAT
from iu_listen.model.errors import Refused
from iu_listen.model.version import SCHEMA
from iu_listen.postgres.session import Connection, translate_driver_errors
from iu_listen.postgres.sqlfiles import Base, Migration, base_files, package_files, query

#: Advisory lock that excludes a second migration.
MIGRATION_LOCK_KEY: Final = (726004, 1)
#: Longest wait of a file for a lock, in milliseconds, and the number of tries. Meanwhile producers wait behind it.
LOCK_TIMEOUT_MS: Final = 500
LOCK_TRIES: Final = 40
#: Longest wait of a "transaction: none" file for a lock, in milliseconds. CONCURRENTLY waits for every older snapshot,
#: and no other session waits behind it meanwhile.
CONCURRENT_LOCK_TIMEOUT_MS: Final = 600_000
Report = Callable[[str], None]
#: Called with the name of the file, the description of the repeated statement, and the number of rows changed so far.
Progress = Callable[[str, str, int], None]


async def apply_base(connection: Connection, base: Base = "iu_core") -> None:
    """Create a base in one transaction, for ``init`` and ``apply --base``, for the embedded server and for tests."""
    with translate_driver_errors():
        async with connection.transaction():
            for migration in base_files(base):
                await connection.execute(migration.text())


def statements_by_partition(statement: str, leaves: list[dict[str, Any]]) -> list[str]:
    """The statements to execute for one statement about an index of event_outbox.

    PostgreSQL cannot create or drop a partitioned index concurrently. So the index is created on each partition first,
    and then on the partitioned table, which adopts the existing indexes and builds nothing. Dropping goes in the
    opposite order.

    Args:
        statement: The statement.
        leaves: The partitions of event_outbox; empty: it is not partitioned, and the statement is returned unchanged.
    """
    index = re.search(r"\b(event_outbox_\w+_idx)\b", statement)
    if not leaves or not index or not CONCURRENTLY.search(statement):
        return [statement]
    whole = CONCURRENTLY.sub("", statement)
    each = [
        re.sub(r"\bon public\.event_outbox\b", f"on {leaf['name']}", statement)
        .replace(f"public.{index[1]}", f"{leaf['schema']}.{index[1]}")
        .replace(index[1], f"{index[1]}_{leaf['oid']}")
        for leaf in leaves
    ]
    return [*each, whole] if re.search(r"\bcreate index\b", statement) else [whole, *each]


@asynccontextmanager
async def exclusive_migration(connection: Connection) -> AsyncIterator[None]:
    """Exclude any other migration of this database.

    Raises:
        Refused: Another migration is running.
    """
    # A session lock would remain in a session of the pooler, so behind a pooler the lock is only tested. Two migrations
    # at the same time then wait for each other's table locks, and the second one fails because the objects exist.
    free = "select pg_try_advisory_xact_lock($1, $2)" if connection.pooled else "select pg_try_advisory_lock($1, $2)"
    if not await connection.fetchval(free, *MIGRATION_LOCK_KEY):
        raise Refused(
            "another iu-listen is migrating this database",
            "Wait until it has ended, then check the result with iu-listen apply --plan.",
        )
    try:
        yield
    finally:
        if not connection.pooled and not connection.is_closed():
            await connection.execute("select pg_advisory_unlock($1, $2)", *MIGRATION_LOCK_KEY)


async def apply_files(
    connection: Connection,
    pending: Iterable[Migration],
    evidence: Mapping[str, Any],
    report: Report,
    before_commit: Any = None,
    progress: Progress = lambda *_: None,
) -> None:
    """Apply files in order, and record them in the ledger.

    Args:
        connection: A session outside a transaction.
        pending: The files to apply.
        evidence: The evidence of the preflight checks, which is recorded with each file.
        report: Called with the name of each file before it runs.
        before_commit: Awaited at the end of the last transaction; an exception rolls that transaction back.
        progress: Called after each execution of a repeated statement that changed rows.

    Raises:
        Refused: The server answered with an error, or ``before_commit`` raised it. Files of earlier transactions stay
            applied.
    """
    groups = [list(group) for _, group in groupby(pending, key=lambda m: m.header("transaction") == "none" and m.name)]
    for group in groups:
        if group[0].header("transaction") == "none":
            alone = partial(_apply_alone, connection, group[0], evidence, report, progress)
            await retry_on_lock_timeout(connection, alone, CONCURRENT_LOCK_TIMEOUT_MS)
        else:
            check = before_commit if group is groups[-1] else None
            await retry_on_lock_timeout(
                connection, partial(_apply_together, connection, group, evidence, report, check)
            )


async def roll_back_files(connection: Connection, applied: Iterable[Migration], report: Report) -> None:
    """Run the down files in reverse order in one transaction; after an error nothing is changed."""

    async def down() -> None:
        async with connection.transaction():
            for migration in sorted(applied, key=package_files().index, reverse=True):
                report(migration.name)
                await connection.execute(migration.text("down"))
                if await connection.fetchval(query("ledger_exists")):
                    await connection.execute(query("forget_migration"), migration.name)

    await retry_on_lock_timeout(connection, down)


async def retry_on_lock_timeout(
    connection: Connection, work: Callable[[], Any], timeout_ms: int = LOCK_TIMEOUT_MS, tries: int = LOCK_TRIES
) -> None:
    """Do the work with a short lock_timeout, and repeat it: while it waits for a lock, later sessions wait behind it.

    Raises:
        Refused: The lock was not available in any try, or the server answered with another error.
    """
    with translate_driver_errors():
        await connection.limit_locks(timeout_ms)
    for left in reversed(range(tries)):
        try:
            with translate_driver_errors():
                await work()
            return
        except Refused as error:
            if not left or not is_lock_conflict(error):
                raise
            await anyio.sleep(0.2)


def is_lock_conflict(error: Refused) -> bool:
    """Whether the server refused a statement because of a lock of another session: lock_timeout, or a deadlock."""
    return isinstance(error.__cause__, asyncpg.LockNotAvailableError | asyncpg.DeadlockDetectedError)


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
        if repeat := REPEAT.search(statement):
            rows = 0
            # The command tag ends with the number of changed rows.
            while changed := int((await connection.execute(statement)).rpartition(" ")[2]):
                rows += changed
                progress(migration.name, repeat[1], rows)
            continue
        for one in statements_by_partition(statement, leaves):
            # A statement on the whole partitioned table blocks other sessions, so it waits for its lock only briefly;
            # a concurrent statement blocks no session and may wait long.
            if leaves and not CONCURRENTLY.search(one):
                await retry_on_lock_timeout(connection, partial(connection.execute, one))
                await connection.limit_locks(CONCURRENT_LOCK_TIMEOUT_MS)
            else:
                await connection.execute(one)
    await _record(connection, migration, began, evidence)


async def _record(connection: Connection, migration: Migration, began: float, evidence: Mapping[str, Any]) -> None:
    milliseconds = round((time.perf_counter() - began) * 1000)
    if migration.repeatable:
        await connection.execute(query("forget_migration"), migration.name)
    await connection.execute(
        query("record_migration"), migration.name, migration.checksum, str(SCHEMA), milliseconds, json.dumps(evidence)
    )
