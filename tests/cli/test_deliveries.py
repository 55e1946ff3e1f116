"""run --app, route policy and resume, delivery list and cancel, with coroutines in a file of the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.command import execute, on_one_server, refused, rows, run, running, seen, value

pytestmark = on_one_server

ROUTE = "iu.version_applied.workflow"
#: A target that appends each event to the file that ARRIVED names, and rejects while ARRIVED.reject exists.
MODULE = """
import os
from iu_listen import Delivery, Reject, target

@target("event_outbox")
async def arrive(delivery: Delivery) -> None:
    if os.path.exists(os.environ["ARRIVED"] + ".reject"):
        raise Reject("not today")
    with open(os.environ["ARRIVED"], "a") as file:
        file.write(delivery.idempotency_key + "\\n")

not_a_target = 1
"""


@pytest.fixture
def ready(live):
    """A live route to a coroutine, with all switches on."""
    run("gate", "open", "delivery", dsn=live.dsn)
    run("route", "live", ROUTE, "--why", "a test", "--yes", dsn=live.dsn)
    return live.dsn


@pytest.fixture
def module(tmp_path):
    """Write the module of the coroutine; return the environment in which it is found."""
    (tmp_path / "my_targets.py").write_text(MODULE)
    return {"PYTHONPATH": str(tmp_path), "ARRIVED": str(tmp_path / "arrived")}


def test_run_app_delivers_to_a_coroutine_in_a_file(ready, module):
    """run --app delivers to the coroutine of the module; without it the route is paused, and the log names the remedy.

    Fails when: --app is not read, or a route without its coroutine is not reported.
    """
    with running("run", "--log-format", "json", dsn=ready, env=module) as consumer:
        run("emit", dsn=ready)
        consumer.until_it_says("route paused")
        consumer.until_it_says("there is no target with the name event_outbox")
    assert value(ready, "select count(*) from iu_route_delivery") == 1
    with running("run", "--app", "my_targets", dsn=ready, env=module):
        run("emit", dsn=ready)
        assert seen(ready, "select count(*) = 2 from iu_route_attempt where status = 'sent'")
    keys = [row[0] for row in rows(ready, "select idempotency_key from iu_route_attempt order by id")]
    assert Path(module["ARRIVED"]).read_text().split() == keys


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("nowhere", "there is no module nowhere"),
        ("my_targets:missing", "my_targets has no attribute missing"),
        ("my_targets:not_a_target", "my_targets:not_a_target contains no target"),
        ("json", "json contains no target"),
        ("wanting", "wanting imports the module nothere, which is not installed (wanting.py, line 2)"),
        ("broken", "broken cannot be imported: ZeroDivisionError (broken.py, line 1)"),
    ],
)
def test_an_invalid_app_is_reported_at_the_start(live, module, tmp_path, app, words):
    """An invalid --app ends the command with its problem, before anything is routed."""
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "wanting.py").write_text("import json\nimport nothere\n")
    refused(2, words)("run", "--app", app, dsn=live.dsn, env=module)


def test_waiting_deliveries_are_listed_cancelled_and_replayed(ready, module, tmp_path):
    """delivery list shows why a route is paused; cancel is refused while it delivers, and makes dead letters that can
    be replayed.

    Fails when: a cancelled delivery is lost, or an in-flight delivery is withdrawn.
    """
    run("emit", dsn=ready)
    execute(ready, "select fn_iu_route_worker_run('iu_outbound_default', 100)")
    listed = run("delivery", "list", "--json", dsn=ready).json
    assert [(r["route"], r["pending"], r["paused_by"]) for r in listed["routes"]] == [(ROUTE, 1, None)]
    refused(1, "its deliveries cannot be cancelled", f"iu-listen route dry {ROUTE}")(
        "delivery", "cancel", ROUTE, "--why", "x", dsn=ready
    )
    run("route", "dry", ROUTE, dsn=ready)
    assert "dry_run" in run("delivery", "list", dsn=ready).out
    done = run("delivery", "cancel", ROUTE, "--why", "incident 7", "--actor", "ann", "--yes", "--json", dsn=ready)
    assert done.json == {"route": ROUTE, "cancelled": 1}
    letter = rows(ready, "select id, failure_code, failure_detail from iu_route_dead_letter")[0]
    assert tuple(letter)[1:] == ("cancelled", "cancelled by ann: incident 7")
    run("route", "live", ROUTE, "--why", "again", "--yes", dsn=ready)
    plan = run("dead-letter", "replay", "--all", "--plan", dsn=ready)
    assert "deliver" in plan.out
    assert run("dead-letter", "replay", "--all", dsn=ready).code == 0
    with running("run", "--app", "my_targets", dsn=ready, env=module):
        assert seen(ready, "select resolved_at is not null from iu_route_dead_letter")
    assert value(ready, "select max(attempt_no) from iu_route_attempt where status = 'sent'") == 2


def test_a_policy_is_shown_set_and_refused(ready):
    """route policy shows the effective values, changes one, restores the default, and reports an invalid one.

    Fails when: an invalid policy is written.
    """
    run("route", "policy", ROUTE, "attempts=3", "order=subject", 'target={"mode": "binary"}', dsn=ready)
    found = run("route", "policy", ROUTE, "--json", dsn=ready).json
    assert found["set"] == {"attempts": 3, "order": "subject", "target": {"mode": "binary"}}
    assert found["policy"]["backoff"] == 1
    run("route", "policy", ROUTE, "order=", dsn=ready)
    assert "order" not in run("route", "policy", ROUTE, "--json", dsn=ready).json["set"]
    refused(1, "deadline must be a number from 0.01 to 3600, not -1")(
        "route", "policy", ROUTE, "deadline=-1", dsn=ready
    )
    refused(1, "there is no setting retries")("route", "policy", ROUTE, "retries=3", dsn=ready)
    refused(2, "has not the form NAME=VALUE")("route", "policy", ROUTE, "retries", dsn=ready)
    refused(2, "there is no route nowhere")("route", "policy", "nowhere", dsn=ready)


def test_the_budget_of_dead_letters_stops_a_route_and_resume_restarts_it(ready, module, tmp_path):
    """The budget of dead letters stops the route, and every command that shows the route says so. resume lets it
    continue, or says that there is nothing to resume.

    Fails when: the budget is not counted, a command does not show the stop, or resume does not reach the consumer.
    """
    run("route", "policy", ROUTE, "dead_letters_in_a_row=2", "concurrency=1", "trial_interval_max=3600", dsn=ready)
    assert "was not paused by its circuit breaker" in run("route", "resume", ROUTE, dsn=ready).out
    reject = tmp_path / "arrived.reject"
    reject.touch()
    with running("run", "--app", "my_targets", "--log-format", "json", dsn=ready, env=module) as consumer:
        run("emit", "--count", "20", dsn=ready)
        consumer.until_it_says("dead_letter_budget")
        listed = run("delivery", "list", dsn=ready)
        assert "dead_letter_budget" in listed.out
        assert f"iu-listen route resume {ROUTE}" in " ".join(listed.err.split())
        found = run("health", dsn=ready)
        assert "dead letter budget: 1" in found.out
        # health is about the consumer, which could work; a failing target does not make it unhealthy.
        assert found.code == 0
        for command in ("status", "doctor"):
            assert "is paused: dead letter budget" in run(command, dsn=ready).out
        assert f"{ROUTE} is resumed" in run("route", "resume", ROUTE, dsn=ready).out
        assert seen(ready, "select count(*) = 4 from iu_route_dead_letter")
        reject.unlink()
        assert seen(ready, "select count(*) = 0 from iu_route_delivery")
    assert value(ready, "select count(*) from iu_route_dead_letter") == 4
    assert value(ready, "select count(*) from iu_route_attempt where status = 'sent'") == 16
