"""audit: its findings, its interruption, --repair and --accept, and the audit that the consumer runs by itself."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

import pytest

from cli.command import ROUTE, environment, execute, holding, on_one_server, refused, rows, run, running, seen, value

pytestmark = on_one_server

WRITE = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
    select 'iu', 'version_applied', 'update', 'immediate' from generate_series(1, {events})
"""
DRAIN = "select fn_iu_route_worker_run('iu_outbound_default', 100000)"
LOSE = """
    delete from iu_route_attempt where id in (select id from iu_route_attempt order by idempotency_key limit {events})
"""


@pytest.fixture
def lossy(live):
    """A database with 300 routed events, of which 25 have lost their attempt."""
    execute(live.dsn, WRITE.format(events=300))
    execute(live.dsn, DRAIN)
    execute(live.dsn, LOSE.format(events=25))
    return live


def lost(dsn: str) -> set[str]:
    """The ids of the events without attempts."""
    found = rows(
        dsn, "select id from event_outbox o where not exists (select from iu_route_attempt a where a.event_ref = o.id)"
    )
    return {str(row["id"]) for row in found}


def test_a_complete_log(live):
    """audit of a complete outbox reports the figures and exits with 0."""
    execute(live.dsn, WRITE.format(events=30))
    execute(live.dsn, DRAIN)
    done = run("completeness", dsn=live.dsn)
    assert (done.code, done.err) == (0, "")
    assert "complete  iu_outbound_default: 30 events in" in done.out
    answer = run("completeness", "--json", dsn=live.dsn).json
    assert answer | {"seconds": 0} == {
        "worker": "iu_outbound_default", "checked": 30, "seconds": 0, "complete": True, "missing": 0, "repairable": 0,
        "not_repairable": 0, "waiting": 0, "accepted": 0, "events": [],
    }  # fmt: skip


def test_events_without_attempts_are_listed(lossy):
    """audit lists each event that lacks attempts and exits with 1; status, doctor and the view then show the same."""
    done = run("completeness", "--json", dsn=lossy.dsn)
    assert (done.code, done.err) == (1, "")
    assert (done.json["checked"], done.json["missing"], done.json["complete"]) == (300, 25, False)
    assert {e["event"] for e in done.json["events"]} == lost(lossy.dsn)
    assert {(e["found"], e["wanted"], e["state"]) for e in done.json["events"]} == {(0, 1, "repairable")}

    done = run("completeness", dsn=lossy.dsn)
    assert done.code == 1
    assert "INCOMPLETE  iu_outbound_default: 300 events" in done.out
    assert all(event in done.out for event in lost(lossy.dsn))

    (audit,) = run("status", "--json", dsn=lossy.dsn).json["completeness"]
    assert (audit["worker"], audit["checked"], audit["missing"], audit["accepted"]) == (
        "iu_outbound_default", 300, 25, 0,
    )  # fmt: skip
    findings = {f["what"]: f for f in run("doctor", "--json", dsn=lossy.dsn).json["findings"]}
    assert (findings["completeness"]["level"], findings["completeness"]["hint"]) == (
        "fail",
        "iu-listen completeness --repair",
    )
    assert "25 events" in findings["completeness"]["found"]


def test_a_repair_is_planned_confirmed_and_done(lossy):
    """--repair --plan changes nothing, --repair needs --yes, and then a running consumer routes the events again."""
    missing = lost(lossy.dsn)
    positions = "select md5(string_agg(id || ' ' || event_seq || ' ' || xact_id, ',' order by id)) from event_outbox"
    before = value(lossy.dsn, positions)
    plan = run("completeness", "--repair", "--plan", "--json", dsn=lossy.dsn)
    assert (plan.code, plan.json["repair"]) == (0, {"restamped": 25, "accepted": 0, "done": False})
    refused(1, "Plan: 25 events to be routed again.", "nothing was changed", "--yes")(
        "completeness", "--repair", dsn=lossy.dsn
    )
    assert (value(lossy.dsn, positions), lost(lossy.dsn)) == (before, missing)

    with running("run", dsn=lossy.dsn) as service:
        service.until_it_says("listening")
        done = run("completeness", "--repair", "--yes", "--json", dsn=lossy.dsn)
        assert (done.code, done.err) == (0, "")
        assert done.json["repair"] == {"restamped": 25, "accepted": 0, "done": True, "why": None}
        assert (done.json["complete"], done.json["missing"]) == (True, 0)
        assert lost(lossy.dsn) == set()
        assert value(lossy.dsn, "select count(*) from iu_route_attempt") == 300
        # The repair sent NOTIFY: the consumer did not find the events by its catch-up poll.
        assert "missed notification" not in service.said
        assert service.end() == 0
    assert "complete" in run("completeness", "--repair", "--yes", dsn=lossy.dsn).out
    findings = {f["what"]: f for f in run("doctor", "--json", dsn=lossy.dsn).json["findings"]}
    assert (findings["completeness"]["level"], findings["completeness"]["found"][:11]) == ("ok", "complete at")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("select 1", "no consumer is running"),
        ("update dot_config set value = 'false' where key like '%worker_enabled'", "the worker gate is closed"),
    ],
    ids=["nobody", "gate"],
)
def test_a_repair_without_a_consumer_gives_the_reason(lossy, change, why):
    """Without a consumer, or with a closed gate, a repair ends at once, names the reason, and exits with 1."""
    execute(lossy.dsn, change)
    done = refused(1, "Done: 25 events to be routed again.", f"25 events still waiting: {why}.")(
        "completeness", "--repair", "--yes", dsn=lossy.dsn
    )
    assert done.seconds < 20
    assert "waits until the consumer routes it again" in done.out
    execute(lossy.dsn, "update dot_config set value = 'true' where key like '%worker_enabled'")
    execute(lossy.dsn, DRAIN)
    assert run("completeness", dsn=lossy.dsn).code == 0


def test_an_event_that_cannot_be_repaired_is_accepted(live):
    """An event that lacks the attempt of a deleted route is accepted by a repair, and the next audit is complete."""
    execute(
        live.dsn,
        f"insert into iu_outbound_route select 'second', event_domain, event_type, event_stream, target_kind, target_ref, true, true "
        f"from iu_outbound_route where route_code = '{ROUTE}'",
    )
    execute(live.dsn, WRITE.format(events=3))
    execute(live.dsn, DRAIN)
    execute(
        live.dsn,
        "delete from iu_route_attempt where id = (select min(id) from iu_route_attempt where route_code = 'second')",
    )
    execute(live.dsn, "delete from iu_outbound_route where route_code = 'second'")
    done = refused(1, "cannot be repaired: its route is disabled or gone")("completeness", dsn=live.dsn)
    assert " 1 " in done.out
    done = run("completeness", "--repair", "--yes", "--json", dsn=live.dsn)
    assert (done.code, done.json["accepted"], done.json["missing"]) == (0, 1, 0)
    assert [e["state"] for e in done.json["events"]] == ["accepted"]
    done = run("completeness", dsn=live.dsn)
    assert done.code == 0
    assert "1 more incomplete event accepted" in done.err
    assert "accepted" in run("doctor", dsn=live.dsn).out


def test_accept(lossy):
    """--accept accepts all missing attempts: they stay listed, are not routed, and no longer cause an alarm."""
    refused(1, "Plan: 25 incomplete events accepted.")("completeness", "--accept", dsn=lossy.dsn)
    done = run("completeness", "--accept", "--yes", "--json", dsn=lossy.dsn)
    assert (done.code, done.json["accept"], done.json["complete"]) == (0, {"accepted": 25, "done": True}, True)
    assert len(lost(lossy.dsn)) == 25
    assert run("completeness", dsn=lossy.dsn).code == 0


def test_what_was_typed_wrong(live):
    """Options that exclude each other are named, and the database is not queried."""
    refused(2, "exclude each other")("completeness", "--repair", "--accept", dsn=live.dsn)
    refused(2, "--yes requires --repair or --accept")("completeness", "--yes", dsn=live.dsn)
    refused(2, "worker nobody is not registered")("completeness", "--worker", "nobody", dsn=live.dsn)
    execute(live.dsn, "update iu_route_worker_cursor set lineage = gen_random_uuid()")
    refused(1, "foreign_cursor", "docs/how-to/repair.md")("completeness", dsn=live.dsn)
    assert value(live.dsn, "select count(*) from iu_completeness_pass") == 0


def test_ctrl_c_leaves_the_position_for_the_next_call(lossy):
    """An interrupted audit keeps its position and tells how to resume; without --resume the next audit starts again.
    Fails when: the position is lost.
    """
    execute(lossy.dsn, WRITE.format(events=12_000))
    execute(lossy.dsn, DRAIN)
    execute(lossy.dsn, "select fn_iu_completeness_page('iu_outbound_default', 5000, 0)")
    # A page needs the lock of this row, which is never released, so the command waits for it.
    with (
        holding(lossy.dsn, "select from iu_completeness_pass for update"),
        running("completeness", "--resume", dsn=lossy.dsn) as command,
    ):
        seen(
            lossy.dsn,
            "select count(*) from pg_stat_activity where query like '%fn_iu_completeness_page%' and wait_event_type = 'Lock'",
        )
        assert command.end(signal.SIGINT) == 130
        assert "iu-listen completeness --resume" in command.said
        # No progress bar without a terminal.
        assert "━" not in command.said
    # The server may still complete the page of the command, because it does not notice that the client has ended.
    assert 5000 <= value(lossy.dsn, "select checked from iu_completeness_pass where started_at is not null") < 10_000
    done = run("completeness", "--resume", "--json", dsn=lossy.dsn)
    assert (done.json["checked"], done.json["missing"]) == (12_300, 25)
    assert value(lossy.dsn, "select pass from iu_completeness_pass") == 1
    assert run("completeness", "--fresh", "--json", dsn=lossy.dsn).json["checked"] == 12_300
    assert value(lossy.dsn, "select pass from iu_completeness_pass") == 2


def test_on_a_terminal_there_is_a_bar(lossy):
    """On a terminal stderr shows a progress bar with events, rate and missing attempts; stdout has only the answer."""
    main, terminal = pty.openpty()
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            [sys.executable, "-m", "iu_listen", "completeness", "--json"],
            env=environment(home, lossy.dsn) | {"COLUMNS": "160"}, cwd=home, stdout=subprocess.PIPE, stderr=terminal,
            stdin=terminal,
        )  # fmt: skip
        os.close(terminal)
        shown = b""
        with suppress(OSError):  # the other end is closed
            while chunk := os.read(main, 4096):
                shown += chunk
        os.close(main)
        answer, _ = process.communicate(timeout=20)
        assert process.returncode == 1
    assert json.loads(answer)["missing"] == 25
    assert b"300 events" in shown
    assert b"25 missing" in shown


def test_the_service_audits_by_itself(lossy):
    """A running consumer audits by itself, logs missing attempts once a pass, and status shows the result."""
    env = {"IU_LISTEN_COMPLETENESS_INTERVAL": "0.2"}
    with running("run", "--log-format", "json", dsn=lossy.dsn, env=env) as service:
        service.until_it_says("without attempts")
        assert '"events": 25' in service.said
        (audit,) = run("status", "--json", dsn=lossy.dsn).json["completeness"]
        assert audit["missing"] == 25
        assert run("completeness", "--repair", "--yes", dsn=lossy.dsn).code == 0
        said = service.said.count("without attempts")
        passes = value(lossy.dsn, "select pass from iu_completeness_pass")
        seen(lossy.dsn, f"select pass > {passes + 2} from iu_completeness_pass")
        assert service.said.count("without attempts") <= said + 1
        assert service.end() == 0
