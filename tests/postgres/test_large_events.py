"""Events that are too large for a dead letter: it keeps their identification, and other events are routed."""

from __future__ import annotations

import json
from uuid import UUID

import asyncpg
import pytest

from postgres.routes import add_dry_run_route, open_sql_function_route, register_event_type
from support import connected, drain, insert_event

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

#: Payloads by the limit that they exceed: a row as jsonb (256 MB), a text form of 1 GB, and the memory
#: of a reader of the dead letter.
LARGE = {
    "no jsonb of the row": "jsonb_build_object('a', repeat('x', 268435400))",
    "no text": r"jsonb_build_object('a', repeat(E'\x01', 180000000))",
    "numbers whose text is long": "(select jsonb_agg(1e131071) from generate_series(1, 600))",
}


async def _insert(connection: asyncpg.Connection, payload: str) -> UUID:
    return await connection.fetchval(
        f"""insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, canonical_address, safe_payload)
            values ('iu', 'large_thing', 'update', 'immediate', 'doc/1', {payload}) returning id"""
    )


@pytest.mark.parametrize("payload", LARGE.values(), ids=LARGE)
async def test_a_large_event_becomes_one_bounded_dead_letter(live, payload):
    """An event that a function rejects becomes a dead letter of bounded size, for any payload; others are routed.

    Fails when: the batch converts the row with to_jsonb for the snapshot, which raises an error, or keeps a
    payload that cannot be read as text.
    """
    async with connected(live.dsn) as connection:
        await register_event_type(connection, "large_thing")
        await add_dry_run_route(connection, "large", "large_thing")
        await open_sql_function_route(connection, "large")
        await connection.execute(
            """create or replace function public.arrive(idempotency_key text, event jsonb) returns void language plpgsql as $$
               begin
                   raise exception 'refused';
               end $$"""
        )
        large = await _insert(connection, payload)
        small = await insert_event(connection)
        assert await drain(connection) == 2

        letter = await connection.fetchrow(
            "select event_ref, route_code, event_snapshot::text as kept, failure_detail from iu_route_dead_letter"
        )
        kept = json.loads(letter["kept"])
        assert (letter["event_ref"], letter["route_code"]) == (large, "large")
        assert (kept["id"], kept["too_large"], kept["canonical_address"]) == (str(large), True, "doc/1")
        assert "safe_payload" not in kept
        assert await connection.fetchval("select status from iu_route_attempt where event_ref = $1", small) == "dry_run"


async def test_the_replay_of_a_large_event_reads_the_outbox(live):
    """A dead letter with a snapshot that is too large is replayed with the whole event from the outbox.

    If the event is gone, the replay fails with this reason.

    Fails when: the replay passes the bounded snapshot to the function.
    """
    async with connected(live.dsn) as connection:
        await register_event_type(connection, "large_thing")
        await add_dry_run_route(connection, "large", "large_thing")
        await open_sql_function_route(connection, "large")
        await connection.execute(
            """create table public.asked (bytes bigint);
               create or replace function public.arrive(idempotency_key text, event jsonb) returns void language plpgsql as $$
               begin
                   if exists (select from public.asked) then
                       update public.asked set bytes = length(event -> 'safe_payload' ->> 'a');
                   else
                       raise exception 'not yet';
                   end if;
               end $$"""
        )
        event = await _insert(connection, "jsonb_build_object('a', repeat('x', 70000000))")
        await drain(connection)
        letter = await connection.fetchval("select id from iu_route_dead_letter where event_snapshot ? 'too_large'")
        await connection.execute("insert into public.asked values (0)")

        await connection.execute("begin; delete from event_outbox")
        gone = json.loads(await connection.fetchval("select fn_iu_route_dead_letter_replay($1)::text", letter))
        detail = await connection.fetchval("select failure_detail from iu_route_dead_letter")
        await connection.execute("rollback")
        assert not gone["resolved"]
        assert f"event {event} is too large for its dead letter, and is not in the outbox any more" in detail

        done = json.loads(await connection.fetchval("select fn_iu_route_dead_letter_replay($1)::text", letter))
        assert (done["decision"], done["resolved"]) == ("delivered", True)
        assert await connection.fetchval("select bytes from public.asked") == 70000000
