"""Helpers for the tests of an outbox that is partitioned by month."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from iu_listen.admin import retention
from iu_listen.postgres.session import session


def _keep() -> str:
    """A retention period whose limit lies a day after the end of the month that is three months ago.

    So the partitions of that month and of all earlier ones end early enough, on every day of the year. A fixed number of
    days does not do that, because two months have 59 to 62 days.
    """
    now = datetime.now(UTC)
    months = 12 * now.year + now.month - 1 - 2
    age = now - datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)
    return f"{int(age.total_seconds()) // 3600 - 24} hours"


KEEP = _keep()
EVENT_VALUES = (
    "('iu', 'version_applied', 'update', 'immediate', date_trunc('month', now(), 'UTC') - $1::int * interval '1 month')"
)
INSERT_EVENT = f"insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at) values {EVENT_VALUES} returning id"


async def append_event(connection: asyncpg.Connection, months_ago: int) -> UUID:
    """Insert an event at the first moment of a month."""
    return await connection.fetchval(INSERT_EVENT, months_ago)


async def partition_of_month(connection: asyncpg.Connection, months_ago: int) -> str:
    """Name of the partition of a month."""
    return await connection.fetchval(
        """select 'event_outbox_' || to_char((date_trunc('month', now(), 'UTC') - $1::int * interval '1 month')
                                              at time zone 'UTC', '"y"YYYY"m"MM')""",
        months_ago,
    )


async def partitions(connection: asyncpg.Connection) -> set[str]:
    """The partitions of the outbox."""
    return {row["part"] for row in await connection.fetch("select part::text from fn_iu_outbox_partitions()")}


async def maintain_partitions(
    dsn: str, *, keep: str = KEEP, ahead: int = 0, drop: bool = False
) -> retention.PartitionMaintainer:
    """Tend the partitions as `iu-listen retention run` does."""
    async with session(dsn, name="retention") as connection:
        plan = await retention.partitions(connection, keep, ahead)
        assert plan is not None
        maintainer = retention.PartitionMaintainer(connection, keep, drop=drop)
        await maintainer.apply(plan)
        return maintainer


async def add_default_partition(connection: asyncpg.Connection) -> None:
    """Add a default partition."""
    await connection.execute("create table event_outbox_rest partition of event_outbox default")
