"""probe detects broken objects: in the files before they are applied, and in an installed package."""

from __future__ import annotations

from typing import Any

import pytest

from cli.command import Done, Tree, execute, on_one_server, portrait, refused, run, value


def probe(dsn: str, *args: str, **more: Any) -> Done:
    return run("probe", "--json", *args, dsn=dsn, **more)


def wrong(done: Done) -> set[str]:
    """Ids of the probes and items of the footprint that differ from the expected figures."""
    answer = done.json
    return {p["id"] for p in answer["probes"] if not p["pass"]} | {
        item for item, figures in answer["footprint"].items() if not figures["pass"]
    }


FUNCTIONS = "sql/worker/009_route_worker_functions.up.sql"
BATCH = "sql/functions/routing.up.sql"
OWN_EVENTS = "p_cursor.own_seq := p_page.seqs[p_page.size];"
GATE = """    if not public.fn_iu_route_worker_enabled() then
        return jsonb_build_object('status', 'worker_gate_closed', 'worker_name', p_worker_name, 'seen', 0);"""
SEAM = """    raise exception 'the target kind of route % cannot be delivered to: event % was not delivered', p_route_code, p_event_id
        using errcode = 'feature_not_supported',
              hint = 'Set the route back to dry run: iu-listen route disable, or dry_run = true.';"""

#: Name of each breakage; the text, its broken replacement, and the probes that must detect it.
BREAKAGES = {
    "seam that delivers": (SEAM, "    return '{}';", {"E"}),
    "worker gate ignored": (GATE, GATE.replace("if not", "if false and not"), {"H"}),
    "replay that resolves nothing": (
        "v_resolved := v_decision <> 'route_disabled';", "v_resolved := false;", {"F"},
    ),
    "backlog view that counts what is read": (
        "   and (u.xact_id = c.own_xid and u.event_seq <= c.own_seq) is not true\n group by", " group by", {"G"},
    ),
    "cursor that does not move": (OWN_EVENTS, "p_cursor.own_seq := 0;", {"C"}),
    "health that is never good": ("'healthy', cardinality(v_reasons) = 0", "'healthy', false", {"G"}),
    "function that does not parse": (OWN_EVENTS, "p_cursor.own_seq := no_such_column;", {"B"}),
}  # fmt: skip


@on_one_server
def test_every_breakage_is_found_in_the_files(server, tmp_path):
    """A broken function in the files makes the probe fail, and the probe names the scenario that shows it.

    Fails when: a scenario's figure does not depend on the mechanism that it tests.
    """
    for database in server.create("base"):
        before = portrait(database.dsn)
        for name, (old, new, expected) in BREAKAGES.items():
            tree = Tree(tmp_path / name)
            tree.edit(BATCH if old == OWN_EVENTS else FUNCTIONS, old, new)
            done = probe(database.dsn, env=tree.env)
            assert done.code == 1, name
            assert done.json["pass"] is False
            assert expected <= wrong(done), name
            assert not wrong(done) - {"SETUP", *"ABCDEFGH"}, name
        assert portrait(database.dsn) == before


@on_one_server
@pytest.mark.parametrize(
    ("breakage", "expected"),
    [
        ("seam", "E"),
        ("replay", "F"),
        ("backlog", "G"),
        ("gate", "H"),
    ],
)
def test_a_broken_installed_object_is_found(applied, breakage, expected):
    """If the package is installed, the probe tests the installed objects: a replaced object is detected."""
    dsn = applied.dsn
    if breakage == "gate":
        body = value(dsn, "select pg_get_functiondef('fn_iu_route_worker_run(text,int)'::regprocedure)")
        execute(dsn, body.replace("if not public.fn_iu_route_worker_enabled()", "if false"))
    else:
        execute(
            dsn,
            {
                "seam": """create or replace function fn_iu_route_deliver(text, uuid, jsonb) returns jsonb
                           language sql as $$ select '{}'::jsonb $$""",
                "replay": """create or replace function fn_iu_route_dead_letter_replay(uuid, text default session_user)
                             returns jsonb language sql as
                             $$ select '{"status": "replayed", "decision": "dry_run", "resolved": true}'::jsonb $$""",
                "backlog": """create or replace view v_iu_event_backlog as
                              select worker_name, event_domain, 1::bigint as backlog, null::timestamptz as oldest_created_at
                                from iu_route_worker_cursor""",
            }[breakage].replace("fn_iu_route_deliver(text, uuid, jsonb)", "fn_iu_route_deliver(p_route_code text, p_event_id uuid, p_event jsonb)").replace("(uuid, text default", "(p_dead_letter_id uuid, p_actor text default"),
        )  # fmt: skip
    before = portrait(dsn)
    done = run("probe", dsn=dsn)
    assert done.code == 1
    verdict = done.out.rstrip().splitlines()[-1]
    assert verdict.startswith("FAIL ")
    assert expected in verdict.replace("FAIL", "").replace(",", " ").split()
    assert portrait(dsn) == before


@on_one_server
def test_an_error_is_a_finding(applied):
    """A function that raises an error is the finding of its scenario, and the next scenario still runs."""
    execute(applied.dsn, "drop function fn_iu_route_dead_letter_replay")
    refused(1, "fn_iu_route_dead_letter_replay")("probe", dsn=applied.dsn)
    execute(
        applied.dsn,
        """create function fn_iu_route_dead_letter_replay(p_dead_letter_id uuid, p_actor text default session_user)
           returns jsonb language plpgsql as $$ begin raise exception 'out of order'; end $$""",
    )
    done = probe(applied.dsn)
    assert done.code == 1
    found = {p["id"]: p for p in done.json["probes"]}
    assert list(found) == ["SETUP", *"ABCDEFGH"]
    assert "out of order" in found["F"]["observed"]
    assert found["H"]["pass"] is True
