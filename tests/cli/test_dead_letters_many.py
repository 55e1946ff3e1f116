"""dead-letter with many rows: counting, filters, replay and resolve in parts; a limit is always reported."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from cli.command import execute, on_one_server, refused, rows, run, running, seen, value

pytestmark = on_one_server

ROUTE = "iu.version_applied.workflow"
#: Inserts dead letters of a route with a failure code and their events; they are 1 ms apart, from the given age on.
LETTERS = """
    with made as (
        insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref)
        select 'iu', 'version_applied', 'update', 'immediate', md5('subject ' || n % 7)::uuid
          from generate_series(1, {count}) n
        returning *
    ), attempted as (
        insert into iu_route_attempt (event_ref, route_kind, route_code, status, decision, failure_code, idempotency_key)
        select m.id, 'outbound', '{route}', 'failed', 'dead_letter', '{failure}', 'outbound:{route}:' || m.id from made m
    )
    insert into iu_route_dead_letter
        (worker_name, event_ref, route_code, idempotency_key, event_snapshot, failure_code, failure_detail, created_at)
    select 'iu_outbound_default', m.id, '{route}', 'outbound:{route}:' || m.id, to_jsonb(m), '{failure}', 'because',
           now() - interval '{age}' + m.event_seq * interval '1 ms'
      from made m;
    update iu_route_worker_cursor set prev = pg_current_snapshot();
"""
OPEN = "select count(*) from iu_route_dead_letter where resolved_at is null"


def make(dsn, count, failure="reject", route=ROUTE, age="1 day"):
    execute(dsn, LETTERS.format(count=count, failure=failure, route=route, age=age))


@pytest.fixture
def letters(live):
    """Dead letters of three kinds; the newest ones are of the rarest kind."""
    make(live.dsn, 1200, "reject", age="3 days")
    make(live.dsn, 800, "smtp_550", age="2 days")
    make(live.dsn, 5, "target_error")
    return live.dsn


def test_many_are_counted_by_kind_and_listed_in_pages(letters):
    """The list shows the newest first, with the code beside the detail, their number, and how to see the next page.

    Fails when: the order, the count or the position is not queried.
    """
    first = run("dead-letter", "list", "--json", "--limit", "10", dsn=letters).json
    assert [d["failure_code"] for d in first] == ["target_error"] * 5 + ["smtp_550"] * 5
    created = [d["created_at"] for d in first]
    assert created == sorted(created, reverse=True)
    done = run("dead-letter", "list", "--limit", "10", dsn=letters)
    assert (
        "10 of 2 005 dead letters are shown. For older ones, repeat the command with --before " + first[-1]["id"]
        in done.err
    )
    assert "because" in done.out
    words = " ".join(done.out.split())
    for kind in ("reject 1 200", "smtp_550 800", "target_error 5"):
        assert f"{ROUTE} {kind} " in words
    seen_ids, before = [], []
    while page := run("dead-letter", "list", "--json", "--limit", "700", *before, dsn=letters).json:
        seen_ids += [d["id"] for d in page]
        before = ["--before", page[-1]["id"]]
    assert len(seen_ids) == len(set(seen_ids)) == 2005
    refused(2, "there is no dead letter")(
        "dead-letter", "list", "--before", "00000000-0000-0000-0000-000000000000", dsn=letters
    )


def test_every_filter_selects_the_matching_dead_letters(letters):
    """The list by failure code, time, event and subject contains exactly the matching ones, also resolved ones.

    Fails when: one of the filters is not applied, or is applied after a limit.
    """

    def found(*options: str) -> list[dict]:
        return run("dead-letter", "list", "--json", "--limit", "5000", *options, dsn=letters).json

    assert len(found("--failure", "smtp_550")) == 800
    assert len(found("--since", "30 hours")) == 5
    assert len(found("--since", "60 hours")) == 805
    assert found("--failure", "nothing") == []
    assert found("--route", "nowhere") == []
    one = found("--failure", "target_error")[0]
    assert [d["id"] for d in found("--event", one["event"])] == [one["id"]]
    subject = value(letters, "select md5('subject 3')::uuid::text")
    about = found("--subject", subject)
    assert len(about) == value(
        letters, "select count(*) from iu_route_dead_letter where event_snapshot ->> 'event_subject_ref' = $1", subject
    )
    assert 250 < len(about) < 320
    run("dead-letter", "resolve", one["id"], "--why", "x", dsn=letters)
    assert found("--event", one["event"]) == []
    assert [d["id"] for d in found("--event", one["event"], "--resolved")] == [one["id"]]


def test_a_replay_of_all_is_planned_by_kind_and_queued_in_parts(letters):
    """The plan of thousands counts the results by route and code; the replay queues them all, the oldest first.

    Fails when: the plan queries each dead letter, or a part does not continue where the previous one ended.
    """
    run("gate", "open", "delivery", dsn=letters)
    run("route", "live", ROUTE, "--why", "a test", "--yes", dsn=letters)
    planned = run("dead-letter", "replay", "--all", "--plan", "--json", dsn=letters)
    assert [(g["failure_code"], g["count"], g["would"]) for g in planned.json] == [
        ("reject", 1200, "deliver"), ("smtp_550", 800, "deliver"), ("target_error", 5, "deliver"),
    ]  # fmt: skip
    assert value(letters, "select count(*) from iu_route_delivery") == 0
    done = run("dead-letter", "replay", "--all", "--actor", "ada", "--json", dsn=letters)
    assert done.code == 0
    assert done.json == [{"route": ROUTE, "status": "queued", "decision": None, "count": 2005}]
    assert (
        value(
            letters,
            """select count(*) from (
               select l.created_at < lag(l.created_at) over (order by d.id) as wrong, d.attempt_no, d.replayed_by
                 from iu_route_delivery d join iu_route_dead_letter l on l.event_ref = d.event_ref) x
            where not coalesce(wrong, false) and attempt_no = 2 and replayed_by = 'ada'""",
        )
        == 2005
    )
    again = run("dead-letter", "replay", "--all", "--json", dsn=letters).json
    assert [(a["status"], a["count"]) for a in again] == [("already_queued", 2005)]
    left = run("dead-letter", "resolve", "--all", "--why", "too late", "--yes", dsn=letters)
    assert "Resolved: 0 dead letters" in left.out
    assert "a replay in progress" in left.err


def test_the_newest_of_very_many_are_found_by_their_code(live):
    """A replay by failure code finds the newest of more than 100 000 open dead letters, and leaves none out.

    Fails when: only the oldest are considered.
    """
    make(live.dsn, 100_003, "old_code")
    make(live.dsn, 5, "new_code", age="1 hour")
    done = run("dead-letter", "list", "--limit", "2", dsn=live.dsn)
    assert "2 of more than 10 000" in done.err
    assert "more than 10 000" in done.out
    done = run("dead-letter", "replay", "--all", "--without-delivery", "--failure", "new_code", "--json", dsn=live.dsn)
    assert (done.code, done.json) == (
        0, [{"route": ROUTE, "status": "replayed", "decision": "dry_run", "count": 5}],
    )  # fmt: skip
    assert value(live.dsn, OPEN + " and failure_code = 'new_code'") == 0
    nothing = run("dead-letter", "replay", "--all", "--without-delivery", "--failure", "new_cod", dsn=live.dsn)
    assert nothing.code == 0
    assert "No open dead letter matches" in nothing.err


@pytest.mark.parametrize("way", ["one", "all"])
def test_a_resolution_needs_a_reason_and_keeps_it(letters, way):
    """Dead letters are resolved one by one or by filter, after a confirmation, with actor and reason; a plan changes
    nothing.

    Fails when: an empty reason is accepted, or the filter is not applied.
    """
    one = run("dead-letter", "list", "--failure", "smtp_550", "--json", "--limit", "1", dsn=letters).json[0]["id"]
    chosen = (one,) if way == "one" else ("--all", "--failure", "smtp_550")
    refused(2, "the reason is empty")("dead-letter", "resolve", *chosen, "--why", " ", dsn=letters)
    refused(2, "--why")("dead-letter", "resolve", *chosen, dsn=letters)
    assert run("dead-letter", "resolve", *chosen, "--why", "x", "--plan", dsn=letters).code == 0
    if way == "all":
        refused(1, "nothing was changed", "--yes")("dead-letter", "resolve", *chosen, "--why", "x", dsn=letters)
    assert value(letters, OPEN) == 2005
    done = run(
        "dead-letter", "resolve", *chosen, "--why", "withdrawn", "--actor", "ada", "--yes", "--json", dsn=letters
    )
    count = 1 if way == "one" else 800
    assert (done.code, done.json["resolved"]) == (0, count)
    kept = rows(
        letters, "select distinct failure_code, resolution from iu_route_dead_letter where resolved_at is not null"
    )
    assert [tuple(row) for row in kept] == [("smtp_550", "resolved by ada: withdrawn")]
    assert value(letters, OPEN) == 2005 - count
    again = run("dead-letter", "resolve", *chosen, "--why", "again", "--yes", dsn=letters)
    assert again.code == (1 if way == "one" else 0)


def test_an_interrupt_leaves_the_rest_as_it_is(letters):
    """Ctrl-C ends a replay of many between two parts: finished parts are kept, the rest stays open.

    Fails when: all of them are one transaction.
    """
    with running("dead-letter", "replay", "--all", "--without-delivery", "--rate", "20", dsn=letters) as command:
        assert seen(letters, f"select ({OPEN}) < 2005")
        assert command.end(2) == 130
    assert 0 < value(letters, OPEN) < 2005


def test_cancelling_is_planned_asked_for_and_answers_for_a_dry_route(live):
    """delivery cancel has a plan, needs a confirmation and a reason, and exits with 0 if there are no deliveries.

    Fails when: a route without deliveries is treated as one that delivers.
    """
    run("gate", "open", "delivery", dsn=live.dsn)
    assert "Cancelled: 0 deliveries" in run("delivery", "cancel", ROUTE, "--why", "x", dsn=live.dsn).out
    run("route", "live", ROUTE, "--why", "a test", "--yes", dsn=live.dsn)
    run("emit", "--count", "3", dsn=live.dsn)
    execute(live.dsn, "select fn_iu_route_worker_run('iu_outbound_default', 100)")
    run("route", "dry", ROUTE, dsn=live.dsn)
    refused(2, "the reason is empty")("delivery", "cancel", ROUTE, "--why", "", dsn=live.dsn)
    refused(2, "there is no route nowhere")("delivery", "cancel", "nowhere", "--why", "x", dsn=live.dsn)
    plan = run("delivery", "cancel", ROUTE, "--why", "x", "--plan", "--json", dsn=live.dsn)
    assert (plan.code, plan.json["would_cancel"], plan.json["paused_by"]) == (0, 3, "dry_run")
    refused(1, "nothing was changed", "--yes")("delivery", "cancel", ROUTE, "--why", "x", dsn=live.dsn)
    assert value(live.dsn, "select count(*) from iu_route_delivery") == 3
    event = str(value(live.dsn, "select event_ref from iu_route_delivery order by id limit 1"))
    one = run("delivery", "cancel", ROUTE, "--why", "x", "--event", event, "--json", dsn=live.dsn)
    assert one.json == {"route": ROUTE, "cancelled": 1}
    done = run("delivery", "cancel", ROUTE, "--why", "x", "--yes", dsn=live.dsn)
    assert "Cancelled: 2 deliveries" in done.out


def test_progress_is_shown_on_a_terminal_only(letters):
    """A replay of many shows a progress bar if stderr is a terminal, and none in a file.

    Fails when: the bar is written to a pipe, or there is none.
    """
    assert "replaying" not in run("dead-letter", "replay", "--all", "--without-delivery", dsn=letters).err
    make(letters, 3)
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "iu_listen", "dead-letter", "replay", "--all", "--without-delivery"],
            env={"PATH": os.environ["PATH"], "TERM": "xterm", "LANG": "C.UTF-8", "IU_LISTEN_DSN": letters, "HOME": "/"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=follower, timeout=60, check=True,
        )  # fmt: skip
        assert b"replaying" in os.read(leader, 100_000)
        assert b"replayed" in done.stdout
    finally:
        os.close(leader)
        os.close(follower)


def test_a_list_that_is_cut_says_so(letters):
    """attempts and delivery list report if there are more rows than they show, and only then.

    Fails when: the query returns no more rows than are shown.
    """
    assert "Only the newest 20 attempts are shown" in run("attempts", dsn=letters).err
    assert "Only the newest" not in run("attempts", "--limit", "2005", dsn=letters).err
    execute(
        letters,
        """insert into iu_route_delivery (worker_name, route_code, event_ref, subject_key)
           select 'iu_outbound_default', l.route_code, l.event_ref, row_number() over (order by l.id) % 30
             from iu_route_dead_letter l""",
    )
    assert "Only 20 parked subjects are shown" in run("delivery", "list", dsn=letters).err
    assert "More than" not in run("delivery", "list", "--limit", "30", dsn=letters).err
