"""dead-letter: events that could not be routed are listed, shown completely, previewed and routed again."""

from __future__ import annotations

import pytest

from cli.command import POISON, REMEDY, ROUTE, execute, on_one_server, portrait, refused, rows, run

pytestmark = on_one_server

ROUTE_ONCE = "select fn_iu_route_worker_run('iu_outbound_default', 1000)"


@pytest.fixture
def letter(live):
    """A dead letter of a poison event whose cause has been removed."""
    execute(live.dsn, POISON)
    assert run("emit", "--address", "poison", dsn=live.dsn).code == 0
    execute(live.dsn, ROUTE_ONCE)
    execute(live.dsn, REMEDY)
    return rows(live.dsn, "select * from iu_route_dead_letter")[0]


def test_dead_letter_list_and_show(live, letter):
    """A dead letter is listed with its reason, and shown with its complete event."""
    (found,) = run("dead-letter", "list", "--json", dsn=live.dsn).json
    assert found["id"] == str(letter["id"])
    assert (found["route"], found["failure_code"]) == (ROUTE, "worker_process_error")
    assert "poisoned" in found["failure_detail"]
    done = run("dead-letter", "list", dsn=live.dsn)
    assert str(letter["id"]) in done.out
    assert "poisoned" in done.out
    assert run("dead-letter", "list", "--route", "other", "--json", dsn=live.dsn).json == []

    shown = run("dead-letter", "show", str(letter["id"]), "--json", dsn=live.dsn).json
    assert shown["event_snapshot"]["canonical_address"] == "poison"
    assert shown["event_snapshot"]["id"] == str(letter["event_ref"])
    done = run("dead-letter", "show", str(letter["id"]), dsn=live.dsn)
    assert '"canonical_address": "poison"' in done.out
    assert "open dead letters: 1" in run("health", dsn=live.dsn).out


def test_dead_letter_replay(live, letter):
    """--plan previews a replay; the replay routes again under the same key, resolves, and is not done twice."""
    dsn, id = live.dsn, str(letter["id"])
    before = portrait(dsn)
    (plan,) = run("dead-letter", "replay", id, "--without-delivery", "--plan", "--json", dsn=dsn).json
    assert (plan["id"], plan["attempt_no"], plan["would"], plan["newer_of_subject"]) == (id, 2, "dry_run", 0)
    done = run("dead-letter", "replay", "--all", "--without-delivery", "--plan", dsn=dsn)
    assert done.code == 0
    assert id in done.out
    assert "nothing was changed" in done.err
    assert portrait(dsn) == before

    done = run("dead-letter", "replay", id, "--without-delivery", "--actor", "ada", "--json", dsn=dsn)
    assert done.code == 0
    (answer,) = done.json
    assert (answer["status"], answer["decision"], answer["attempt_no"]) == ("replayed", "dry_run", 2)
    assert answer["resolved"] is True
    assert run("dead-letter", "list", "--json", dsn=dsn).json == []
    (resolved,) = run("dead-letter", "list", "--resolved", "--json", dsn=dsn).json
    assert resolved["resolution"] == "replayed by ada: dry_run"
    audit = run("attempts", "--event", str(letter["event_ref"]), "--json", dsn=dsn).json
    assert [(a["attempt_no"], a["status"]) for a in audit] == [(2, "dry_run"), (1, "failed")]
    assert len({a["idempotency_key"] for a in audit}) == 1

    done = run("dead-letter", "replay", id, "--without-delivery", dsn=dsn)
    assert done.code == 0
    assert "already_resolved" in done.out
    assert run("dead-letter", "replay", "--all", "--without-delivery", "--json", dsn=dsn).json == []


def test_a_replay_that_fails_again(live, letter):
    """A replay that fails again, or meets a closed gate, exits with 1, and the dead letter stays open."""
    dsn, id = live.dsn, str(letter["id"])
    run("gate", "close", "worker", dsn=dsn)
    for which in (id, "--all"):
        refused(1, "worker_gate_closed")("dead-letter", "replay", which, "--without-delivery", dsn=dsn)
        refused(1, "nothing: the worker gate is closed")("dead-letter", "replay", which, "--plan", dsn=dsn)
    run("gate", "open", "worker", dsn=dsn)
    execute(dsn, POISON)
    refused(1, "not_replayed")("dead-letter", "replay", "--all", "--without-delivery", dsn=dsn)
    assert run("dead-letter", "list", "--json", dsn=dsn).json[0]["replay_count"] == 1
    execute(dsn, REMEDY)
    assert run("dead-letter", "replay", "--all", "--without-delivery", "--route", ROUTE, dsn=dsn).code == 0


def test_a_replay_of_a_disabled_route(live, letter):
    """--plan announces that a disabled route prevents the replay, which exits with 1; the dead letter stays open."""
    run("route", "disable", ROUTE, dsn=live.dsn)
    plan = run("dead-letter", "replay", "--all", "--without-delivery", "--plan", "--json", dsn=live.dsn).json
    assert plan[0]["would"] == "skipped: the route is disabled; the dead letter stays open"
    refused(1, "not_replayed", "route_disabled")("dead-letter", "replay", "--all", "--without-delivery", dsn=live.dsn)


@pytest.mark.parametrize(
    ("change", "decision", "would", "advice"),
    [
        ("select", "dry_run", "nothing: the route is a dry run", f"iu-listen route live {ROUTE}"),
        ("delete from iu_outbound_route", "no_route", "nothing: the route does not exist", "--without-delivery"),
    ],
    ids=["dry run", "removed route"],
)
def test_a_replay_without_a_delivery_must_be_asked_for(live, letter, change, decision, would, advice):
    """Without --without-delivery a replay that would deliver nothing leaves the dead letter open and unchanged.

    Fails when: a replay resolves a dead letter whose route is a dry run or was removed, and the event is never delivered.
    """
    dsn, id = live.dsn, str(letter["id"])
    execute(dsn, change)
    before = portrait(dsn)
    for which in (id, "--all"):
        (plan,) = run("dead-letter", "replay", which, "--plan", "--json", dsn=dsn).json
        assert plan["would"] == would
        refused(1, "not_replayed", decision, advice)("dead-letter", "replay", which, dsn=dsn)
    assert portrait(dsn) == before
    assert run("dead-letter", "replay", "--all", "--without-delivery", dsn=dsn).code == 0
    assert run("dead-letter", "list", "--json", dsn=dsn).json == []


def test_the_removal_of_a_route_names_its_open_dead_letters(live, letter):
    """`route remove` says how many open dead letters could not be delivered any more, before it asks."""
    done = run("route", "remove", ROUTE, "--plan", dsn=live.dsn)
    assert "The route has open dead letters: 1." in done.err
    assert f"dead-letter replay --all --route {ROUTE}" in done.err
