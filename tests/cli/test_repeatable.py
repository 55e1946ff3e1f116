"""Repeatable SQL files: a changed file is applied again, also to a database with data; a versioned file never is."""

from __future__ import annotations

import pytest

from cli.command import Done, Tree, catalogue, execute, on_one_server, portrait, refused, rows, run, value
from iu_listen.postgres.sqlfiles import package_files, sql_root

pytestmark = on_one_server
WAIVED = ("--no-backup", "a test database")
FILE = "sql/functions/metrics.up.sql"
#: The last line of a function of FILE, and an edit of it.
EDIT = ("$$;\ncomment on function public.fn_iu_metrics", "-- edited\n$$;\ncomment on function public.fn_iu_metrics")
EDITED = "select prosrc like '%-- edited%' from pg_proc where proname = 'fn_iu_metrics'"
LEDGER = "select name, checksum, applied_at, evidence from iu_migration order by name"


@pytest.fixture
def tree(tmp_path) -> Tree:
    """A later version of iu-listen, with an edited function."""
    later = Tree(tmp_path)
    later.edit(FILE, *EDIT)
    return later


def apply(dsn: str, tree: Tree, *args: str) -> Done:
    return run("apply", "--json", *(args or WAIVED), dsn=dsn, env=tree.env)


def test_a_changed_repeatable_file_is_applied_again(live, tree):
    """apply replaces the functions of a changed file, updates its line of the ledger, and touches no data.

    Fails when: the change is not noticed, another file is applied, or the ledger keeps the former checksum.
    """
    execute(
        live.dsn,
        """select fn_iu_emit_event('version_applied', 'a', gen_random_uuid(), 'test', '{}') from generate_series(1, 5);
           select fn_iu_route_worker_run('iu_outbound_default', 3);
           update dot_config set value = 'false' where key = 'iu_core.route_worker_enabled'""",
    )
    data = "select to_jsonb(c) from iu_route_worker_cursor c union all select to_jsonb(a) from iu_route_attempt a"
    before, ledger = rows(live.dsn, data), {row["name"]: tuple(row) for row in rows(live.dsn, LEDGER)}

    done = apply(live.dsn, tree)

    assert done.code == 0, done.out + done.err
    assert done.json["pending"] == done.json["applied"] == ["functions/metrics"]
    assert "would apply again functions/metrics: changed" in done.json["gates"][3]["evidence"]
    assert value(live.dsn, EDITED)
    assert rows(live.dsn, data) == before
    after = {row["name"]: tuple(row) for row in rows(live.dsn, LEDGER)}
    assert {name for name in after if after[name] != ledger[name]} == {"functions/metrics"}
    _, checksum, applied_at, evidence = after["functions/metrics"]
    assert checksum != ledger["functions/metrics"][1]
    assert applied_at > ledger["functions/metrics"][2]
    assert "a test database" in evidence
    assert apply(live.dsn, tree).json["applied"] == []
    assert run("verify", "--live", dsn=live.dsn, env=tree.env).code == 0


def test_the_plan_names_a_changed_file(applied, tree):
    """apply --plan says that the file would be applied again because it is changed, and changes nothing."""
    before = portrait(applied.dsn)
    done = run("apply", "--plan", *WAIVED, dsn=applied.dsn, env=tree.env)

    assert done.code == 0, done.out + done.err
    assert "would apply again functions/metrics: changed\n" in done.out
    assert "Plan: 1 file would be applied; nothing was changed." in done.out
    assert portrait(applied.dsn) == before


def test_the_probe_exercises_the_changed_function(applied, tree):
    """probe applies a changed file inside its transaction, and takes it back."""
    before = portrait(applied.dsn)
    done = run("probe", dsn=applied.dsn, env=tree.env)

    assert done.code == 0, done.out + done.err
    assert portrait(applied.dsn) == before


def test_a_version_with_other_functions_is_refused(applied, tree):
    """Commands and the consumer refuse a database whose functions are not those of their version, and tell the remedy.

    Fails when: a consumer works with functions that it was not tested with.
    """
    for command in ("run", "status", "health"):
        refused(2, "the functions in this database differ", "functions/metrics", "iu-listen apply")(
            command, dsn=applied.dsn, env=tree.env
        )
    refused(1, "functions/metrics is pending", "iu-listen apply --plan")("doctor", dsn=applied.dsn, env=tree.env)
    refused(1, "functions/metrics is pending", "iu-listen apply --plan")("verify", dsn=applied.dsn, env=tree.env)


def test_a_repeatable_file_that_fails_leaves_everything_unchanged(applied, tree):
    """If a later file of the same apply fails, the changed function is not replaced either, and the ledger is the same.

    Fails when: a repeatable file is committed before the files beside it.
    """
    (tree.root / "sql/functions/zz.up.sql").write_text(
        "-- A view of what is missing.\n--\n-- kind: repeatable\n-- needs: functions/metrics\n-- locks: nothing\n\n"
        "create or replace view public.v_iu_zz as select 1 / n as n from public.iu_missing;\n"
    )
    (tree.root / "sql/functions/zz.down.sql").write_text("-- loses: nothing\ndrop view public.v_iu_zz;\n")
    before = portrait(applied.dsn)

    done = run("apply", *WAIVED, dsn=applied.dsn, env=tree.env)

    assert done.code == 1
    assert "iu_missing" in done.out + done.err
    assert portrait(applied.dsn) == before
    assert not value(applied.dsn, EDITED)


def test_a_changed_file_beside_a_new_versioned_file(applied, tree):
    """A version with a new versioned file applies it before the changed repeatable file, in one transaction."""
    name = "worker/998_later"
    (tree.root / f"sql/{name}.up.sql").write_text(
        "-- A table.\n--\n-- needs: nothing\n-- locks: nothing\n\ncreate table public.iu_later (n integer);\n"
    )
    (tree.root / f"sql/{name}.down.sql").write_text("-- loses: nothing\ndrop table public.iu_later;\n")

    done = apply(applied.dsn, tree)

    assert done.code == 0, done.out + done.err
    assert done.json["applied"] == [name, "functions/metrics"]
    assert run("rollback", "--yes", dsn=applied.dsn, env=tree.env).code == 0


def test_up_and_down_after_a_change(applied, substrate, tree):
    """After a changed file was applied again, a rollback leaves nothing behind, and a further apply makes the same."""
    assert apply(applied.dsn, tree).code == 0
    up = catalogue(applied.dsn)
    done = run("rollback", "--yes", "--json", dsn=applied.dsn, env=tree.env)
    assert done.code == 0, done.out + done.err
    assert done.json["rolled_back"] == [m.name for m in reversed(package_files())]
    assert catalogue(applied.dsn) == catalogue(substrate.dsn)
    assert apply(applied.dsn, tree).code == 0
    assert catalogue(applied.dsn) == up


def test_files_that_need_each_other_are_refused(substrate, tree):
    """Files that need each other in a circle, or a file that does not exist, cannot be applied; the message names them.

    Fails when: such a package is applied in some order.
    """
    header = next(
        line for line in (sql_root() / "functions/metrics.up.sql").read_text().splitlines() if "needs:" in line
    )
    tree.edit(FILE, header, "-- needs: 999")
    refused(2, "sql/functions/metrics.up.sql names a file that does not exist: 999")(
        "apply", *WAIVED, dsn=substrate.dsn, env=tree.env
    )
    tree.edit(FILE, "-- needs: 999", "-- needs: functions/zz")
    (tree.root / "sql/functions/zz.up.sql").write_text("-- kind: repeatable\n-- needs: functions/metrics\n")
    refused(2, "SQL files need each other: functions/metrics -> functions/zz -> functions/metrics")(
        "apply", *WAIVED, dsn=substrate.dsn, env=tree.env
    )
