"""Changes of routes and switches, and replays, wake an idle dispatcher, which reads the queue rarely by itself.

The servers of the other tests allow prepared transactions, and send no such notifications.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import anyio
import asyncpg
import pytest

from clusters import cluster
from iu_listen import Delivery, embedded
from iu_listen.flow import dispatcher
from iu_listen.model.delivery import Reject
from iu_listen.postgres.sqlfiles import query
from postgres.delivery_helpers import (
    ROUTE,
    RecordingTarget,
    attempts,
    dead_letters,
    delivering,
    open_route,
    wait_until_settled,
)
from support import apply_package, connected, insert_event, open_gate, wait_until

pytestmark = pytest.mark.asyncio

#: A pause of an idle dispatcher that no test waits for, in seconds.
NEVER = 600.0

CHANGES = {
    "a route": "update iu_outbound_route set enabled = enabled",
    "the delivery gate": "update dot_config set value = value where key = 'iu_core.delivery_enabled'",
    "the list of live routes": "update dot_config set value = value where key = 'iu_core.delivery_live_routes'",
    "a replay or a resumed route": "select fn_iu_ring_consumers()",
}


@pytest.fixture(scope="module", params=embedded.MAJORS, ids=lambda major: f"pg{major}")
def server_without_prepared_transactions(request: pytest.FixtureRequest) -> Iterator[str]:
    with cluster(request.param) as server:
        asyncio.run(apply_package(server.dsn()))
        asyncio.run(open_gate(server.dsn()))
        yield server.dsn()


@pytest.fixture
def plain(server_without_prepared_transactions: str) -> str:
    """A database with the package applied, the worker gate open, and no events."""

    async def clear() -> None:
        async with connected(server_without_prepared_transactions) as connection:
            await connection.execute(
                "truncate event_outbox, iu_route_attempt, iu_route_delivery, iu_route_dead_letter, iu_delivery_breaker"
            )

    asyncio.run(clear())
    return server_without_prepared_transactions


@pytest.fixture
def slow_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle dispatcher reads nothing by itself."""
    monkeypatch.setattr(dispatcher, "IDLE_TAKE_SHARE", NEVER)


async def notifications(connection: asyncpg.Connection, statement: str) -> list[str]:
    """The payloads of the notifications that a statement sends."""
    heard: list[str] = []

    def on_notification(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        heard.append(str(payload))

    await connection.add_listener("iu_event_outbox", on_notification)
    await connection.execute(statement)
    await connection.fetchval("select 1")
    await anyio.sleep(0.05)
    await connection.remove_listener("iu_event_outbox", on_notification)
    return heard


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_each_change_sends_an_empty_payload(plain, change):
    """The notification concerns every consumer, so its payload is empty.

    Fails when: the trigger of the change is missing.
    """
    async with connected(plain) as connection:
        assert await notifications(connection, change) == [""]


async def test_other_settings_send_nothing(plain):
    """A setting of the application in dot_config wakes no consumer."""
    async with connected(plain) as connection:
        statement = "insert into dot_config (key, value) values ('shop.colour', 'red')"
        assert await notifications(connection, statement) == []


async def _replays(connection: asyncpg.Connection) -> None:
    await connection.execute("select fn_iu_route_dead_letter_replay(id, 'test') from iu_route_dead_letter")


async def _replays_in_bulk(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "select fn_iu_dead_letters_queue(array_agg(id), false, 'test') from iu_route_dead_letter where resolved_at is null"
    )


@pytest.mark.usefixtures("slow_dispatcher")
@pytest.mark.parametrize("replay", [_replays, _replays_in_bulk], ids=["one", "in bulk"])
async def test_a_replay_wakes_an_idle_dispatcher(plain, replay: Callable[[asyncpg.Connection], Awaitable[None]]):
    """The dead letter is delivered at once, although the dispatcher would not read the queue again for minutes.

    Fails when: the replay sends no notification, or the dispatcher ignores it.
    """
    refused = True

    async def behave(_: Delivery) -> None:
        if refused:
            raise Reject("not yet")

    async with connected(plain) as connection:
        await open_route(connection)
        async with delivering(plain, RecordingTarget(behave).target()):
            await insert_event(connection)
            await wait_until(lambda: dead_letters(connection), "the event is a dead letter")
            await anyio.sleep(1.5)
            refused = False
            await replay(connection)
            await wait_until_settled(connection, timeout=5)
            assert [resolved for _, _, resolved in await dead_letters(connection)] == [True]


@pytest.mark.usefixtures("slow_dispatcher")
async def test_a_route_that_goes_live_wakes_an_idle_dispatcher(plain):
    """Deliveries that waited for a switch begin at once when the switch is opened.

    Fails when: the change of the switch sends no notification, or the dispatcher ignores it.
    """
    recording = RecordingTarget()
    async with connected(plain) as connection:
        await open_route(connection)
        async with delivering(plain, recording.target()):
            first = await insert_event(connection)
            await wait_until(lambda: attempts(connection, first), "the first event is delivered")
            gate = "update dot_config set value = $1 where key = 'iu_core.delivery_enabled'"
            await connection.execute(gate, "false")
            event = await insert_event(connection)
            await anyio.sleep(1.5)
            assert event not in [call.event.id for call in recording.calls]
            await connection.execute(gate, "true")
            await wait_until_settled(connection, timeout=5)
            assert event in [call.event.id for call in recording.calls]
        assert {call.route for call in recording.calls} == {ROUTE}


async def test_a_server_with_prepared_transactions_sends_nothing(live):
    """NOTIFY would make PREPARE TRANSACTION fail, so such a server sends none, and the dispatcher keeps its pace.

    Fails when: the change is announced although the transaction may be prepared.
    """
    async with connected(live.dsn) as connection:
        if await connection.fetchval("show max_prepared_transactions") == "0":
            pytest.skip("max_prepared_transactions is 0")
        for change in CHANGES.values():
            assert await notifications(connection, change) == []
        assert not (await connection.fetchrow(query("delivery/abilities")))["announces_changes"]
