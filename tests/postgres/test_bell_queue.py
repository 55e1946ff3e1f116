"""A notification queue that fills up because a listener does not read: producers are not
affected. It needs its own server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clusters import cluster
from conftest import Database, TestServer
from iu_listen.model.observation import BatchRan, Listening, SessionFailed
from iu_listen.model.routing import Wake
from iu_listen.postgres import queries
from postgres.listener_helpers import (
    NO_CATCH_UP,
    armed_session,
    counting_notifications,
    queue_filled,
    queue_is_full,
    wait_until_armed,
)
from support import attempted, connected, consuming, insert_event, open_gate, wait_until

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]


@pytest.fixture(scope="module")
def small() -> Iterator[TestServer]:
    """A server with the smallest possible notification queue: 64 pages."""
    with cluster(18, max_notify_queue_pages="64") as server:
        yield TestServer(server.dsn("postgres"), server)


@pytest.fixture
def database(small: TestServer) -> Iterator[Database]:
    yield from small.create("applied")


async def test_producers_send_no_notify_from_a_half_full_queue_on(database):
    """A producer does not notify while the queue is half full or more, even if a consumer is idle.

    Fails when: the guard on the queue is taken out of the trigger.
    """
    async with (
        connected(database.dsn) as writer,
        counting_notifications(database.dsn) as heard,
        armed_session(database.dsn),
    ):
        await insert_event(writer)
        assert await heard() == 1
        async with queue_filled(database.dsn, 0.5) as usage:
            assert 0.5 <= usage < 0.9
            await insert_event(writer)
            assert await heard() == 0


async def test_producers_commit_while_the_queue_is_full(database):
    """A producer commits into the outbox while the notification queue is full and a consumer is idle.

    Fails when: the guard on the queue is taken out of the trigger.
    """
    async with connected(database.dsn) as writer, armed_session(database.dsn), queue_filled(database.dsn, 1.0):
        assert await queue_is_full(writer)
        events = {await insert_event(writer) for _ in range(10)}
        assert {row["id"] for row in await writer.fetch("select id from event_outbox")} == events


async def test_the_session_that_blocks_the_queue_is_reported(database):
    """The session that keeps the queue from being shortened is named, and when that
    session is ended the queue is empty.

    Fails when: the view does not look at the queue, or names a session that came later.
    """
    async with (
        connected(database.dsn) as looker,
        queue_filled(database.dsn, 0.5),
        connected(database.dsn) as bystander,
        bystander.transaction(),
    ):
        await bystander.fetchval("select 1")
        (found,) = [c for c in await queries.rows(looker, "blockers") if c["what"] == "notify_queue"]
        assert found["state"] == "idle in transaction"
        assert await looker.fetchval("select pg_terminate_backend($1, 10000)", found["pid"])
        assert await looker.fetchval("select pg_notification_queue_usage()") < 0.1
        assert [c for c in await queries.rows(looker, "blockers") if c["what"] == "notify_queue"] == []


async def test_a_consumer_that_starts_with_a_full_queue_polls(database):
    """A consumer that cannot send its test notification works without the bell, and listens
    when the queue is no longer full.

    Fails when: Refused from the listener session ends the consumer.
    """
    await open_gate(database.dsn)
    async with connected(database.dsn) as writer:
        settings = {**NO_CATCH_UP, "reconnect_max": 0.2}
        async with queue_filled(database.dsn, 1.0) as _:
            assert await queue_is_full(writer)
            event = await insert_event(writer)
            consumer = consuming(database.dsn, listening=False, **settings)
            seen = await consumer.__aenter__()
            try:
                failed = await seen.wait_for(SessionFailed)
                assert failed.session == "listener"
                ran = await seen.wait_for(BatchRan, lambda b: b.batch.seen)
                assert ran.wake in (Wake.START_UP, Wake.POLL)
                assert not seen.of(Listening)
            except BaseException as error:
                await consumer.__aexit__(type(error), error, error.__traceback__)
                raise
        try:
            await seen.wait_for(Listening)
            await wait_until_armed(writer)
            later = await insert_event(writer)
            await wait_until(lambda: _has(writer, later), "the next event is attempted", timeout=5)
            assert await attempted(writer) == [event, later]
        finally:
            await consumer.__aexit__(None, None, None)


async def _has(connection, event) -> bool:
    return event in await attempted(connection)
