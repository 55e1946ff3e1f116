"""Tables that belong to the application may have columns of other types than ours: what works, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg
import pytest

from iu_listen.postgres import migrate
from iu_listen.postgres.session import session
from postgres.couriers import Arrivals, attempts, delivering, open_route, settled
from support import connected, insert_event, open_gate

pytestmark = pytest.mark.asyncio

#: What an object-relational mapper makes of the columns that IU Core has as text, and of its times.
OF_A_MAPPER = {
    "event_outbox": {
        "event_domain": "varchar(255)", "event_type": "varchar(255)", "event_stream": "varchar(50)",
        "event_subject_table": "varchar(64)", "canonical_address": "varchar(255)", "actor_ref": "varchar(255)",
        "source_system": "varchar(255)", "correlation_id": "varchar(255)", "occurred_at": "timestamp",
        "created_at": "timestamp",
    },
    "iu_outbound_route": {
        "route_code": "varchar(255)", "event_domain": "varchar(255)", "event_type": "varchar(255)",
        "event_stream": "varchar(50)", "target_kind": "varchar(64)", "target_ref": "varchar(255)",
    },
    "iu_route_attempt": {
        "route_kind": "varchar(20)", "route_code": "varchar(255)", "status": "varchar(20)", "decision": "varchar(50)",
        "failure_code": "varchar(64)", "idempotency_key": "varchar(400)", "created_at": "timestamp(6)",
        "finished_at": "timestamp(6)",
    },
    "dot_config": {"key": "varchar(255)", "value": "varchar(255)", "updated_at": "timestamp"},
    "event_type_registry": {"event_domain": "varchar(255)", "event_type": "varchar(255)"},
}  # fmt: skip


async def retype(connection: asyncpg.Connection, table: str, types: Iterable[tuple[str, str]]) -> None:
    """Give columns of a table these types."""
    await connection.execute(
        f"alter table {table} " + ", ".join(f"alter column {column} type {kind}" for column, kind in types)
    )


@pytest.mark.parametrize("table", OF_A_MAPPER)
async def test_columns_of_a_mapper_deliver(substrate, table: str):
    """With varchar(n) and timestamp in a table of IU Core, events are routed and delivered, by the batch and by the taker.

    Fails when: fn_iu_delivery_take or fn_iu_delivery_hand_over returns a column of the application without a cast.
    """
    arrivals = Arrivals()
    async with connected(substrate.dsn) as connection:
        await retype(connection, table, OF_A_MAPPER[table].items())
        async with session(substrate.dsn, name="test") as migrator:
            await migrate.apply_files(migrator, (await migrate.package_state(migrator)).pending, {}, lambda _: None)
        await open_gate(substrate.dsn)
        await open_route(connection)
        first = await insert_event(connection)
        async with delivering(substrate.dsn, arrivals.target()):
            await settled(connection)
            second = await insert_event(connection)
            await settled(connection)
        assert arrivals.arrived == {first: 1, second: 1}
        assert await attempts(connection, second) == [(1, "sent", "delivered", None)]
        assert arrivals.calls[-1].event.occurred_at.tzinfo is not None
