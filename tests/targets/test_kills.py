"""Every kind of target, from the outbox to its receiver, while the receiver and the consumer are killed.

KILL_EVENTS makes the test longer: `make kills` delivers 10 000 events to each target.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from postgres.delivery_helpers import ROUTE, open_route, wait_until_settled
from storm.call_log import CallLog
from storm.environment import Consumer
from support import connected
from targets import test_kafka, test_nats, test_redis
from targets.brokers import Server, free_port, valkey
from targets.http_receivers import Certificates
from targets.mockkafka import cluster

pytestmark = pytest.mark.slow

EVENTS = int(os.environ.get("KILL_EVENTS", "300"))
#: How often the receiver, and the consumer, is killed.
COUNTERPART, CONSUMER = 2, 5
EMIT = """
    select count(fn_iu_emit_event('version_applied', 'kill/' || n, gen_random_uuid(), 'kill', '{}'))
      from generate_series(1, $1::int) n
"""
SENT = "select count(*) from iu_route_attempt where status = 'sent'"


@dataclass
class Counterpart:
    """The receiver of the events: its address and options, functions to kill and start it, and its stored keys."""

    address: str | None
    """None: the target is the coroutine of the storm."""
    options: dict[str, Any]
    kill: Callable[[], Any]
    start: Callable[[], Any]
    keys: Callable[[], Awaitable[list[str]]]
    once: bool = True
    """Whether it stores each key only once."""


@contextmanager
def webhook(folder: Path) -> Iterator[Counterpart]:
    certificates, port, file = Certificates(folder), free_port(), folder / "keys"
    chain, key = certificates.files()
    server = Server(
        [sys.executable, Path(__file__).with_name("recording_receiver.py"), str(port), chain, key, file], port
    )

    async def keys() -> list[str]:
        return file.read_text().split()

    for _ in server.running():
        options = {"ca": str(certificates.ca)}
        yield Counterpart(f"https://localhost:{port}/hook", options, server.kill, server.start, keys, once=False)


@contextmanager
def stream(folder: Path) -> Iterator[Counterpart]:
    for server in valkey(folder).running():

        async def keys(port: int = server.port) -> list[str]:
            return [entry["idempotency_key"] for entry in await test_redis.stored(port)]

        address = f"valkey://127.0.0.1:{server.port}/0?stream=events"
        yield Counterpart(address, {}, server.kill, server.start, keys)


@contextmanager
def jetstream(folder: Path) -> Iterator[Counterpart]:
    if test_nats.BINARY is None:
        pytest.skip("there is no nats-server on PATH")
    for server in test_nats.server(folder).running():

        async def make(port: int = server.port) -> None:
            async with test_nats.stream(port):
                pass

        async def keys(port: int = server.port) -> list[str]:
            return [message.header["Nats-Msg-Id"] for message in await test_nats.stored(port)]

        asyncio.run(make())
        yield Counterpart(f"nats://127.0.0.1:{server.port}/events.all", {}, server.kill, server.start, keys)


@contextmanager
def topic(_: Path) -> Iterator[Counterpart]:
    with cluster() as running:
        running.topic("events", 4)

        async def keys() -> list[str]:
            return [test_kafka.key_of(record) for record in await test_kafka.stored(running)]

        # The mock keeps its records in memory, so its brokers are disconnected and not killed.
        yield Counterpart(f"kafka://{running.servers}/events", {}, running.down, running.up, keys, once=False)


@contextmanager
def coroutine(_: Path) -> Iterator[Counterpart]:
    async def keys() -> list[str]:
        return []

    yield Counterpart(None, {}, lambda: None, lambda: None, keys, once=False)


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
@pytest.mark.parametrize("kind", [coroutine, webhook, stream, jetstream, topic])
def test_nothing_is_lost_while_both_ends_are_killed(live, tmp_path, kind):
    """The receiver is killed twice, the consumer five times with SIGKILL: every event is stored, once for each key.

    Fails when: a delivery is settled before its target has it, an outage uses up attempts, or in-flight deliveries are
    forgotten.
    """
    folder = tmp_path / "counterpart"
    folder.mkdir()
    with kind(folder) as there:
        asyncio.run(deliver(live.dsn, tmp_path, there))


async def deliver(dsn: str, folder: Path, there: Counterpart) -> None:
    consumer = Consumer("consumer", dsn, folder)
    consumer.environ = {"IU_LISTEN_ALLOW_PRIVATE": "127.0.0.0/8,localhost"}
    async with connected(dsn) as connection:
        if there.address is None:
            await connection.execute("update iu_outbound_route set target_ref = 'storm'")
        await open_route(
            connection,
            address=there.address,
            concurrency=50,
            attempts=3,
            backoff=0.05,
            deadline=5,
            breaker=5,
            trial_interval_max=0.3,
            target=there.options,
        )
        await connection.fetchval(EMIT, EVENTS)
        consumer.begin()
        try:
            blows = sorted([(n + 0.5) / CONSUMER for n in range(CONSUMER)]), [0.33, 0.66][:COUNTERPART]
            for share, whom in sorted([(s, "consumer") for s in blows[0]] + [(s, "counterpart") for s in blows[1]]):
                while await connection.fetchval(SENT) < EVENTS * share * 0.95:
                    await asyncio.sleep(0.01)
                if whom == "consumer":
                    await consumer.kill_and_wait()
                else:
                    there.kill()
                    await asyncio.sleep(1.5)
                    there.start()
            await wait_until_settled(connection, 60 + EVENTS / 50)
        finally:
            await consumer.end()
        assert consumer.starts > CONSUMER
        wanted = {
            row[0] for row in await connection.fetch("select 'outbound:' || $1 || ':' || id from event_outbox", ROUTE)
        }
        assert await connection.fetchval("select count(*) from iu_route_dead_letter") == 0
        sent = await connection.fetch("select idempotency_key from iu_route_attempt where status = 'sent'")
    assert len(wanted) == EVENTS
    assert sorted(row[0] for row in sent) == sorted(wanted)
    got = await there.keys()
    wire = len(got)
    if there.address is None:
        noted = CallLog.read([consumer.call_log_file])
        got, wire = [f"outbound:{ROUTE}:{event}" for event in noted.first], len(noted.first) + noted.repeated_calls
    assert set(got) == wanted
    assert len(got) == EVENTS or not there.once
    print(f"{wire} on the wire for {EVENTS} events, {consumer.starts} starts")
