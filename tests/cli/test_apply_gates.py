"""The eight gates before apply: when one of them is closed, nothing is changed.

If an earlier gate is closed, the probe (gate 8) is not run and no dump is taken; the output says so.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from cli.command import ROUTE, Done, Tree, execute, on_one_server, portrait, refused, run, value

NOT_RUN = "not run: a gate before this one is closed"
pytestmark = on_one_server


def apply(dsn: str, *args: str, **more) -> Done:
    return run("apply", "--json", *(args or ("--no-backup", "a test")), dsn=dsn, **more)


def closed_alone(number: int, done: Done, *says: str) -> None:
    """Assert that only this gate is closed, gate 8 was not run because of it, nothing was applied, and the exit code is
    1.
    """
    assert done.code == 1, (done.out, done.err)
    answer = done.json
    assert answer["pass"] is False
    assert answer["applied"] == []
    gates = {g["number"]: g for g in answer["gates"]}
    assert list(gates) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {n for n, g in gates.items() if not g["pass"]} == {number, 8}
    if number != 8:
        assert gates[8]["evidence"] == NOT_RUN
    shut = gates[number]
    assert shut["hint"] or shut["evidence"]
    for words in says:
        assert words in shut["evidence"] + shut["hint"], (words, shut)


@contextmanager
def unchanged(dsn: str) -> Iterator[None]:
    """Assert that no object and no row of the database changes in the block."""
    before = portrait(dsn)
    yield
    assert portrait(dsn) == before


def _as(role: str, dsn: str) -> str:
    """The DSN of the same database for another role."""
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))


# -- 1 target identity -------------------------------------------------------------------------------------------


def test_1_another_database(substrate, tmp_path):
    """Gate 1 is closed when the database is not the expected one; no dump is taken either."""
    with unchanged(substrate.dsn):
        done = apply(substrate.dsn, "--expect-database", "directus", "--no-backup", "a test")
        closed_alone(1, done, "expected database directus", "--expect-database")

        done = apply(substrate.dsn, "--expect-database", "directus", "--backup-dir", str(tmp_path))
    closed = {g["number"]: g["evidence"] for g in done.json["gates"] if not g["pass"]}
    assert set(closed) == {1, 3, 8}
    assert closed[3] == "not taken: a gate before this one is closed"
    assert list(tmp_path.iterdir()) == []


def test_1_the_expected_database(substrate):
    """Gate 1 is open when the database is the expected one, and shows the database and the server."""
    name = value(substrate.dsn, "select current_database()")
    done = apply(substrate.dsn, "--plan", "--expect-database", name, "--no-backup", "a test")
    assert done.code == 0
    assert f"database {name}, PostgreSQL 18" in done.json["gates"][0]["evidence"]
    identifier = value(substrate.dsn, "select system_identifier::text from pg_control_system()")
    assert identifier in done.json["gates"][0]["evidence"]


def test_the_closed_gate_is_named(substrate):
    """In text output, the last line names the closed gates by number and name, and states that nothing was changed."""
    done = run("apply", "--expect-database", "directus", "--no-backup", "a test", dsn=substrate.dsn)
    assert done.code == 1
    assert "FAIL  gate 1  target identity" in done.out
    last = done.out.rstrip().splitlines()[-1]
    assert last == "Closed gates: 1 target identity, 8 probe passed. Nothing was changed."


# -- 2 writable primary ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["database {database}", "role {role}", "role {role} in database {database}"])
def test_2_read_only(substrate, whose):
    """Gate 2 is closed when the database is read-only, and the hint names the place of the setting.

    Commands that change the database and commands that only read behave alike. Fails when: the place is not queried.
    """
    database = value(substrate.dsn, "select current_database()")
    role = f"iu_test_{secrets.token_hex(4)}"
    execute(substrate.dsn, f"create role {role} login superuser")
    dsn = _as(role, substrate.dsn)
    place = whose.format(database=database, role=role)
    try:
        with unchanged(substrate.dsn):
            execute(substrate.dsn, f"alter {place} set default_transaction_read_only = on")
            says = ("takes no writes", f"alter {place} reset default_transaction_read_only")
            closed_alone(2, apply(dsn), *says)
            refused(2, *says)("probe", dsn=dsn)
            refused(1, *says)("doctor", "--json", dsn=dsn)
    finally:
        execute(substrate.dsn, f"set transaction_read_only = off; drop role {role}")


def test_2_who_may_not_create(substrate):
    """Gate 2 is closed for a role that may read everything and create nothing in schema public."""
    role = f"iu_test_{secrets.token_hex(4)}"
    execute(
        substrate.dsn,
        f"create role {role} login; grant select on all tables in schema public to {role}",
    )
    try:
        with unchanged(substrate.dsn):
            closed_alone(2, apply(_as(role, substrate.dsn)), f"{role} may not create objects in schema public", "owner")
    finally:
        execute(substrate.dsn, f"drop owned by {role}; drop role {role}")


# -- 3 fresh backup ----------------------------------------------------------------------------------------------


def test_3_nothing_said(substrate):
    """Gate 3 is closed without a backup directory and without a reason for not taking a backup."""
    with unchanged(substrate.dsn):
        for args in (("--lock-timeout", "2"), ("--no-backup", "")):
            closed_alone(3, apply(substrate.dsn, *args), "no backup", "--backup-dir", "--no-backup")


def test_3_a_directory_that_cannot_be_written(substrate, tmp_path):
    """Gate 3 is closed when the dump cannot be written; --plan reports it, too."""
    (tmp_path / "file").write_text("in the way")
    with unchanged(substrate.dsn):
        closed_alone(3, apply(substrate.dsn, "--backup-dir", str(tmp_path / "file" / "dumps")), "file")
        closed_alone(3, apply(substrate.dsn, "--backup-dir", str(tmp_path / "file")), "file")
        done = apply(substrate.dsn, "--plan", "--backup-dir", str(tmp_path / "file" / "dumps"))
        closed_alone(3, done, "is not writable")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def fake_programs(directory: Path, pg_dump: str, pg_restore: str = "exit 0") -> dict[str, str]:
    """Environment with a PATH that begins with these fake programs, which report the version 99.1."""
    directory.mkdir()
    for name, body in (("pg_dump", pg_dump), ("pg_restore", pg_restore)):
        program = directory / name
        program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{name} (PostgreSQL) 99.1" && exit 0\n{body}\n')
        program.chmod(0o755)
    return {"PATH": f"{directory}:/usr/bin:/bin"}


@pytest.mark.parametrize("broken", ["pg_dump", "pg_restore"])
def test_3_a_dump_that_fails(substrate, tmp_path, broken):
    """Gate 3 is closed when pg_dump fails or its dump cannot be read; its message is shown, and the file is removed."""
    fails = "echo 'no space left on device' >&2; exit 1"
    env = fake_programs(
        tmp_path / "bin", **({broken: fails} if broken == "pg_dump" else {"pg_dump": "exit 0", broken: fails})
    )
    with unchanged(substrate.dsn):
        done = apply(substrate.dsn, "--backup-dir", str(tmp_path / "dumps"), env=env)
        closed_alone(3, done, f"{broken} failed: no space left on device")
    assert list((tmp_path / "dumps").iterdir()) == []


def test_3_no_password_in_the_process_list(substrate, tmp_path):
    """pg_dump gets the password by its environment, never as an argument, which ps shows to all users."""
    seen = tmp_path / "seen"
    env = fake_programs(tmp_path / "bin", f'echo "$@ PGPASSWORD=$PGPASSWORD" > {seen}; exit 1')
    dsn = substrate.dsn + "&password=hunter2"
    done = apply(dsn, "--backup-dir", str(tmp_path / "dumps"), env=env)
    arguments, _, password = seen.read_text().rpartition(" PGPASSWORD=")
    assert password.strip() == "hunter2"
    assert "hunter2" not in arguments + done.out + done.err


# -- 4 no drift --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("substrate", "alter table iu_route_attempt rename failure_code to reason", "column iu_route_attempt.failure_code"),
        ("substrate", "create view v_iu_event_backlog as select 1 as backlog", "view v_iu_event_backlog exists"),
        ("applied", "drop function fn_iu_route_dead_letter_replay", "fn_iu_route_dead_letter_replay(uuid,text)"),
        ("applied", "drop trigger zz_event_outbox_bell on event_outbox", "event_outbox.zz_event_outbox_bell"),
        ("applied", "drop index event_outbox_order_idx", "event_outbox_order_idx"),
        (
            "applied",
            "update iu_migration set checksum = repeat('0', 64) where name like '%/008%'",
            "worker/008_route_worker_substrate was edited after it was applied",
        ),
        ("applied", "delete from iu_migration where name like '%/008%'", "worker/008_route_worker_substrate"),
        (
            "applied",
            "insert into iu_migration (name, checksum, schema_version) values ('worker/999_later', repeat('0', 64), '1.0')",
            "worker/999_later is recorded, but this version of iu-listen does not know it",
        ),
    ],
)  # fmt: skip
def test_4_drift(server, kind, change, says, request):
    """Gate 4 is closed when the base, the package or the ledger differs from the files, and names the difference."""
    dsn = request.getfixturevalue(kind).dsn
    execute(dsn, change)
    with unchanged(dsn):
        done = apply(dsn)
    if says.startswith("column"):
        # Without the base, gates 6 and 7 cannot be checked.
        assert [g["number"] for g in done.json["gates"] if not g["pass"]] == [4, 6, 7, 8]
        assert {g["evidence"] for g in done.json["gates"][5:7]} == {"not checked: gate 4 is closed"}
        assert says in done.json["gates"][3]["evidence"]
        assert done.code == 1
    else:
        closed_alone(4, done, says)


def test_4_an_edited_file(applied, tmp_path):
    """Gate 4 is closed when a file was edited after it was applied; with the original files it is open."""
    tree = Tree(tmp_path)
    path = tree.root / "sql/worker/010_bell_and_heartbeat.up.sql"
    path.write_text(path.read_text() + "\n-- one more line\n")
    with unchanged(applied.dsn):
        closed_alone(
            4, apply(applied.dsn, env=tree.env), "worker/010_bell_and_heartbeat was edited after it was applied"
        )
    assert apply(applied.dsn).code == 0


@pytest.mark.parametrize("kind", ["substrate", "applied"])
def test_4_row_level_security(server, kind, request):
    """Gate 4 is closed for a role from which row level security hides rows, and names the tables and the remedy.

    For a role that sees all rows, it states that other roles need the same right. Fails when: policies are not checked.
    """
    dsn = request.getfixturevalue(kind).dsn
    role = f"iu_test_{secrets.token_hex(4)}"
    execute(
        dsn,
        f"""alter table event_outbox enable row level security;
            create role {role} login;
            grant create on schema public to {role};
            grant all on all tables in schema public to {role}""",
    )
    try:
        with unchanged(dsn):
            done = apply(_as(role, dsn))
            gate = done.json["gates"][3]
            assert (done.code, gate["pass"], done.json["applied"]) == (1, False, [])
            assert gate["evidence"] == f"row level security hides rows of event_outbox from {role}"
            assert "BYPASSRLS" in gate["hint"]
        done = run("apply", "--plan", "--json", "--no-backup", "a test", dsn=dsn)
        assert done.code == 0
        assert "row level security on event_outbox: other roles need BYPASSRLS" in done.json["gates"][3]["evidence"]
    finally:
        execute(dsn, f"drop owned by {role}; drop role {role}")


# -- 5 package integrity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["worker/008_route_worker_substrate", "runtime/070_verify"])
def test_5_a_rollback_is_missing(substrate, tmp_path, file):
    """Gate 5 is closed when a file of the installation has no rollback file."""
    tree = Tree(tmp_path)
    (tree.root / f"sql/{file}.down.sql").unlink()
    with unchanged(substrate.dsn):
        closed_alone(5, apply(substrate.dsn, env=tree.env), f"no rollback for {file}", "Install iu-listen again")


# -- 6 disable boundary ------------------------------------------------------------------------------------------


def test_6_the_worker_gate_is_open(live):
    """Gate 6 lets an installed package keep an open worker gate, and gate 8 then runs no probe."""
    with unchanged(live.dsn):
        done = apply(live.dsn)
    assert done.code == 0, done.out + done.err
    assert done.json["gates"][5]["evidence"] == "an upgrade keeps the gates: the worker gate is open"
    assert done.json["gates"][7]["evidence"].startswith("not run beside an open worker gate")


def test_6_open_before_the_package(substrate):
    """A worker gate that is open without a worker closes gate 6, and gate 4, because no file has created its key."""
    execute(substrate.dsn, "insert into dot_config (key, value) values ('iu_core.route_worker_enabled', 'true')")
    with unchanged(substrate.dsn):
        done = apply(substrate.dsn)
    assert done.code == 1
    assert [g["number"] for g in done.json["gates"] if not g["pass"]] == [4, 6, 8]


def test_6_nothing_to_disable_with(substrate, tmp_path):
    """Gate 6 is closed when 080 is missing, or when 060 would not leave the gate closed."""
    tree = Tree(tmp_path)
    (tree.root / "sql/runtime/080_disable.up.sql").unlink()
    with unchanged(substrate.dsn):
        closed_alone(6, apply(substrate.dsn, env=tree.env), "runtime/080 is missing")
    other = Tree(tmp_path / "other")
    other.edit(
        "sql/runtime/060_activate_inert.up.sql",
        "'iu_core.route_worker_enabled', 'false'",
        "'iu_core.route_worker_enabled', 'true'",
    )
    with unchanged(substrate.dsn):
        closed_alone(6, apply(substrate.dsn, env=other.env), "would not leave the worker gate closed")


# -- 7 delivery safety -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["substrate", "applied"])
def test_7_a_route_that_delivers(server, kind, request):
    """Gate 7 names an enabled route that is not a dry run; only before the first apply, the gate is closed then."""
    dsn = request.getfixturevalue(kind).dsn
    execute(
        dsn,
        f"""alter table iu_outbound_route drop constraint if exists iu_outbound_route_safe_chk;
            alter table iu_outbound_route disable trigger user;
            update iu_outbound_route set dry_run = false where route_code = '{ROUTE}'""",
    )
    with unchanged(dsn):
        done = apply(dsn)
    if kind == "applied":
        assert done.json["gates"][6]["evidence"] == f"an upgrade keeps the live routes: {ROUTE}"
        assert done.json["gates"][6]["pass"]
    else:
        closed_alone(7, done, f"enabled routes that are not dry runs: {ROUTE}", "dry_run")


def test_7_the_check_alone(substrate):
    """Gate 7 is closed when only the safety check is missing, even if all routes are dry runs."""
    execute(substrate.dsn, "alter table iu_outbound_route drop constraint iu_outbound_route_safe_chk")
    with unchanged(substrate.dsn):
        closed_alone(7, apply(substrate.dsn), "iu_outbound_route_safe_chk is missing")


# -- 8 probe passed ----------------------------------------------------------------------------------------------


def test_8_a_probe_that_fails(substrate, tmp_path):
    """Gate 8 is closed when the probe gets unexpected figures, and names the scenario and the figures."""
    tree = Tree(tmp_path)
    tree.edit(
        "sql/worker/009_route_worker_functions.up.sql",
        "v_resolved := v_decision <> 'route_disabled';",
        "v_resolved := false;",
    )
    with unchanged(substrate.dsn):
        closed_alone(8, apply(substrate.dsn, env=tree.env), "F: status=not_replayed", "iu-listen probe")
        refused(1, "F: status=not_replayed", "8 probe passed", env=tree.env)(
            "apply", "--no-backup", "a test", dsn=substrate.dsn
        )


def test_8_an_installed_function_that_was_replaced(applied):
    """Gate 8 detects an installed function that was replaced, which the ledger cannot show."""
    execute(
        applied.dsn,
        """create or replace function fn_iu_route_deliver(p_route_code text, p_event_id uuid, p_event jsonb)
           returns jsonb language sql as $$ select '{}'::jsonb $$""",
    )
    with unchanged(applied.dsn):
        closed_alone(8, apply(applied.dsn), "E: ")
