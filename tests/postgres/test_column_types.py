"""Tables of the application with other column types than those of IU Core: types that
work, and types that are refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import asyncpg
import pytest

from cli.command import run
from iu_listen.admin.doctor import examine
from iu_listen.install import migrate
from iu_listen.install.package import package_state, unsupported_base_types
from iu_listen.postgres.session import session
from postgres.delivery_helpers import RecordingTarget, attempts, delivering, open_route, wait_until_settled
from support import WORKER, attempted, connected, insert_event, open_gate, wait_until

pytestmark = pytest.mark.asyncio

#: Types that an object-relational mapper gives to the columns that are text or timestamptz in IU Core.
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
async def test_deliveries_work_with_varchar_and_timestamp_columns(substrate, table: str):
    """With varchar(n) and timestamp in a table of IU Core, events are routed, and delivered
    both by hand-over and by take.

    Fails when: fn_iu_delivery_take or fn_iu_delivery_hand_over returns a column of the application without a cast.
    """
    recording = RecordingTarget()
    async with connected(substrate.dsn) as connection:
        await retype(connection, table, OF_A_MAPPER[table].items())
        async with session(substrate.dsn, name="test") as migrator:
            await migrate.apply_files(migrator, (await package_state(migrator)).pending, {}, lambda _: None)
        await open_gate(substrate.dsn)
        await open_route(connection)
        first = await insert_event(connection)
        async with delivering(substrate.dsn, recording.target()):
            await wait_until_settled(connection)
            second = await insert_event(connection)
            await wait_until_settled(connection)
        assert recording.delivered == {first: 1, second: 1}
        assert await attempts(connection, second) == [(1, "sent", "delivered", None)]
        assert recording.calls[-1].event.occurred_at.tzinfo is not None


async def test_a_payload_of_type_json_is_delivered(substrate):
    """safe_payload may be json: events are routed and delivered with their payload."""
    recording = RecordingTarget()
    async with connected(substrate.dsn) as connection:
        await connection.execute(
            """alter table event_outbox drop constraint event_outbox_safe_payload_chk,
                   alter safe_payload drop default, alter safe_payload type json"""
        )
        async with session(substrate.dsn, name="test") as migrator:
            await migrate.apply_files(migrator, (await package_state(migrator)).pending, {}, lambda _: None)
        await open_gate(substrate.dsn)
        await open_route(connection)
        async with delivering(substrate.dsn, recording.target()):
            event = await insert_event(connection, note="kept")
            await wait_until_settled(connection)
    assert recording.delivered == {event: 1}
    assert json.loads(recording.calls[0].event.payload) == {"note": "kept"}


ODD = {
    "event_outbox.id": "text",
    "event_outbox.canonical_address": "char(200)",
    "event_outbox.occurred_at": "text",
    "iu_route_attempt.attempt_no": "numeric",
    "iu_outbound_route.route_code": "name",
}


@pytest.mark.parametrize("column", ODD)
async def test_apply_and_doctor_refuse_an_unsupported_column_type(substrate, column: str):
    """apply and doctor name a column if the package cannot work with its type, and apply changes nothing.

    Fails when: only the existence of columns is checked.
    """
    table, name = column.split(".")
    async with connected(substrate.dsn) as connection:
        await connection.execute(f"alter table {table} alter {name} drop default, alter {name} type {ODD[column]}")
    async with session(substrate.dsn, name="test") as asking:
        odd = await unsupported_base_types(asking)
        assert len(odd) == 1
        assert odd[0].startswith(f"{column} has type ")
        found = {f.what: f for f in await examine(asking, WORKER)}
    assert found["base"].level == "fail"
    assert column in found["base"].found
    done = await asyncio.to_thread(run, "apply", "--no-backup", "test", dsn=substrate.dsn)
    assert done.code == 1
    assert column in done.out


async def test_a_running_consumer_survives_a_change_of_column_types(live):
    """After ALTER COLUMN TYPE a running consumer goes on delivering, with plans for the new types."""
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, recording.target(), reconnect_max=0.2):
            first = await insert_event(connection)
            await wait_until_settled(connection)
            for column, kind in (
                ("actor_ref", "varchar(99)"),
                ("source_system", "varchar(99)"),
                ("occurred_at", "timestamp"),
            ):
                await connection.execute(f"alter table event_outbox alter {column} type {kind}")
            await connection.execute("alter table event_type_registry alter event_type type varchar(99)")
            second = await insert_event(connection)

            async def routed() -> bool:
                return second in await attempted(connection)

            await wait_until(routed, "the second event is routed and delivered")
            await wait_until_settled(connection)
    assert recording.delivered == {first: 1, second: 1}
