"""The replay of dead letters."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from postgres.routes import open_live_route
from support import connected, insert_event, run_batch

pytestmark = pytest.mark.asyncio

ROUTE = "iu.version_applied.workflow"


async def give_up(connection: asyncpg.Connection) -> tuple[UUID, UUID]:
    """Create an event that became a dead letter; return both ids. The route stays live."""
    await open_live_route(connection)
    event = await insert_event(connection)
    assert (await run_batch(connection))["dead_lettered"] == 1
    return event, await connection.fetchval("select id from iu_route_dead_letter")


async def replay(connection: asyncpg.Connection, letter: UUID, actor: str = "ada") -> dict[str, Any]:
    """Replay a dead letter; return the answer."""
    return json.loads(await connection.fetchval("select fn_iu_route_dead_letter_replay($1, $2)::text", letter, actor))


async def attempts(connection: asyncpg.Connection) -> list[tuple]:
    """All attempts, in the order of the audit."""
    rows = await connection.fetch("select status, decision, delivered, attempt_no from iu_route_attempt order by id")
    return [tuple(row) for row in rows]


async def test_a_replay_on_a_dry_run_resolves_the_dead_letter(live):
    """A replay decides by the current state of the route, with the next attempt number and
    the same key, and resolves it."""
    async with connected(live.dsn) as worker:
        event, letter = await give_up(worker)
        await worker.execute("update iu_outbound_route set dry_run = true")
        assert await replay(worker, letter) == {
            "status": "replayed", "dead_letter_id": str(letter), "event_id": str(event), "route_code": ROUTE,
            "decision": "dry_run", "attempt_no": 2, "resolved": True,
        }  # fmt: skip
        assert await attempts(worker) == [("failed", "dead_letter", False, 1), ("dry_run", "dry_run", False, 2)]
        assert await worker.fetchval("select count(distinct idempotency_key) from iu_route_attempt") == 1
        row = await worker.fetchrow("select * from iu_route_dead_letter")
        assert (row["resolution"], row["replay_count"], row["attempt_no"]) == ("replayed by ada: dry_run", 1, 2)
        assert await worker.fetchval("select count(*) from v_iu_route_dead_letter_open") == 0


async def test_a_replay_reads_only_the_snapshot(live):
    """A replay does not need the event, because the dead letter has a snapshot."""
    async with connected(live.dsn) as worker:
        event, letter = await give_up(worker)
        await worker.execute("update iu_outbound_route set dry_run = true")
        await worker.execute("delete from event_outbox where id = $1", event)
        assert (await replay(worker, letter))["resolved"]


async def test_a_failed_replay_keeps_the_dead_letter_open(live):
    """A replay that fails is recorded as the next failed attempt, and the dead letter stays open."""
    async with connected(live.dsn) as worker:
        _, letter = await give_up(worker)
        for number in (2, 3):
            answer = await replay(worker, letter)
            assert (answer["status"], answer["decision"], answer["attempt_no"]) == (
                "not_replayed",
                "dead_letter",
                number,
            )
        assert await attempts(worker) == [("failed", "dead_letter", False, n) for n in (1, 2, 3)]
        row = await worker.fetchrow("select * from v_iu_route_dead_letter_open")
        assert (row["replay_count"], row["attempt_no"], row["failure_detail"][:6]) == (2, 3, "0A000:")


async def test_a_replay_whose_attempt_cannot_be_written_is_counted(live):
    """If a replay fails and its attempt cannot be written, the replay is counted, the dead letter
    stays open, no error is raised.

    Fails when: writing the attempt of a failed replay is not guarded like that of a failed batch.
    """
    async with connected(live.dsn) as worker:
        _, letter = await give_up(worker)
        await worker.execute("alter table iu_route_attempt add constraint test_chk check (attempt_no < 2)")
        answer = await replay(worker, letter)
        assert (answer["status"], answer["resolved"]) == ("not_replayed", False)
        row = await worker.fetchrow("select * from v_iu_route_dead_letter_open")
        assert (row["replay_count"], row["attempt_no"]) == (1, 1)
        assert "; audit: " in row["failure_detail"]


async def test_a_replay_without_resources_raises_and_changes_nothing(live):
    """A replay that fails for lack of disk space, memory or a lock raises an error and does not change the dead letter.

    Fails when: the SQLSTATE of an error is not checked before a replay is recorded as failed.
    """
    async with connected(live.dsn) as worker:
        _, letter = await give_up(worker)
        before = await worker.fetchrow("select * from iu_route_dead_letter")
        await worker.execute(
            """create or replace function fn_iu_route_deliver(p_route_code text, p_event_id uuid, p_event jsonb)
               returns jsonb language plpgsql as $$ begin raise exception 'full' using errcode = '53100'; end $$"""
        )
        with pytest.raises(asyncpg.DiskFullError):
            await replay(worker, letter)
        assert await worker.fetchrow("select * from iu_route_dead_letter") == before
        assert len(await attempts(worker)) == 1


async def test_a_replay_on_a_disabled_route_is_skipped(live):
    """A replay on a disabled route is skipped and leaves the dead letter open, until the route is enabled."""
    async with connected(live.dsn) as worker:
        _, letter = await give_up(worker)
        await worker.execute("update iu_outbound_route set enabled = false, dry_run = true")
        answer = await replay(worker, letter)
        assert (answer["status"], answer["decision"], answer["resolved"]) == ("not_replayed", "route_disabled", False)
        await worker.execute("update iu_outbound_route set enabled = true")
        assert (await replay(worker, letter))["attempt_no"] == 3
        assert [a[0] for a in await attempts(worker)] == ["failed", "skipped", "dry_run"]


async def test_a_replay_on_a_deleted_route_resolves_the_dead_letter(live):
    """A replay on a route that no longer exists returns no_route and resolves the dead letter."""
    async with connected(live.dsn) as worker:
        _, letter = await give_up(worker)
        await worker.execute("delete from iu_outbound_route")
        answer = await replay(worker, letter)
        assert (answer["status"], answer["decision"], answer["resolved"]) == ("replayed", "no_route", True)


async def test_a_resolved_dead_letter_is_not_replayed(live):
    """A dead letter that is resolved is not decided again.

    Fails when: a replay does not check for an earlier resolution.
    """
    async with connected(live.dsn) as worker:
        _, letter = await give_up(worker)
        await worker.execute("update iu_outbound_route set dry_run = true")
        await replay(worker, letter)
        assert await replay(worker, letter, "bob") == {
            "status": "already_resolved", "dead_letter_id": str(letter), "resolved": True,
            "resolution": "replayed by ada: dry_run", "attempt_no": 2,
        }  # fmt: skip
        assert len(await attempts(worker)) == 2


async def test_a_replay_of_an_unknown_dead_letter_is_refused(live):
    """A dead letter that does not exist is an error that names it."""
    async with connected(live.dsn) as worker:
        letter = uuid4()
        with pytest.raises(asyncpg.PostgresError, match=f"dead letter {letter} does not exist") as error:
            await replay(worker, letter)
        assert error.value.sqlstate == "P0002"


@pytest.mark.parametrize("gate", ["routes_master_enabled", "route_worker_enabled"])
async def test_a_replay_behind_a_closed_gate_decides_nothing(live, gate):
    """Behind a closed gate a replay decides nothing. Fails when: a replay does not read the gates."""
    async with connected(live.dsn) as worker:
        _, letter = await give_up(worker)
        await worker.execute("update dot_config set value = 'false' where key = 'iu_core.' || $1", gate)
        status = "master_gate_closed" if gate == "routes_master_enabled" else "worker_gate_closed"
        assert await replay(worker, letter) == {"status": status, "dead_letter_id": str(letter), "resolved": False}
        assert len(await attempts(worker)) == 1


async def test_an_event_given_up_again_reopens_its_dead_letter(live):
    """An event that is read again and given up again reopens its one dead letter.

    Fails when: a second failure under the same key is suppressed although the dead letter was resolved.
    """
    async with connected(live.dsn) as worker:
        event, letter = await give_up(worker)
        await worker.execute("update iu_outbound_route set dry_run = true")
        assert (await replay(worker, letter))["resolved"]
        await worker.execute(
            """create function broken() returns trigger language plpgsql as $$ begin raise exception 'broken'; end $$;
               create trigger broken before insert on iu_route_attempt
                   for each row when (new.status = 'dry_run') execute function broken();
               update iu_route_worker_cursor set prev = '3:3:'"""
        )
        answer = await run_batch(worker)
        assert (answer["seen"], answer["attempts_written"], answer["dead_lettered"]) == (1, 0, 1)
        row = await worker.fetchrow("select * from v_iu_route_dead_letter_open")
        assert (row["id"], row["event_ref"], row["replay_count"]) == (letter, event, 1)


async def test_dead_letters_of_one_batch_are_replayed_in_order(live):
    """Events that fail in one batch are replayed in the order of their positions, although they fail in one transaction.

    Fails when: all dead letters of a batch have the same time, so that their random ids decide.
    """
    async with connected(live.dsn) as connection:
        await open_live_route(connection)
        events = [await insert_event(connection) for _ in range(30)]
        await run_batch(connection)
        letters = await connection.fetch("select event_ref from iu_route_dead_letter order by created_at, id")
    assert [row["event_ref"] for row in letters] == events
