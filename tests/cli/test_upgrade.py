"""Upgrades in place: a newer and an older version of iu-listen with one database, the gates open and routes live."""

from __future__ import annotations

import asyncio

import pytest

from cli.command import Done, Tree, catalogue, execute, on_one_server, portrait, refused, rows, run, value
from iu_listen.model.version import SCHEMA, SchemaVersion
from postgres.routes import open_live_route
from support import connected, insert_event, run_batch

pytestmark = on_one_server
WAIVED = ("--no-backup", "a test database")
FILE = "sql/functions/metrics.up.sql"
#: The last line of a function of FILE, and an edit of it.
EDIT = ("$$;\ncomment on function public.fn_iu_metrics", "-- edited\n$$;\ncomment on function public.fn_iu_metrics")
EDITED = "select prosrc like '%-- edited%' from pg_proc where proname = 'fn_iu_metrics'"
NEW_FILE = "worker/998_later"
#: The schema version of later().
LATER = SchemaVersion(SCHEMA.major, SCHEMA.minor + 1)
DATA = """
select 'cursor' as what, to_jsonb(c) - 'tick' as data from iu_route_worker_cursor c
union all select 'letter', to_jsonb(d) from iu_route_dead_letter d
union all select 'gate', to_jsonb(g) from dot_config g where g.key like 'iu_core.%'
union all select 'route', to_jsonb(r) from iu_outbound_route r
union all select 'attempt', to_jsonb(a) from iu_route_attempt a
"""


def later(root, major: int = SCHEMA.major, minor: int = SCHEMA.minor + 1) -> Tree:
    """A later version of iu-listen, with an edited function and a further table."""
    tree = Tree(root)
    tree.edit(FILE, *EDIT)
    tree.edit(
        "src/iu_listen/model/version.py",
        f"SchemaVersion({SCHEMA.major}, {SCHEMA.minor})",
        f"SchemaVersion({major}, {minor})",
    )
    (tree.root / f"sql/{NEW_FILE}.up.sql").write_text(
        f"-- A table.\n--\n-- since: {major}.{minor}\n-- needs: nothing\n-- locks: nothing\n\n"
        "create table public.iu_later (n integer);\n"
    )
    (tree.root / f"sql/{NEW_FILE}.down.sql").write_text("-- loses: nothing\ndrop table public.iu_later;\n")
    return tree


def apply(dsn: str, tree: Tree | None = None, *args: str) -> Done:
    return run("apply", "--json", *(args or WAIVED), dsn=dsn, env=tree.env if tree else {})


def live_with_history(dsn: str) -> None:
    """Make a route live, and leave attempts and open dead letters."""

    async def go() -> None:
        async with connected(dsn) as connection:
            await open_live_route(connection)
            for _ in range(5):
                await insert_event(connection)
            await run_batch(connection, 3)

    asyncio.run(go())
    assert value(dsn, "select count(*) from iu_route_dead_letter") == 3


def words(done: Done) -> str:
    """The output on one line."""
    return " ".join((done.out + done.err).split())


def warnings(done: Done) -> list[tuple[str, str]]:
    return [(w["code"], w["figure"]) for w in done.json["warnings"] if w["code"].startswith("schema")]


def test_an_upgrade_with_open_gates_changes_no_data(live, tmp_path):
    """apply of a later version works while the worker gate is open, and keeps cursor, dead letters, gates and routes.

    Fails when: the upgrade asks for a closed gate, or a file of it changes data.
    """
    live_with_history(live.dsn)
    before, ledger = rows(live.dsn, DATA), rows(live.dsn, "select name, checksum from iu_migration")

    done = apply(live.dsn, later(tmp_path))

    assert done.code == 0, done.out + done.err
    assert done.json["applied"] == [NEW_FILE, "functions/metrics"]
    evidence = {g["number"]: g["evidence"] for g in done.json["gates"]}
    assert evidence[4].endswith(
        f"would become {LATER}; would apply worker/998_later; would apply again functions/metrics: changed"
    )
    assert evidence[6] == "an upgrade keeps the gates: the worker gate is open"
    assert evidence[8].startswith("not run beside an open worker gate")
    assert value(live.dsn, EDITED)
    assert rows(live.dsn, DATA) == before
    after = dict(rows(live.dsn, "select name, checksum from iu_migration"))
    assert {name for name, checksum in ledger if after[name] != checksum} == {"functions/metrics"}
    versions = rows(live.dsn, "select schema_version, count(*) from iu_migration group by 1 order by 1")
    assert [tuple(row) for row in versions] == [(str(SCHEMA), len(after) - 2), (str(LATER), 2)]


def test_an_older_version_works_with_a_newer_schema(live, tmp_path):
    """Commands of the older version work after the upgrade, say that the schema is newer, and apply changes nothing.

    Fails when: an older consumer refuses to start, or its apply replaces the newer functions.
    """
    assert apply(live.dsn, later(tmp_path)).code == 0
    before = portrait(live.dsn)

    health = run("health", "--json", dsn=live.dsn)
    assert warnings(health) == [("schema_newer", str(LATER))]
    status = run("status", dsn=live.dsn)
    assert status.code == 0
    assert f"warning: schema newer: {LATER} (schema {LATER} of this database is newer than schema {SCHEMA}" in words(
        status
    )
    doctor = run("doctor", "--json", dsn=live.dsn)
    (package,) = [f for f in doctor.json["findings"] if f["what"] == "package"]
    assert (package["level"], package["hint"]) == ("warn", "docs/how-to/upgrade.md")
    assert "install the newer version of iu-listen here" in package["found"]
    again = apply(live.dsn)
    assert (again.code, again.json["applied"]) == (0, [])
    assert (
        f"schema {LATER} is newer than this iu-listen ({SCHEMA}): nothing to apply"
        in again.json["gates"][3]["evidence"]
    )
    assert run("verify", "--live", dsn=live.dsn).code == 0
    refused(1, f"schema {LATER}", "newer")("rollback", "--yes", dsn=live.dsn)
    assert portrait(live.dsn) == before


def test_a_newer_version_works_with_the_schema_before_it(live, tmp_path):
    """Commands of a newer version work before the upgrade of the schema, and say that it is older and what to do.

    Fails when: consumers must be stopped for the time between their own upgrade and that of the schema.
    """
    tree = later(tmp_path)
    health = run("health", "--json", dsn=live.dsn, env=tree.env)
    assert warnings(health) == [("schema_older", str(SCHEMA))]
    assert "run iu-listen apply" in health.out
    assert run("status", dsn=live.dsn, env=tree.env).code == 0
    doctor = run("doctor", "--json", dsn=live.dsn, env=tree.env)
    (package,) = [f for f in doctor.json["findings"] if f["what"] == "package"]
    assert package["level"] == "warn"
    refused(1, "worker/998_later is pending")("verify", dsn=live.dsn, env=tree.env)


@pytest.mark.parametrize(("major", "minor"), [(SCHEMA.major, SCHEMA.minor + 2), (SCHEMA.major + 1, 0)])
def test_a_version_too_far_ahead_is_refused(live, tmp_path, major, minor):
    """A version that is more than one minor version ahead of the schema refuses to work, and names the remedy.

    Fails when: the range of versions is not checked.
    """
    tree = later(tmp_path, major, minor)
    for command in ("run", "status", "health"):
        refused(
            2, f"(schema {major}.{minor}) cannot work with schema {SCHEMA} of this database", "Run iu-listen apply"
        )(command, dsn=live.dsn, env=tree.env)
    doctor = run("doctor", "--json", dsn=live.dsn, env=tree.env)
    (package,) = [f for f in doctor.json["findings"] if f["what"] == "package"]
    assert package["level"] == "fail"


def test_an_older_major_version_is_refused(live, tmp_path):
    """A version refuses a schema of a later major version, and names the remedy. Its apply changes nothing."""
    assert apply(live.dsn, later(tmp_path, SCHEMA.major + 1, 0)).code == 0
    before = portrait(live.dsn)
    for command in ("run", "status", "health"):
        refused(
            2,
            f"(schema {SCHEMA}) cannot work with schema {SCHEMA.major + 1}.0 of this database",
            "Install a newer version",
        )(command, dsn=live.dsn)
    assert apply(live.dsn).code == 0
    assert portrait(live.dsn) == before


def test_an_interrupted_upgrade_is_named(live, tmp_path):
    """If a file of the newer version is missing from the ledger, the newer version names it, and the older one works.

    Fails when: a half applied upgrade counts as the version before it.
    """
    tree = later(tmp_path)
    assert apply(live.dsn, tree).code == 0
    execute(live.dsn, f"delete from iu_migration where name = '{NEW_FILE}'; drop table iu_later")
    refused(2, f"half applied: {NEW_FILE} is pending", "iu-listen apply")("status", dsn=live.dsn, env=tree.env)
    assert run("status", dsn=live.dsn).code == 0
    assert apply(live.dsn, tree).code == 0
    assert run("status", dsn=live.dsn, env=tree.env).code == 0


def test_an_upgrade_that_fails_leaves_the_version_before_it(live, tmp_path):
    """If a file of the upgrade fails, the schema, the ledger and the functions are those of the version before it."""
    tree = later(tmp_path)
    (tree.root / f"sql/{NEW_FILE}.up.sql").write_text(
        f"-- A table.\n--\n-- since: {LATER}\n-- needs: nothing\n-- locks: nothing\n\ncreate table public.iu_later (n nothing);\n"
    )
    before = portrait(live.dsn)
    done = run("apply", *WAIVED, dsn=live.dsn, env=tree.env)
    assert done.code == 1
    assert "All changes were rolled back" in words(done)
    assert portrait(live.dsn) == before


def test_a_rollback_after_an_upgrade(applied, substrate, tmp_path):
    """The newer version removes all files of both versions."""
    tree = later(tmp_path)
    assert apply(applied.dsn, tree).code == 0
    assert run("rollback", "--yes", dsn=applied.dsn, env=tree.env).code == 0
    assert catalogue(applied.dsn) == catalogue(substrate.dsn)
