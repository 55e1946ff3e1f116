"""apply: the objects that it adds, the conditions on which it refuses, and how it continues after an interruption."""

from __future__ import annotations

import asyncio
import json
import re
import stat
import subprocess
from urllib.parse import quote

import pytest

from cli.command import (
    Done,
    catalogue,
    execute,
    holding,
    kinds,
    on_one_server,
    portrait,
    refused,
    rows,
    run,
    value,
)
from iu_listen import embedded
from iu_listen.install import migrate
from iu_listen.install.package import SEED_FILES
from iu_listen.postgres.session import session
from iu_listen.postgres.sqlfiles import package_files, query

WAIVED = ("--no-backup", "a test database")
LEDGER = "select name from iu_migration"
#: The objects that 008, 009 and 060 add; the seed states only their numbers: 2, 5, 3.
SEED = {
    "table": {"iu_route_worker_cursor", "iu_route_dead_letter"},
    "function": {
        "fn_iu_route_worker_enabled()",
        "fn_iu_route_worker_run(text,integer)",
        "fn_iu_route_deliver(text,uuid,jsonb)",
        "fn_iu_route_dead_letter_replay(uuid,text)",
        "fn_iu_route_worker_health(text)",
    },
    "view": {"v_iu_route_attempt_summary", "v_iu_event_backlog", "v_iu_route_dead_letter_open"},
}


def apart() -> dict[str, set[str]]:
    """The other objects of the package by kind: all except those of the seed's files (tests/conventions checks that list)."""
    objects: dict[str, set[str]] = {}
    for file, kind, name in re.findall(r"\('(\S+)', '(\w+)', '([^']+)'\)", query("package_objects")):
        if file not in SEED_FILES:
            objects.setdefault(kind, set()).add(name)
    return objects


def apply(dsn: str, *args: str, **more) -> Done:
    return run("apply", "--json", *(args or WAIVED), dsn=dsn, **more)


def ledger(dsn: str) -> list[str]:
    return [row["name"] for row in rows(dsn, LEDGER)]


def history(dsn: str) -> None:
    """Insert units and versions, as IU Core has them, and no events."""
    execute(
        dsn,
        """insert into information_unit (canonical_address, title) select 'u/' || n, 't' from generate_series(1, 5) n;
           insert into unit_version (unit_id, version_seq) select id, 1 from information_unit;""",
    )


# -- added objects -----------------------------------------------------------------------------------------------


def test_it_adds_the_seeds_figures(substrate):
    """apply adds 2 tables, 5 functions, 3 views, 1 key and 1 row, inert; the catalogue and the report agree."""
    dsn = substrate.dsn
    history(dsn)
    before, counts = kinds(catalogue(dsn)), rows(dsn, "select count(*) from information_unit")[0][0]
    done = apply(dsn)
    assert done.code == 0, done.out + done.err
    answer, after = done.json, kinds(catalogue(dsn))

    for kind, names in SEED.items():
        assert after[kind] - before.get(kind, set()) == names | apart().get(kind, set()), kind
    assert [r["key"] for r in rows(dsn, "select key from dot_config where key like '%worker%'")] == [
        "iu_core.route_worker_enabled"
    ]
    assert value(dsn, "select count(*) from iu_route_worker_cursor") == 1
    assert answer["added"]["seed"] == {"table": 2, "function": 5, "view": 3, "key": 1, "row": 1}
    assert answer["added"]["apart"] == {kind: len(names) for kind, names in apart().items()}

    assert answer["pass"] is True
    assert answer["plan"] is False
    assert [g["number"] for g in answer["gates"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(g["pass"] for g in answer["gates"])
    assert answer["applied"] == [m.name for m in package_files()]
    assert sorted(answer["applied"]) == sorted(ledger(dsn))
    assert {g["gate"]: g["open"] for g in answer["gates_after"]} == {"master": True, "worker": False, "delivery": False}
    assert answer["row_counts"]["information_unit"] == {"before": counts, "after": counts}
    assert all(c["before"] == c["after"] for c in answer["row_counts"].values())
    assert {f"W{n}" for n in range(1, 17)} < {c["id"] for c in answer["verify"]}
    assert all(c["pass"] for c in answer["verify"])

    assert value(dsn, "select value from dot_config where key = 'iu_core.route_worker_enabled'") == "false"
    for table in ("event_outbox", "iu_route_attempt", "iu_route_dead_letter"):
        assert value(dsn, f"select count(*) from {table}") == 0
    verify = run("verify", "--json", dsn=dsn)
    assert verify.code == 0
    assert {c["id"]: c["observed"] for c in verify.json["checks"]} == {c["id"]: c["observed"] for c in answer["verify"]}


@on_one_server
def test_the_report_for_people(substrate):
    """Text output: each gate with its evidence, the durable end state with the seed's figures, then W1 to W9."""
    done = run("apply", *WAIVED, dsn=substrate.dsn)
    assert done.code == 0, done.err
    for number in range(1, 9):
        assert f"PASS  gate {number}  " in done.out
    assert "added by files 008, 009, 060  2 tables, 5 functions, 3 views, 1 key, 1 row" in done.out
    assert "worker gate  closed" in done.out
    assert "information_unit  0 → 0  unchanged" in done.out
    assert "none, because: a test database" in done.out
    assert "\x1b" not in done.out + done.err


@on_one_server
def test_again(applied):
    """A second apply has nothing to do, passes, and changes nothing."""
    before = portrait(applied.dsn)
    done = apply(applied.dsn)
    assert done.code == 0, done.out + done.err
    assert done.json["applied"] == done.json["pending"] == []
    assert done.json["added"] == {"seed": {}, "apart": {}}
    assert portrait(applied.dsn) == before


@on_one_server
@pytest.mark.parametrize("kind", ["substrate", "applied"])
def test_plan(server, kind, request):
    """--plan shows the gates and the pending files with their locks, and changes nothing: it takes no dump either."""
    dsn = request.getfixturevalue(kind).dsn
    before = portrait(dsn)
    done = run("apply", "--plan", "--no-backup", "because", dsn=dsn)
    assert done.code == 0, done.out
    would = [m.name for m in package_files()] if kind == "substrate" else []
    assert [line.split()[2].rstrip(":") for line in done.out.splitlines() if line.startswith("would apply")] == would
    if would:
        assert "locks: ACCESS EXCLUSIVE on event_outbox" in done.out
    assert f"Plan: {len(would)} files would be applied; nothing was changed." in done.out
    assert portrait(dsn) == before


@on_one_server
def test_plan_with_a_backup(substrate, tmp_path):
    """--plan names the file of the dump, and writes none."""
    done = apply(substrate.dsn, "--plan", "--backup-dir", str(tmp_path / "dumps"))
    assert done.code == 0, done.out
    assert f"into {tmp_path / 'dumps'}" in done.json["gates"][2]["evidence"]
    assert list(tmp_path.iterdir()) == []


# -- backup ------------------------------------------------------------------------------------------------------


def test_backup(substrate, tmp_path):
    """--backup-dir first takes a dump with every table, which only its owner and pg_restore can read."""
    done = apply(substrate.dsn, "--backup-dir", str(tmp_path / "dumps"))
    assert done.code == 0, done.out
    (dump,) = (tmp_path / "dumps").iterdir()
    assert stat.S_IMODE(dump.stat().st_mode) == 0o600
    evidence = done.json["gates"][2]["evidence"]
    assert str(dump) in evidence
    assert str(dump.stat().st_size) in evidence

    listing = subprocess.run(
        [embedded.binaries(18) / "pg_restore", "-l", dump], capture_output=True, text=True, check=True
    ).stdout
    for table in ("event_outbox", "iu_outbound_route", "information_unit"):
        assert f"TABLE DATA public {table}" in listing
    assert "iu_route_worker_cursor" not in listing
    entries = [line for line in listing.splitlines() if line and not line.startswith(";")]
    assert f"{len(entries)} entries" in evidence
    recorded = value(substrate.dsn, "select evidence ->> 'fresh backup' from iu_migration limit 1")
    assert recorded == evidence


@on_one_server
def test_a_backup_of_a_database_with_an_odd_name(server, substrate, tmp_path):
    """For any name of the database, the dump is a file in the given directory.

    Fails when: the name of the database is put into the path unchanged.
    """
    odd = "../we\"ird' näme/1 %"
    quoted = '"' + odd.replace('"', '""') + '"'
    server.execute(f"create database {quoted} template {value(substrate.dsn, 'select current_database()')}")
    try:
        done = apply(server.dsn(quote(odd, safe="")), "--backup-dir", str(tmp_path / "of it" / "dumps"))
        assert done.code == 0, done.out + done.err
        (dump,) = (tmp_path / "of it").rglob("*.dump")
        assert dump.parent == tmp_path / "of it" / "dumps"
        assert dump.name.startswith(".._we_ird__näme_1__-")
    finally:
        server.execute(f"drop database {quoted} with (force)")


@on_one_server
def test_the_reason_for_no_backup_is_kept(substrate):
    """The reason for not taking a backup is recorded with every applied file."""
    assert apply(substrate.dsn, "--no-backup", "restored from a snapshot an hour ago").code == 0
    found = {row[0] for row in rows(substrate.dsn, "select evidence ->> 'fresh backup' from iu_migration")}
    assert found == {"none, because: restored from a snapshot an hour ago"}
    assert len(json.loads(value(substrate.dsn, "select evidence from iu_migration limit 1"))) == 8


# -- the base ----------------------------------------------------------------------------------------------------


def test_base(empty, substrate):
    """--base creates the base in an empty database, the same as in the templates, and then applies the package."""
    whole = set(catalogue(substrate.dsn))
    done = apply(empty.dsn, "--base", *WAIVED)
    assert done.code == 0, done.out + done.err
    assert done.json["base"] == "created"
    missing = {line for line in whole - set(catalogue(empty.dsn)) if not line.startswith("class ")}
    # 012 replaces this check by a guard.
    assert {line.split(" ")[2] for line in missing} == {"iu_outbound_route_safe_chk"}, missing
    assert run("verify", dsn=empty.dsn).code == 0


@on_one_server
def test_base_where_it_is(substrate):
    """--base on a database that has the base does not change it."""
    done = apply(substrate.dsn, "--base", *WAIVED)
    assert done.code == 0
    assert "base" not in done.json


@on_one_server
def test_base_plan(empty):
    """--base --plan creates nothing."""
    done = apply(empty.dsn, "--base", "--plan", *WAIVED)
    assert done.code == 1
    assert done.json["base"] == "would be created"
    assert catalogue(empty.dsn) == []


@on_one_server
def test_base_and_a_closed_gate(empty):
    """If a gate is closed after --base has created the base, the last line states the change.

    Fails when: it states that nothing was changed.
    """
    execute(
        empty.dsn,
        """create function no_views() returns event_trigger language plpgsql as $$
           begin raise exception 'no views here'; end $$;
           create event trigger no_views on ddl_command_end when tag in ('CREATE VIEW') execute function no_views()""",
    )
    done = refused(1, "no views here")("apply", "--base", *WAIVED, dsn=empty.dsn)
    last = done.out.rstrip().splitlines()[-1]
    assert last == "Closed gates: 8 probe passed. Only the base was created."
    assert value(empty.dsn, "select count(*) from event_outbox") == 0


@on_one_server
def test_base_on_half_a_substrate(substrate):
    """--base refuses an incomplete base, and names the missing objects."""
    execute(substrate.dsn, "drop function fn_iu_core_routes_enabled() cascade")
    before = portrait(substrate.dsn)
    refused(1, "incomplete", "fn_iu_core_routes_enabled()")("apply", "--base", *WAIVED, dsn=substrate.dsn)
    assert portrait(substrate.dsn) == before


@on_one_server
def test_without_base(empty):
    """Without --base, an empty database is refused and not changed."""
    done = apply(empty.dsn)
    assert done.code == 1
    assert [g["number"] for g in done.json["gates"] if not g["pass"]] == [4, 6, 7, 8]
    assert "--base" in done.json["gates"][3]["hint"]
    assert catalogue(empty.dsn) == []


# -- interruptions -----------------------------------------------------------------------------------------------


def apply_some(dsn: str, count: int) -> None:
    """Apply only the first files of the package, as an interrupted apply does."""

    async def go() -> None:
        async with session(dsn, name="tests") as connection:
            await migrate.apply_files(connection, package_files()[:count], {}, lambda _: None)

    asyncio.run(go())


@on_one_server
def test_it_goes_on_after_005(substrate, applied):
    """An apply that was interrupted after 005 continues there, and has the same result as an uninterrupted one."""
    apply_some(substrate.dsn, 2)
    done = apply(substrate.dsn)
    assert done.code == 0, done.out + done.err
    names = [m.name for m in package_files()]
    assert done.json["applied"] == names[2:]
    assert done.json["added"]["seed"] == {"table": 2, "function": 5, "view": 3, "key": 1, "row": 1}
    assert f"incomplete: 2 of {len(names)} files" in done.json["gates"][3]["evidence"]
    assert catalogue(substrate.dsn) == catalogue(applied.dsn)


def test_it_clears_away_an_invalid_index(substrate, applied):
    """The invalid index of an interrupted CREATE INDEX CONCURRENTLY is replaced by a valid one.

    Fails when: 006 does not drop the existing index.
    """
    apply_some(substrate.dsn, 2)
    execute(
        substrate.dsn,
        """create index event_outbox_tick_idx on event_outbox (event_domain);
           update pg_index set indisvalid = false where indexrelid = 'event_outbox_tick_idx'::regclass""",
    )
    done = apply(substrate.dsn)
    assert done.code == 0, done.out + done.err
    assert catalogue(substrate.dsn) == catalogue(applied.dsn)


@on_one_server
def test_after_006(substrate, applied):
    """An apply that was interrupted after 006 continues."""
    apply_some(substrate.dsn, 3)
    assert apply(substrate.dsn).code == 0
    assert catalogue(substrate.dsn) == catalogue(applied.dsn)


@on_one_server
def test_one_at_a_time(substrate):
    """While another session migrates this database, a second apply is refused at once; afterwards it succeeds."""
    before = portrait(substrate.dsn)
    with holding(substrate.dsn, "select pg_advisory_lock(726004, 1)"):
        refused(1, "another iu-listen is migrating")("apply", *WAIVED, dsn=substrate.dsn)
        assert portrait(substrate.dsn) == before
    assert apply(substrate.dsn).code == 0


@on_one_server
def test_a_failed_verification_takes_everything_back(substrate, tmp_path):
    """An apply whose result does not verify is reverted, including the files that were already committed."""
    execute(substrate.dsn, "update dot_config set value = 'false' where key = 'iu_core.routes_master_enabled'")
    before = portrait(substrate.dsn)
    refused(1, "W8", "gate open master", "All changes were rolled back.")("apply", *WAIVED, dsn=substrate.dsn)
    assert portrait(substrate.dsn) == before


#: Possible event triggers of a database: one logs all DDL, and one forbids table rewrites.
EVENT_TRIGGERS = """
    create schema audit;
    create table audit.ddl (tag text, object text);
    create function audit.log() returns event_trigger language plpgsql as $$
    begin
        insert into audit.ddl select c.command_tag, c.object_identity from pg_event_trigger_ddl_commands() c;
    end $$;
    create event trigger audit_log on ddl_command_end execute function audit.log();
    create function audit.rewrite() returns event_trigger language plpgsql as $$
    begin raise exception 'no rewrites here'; end $$;
    create event trigger audit_rewrite on table_rewrite execute function audit.rewrite();
"""


@on_one_server
@pytest.mark.parametrize("size", [0, 30_000])
def test_event_triggers(substrate, size):
    """Existing event triggers see the DDL of apply; if one of them forbids a part of it, nothing remains.

    With a large outbox the files are applied in several transactions: those before the failure are reverted.
    Fails when: files that were committed before the failure are not reverted.
    """
    dsn = substrate.dsn
    execute(
        dsn,
        EVENT_TRIGGERS
        + """create function audit.no() returns event_trigger language plpgsql as $$
             begin
                 if tg_tag = 'CREATE INDEX' then raise exception 'no indexes in office hours'; end if;
             end $$;
             create event trigger audit_no on ddl_command_end execute function audit.no()""",
    )
    execute(
        dsn,
        f"""insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, safe_payload)
            select 'iu', 'version_applied', 'update', 'immediate', jsonb_build_object('t', repeat('x', 60))
              from generate_series(1, {size})""",
    )
    before = catalogue(dsn)
    refused(1, "no indexes in office hours")("apply", *WAIVED, dsn=dsn)
    assert catalogue(dsn) == before

    execute(dsn, "drop event trigger audit_no")
    assert run("apply", *WAIVED, dsn=dsn).code == 0
    assert value(dsn, "select count(*) from audit.ddl where object = 'public.iu_route_dead_letter'") > 0
    assert run("verify", dsn=dsn).code == 0
    assert run("probe", dsn=dsn).code == 0
    assert run("rollback", "--yes", dsn=dsn).code == 0


@on_one_server
def test_a_busy_table_is_not_queued_on(substrate):
    """While an open transaction has read event_outbox, apply does not wait: gate 8 closes, nothing changes."""
    before = portrait(substrate.dsn)
    with holding(substrate.dsn, "select count(*) from event_outbox"):
        done = apply(substrate.dsn, *WAIVED, "--lock-timeout", "0.3")
    assert done.code == 1
    assert [g["number"] for g in done.json["gates"] if not g["pass"]] == [8]
    assert "lock" in done.json["gates"][7]["evidence"]
    assert portrait(substrate.dsn) == before
