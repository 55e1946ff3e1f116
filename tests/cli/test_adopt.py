"""adopt: the rows of outbox tables that exist become events, and their applications do not notice."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from cli.command import execute, ok, on_one_server, portrait, refused, rows, run, value
from support import connected, wait_until

pytestmark = on_one_server

#: The tables of the presets, as their libraries create them, and a row of each.
TABLES = {
    "debezium": (
        """create table shop.outbox (
               id uuid primary key, aggregatetype varchar(255) not null, aggregateid varchar(255) not null,
               type varchar(255) not null, payload jsonb, tracingspancontext varchar(256))""",
        """insert into shop.outbox values (
               '6f1b3a9e-8c55-4d3e-9f5c-000000000001', 'Order', '4711', 'OrderCreated', '{"total": 5}',
               E'#\\ntraceparent=00-11111111111111111111111111111111-2222222222222222-01\\n')""",
    ),
    "django-outbox-pattern": (
        """create table shop.outbox (
               id uuid primary key, version varchar(100), destination varchar(255) not null, body jsonb not null,
               added timestamptz not null, expires_at timestamptz not null, retry integer not null,
               status integer not null, headers jsonb not null)""",
        """insert into shop.outbox values (
               '6f1b3a9e-8c55-4d3e-9f5c-000000000001', null, '/topic/orders.v1', '[1, 2]', '2026-01-02 03:04:05+00',
               now(), 0, 1, '{"traceparent": "00-11111111111111111111111111111111-2222222222222222-01"}')""",
    ),
    "eventsourcing": (
        """create table shop.outbox (
               originator_id uuid not null, originator_version bigint not null, topic text, state bytea,
               notification_id bigserial, primary key (originator_id, originator_version));
           create unique index on shop.outbox (notification_id)""",
        """insert into shop.outbox values (
               '6f1b3a9e-8c55-4d3e-9f5c-000000000001', 7, 'shop.domain:Order.Created', '{"total": 5}')""",
    ),
    "plain": (
        "create table shop.outbox (id bigserial primary key, type text not null, payload json)",
        """insert into shop.outbox (type, payload) values ('order_placed', '{"total": 5}')""",
    ),
}
EVENT = """
    select event_type, event_subject_table, event_subject_ref, canonical_address, safe_payload::text,
           coalesce(traceparent, '') as traceparent
      from event_outbox"""
TRACE = "00-11111111111111111111111111111111-2222222222222222-01"
ID = "6f1b3a9e-8c55-4d3e-9f5c-000000000001"
EXPECTED = {
    "debezium": ("OrderCreated", "Order", "4711", f"shop.outbox/{ID}", '{"total": 5}', TRACE),
    "django-outbox-pattern": ("topic-orders.v1", None, None, f"shop.outbox/{ID}", '{"value": [1, 2]}', TRACE),
    "eventsourcing": ("shop.domain-Order.Created", None, ID, f"shop.outbox/{ID}.7", '{"total": 5}', ""),
    "plain": ("order_placed", None, None, "shop.outbox/1", '{"total": 5}', ""),
}


def shop(dsn: str, preset: str = "debezium") -> str:
    """A table of a preset, in a schema of its own."""
    execute(dsn, f"create schema shop; {TABLES[preset][0]}")
    return "shop.outbox"


@pytest.mark.parametrize("preset", TABLES)
def test_a_row_of_each_preset_becomes_an_event(neutral, preset):
    """The preset is recognized by the columns, and a role without a right on our tables writes an event.

    Fails when: a column of the preset is wrong, or the function has the rights of the writer.
    """
    table = shop(neutral, preset)
    answer = ok("adopt", "--table", table, "--yes", "--json", dsn=neutral).json
    assert answer["created"]
    execute(neutral, f"""create role writer_{preset.replace("-", "_")};
                         grant usage on schema shop to writer_{preset.replace("-", "_")};
                         grant insert on shop.outbox to writer_{preset.replace("-", "_")};
                         grant usage on all sequences in schema shop to writer_{preset.replace("-", "_")}""")  # fmt: skip
    try:
        execute(neutral, f"set role writer_{preset.replace('-', '_')}; {TABLES[preset][1]}")
        assert [tuple(row) for row in rows(neutral, EVENT)] == [EXPECTED[preset]]
        if preset in ("debezium", "django-outbox-pattern"):
            assert value(neutral, "select id from event_outbox") == UUID(ID)
        if preset == "django-outbox-pattern":
            assert value(neutral, "select occurred_at = '2026-01-02 03:04:05+00' from event_outbox")
        (listed,) = ok("adopt", "--json", dsn=neutral).json
        assert (listed["table"], listed["problem"]) == (table, "")
    finally:
        role = f"writer_{preset.replace('-', '_')}"
        execute(neutral, f"drop owned by {role}; drop role {role}")


def test_the_events_are_routed_in_the_order_of_their_subject(neutral):
    """Rows of several transactions reach the audit, each once; a row that is deleted at once does, too.

    Fails when: the trigger does not ring the bell or stamp the events, or fires at the commit.
    """
    table = shop(neutral)
    ok("gate", "open", "worker", dsn=neutral)
    ok("adopt", "--table", table, "--yes", dsn=neutral)
    ok("event-type", "add", "OrderCreated", dsn=neutral)
    ok("route", "add", "orders", "--type", "OrderCreated", "--to", "f", dsn=neutral)
    insert = "insert into shop.outbox select gen_random_uuid(), 'Order', n::text, 'OrderCreated', '{}' from generate_series(1, 50) n"
    execute(neutral, f"{insert}; delete from shop.outbox")
    execute(neutral, insert)
    execute(neutral, "select fn_iu_route_worker_run('iu_outbound_default', 1000)")
    assert value(neutral, "select count(*) from iu_route_attempt") == 100
    assert value(neutral, "select count(*) from event_outbox where event_subject_ref = '7'") == 2


@pytest.mark.parametrize("preset", ["debezium", "eventsourcing"])
def test_a_rolled_back_row_is_no_event(neutral, preset):
    """Rollback, and rollback to a savepoint, leave no event; a row that is inserted again neither, and changes none.

    Fails when: the id of an event is not that of its row, or derived from it; or an event is written again.
    """
    table = shop(neutral, preset)
    ok("adopt", "--table", table, "--yes", dsn=neutral)
    row = TABLES[preset][1]
    execute(neutral, f"begin; {row}; rollback; begin; savepoint s; {row}; rollback to s; commit")
    assert value(neutral, "select count(*) from event_outbox") == 0
    execute(neutral, row)
    (event,) = rows(neutral, "select * from event_outbox")
    execute(neutral, f"{row} on conflict do nothing; delete from shop.outbox; {row}")
    assert rows(neutral, "select * from event_outbox") == [event]


def test_no_other_table_can_use_the_trigger_function(neutral):
    """Only its owner may execute the function, which has the rights of its owner.

    Fails when: any role can create a trigger with it on a table of its own, and so write events.
    """
    ok("adopt", "--table", shop(neutral), "--yes", dsn=neutral)
    granted = """select a.grantee from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                  where p.prosecdef and p.proname like 'fn\\_iu\\_adopted%' and a.grantee <> p.proowner"""
    assert rows(neutral, granted) == []
    assert value(neutral, "select count(*) from pg_proc p where p.proname like 'fn\\_iu\\_adopted%'") == 1


@pytest.mark.parametrize(
    ("type_", "given", "payload"),
    [
        ("jsonb", "null", "{}"),
        ("text", "'no JSON'", '{"text": "no JSON"}'),
        ("text", "'\"a\\u0000b\"'", '{"text": "\\"a\\\\u0000b\\""}'),
        ("json", "'7'", '{"value": 7}'),
        ("bytea", "'\\xff00'", '{"base64": "/wA="}'),
        ("bytea", "null", "{}"),
    ],
)
def test_no_payload_harms_the_writer(neutral, type_, given, payload):
    """A payload that is not a JSON object becomes one that says what it was; the transaction of the writer succeeds.

    Fails when: an error of the conversion reaches the application.
    """
    execute(neutral, f"create table outbox (id integer primary key, type text, payload {type_})")
    ok("adopt", "--table", "outbox", "--yes", dsn=neutral)
    execute(neutral, f"insert into outbox values (1, '', {given})")
    assert rows(neutral, "select event_type, safe_payload::text as payload from event_outbox") == [("untyped", payload)]


def test_an_inactive_type_is_skipped(neutral):
    """A type that event-type remove made inactive is not copied, and does not harm the writer."""
    table = shop(neutral)
    ok("adopt", "--table", table, "--yes", dsn=neutral)
    execute(neutral, "insert into event_type_registry (event_type, active) values ('OrderCreated', false)")
    execute(neutral, TABLES["debezium"][1])
    assert value(neutral, "select count(*) from event_outbox") == 0
    assert value(neutral, "select count(*) from shop.outbox") == 1


def test_a_mapping_of_ones_own(neutral):
    """Columns, joined columns and constants are mapped as told; names with quotes and dollars are only names.

    Fails when: a name or a constant is used as SQL.
    """
    execute(
        neutral,
        """create table "My $iu_0$ Box" ("the id" text primary key, "kind' || 'x" text, what text, "b""ody" jsonb, who bigint)""",
    )
    done = ok(
        "adopt", "--table", 'public."My $iu_0$ Box"', "--yes", "--map", "id=the id", "--map", "type=kind' || 'x,what",
        "--map", 'payload=b"ody', "--map", "subject=who", "--map", "subject-type='it''s'", dsn=neutral,
    )  # fmt: skip
    assert "is copied to event_outbox" in done.out
    execute(neutral, """insert into "My $iu_0$ Box" values ('a', 'order', 'placed', '{"n": 1}', 7)""")
    assert [tuple(row)[:3] for row in rows(neutral, EVENT)] == [("order.placed", "it''s", "7")]
    ok("adopt", "--table", 'public."My $iu_0$ Box"', "--remove", "--yes", dsn=neutral)
    assert ok("adopt", "--json", dsn=neutral).json == []


def test_plan_and_remove_change_only_what_they_say(neutral):
    """--plan shows the statements and changes nothing; --remove leaves the database as it was before."""
    table = shop(neutral)
    before = portrait(neutral)
    planned = ok("adopt", "--table", table, "--plan", dsn=neutral)
    assert "create trigger zz_iu_listen_adopted after insert" in planned.out
    assert "Plan: nothing was changed." in planned.out
    assert portrait(neutral) == before
    refused(1, "nothing was changed", "--yes")("adopt", "--table", table, dsn=neutral)
    ok("adopt", "--table", table, "--yes", dsn=neutral)
    refused(1, "shop.outbox is adopted already", "--remove")("adopt", "--table", table, "--yes", dsn=neutral)
    ok("adopt", "--table", table, "--remove", "--plan", dsn=neutral)
    ok("adopt", "--table", table, "--remove", "--yes", dsn=neutral)
    assert portrait(neutral) == before
    refused(2, "shop.outbox is not adopted", "Adopted tables: none")("adopt", "--table", table, "--remove", dsn=neutral)


def test_bad_input_names_the_remedy(neutral, live):
    """Wrong tables, columns, fields and presets are errors that name what exists; nothing is changed."""
    table = shop(neutral)
    execute(
        neutral,
        """create table shop.loose (id uuid, type text, payload jsonb);
           create unique index on shop.loose (id);
           create table shop.other (a integer primary key, kind text);
           create domain shop.evil as text;
           create table shop.odd (id integer primary key, type shop.evil, payload jsonb);
           create view shop.seen as select 1 as id""",
    )
    before = portrait(neutral)

    def bad(code: int, *texts: str):
        return lambda *args: refused(code, *texts)("adopt", "--yes", *args, dsn=neutral)

    bad(2, "there is no table public.nothing")("--table", "nothing")
    bad(1, "event_outbox is the outbox itself")("--table", "event_outbox")
    bad(1, "shop.seen is not a table")("--table", "shop.seen")
    bad(1, "no usable id", "(id) is not unique and NOT NULL", "all columns: id, type, payload")("--table", "shop.loose")
    bad(2, "has the columns of no preset: a, kind", "--map type=COLUMN")("--table", "shop.other")
    bad(2, "no column kynd; is it kind?")(
        "--table", "shop.other", "--map", "id=a", "--map", "type=kynd", "--map", "payload=kind"
    )
    bad(2, "there is no field tipe; is it type?")("--table", table, "--map", "tipe=type")
    bad(2, "there is no preset debesium; is it debezium?")("--table", table, "--preset", "debesium")
    bad(2, "table shop.other has no column")("--table", "shop.other", "--preset", "debezium")
    bad(2, "has type uuid, which does not fit payload")("--table", table, "--map", "payload=id")
    bad(2, "not of the form FIELD=COLUMN")("--table", table, "--map", "type")
    bad(2, "shop.evil, which is not a type of PostgreSQL itself")("--table", "shop.odd")
    bad(2, "--table is missing")("--preset", "debezium")
    assert portrait(neutral) == before
    refused(1, "on the base of IU Core")("adopt", "--table", "dot_config", "--yes", dsn=live.dsn)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("alter table shop.outbox disable trigger zz_iu_listen_adopted", "its trigger is disabled"),
        ("drop trigger zz_iu_listen_adopted on shop.outbox", "its trigger is missing"),
        ("drop table shop.outbox", "its trigger is missing"),
        ("alter table shop.outbox rename column payload to body", "column payload does not exist any more"),
        ("alter table shop.outbox rename to box", "the table is shop.box now"),
        ("alter table shop.outbox alter column payload type text", "its function differs from the mapping"),
    ],
)
def test_verify_names_a_broken_adoption(neutral, change, problem):
    """verify and adopt name an adopted table that is not copied any more, or not as planned; --remove ends it."""
    table = shop(neutral)
    ok("adopt", "--table", table, "--yes", dsn=neutral)
    ok("verify", dsn=neutral)
    execute(neutral, change)
    done = run("adopt", "--json", dsn=neutral)
    assert (done.code, problem in done.json[0]["problem"]) == (1, True)
    refused(1, "shop.outbox", problem)("verify", dsn=neutral)
    refused(1, "adopted table", problem)("doctor", dsn=neutral)
    ok("adopt", "--table", table, "--remove", "--yes", dsn=neutral)
    ok("verify", dsn=neutral)


def test_a_package_with_adopted_tables_is_not_removed(neutral):
    """rollback refuses while a table is adopted, because without the package every INSERT into it would fail."""
    table = shop(neutral)
    ok("adopt", "--table", table, "--yes", dsn=neutral)
    refused(1, "adopted tables: shop.outbox", "--remove")("rollback", "--yes", dsn=neutral)
    execute(neutral, TABLES["debezium"][1])
    ok("adopt", "--table", table, "--remove", "--yes", dsn=neutral)


def test_a_preset_with_another_column(neutral):
    """A preset is recognized although one of its columns has another name, if that field is mapped."""
    table = shop(neutral)
    execute(neutral, "alter table shop.outbox rename column payload to body")
    ok("adopt", "--table", table, "--map", "payload=body", "--yes", dsn=neutral)
    assert "aggregateid" in ok("adopt", "--json", dsn=neutral).json[0]["fields"]


def test_adoption_does_not_wait_behind_a_long_transaction(neutral):
    """While the application holds the table, writers wait at most half a second at a time.

    Fails when: the trigger is created with the lock timeout of the session.
    """
    shop(neutral)
    waiting = "select exists (select from pg_locks where not granted and relation = 'shop.outbox'::regclass)"

    async def go() -> None:
        async with connected(neutral) as writer, connected(neutral) as other:
            async with writer.transaction():
                await writer.execute(TABLES["debezium"][1])
                command = asyncio.create_task(
                    asyncio.to_thread(run, "adopt", "--table", "shop.outbox", "--yes", dsn=neutral)
                )
                await wait_until(lambda: other.fetchval(waiting), "adopt waits for the table")
                await asyncio.wait_for(other.execute(TABLES["debezium"][1].replace("0001'", "0002'")), 5)
            assert (await command).code == 0

    asyncio.run(go())
