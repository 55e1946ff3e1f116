"""A database that moved by logical replication: every stamp is new, numbers begin again, and no event is missing."""

from __future__ import annotations

import asyncpg
import pytest

from clusters import program, psql, restore
from history.conftest import Pair
from history.past import assert_complete, create_event_history, planned_figures, reanchor, refusal
from support import attempted, connected, drain, insert_event, open_gate, run_batch, wait_until

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

#: A table without a primary key needs an index that identifies its rows.
PUBLISHED = """
    alter table dot_config replica identity using index dot_config_key_unique;
    alter table iu_outbound_route replica identity using index iu_outbound_route_code_unique;
    alter table event_type_registry replica identity using index event_type_registry_type_unique;
    create publication everything for all tables;
"""
#: The sequences of IU Core are set by the operator of the move; that of the outbox stays as it is.
IDENTITIES = "select setval(pg_get_serial_sequence('iu_route_attempt', 'id'), (select max(id) from iu_route_attempt))"


async def replicated(pair: Pair, database: str) -> str:
    """Copy the schema by dump and the data by a subscription; return the connection string of the subscriber."""
    file = pair.files / f"{database}.schema"
    program(pair.source, "pg_dump", "-Fc", "-s", "--no-publications", "-f", file, "-d", pair.source.dsn(database))
    dsn = restore(pair.target, database, file)
    source = f"host={pair.source.socket_dir} port={pair.source.port} user=postgres dbname={database}"
    psql(pair.target, f"create subscription s connection '{source}' publication everything", database)
    return dsn


async def caught_up(source: asyncpg.Connection, target: asyncpg.Connection) -> None:
    """Wait until the subscriber has all data that was committed before."""
    lsn = await source.fetchval("select pg_current_wal_lsn()::text")

    async def there() -> bool:
        synced = await target.fetchval("select bool_and(srsubstate = 'r') from pg_subscription_rel")
        return synced and await source.fetchval(
            "select confirmed_flush_lsn >= $1::text::pg_lsn from pg_replication_slots where database = current_database()",
            lsn,
        )

    await wait_until(there, "the subscriber has caught up", 60)


# Only the far cluster writes logical WAL.
@pytest.mark.parametrize("pair", ["lower"], indirect=True)
@pytest.mark.parametrize("gate", ["open", "closed"])
async def test_a_move_by_logical_replication_loses_no_event(pair: Pair, gate: str):
    """After a move by logical replication the worker refuses; after a reanchor every event has exactly one attempt.

    This also holds if no event was read between the first copy and the end, so that unread events came with that copy.

    Fails when: an event that was stamped by the subscriber is taken for one that the cursor has read.
    """
    database = pair.new()
    source = pair.source.dsn(database)
    await create_event_history(source)
    psql(pair.source, PUBLISHED, database)
    dsn = await replicated(pair, database)
    async with connected(source) as old, connected(dsn) as worker:
        await caught_up(old, worker)
        if gate == "open":
            await drain(old)
        left = [await insert_event(old) for _ in range(2)]
        await caught_up(old, worker)
        await worker.execute("drop subscription s")
        await worker.fetchval(IDENTITIES)
        left += [await insert_event(worker) for _ in range(2)]

        assert await refusal(worker) == "foreign_history"
        assert (await run_batch(worker))["seen"] == 0
        plan = await planned_figures(worker)
        assert plan["again"] == plan["events"]
        assert plan["uncertain"] > 0
        await open_gate(dsn, "false")
        assert (await reanchor(worker))["again"] == plan["events"]
        await open_gate(dsn)
        assert await drain(worker, 4) == plan["events"]
        assert set(left) <= set(await attempted(worker))
        await assert_complete(worker)
