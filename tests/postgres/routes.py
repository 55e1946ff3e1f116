"""Helpers for the tests of routes: event types, routes, and events for which no attempt can be written."""

from __future__ import annotations

from uuid import UUID

import asyncpg

ROUTE = "iu.version_applied.workflow"

#: A trigger for events with a note of "poison" and an SQLSTATE: it raises an error with that SQLSTATE. It applies to
#: attempts with a status like {status}.
POISON = """
create function test_poison() returns trigger language plpgsql as $$
declare
    v_note text := (select o.safe_payload ->> 'note' from public.event_outbox o where o.id = new.event_ref);
begin
    if v_note like 'poison %' and new.status like '{status}' then
        raise exception 'cannot swallow this' using errcode = split_part(v_note, ' ', 2);
    end if;
    return new;
end $$;
create trigger test_poison before insert on iu_route_attempt for each row execute function test_poison();
"""


async def add_poison_trigger(connection: asyncpg.Connection, status: str = "dry_run") -> None:
    """Let attempts with this status fail for events with a poison note."""
    await connection.execute(POISON.format(status=status))


async def add_dry_run_route(
    connection: asyncpg.Connection, code: str, event_type: str, *, enabled: bool = True, dry_run: bool = True
) -> None:
    """Register an event type, if it is new, and a route for it."""
    await register_event_type(connection, event_type)
    await connection.execute(
        """insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled, dry_run)
           values ($1, 'iu', $2, 'update', 'workflow', 'test', $3, $4)""",
        code,
        event_type,
        enabled,
        dry_run,
    )


async def register_event_type(connection: asyncpg.Connection, event_type: str) -> None:
    """Register an event type."""
    await connection.execute(
        "insert into event_type_registry values ('iu', $1, 'update', 'immediate') on conflict do nothing", event_type
    )


async def append_event(connection: asyncpg.Connection, event_type: str) -> UUID:
    """Append an event of a type."""
    return await connection.fetchval(
        """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
           values ('iu', $1, 'update', 'immediate') returning id""",
        event_type,
    )


OPEN_DELIVERY = """
    update dot_config set value = 'true' where key = 'iu_core.delivery_enabled';
    update dot_config set value = '{}' where key = 'iu_core.delivery_live_routes';
"""


async def open_live_route(connection: asyncpg.Connection, route: str = "iu.version_applied.workflow") -> None:
    """Make a route live with a target kind that is not implemented (`vector`), so that each delivery fails."""
    await connection.execute(
        OPEN_DELIVERY.format(route)
        + f"update iu_outbound_route set dry_run = false, target_kind = 'vector' where route_code = '{route}'"
    )


#: A target in SQL: records the events, and misbehaves as the event asks.
SQL_TARGET = """
    create table if not exists arrived (n bigint generated always as identity, event_ref uuid, key text, note text);
    create table if not exists late (id integer primary key, of integer references late deferrable initially deferred);
    create or replace function public.misbehave(note text) returns void language plpgsql set search_path = public as $$
    begin
        if note = 'wait' then
            perform pg_advisory_xact_lock(4711);
        elsif note = 'raise deferred' then
            insert into late values (1, 2);
        elsif note like 'raise %' then
            raise exception 'as asked' using errcode = substr(note, 7);
        end if;
    end $$;
    create or replace function public.arrive(idempotency_key text, event jsonb) returns void language plpgsql as $$
    begin
        insert into public.arrived (event_ref, key, note)
        values ((event ->> 'id')::uuid, idempotency_key, event -> 'safe_payload' ->> 'note');
        perform public.misbehave(event -> 'safe_payload' ->> 'note');
    end $$
"""


async def open_sql_function_route(connection: asyncpg.Connection, route: str = "iu.version_applied.workflow") -> None:
    """Open all switches, and let the route deliver to the SQL target."""
    await connection.execute(SQL_TARGET)
    await connection.execute(
        """update dot_config set value = 'true' where key = 'iu_core.delivery_enabled';
           update dot_config set value = 'public.arrive' where key = 'iu_core.delivery_sql_functions'"""
    )
    await connection.execute(
        "update iu_outbound_route set target_kind = 'sql_function', target_ref = 'public.arrive' where route_code = $1",
        route,
    )
    await connection.fetchval("select fn_iu_route_live($1, true, 'a test', 'tester')", route)
