"""Queued deliveries and replays, and how the completeness check and retention treat them."""

from __future__ import annotations

import pytest

from iu_listen.model.delivery import Reject
from postgres.completeness_helpers import run_pass
from postgres.delivery_helpers import RecordingTarget, attempts, delivering, open_route, wait_until_settled
from support import connected, drain, insert_event

pytestmark = pytest.mark.asyncio


async def test_a_replay_keeps_the_idempotency_key_and_resolves_the_dead_letter(live):
    """Two replay requests queue a dead letter once, and it is delivered as attempt 2 with the same idempotency key.

    The dead letter is resolved with the name of the operator.

    Fails when: a replay begins with attempt 1, or the dead letter is not resolved.
    """
    bad = True

    async def behave(_):
        if bad:
            raise Reject("broken")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection)
        event = await insert_event(connection)
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
            bad = False
            letter = await connection.fetchval("select id from iu_route_dead_letter")
            await connection.execute("delete from event_outbox where id = $1", event)
            replay = "select fn_iu_route_dead_letter_replay($1, 'ann')::jsonb ->> 'status'"
            async with connection.transaction():
                assert await connection.fetchval(replay, letter) == "queued"
                assert await connection.fetchval(replay, letter) == "already_queued"
                await connection.execute("update iu_outbound_route set dry_run = true")
                assert await connection.fetchval(replay, letter) == "already_queued"
                await connection.execute("update iu_outbound_route set dry_run = false")
            await wait_until_settled(connection)
        assert len({c.idempotency_key for c in recording.calls}) == 1
        assert recording.calls[1].event.data == recording.calls[0].event.data
        assert await attempts(connection, event) == [
            (1, "failed", "dead_letter", "reject"),
            (2, "sent", "delivered", None),
        ]
        row = await connection.fetchrow("select resolution, replay_count, attempt_no from iu_route_dead_letter")
        assert tuple(row) == ("replayed by ann: delivered", 1, 2)


async def test_queued_events_are_neither_missing_nor_removed(live):
    """A queued event is not missing for the completeness check, and retention does not remove it
    before its delivery has ended.

    Fails when: the check reads only attempts, or retention reads only cursors.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await insert_event(connection)
        await drain(connection)
        # At once: the event is not even suspected of being missing.
        page = "select fn_iu_completeness_page('iu_outbound_default', 1000, null) ->> 'status'"
        assert await connection.fetchval(page) == "passed"
        assert await connection.fetchval("select missing from v_iu_completeness") == 0
        await connection.execute(
            "alter table event_outbox disable trigger user; update event_outbox set created_at = now() - interval '1 year'; alter table event_outbox enable trigger user"
        )
        await connection.fetchval("select fn_iu_retention_run('events', 100, '1 day')")
        assert await connection.fetchval("select count(*) from event_outbox") == 1
        await connection.execute("create temp table pending as table iu_route_delivery")
        await connection.execute("delete from iu_route_delivery")
        for _ in range(2):
            await run_pass(connection)
        assert await connection.fetchval("select missing from v_iu_completeness") == 1
        await connection.execute("insert into iu_route_delivery overriding system value table pending")
        for _ in range(2):
            await run_pass(connection)
        assert await connection.fetchval("select missing from v_iu_completeness") == 0
