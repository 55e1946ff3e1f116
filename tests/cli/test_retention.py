"""`iu-listen retention`: policies, the plan, runs and their interruption."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from cli.command import environment, execute, holding, on_one_server, refused, rows, run, running, seen, value
from iu_listen.admin.retention import RETENTION_KEY, RETENTION_LOCK_NAME

pytestmark = on_one_server

LOG = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at)
    select 'iu', 'version_applied', 'update', 'immediate', now() - interval '100 days' from generate_series(1, {n})
"""
ROUTE_ALL = "select fn_iu_route_worker_run('iu_outbound_default', 100000)"
LEFT = "select count(*) from event_outbox"


def read_log(dsn: str, n: int) -> None:
    """Insert old events, and let the worker route them."""
    execute(dsn, LOG.format(n=n))
    execute(dsn, ROUTE_ALL)


# -- policies and plan -------------------------------------------------------------------------------------------


def test_policies_are_shown_and_set(live):
    """All policies are off after the install; --keep sets and enables one, --off disables it and keeps its length."""
    found = run("retention", "show", "--json", dsn=live.dsn).json
    assert {p["what"]: p["enabled"] for p in found} == dict.fromkeys(("events", "attempts", "dead_letters"), False)
    found = run("retention", "set", "events", "--keep", "30d", "--json", dsn=live.dsn).json
    assert [(p["keep"], p["enabled"]) for p in found if p["what"] == "events"] == [("30 days", True)]
    assert "30 days" in run("retention", "show", dsn=live.dsn).out
    found = run("retention", "set", "events", "--off", "--json", dsn=live.dsn).json
    assert [(p["keep"], p["enabled"]) for p in found if p["what"] == "events"] == [("30 days", False)]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("set", "events"), 2, "either --keep or --off is required"),
        (("set", "events", "--keep", "1d", "--off"), 2, "either --keep or --off is required"),
        (("set", "units", "--keep", "1d"), 2, "units"),
        (("set", "events", "--keep", "90"), 2, "90 has no unit"),
        (("set", "events", "--keep", "00:10:00"), 2, "has no unit"),
        (("set", "events", "--keep=-5d"), 2, "must be positive, not -5d"),
        (("set", "events", "--keep", "0d"), 2, "must be positive, not 0d"),
        (("set", "events", "--keep", "5 parsecs"), 2, "cannot read '5 parsecs' as an interval"),
        (("set", "events", "--keep", "1000000 years"), 2, "as an interval"),
        (("plan", "--keep", "soon"), 2, "cannot read 'soon' as an interval"),
        (("plan", "--what", "units"), 2, "units"),
        (("run", "--keep=-1h", "--yes"), 2, "must be positive, not -1h"),
        (("run", "--batch", "0", "--yes"), 2, "must be from 1"),
        (("run", "--pause=-1", "--yes"), 2, "must be from 0"),
        (("run", "--ahead", "1000", "--yes"), 2, "must be from 0"),
        (("run", "--what", "events", "--yes"), 1, "the policy for events is off"),
    ],
)
def test_what_is_typed_wrong(live, arguments, code, says):
    """Wrong input is refused with the mistake and the remedy, and changes nothing."""
    refused(code, says, dsn=live.dsn)("retention", *arguments)
    assert value(live.dsn, "select count(*) from iu_retention_policy where enabled or last_run_at is not null") == 0


def test_without_the_package_it_says_so(substrate):
    """If the package is not applied, the command says so."""
    refused(2, "the package is not applied", dsn=substrate.dsn)("retention", "show")


def test_the_plan_names_the_culprits(live):
    """The plan shows what will be removed, what is held back and by which worker, and the position of that worker."""
    read_log(live.dsn, 5)
    execute(
        live.dsn,
        """insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
           select 'sleepy', 'iu', lineage from iu_outbox_anchor""",
    )
    plan = run("retention", "plan", "--json", dsn=live.dsn).json
    assert [(v["what"], v["verdict"], v["who"], v["count"]) for v in plan["plan"]] == [
        ("events", "unread", "sleepy", 5)
    ]
    assert [(r["worker"], r["prev"], r["last_run_at"]) for r in plan["readers"]] == [("sleepy", "3:3:", None)]
    assert plan["partitions"] is None
    done = run("retention", "plan", "--what", "events", dsn=live.dsn)
    for words in (
        "0 rows older than 90 days would be removed, but the policy is off",
        "not read yet by worker sleepy",
        "never",
    ):
        assert words in done.out
    assert "attempts" not in done.out
    execute(live.dsn, "delete from iu_route_worker_cursor where worker_name = 'sleepy'")
    assert "5 rows older than 90 days would be removed" in run("retention", "plan", dsn=live.dsn).out
    assert value(live.dsn, LEFT) == 5


def test_doctor_warns_of_a_policy_without_runs(live):
    """doctor shows each policy, and warns if a policy is enabled and there was no run for two days.

    Fails when: the time of the latest run is not checked.
    """

    def found() -> tuple[str, str]:
        (finding,) = [f for f in run("doctor", "--json", dsn=live.dsn).json["findings"] if f["what"] == "retention"]
        return finding["level"], finding["found"]

    assert found() == ("ok", "off: all rows are kept")
    run("retention", "set", "events", "--keep", "90d", dsn=live.dsn)
    assert found() == ("ok", "events 90 days")
    execute(live.dsn, "update iu_retention_policy set updated_at = now() - interval '3 days'")
    assert found() == ("warn", "no run for two days: events")
    run("retention", "run", "--yes", dsn=live.dsn)
    assert found() == ("ok", "events 90 days")


# -- runs --------------------------------------------------------------------------------------------------------


def test_a_run_needs_yes_and_a_policy(live):
    """Without --yes the command shows the plan and exits with 1; without a policy it removes nothing, with 0."""
    read_log(live.dsn, 5)
    assert run("retention", "run", "--yes", "--json", dsn=live.dsn).json == {"status": "nothing_enabled"}
    assert "No policy is enabled" in run("retention", "run", "--yes", dsn=live.dsn).out
    run("retention", "set", "events", "--keep", "90d", dsn=live.dsn)
    refused(1, "5 rows older than 90 days would be removed", "nothing was removed", "--yes", dsn=live.dsn)(
        "retention", "run"
    )
    assert value(live.dsn, LEFT) == 5
    done = run("retention", "run", "--yes", "--batch", "2", "--pause", "0", dsn=live.dsn)
    assert done.code == 0
    assert "Removed 5 events in" in done.out
    assert value(live.dsn, LEFT) == 0
    # No progress bar without a terminal.
    assert done.err == ""


def test_a_run_with_keep_needs_no_policy(live):
    """--keep runs the named policies, or all, independent of their settings: first events, then their attempts."""
    read_log(live.dsn, 5)
    execute(live.dsn, "update iu_route_attempt set created_at = created_at - interval '1 hour'")
    done = run("retention", "run", "--what", "events", "--keep", "1 min", "--yes", "--json", dsn=live.dsn).json
    assert (done["status"], done["removed"], done["held"]) == ("ran", {"events": 5}, [])
    done = run("retention", "run", "--keep", "1 min", "--yes", "--json", dsn=live.dsn).json
    assert done["removed"] == {"events": 0, "attempts": 5, "dead_letters": 0}
    assert value(live.dsn, "select count(*) from iu_retention_policy where enabled") == 0


def test_a_run_shows_the_workers_that_keep_rows(live):
    """After a run, the output states how many rows were removed, and which worker holds back the rest."""
    read_log(live.dsn, 3)
    execute(live.dsn, LOG.format(n=4))
    done = run("retention", "run", "--keep", "90d", "--yes", dsn=live.dsn)
    assert done.code == 0
    for words in ("Removed 3 events", "not read yet by worker iu_outbound_default", "Workers that keep rows"):
        assert words in done.out
    assert "iu-listen status" in done.err


def test_a_second_run_leaves_it_to_the_first(live):
    """While another run is active, a run names it, does nothing, and exits with 0, because a timer may fire twice.

    Fails when: the lock is not taken.
    """
    read_log(live.dsn, 3)
    with holding(live.dsn, f"select pg_advisory_lock({RETENTION_KEY}, hashtext('{RETENTION_LOCK_NAME}'))"):
        done = run("retention", "run", "--keep", "90d", "--yes", dsn=live.dsn)
        assert done.code == 0
        assert re.search(r"Another run is in progress \(pid \d+.*\); nothing was removed", done.out)
        assert run("retention", "run", "--keep", "90d", "--yes", "--json", dsn=live.dsn).json["status"] == "busy"
        assert value(live.dsn, LEFT) == 3
    assert run("retention", "run", "--keep", "90d", "--yes", "--json", dsn=live.dsn).json["removed"]["events"] == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_may_be_ended_at_any_moment(live, number, code):
    """After a run was ended, complete batches are removed, no lock is held, and the next run removes the rest."""
    read_log(live.dsn, 100)
    with running(
        "retention", "run", "--keep", "90d", "--yes", "--batch", "10", "--pause", "0.3", dsn=live.dsn
    ) as command:
        seen(live.dsn, f"select count(*) <= 90 from ({LEFT.replace('count(*)', '*')}) x")
        assert command.end(number) == code
        if number != signal.SIGKILL:
            assert "Interrupted. Removed: " in command.said
    left = value(live.dsn, LEFT)
    assert left % 10 == 0
    assert 0 < left < 100
    seen(live.dsn, "select count(*) = 0 from pg_locks where locktype = 'advisory'")
    done = run("retention", "run", "--keep", "90d", "--yes", "--json", dsn=live.dsn).json
    assert done["removed"]["events"] == left
    assert value(live.dsn, "select total_gone from iu_retention_policy where what = 'events'") == 100


def test_on_a_terminal_there_is_a_bar(live):
    """On a terminal a run shows its progress, its rate and the remaining time."""
    read_log(live.dsn, 60)
    master, slave = pty.openpty()
    with tempfile.TemporaryDirectory(prefix="iu-cli-") as home:
        process = subprocess.Popen(
            [sys.executable, "-m", "iu_listen", "retention", "run", "--keep", "90d", "--yes", "--batch", "10", "--pause", "0.1"],
            env=environment(home, live.dsn), cwd=home, stdout=subprocess.PIPE, stderr=slave, text=True,
        )  # fmt: skip
        os.close(slave)
        drawn = b""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                chunk = os.read(master, 65536)
            except OSError:
                break
            drawn += chunk
        out, _ = process.communicate(timeout=30)
    os.close(master)
    assert process.returncode == 0
    assert "Removed 60 events" in out
    assert re.search(rb"events.*10/60.*rows/s", re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", drawn))


def test_a_standby_is_refused(standby):
    """A run on a read-only server is refused at once."""
    refused(2, "takes no writes", dsn=standby)("retention", "run", "--keep", "90d", "--yes")


# -- partitions --------------------------------------------------------------------------------------------------


def test_partitions_are_planned_and_done(partitioned):
    """The plan names the months to drop and to create; a run does both, and removes the rest row by row."""
    execute(
        partitioned.dsn,
        """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, created_at)
           select 'iu', 'version_applied', 'update', 'immediate',
                  date_trunc('month', now(), 'UTC') - interval '4 months' + n * interval '1 day'
             from generate_series(0, 99) n""",
    )
    execute(partitioned.dsn, ROUTE_ALL)
    plan = run("retention", "plan", "--keep", "70d", "--json", dsn=partitioned.dsn).json
    whole = [p for p in plan["partitions"]["partitions"] if p["whole"]]
    assert len(plan["partitions"]["create"]) == 3
    assert whole
    words = run("retention", "plan", "--keep", "70d", dsn=partitioned.dsn).out
    assert "would be removed as a whole" in words
    assert f"would create {plan['partitions']['create'][0]['name']}" in words
    done = run("retention", "run", "--keep", "70d", "--yes", "--json", dsn=partitioned.dsn).json
    did = [(row["did"], row["partition"]) for row in done["partitions"]["done"]]
    assert did == [("created", p["name"]) for p in plan["partitions"]["create"]] + [
        ("detached", p["name"]) for p in whole
    ]
    assert done["removed"]["events"] + sum(p["rows"] for p in whole) == sum(
        v["count"] for v in plan["plan"] if v["verdict"] == "goes" and v["what"] == "events"
    )
    assert [row["n"] for row in rows(partitioned.dsn, f"select count(*) as n from {whole[0]['name']}")] == [
        whole[0]["rows"]
    ]


def test_a_run_without_ahead_makes_no_months(partitioned):
    """With --ahead 0 the run creates no partitions: the owner does it."""
    done = run("retention", "run", "--keep", "10 years", "--ahead", "0", "--yes", "--json", dsn=partitioned.dsn).json
    assert done["partitions"] == {"done": [], "held": []}
