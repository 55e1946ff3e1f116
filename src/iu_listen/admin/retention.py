"""Removes old rows in batches, and old partitions of the outbox. sql/functions/retention decides which."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import asyncpg

from iu_listen.install.migrate import retry_on_lock_timeout
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.text import MAX_COUNT
from iu_listen.postgres import queries
from iu_listen.postgres.queries import Row
from iu_listen.postgres.session import Connection, ask, translate_driver_errors
from iu_listen.postgres.sqlfiles import query

#: First key of the advisory lock that allows one run at a time; the second key is a hash of RETENTION_LOCK_NAME.
RETENTION_KEY: Final = 726005
RETENTION_LOCK_NAME: Final = "retention"
#: The tables that have policies, in the order of a run: attempts are removed after their events.
POLICY_NAMES: Final = ("events", "attempts", "dead_letters")
#: Longest time that a change of partitions may make readers and producers of the outbox wait, in milliseconds.
PARTITION_LOCK_TIMEOUT_MS: Final = 200
#: Longest wait of DETACH CONCURRENTLY for transactions that have used the outbox, in milliseconds. No other session
#: waits meanwhile.
DETACH_TIMEOUT_MS: Final = 60_000


async def interval(connection: Connection, text: str) -> str:
    """The normal form of an interval, as PostgreSQL reads it.

    Raises:
        ConfigurationError: The text is not an interval, has no unit, or is not positive.
    """
    hint = "For example 90d, 12h or '3 months'."
    if not any(c.isalpha() for c in text):
        # PostgreSQL reads a number without a unit as seconds. A user who types 90 probably means days.
        raise ConfigurationError(f"the interval {text} has no unit", hint)
    try:
        row = await connection.fetchrow(query("retention/interval"), text)
    except asyncpg.DataError as error:
        raise ConfigurationError(f"cannot read {text!r} as an interval: {error}", hint) from error
    assert row is not None
    if not row["positive"]:
        raise ConfigurationError(f"the interval must be positive, not {text}", hint)
    return str(row["keep"])


@asynccontextmanager
async def only_run(connection: Connection) -> AsyncIterator[str | None]:
    """Exclude another run of the retention on this database; yields None, or a description of the running one.

    Behind a transaction pooler a client has no session locks, so two runs may work at the same time. This only costs
    time: each batch skips rows that the other run has locked.
    """
    if connection.pooled:
        yield None
    else:
        # The lock ends with the session, at the end of the command. A lock that a foreign role holds is ignored.
        (row,) = await queries.rows(connection, "take_lease", RETENTION_KEY, RETENTION_LOCK_NAME)
        yield None if row["mine"] or row["all_unauthorized"] else row["description"]


async def batches(
    connection: Connection, what: str, keep: str | None, limit: int, pause: float, deadline: float
) -> AsyncGenerator[Row, None]:
    """Run batches until the end of the rows that are old enough; yields the answer of each batch.

    Args:
        connection: The session.
        what: One of POLICY_NAMES.
        keep: Interval that is kept; None: as the policy says.
        limit: Largest number of rows of a batch.
        pause: Pause after a batch that removed rows, in seconds. It leaves time to vacuum and to producers.
        deadline: Longest duration of a batch, in seconds.
    """
    after = None
    while True:
        position = json.dumps(after) if after else None
        answer: Row = json.loads(await ask(connection, deadline, query("retention/run"), what, limit, keep, position))
        yield answer
        after = answer["after"]
        if after is None:
            return
        if answer["gone"]:
            await anyio.sleep(pause)


# -- partitions --------------------------------------------------------------------------------------------------


async def partitions(connection: Connection, keep: str, ahead: int, *, exact: bool = False) -> Row | None:
    """The changes that a run would make to the partitions of the outbox; None: the outbox is not partitioned.

    As many as MAX_COUNT rows of a partition are judged, and fewer if more than ten partitions end early enough; with
    ``exact`` all are.

    Returns:
        ``by_time`` and ``owner`` (both must be true for any change), ``unfinished``, ``create``, ``partitions``.
    """
    outbox = (await queries.rows(connection, "retention/outbox"))[0]
    if not outbox["partitioned"]:
        return None
    most = None if exact else MAX_COUNT
    return {
        "by_time": outbox["by_time"],
        "owner": outbox["owner"],
        "unfinished": await queries.rows(connection, "retention/unfinished"),
        "create": await queries.rows(connection, "retention/months", ahead, most)
        if outbox["by_time"] and ahead
        else [],
        "partitions": await queries.rows(connection, "retention/partitions", keep, None, most),
    }


class PartitionMaintainer:
    """Changes the partitions of the outbox: finishes interrupted changes, creates future partitions, removes old ones.

    Attributes:
        done: The changes that were made, one row each: ``partition``, ``did``, ``rows``.
        held: The changes that were not made, with the reason: ``partition``, ``why``.
    """

    def __init__(self, connection: Connection, keep: str, *, drop: bool) -> None:
        self._connection = connection
        self._keep = keep
        self._drop = drop
        self.done: list[Row] = []
        self.held: list[Row] = []

    async def apply(self, plan: Row) -> None:
        """Make the changes of the plan, as far as they are possible now."""
        if self._connection.pooled:
            self._hold("", "partitions cannot be changed through a transaction pooler")
        elif not plan["by_time"]:
            self._hold("", "event_outbox is partitioned, but not by range of created_at alone")
        elif not plan["owner"]:
            self._hold("", "only the owner of event_outbox may change its partitions")
        else:
            await self._finish()
            await self._create(plan["create"])
            # A look at some rows of each partition; only those of which none must stay are judged completely.
            found = await queries.rows(self._connection, "retention/partitions", self._keep, None, MAX_COUNT)
            for look in found:
                partition = look if look["whole"] is False else await self._judged(look)
                if partition["whole"]:
                    await self._take_off(partition, concurrently=not any(p["is_default"] for p in found))
                elif partition["closed"] and not partition["pending"]:
                    # An interrupted run has closed this partition, and the present policy keeps it.
                    await self._execute(partition, "open")
            await self._connection.execute("reset lock_timeout")

    async def _finish(self) -> None:
        for row in await queries.rows(self._connection, "retention/unfinished"):
            if row["pending"]:
                await self._execute(row, "finalize", DETACH_TIMEOUT_MS, tries=1)
        # Read again: the partitions that were just finalized are among these rows.
        for row in await queries.rows(self._connection, "retention/unfinished"):
            if not row["pending"] and await self._execute(row, self._end):
                self._did(row["name"], "dropped" if self._drop else "detached", None)

    async def _create(self, months: Iterable[Row]) -> None:
        for month in months:
            if month["in_the_way"]:
                self._hold(month["name"], f"{month['in_the_way']} rows of this month are in the default partition")
            elif month["taken"]:
                self._hold(month["name"], "a table with this name exists, and is not a partition")
            elif await self._statement(month["name"], None, month["statement"]):
                self._did(month["name"], "created", 0)

    async def _take_off(self, partition: Row, *, concurrently: bool) -> None:
        """Detach one partition, after it was closed and checked once more.

        With DETACH CONCURRENTLY no other session waits. It needs two transactions, so a trigger closes the partition
        for both of them. If there is a default partition, PostgreSQL forbids DETACH CONCURRENTLY. Then the partition is
        detached in one transaction, and a lock closes it.
        """
        if concurrently:
            if not await self._execute(partition, "close"):
                return
            if not await self._still_whole(partition):
                await self._execute(partition, "open")
                return
            if not await self._execute(partition, "detach_concurrently", DETACH_TIMEOUT_MS, tries=1):
                return
            await self._execute(partition, self._end)
        else:

            async def at_once() -> None:
                async with self._connection.transaction():
                    await self._connection.execute((await self._words(partition))["lock"])
                    if await self._still_whole(partition):
                        for step in ("detach", self._end):
                            await self._connection.execute((await self._words(partition))[step])

            if not await self._patient(partition["name"], partition["oid"], at_once):
                return
        if not any(held["partition"] == partition["name"] for held in self.held):
            self._did(partition["name"], "dropped" if self._drop else "detached", partition["rows"])

    @property
    def _end(self) -> str:
        return "drop" if self._drop else "leave"

    async def _judged(self, partition: Row) -> Row:
        """The partition, with all its rows judged; as it was, if it no longer belongs to the outbox."""
        now = await queries.rows(self._connection, "retention/partitions", self._keep, partition["oid"], None)
        return now[0] if now else partition | {"whole": False}

    async def _still_whole(self, partition: Row) -> bool:
        if (await self._judged(partition))["whole"]:
            return True
        self._hold(partition["name"], "new events arrived that a worker has not read")
        return False

    async def _words(self, row: Row) -> Row:
        return (await queries.rows(self._connection, "retention/retire", row["oid"]))[0]

    async def _execute(self, row: Row, step: str, timeout_ms: int = PARTITION_LOCK_TIMEOUT_MS, tries: int = 10) -> bool:
        return await self._statement(row["name"], row["oid"], (await self._words(row))[step], timeout_ms, tries)

    async def _statement(
        self, name: str, oid: int | None, statement: str, timeout_ms: int = PARTITION_LOCK_TIMEOUT_MS, tries: int = 10
    ) -> bool:
        async def work() -> None:
            await self._connection.execute(statement)

        return await self._patient(name, oid, work, timeout_ms, tries)

    async def _patient(
        self, name: str, oid: int | None, work: Any, timeout_ms: int = PARTITION_LOCK_TIMEOUT_MS, tries: int = 10
    ) -> bool:
        """Do the work, and return whether a lock was available in one of the tries; if not, note the lock holders."""
        try:
            await retry_on_lock_timeout(self._connection, work, timeout_ms, tries)
        except Refused as refused:
            if "55P03" not in refused.message:
                raise
            holders = await queries.rows(self._connection, "retention/lockers", oid) if oid else []
            who = "; ".join(row["who"] for row in holders)
            self._hold(name, "no lock was available" + (f"; lock holders: {who}" if who else ""))
            return False
        return True

    def _did(self, name: str, did: str, rows: int | None) -> None:
        self.done.append({"partition": name, "did": did, "rows": rows})

    def _hold(self, name: str, why: str) -> None:
        self.held.append({"partition": name, "why": why})


async def set_policy(connection: Connection, what: str, keep: str | None) -> Row:
    """Set the policy for one of POLICY_NAMES; ``keep`` None switches it off."""
    with translate_driver_errors():
        row = await connection.fetchrow(query("retention/set_policy"), what, keep)
    assert row is not None
    return dict(row)
