"""After days without a consumer: status shows every cause, and every command answers fast."""

from __future__ import annotations

import os

import pytest

from cli.command import execute, holding, on_one_server, run, running, seen, value
from cli.incident import BILL, ERP, FORGOTTEN, MAIL, scripts

pytestmark = on_one_server

#: Set INCIDENT_WAITING=300000 INCIDENT_LETTERS=2000 for the full size.
WAITING = int(os.environ.get("INCIDENT_WAITING", "30000"))
LETTERS = int(os.environ.get("INCIDENT_LETTERS", "500"))
#: Commands that an operator uses then, and the longest duration of each beyond the start of a process, in seconds.
COMMANDS = {
    "status": 2, "health": 2, "doctor": 2, "delivery list": 2, "dead-letter list": 2, "dead-letter list --limit 2000": 2,
    "dead-letter list --failure smtp_550 --since 5d": 2, "attempts": 2, "cursor show": 2, "route list": 2,
    "retention show": 2, "dead-letter replay --all --plan": 3, "dead-letter resolve --all --why x --plan": 2,
    f"delivery cancel {ERP} --why x --plan": 2,
}  # fmt: skip


@pytest.fixture
def incident(live):
    """The database of the incident, and a transaction that was left open."""
    for script in scripts(WAITING, LETTERS):
        execute(live.dsn, script)
    with holding(live.dsn, FORGOTTEN):
        assert seen(live.dsn, "select exists (select from v_iu_blocker where seconds > 10)", timeout=30)
        yield live.dsn


def test_status_alone_names_every_cause(incident):
    """At 80 columns status shows: since when the consumer is silent and its host, the backlog, the paused routes with
    reasons, the dead letters by kind, and the open transaction.

    Fails when: one of the causes is shown by another command only.
    """
    done = run("status", dsn=incident, env={"COLUMNS": "80"})
    words = " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 80
    for cause in (
        "NOT HEALTHY", "silent", "10 000+ events wait", "shop-a:4711", "3 d 23 h",
        "breaker_open", "connect", ERP, "late event", "reject", "smtp_550", "target_error",
        "silent for 3 d 23 h",
    ):  # fmt: skip
        assert cause in words, (cause, done.out)
    found = run("status", "--json", dsn=incident).json["dead_letters"]
    assert {(k["route"], k["failure_code"]) for k in found} == {
        (MAIL, "reject"), (MAIL, "smtp_550"), (BILL, "target_error"),
    }  # fmt: skip
    assert sum(k["open"] for k in found) == LETTERS


def test_doctor_counts_dead_letters_while_health_is_red(incident):
    """doctor shows the kinds of dead letters and the command that lists them, also when the worker is not healthy.

    Fails when: dead letters are a warning of a healthy worker only.
    """
    done = run("doctor", dsn=incident)
    words = " ".join(done.out.split())
    assert done.code == 1
    assert "iu-listen dead-letter list" in words
    (found,) = [f for f in run("doctor", "--json", dsn=incident).json["findings"] if f["what"] == "dead letters"]
    for kind in ("reject", "smtp_550", "target_error"):
        assert kind in words
        assert f"{kind} of route shop." in found["found"]
    assert (found["level"], found["hint"]) == ("warn", "iu-listen dead-letter list")


def test_every_command_answers_at_once(incident):
    """Each command answers within two seconds beyond the start of a process, a plan within three.

    Fails when: a command queries each dead letter, or reads the outbox without an index.
    """
    start = min(run("--version").seconds for _ in range(3))
    slow = {}
    letter = value(incident, "select id::text from iu_route_dead_letter limit 1")
    one = {f"dead-letter show {letter}": 2, f"dead-letter replay {letter} --plan": 2}
    for command, bound in (COMMANDS | one).items():
        arguments = command.split()
        seconds = min(run(*arguments, dsn=incident).seconds for _ in range(2)) - start
        print(f"{seconds:6.2f} s  {command}")
        if seconds > bound:
            slow[command] = seconds
    assert slow == {}


def test_status_watch_repeats_the_output(live):
    """--watch prints status again at the given interval, until Ctrl-C.

    Fails when: it ends after the first output, or is not updated.
    """
    with running("status", "--watch", "0.2", dsn=live.dsn) as command:
        command.until_it_says("iu_outbound_default: ", times=3)
        execute(live.dsn, "update dot_config set value = 'false' where key = 'iu_core.route_worker_enabled'")
        command.until_it_says("gate closed")
        assert command.end(2) == 130
    assert value(live.dsn, "select count(*) from iu_route_dead_letter") == 0
