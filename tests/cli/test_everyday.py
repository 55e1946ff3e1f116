"""The everyday commands, as text and as JSON, on a database with an open gate."""

from __future__ import annotations

import json
import os
import platform
import pty
import signal
import subprocess
import sys
import tempfile
from uuid import UUID, uuid4

import asyncpg
import pytest

from cli.command import (
    ROUTE,
    environment,
    execute,
    holding,
    on_one_server,
    portrait,
    refused,
    rows,
    run,
    running,
    seen,
    value,
)
from support import WORKER

pytestmark = on_one_server

ROUTE_ONCE = "select fn_iu_route_worker_run('iu_outbound_default', 1000)"


def table(done) -> list[list[str]]:
    """The cells of a printed table, header first."""
    lines = [line for line in done.out.splitlines() if line.strip() and "──" not in line]
    return [line.split() for line in lines]


# -- emit and attempts -------------------------------------------------------------------------------------------


def test_emit(live):
    """emit writes an event with the given values through the governed emitter, and prints its id."""
    subject = uuid4()
    done = run("emit", "--address", "docs/intro", "--subject", str(subject), "--actor", "ada",
               "--payload", '{"why": "test", "n": 1}', dsn=live.dsn)  # fmt: skip
    assert done.code == 0, done.err
    event = rows(live.dsn, "select * from event_outbox")[0]
    assert UUID(done.out.strip()) == event["id"]
    assert (event["event_domain"], event["event_type"]) == ("iu", "version_applied")
    assert (event["event_stream"], event["source_system"]) == ("update", "iu_core")
    assert (event["canonical_address"], event["event_subject_ref"]) == ("docs/intro", subject)
    assert event["actor_ref"] == "ada"
    assert json.loads(event["safe_payload"]) == {"why": "test", "n": 1}


def test_emit_many(live):
    """emit --count writes that many events in one transaction, each with a different subject."""
    done = run("emit", "--count", "1500", dsn=live.dsn)
    assert done.code == 0
    assert done.out.startswith("1 500 events, the first is ")
    assert value(live.dsn, "select count(distinct event_subject_ref) from event_outbox") == 1500
    assert value(live.dsn, "select count(distinct xact_id) from event_outbox") == 1
    done = run("emit", "--count", "3", "--json", dsn=live.dsn)
    assert len({UUID(event) for event in done.json["events"]}) == 3


def test_attempts(live):
    """attempts shows the audit, the newest first, by event, route and status; without attempts it exits with 1."""
    event = run("emit", "--json", dsn=live.dsn).json["events"][0]
    refused(1)("attempts", "--event", event, dsn=live.dsn)
    execute(live.dsn, ROUTE_ONCE)
    done = run("attempts", "--event", event, "--json", dsn=live.dsn)
    assert done.code == 0
    (attempt,) = done.json
    assert attempt | {"created_at": None} == {
        "event": event, "route_kind": "outbound", "route": ROUTE, "status": "dry_run", "decision": "dry_run",
        "delivered": False, "failure_code": None, "attempt_no": 1, "idempotency_key": f"outbound:{ROUTE}:{event}",
        "created_at": None,
    }  # fmt: skip
    assert [event, ROUTE, "dry_run", "dry_run", "1"] == table(run("attempts", dsn=live.dsn))[1][:5]
    assert run("attempts", "--status", "failed", "--json", dsn=live.dsn).json == []
    assert run("attempts", "--route", "other", "--json", dsn=live.dsn).json == []
    run("emit", "--count", "30", dsn=live.dsn)
    execute(live.dsn, ROUTE_ONCE)
    assert len(run("attempts", "--json", dsn=live.dsn).json) == 20
    assert len(run("attempts", "--limit", "25", "--json", dsn=live.dsn).json) == 25


# -- status ------------------------------------------------------------------------------------------------------


def test_status(live):
    """status shows gates, workers, consumers and attempts; without a consumer, the text explains how to start one."""
    run("emit", "--count", "2", dsn=live.dsn)
    execute(live.dsn, ROUTE_ONCE)
    run("emit", "--count", "3", dsn=live.dsn)
    answer = run("status", "--json", dsn=live.dsn).json
    assert set(answer) >= {"gates", "workers", "consumers", "attempts"}
    assert [(g["gate"], g["open"]) for g in answer["gates"]] == [
        ("master", True), ("worker", True), ("delivery", False),
    ]  # fmt: skip
    (worker,) = answer["workers"]
    assert (worker["worker"], worker["backlog"], worker["total_seen"]) == ("iu_outbound_default", 3, 2)
    assert worker["open_dead_letters"] == 0
    assert worker["refusal"] is None
    assert answer["consumers"] == []
    assert [(a["route"], a["status"], a["attempts"]) for a in answer["attempts"]] == [(ROUTE, "dry_run", 2)]

    done = run("status", dsn=live.dsn)
    assert done.code == 0
    assert "iu-listen run" in done.err
    for words in ("master", "iu_core.route_worker_enabled", "iu_outbound_default", ROUTE):
        assert words in done.out


def test_status_of_a_consumer(live):
    """status and doctor show state, bell and wake-ups of a running consumer; health --here finds it on this host."""
    refused(1, platform.node())("health", "--here", dsn=live.dsn)
    with running("run", "--log-format", "json", dsn=live.dsn) as consumer:
        consumer.until_it_says('"listening"')
        seen(live.dsn, "select exists (select from iu_consumer_heartbeat where listening and state = 'idle')")
        (shown,) = run("status", "--json", dsn=live.dsn).json["consumers"]
        assert (shown["state"], shown["listening"], shown["silent"]) == ("idle", True, False)
        assert (shown["host"], shown["pid"]) == (platform.node(), consumer.process.pid)
        assert shown["wakes"]["start_up"] >= 1
        done = run("status", dsn=live.dsn)
        assert f"{platform.node()}:{consumer.process.pid}" in done.out
        assert "notifications" in done.out

        assert run("health", "--here", dsn=live.dsn).code == 0
        assert run("health", "--here", "--json", dsn=live.dsn).json["healthy"] is True
        assert run("health", dsn=live.dsn).code == 0
        lease = [f for f in run("doctor", "--json", dsn=live.dsn).json["findings"] if f["what"] == "lease"]
        assert "iu-listen worker iu_outbound_default" in lease[0]["found"]
        assert consumer.end() == 0
    refused(1, "has sent a heartbeat")("health", "--here", dsn=live.dsn)
    (shown,) = run("status", "--json", dsn=live.dsn).json["consumers"]
    assert (shown["state"], shown["silent"]) == ("stopped", False)


# -- health and doctor -------------------------------------------------------------------------------------------


def test_health(live):
    """health exits with 0 while the worker could work, with 1 and the reason if it is silent or a gate is closed."""
    done = run("health", dsn=live.dsn)
    assert done.code == 0
    assert done.out.startswith("healthy  iu_outbound_default")

    run("emit", "--count", "4", dsn=live.dsn)
    execute(live.dsn, "update dot_config set updated_at = now() - interval '95 hours' where key like '%worker%'")
    done = refused(1, "NOT HEALTHY", "because silent for", "warning: backlog: 4")("health", dsn=live.dsn)
    done = run("health", "--json", dsn=live.dsn)
    assert done.code == 1
    assert done.json["healthy"] is False
    assert done.json["warnings"] == [{"code": "backlog", "figure": 4}]
    assert done.json["silent_seconds"] > 95 * 3600 - 60

    run("gate", "close", "worker", dsn=live.dsn)
    done = run("health", dsn=live.dsn)
    assert done.code == 0
    assert "warning: worker gate closed" in done.out
    run("gate", "close", "master", dsn=live.dsn)
    refused(1, "because master gate is closed")("health", dsn=live.dsn)


def test_health_waits(live):
    """health --wait exits with 0 as soon as the worker is healthy, or with 1 or 3 after the timeout.

    Fails when: it answers at once, or never.
    """
    execute(live.dsn, "update dot_config set value = 'false' where key like '%master%'")
    assert refused(1, "master gate is closed")("health", "--wait", "1", dsn=live.dsn).seconds >= 1
    with running("health", "--wait", "60", dsn=live.dsn) as waiting:
        execute(live.dsn, "update dot_config set value = 'true' where key like '%master%'")
        assert waiting.process.wait(60) == 0
    refused(3)("health", "--wait", "1", dsn="postgresql://postgres@127.0.0.1:1/iu")


def test_status_and_doctor_name_a_blocker(live):
    """status and doctor name a blocker, as text and as JSON."""
    execute(live.dsn, "alter table event_outbox disable trigger zz_event_outbox_stamp")
    (blocker,) = run("status", "--json", dsn=live.dsn).json["blockers"]
    assert (blocker["what"], blocker["who"], blocker["state"]) == (
        "trigger", "event_outbox.zz_event_outbox_stamp", "disabled",
    )  # fmt: skip
    assert "zz_event_outbox_stamp (" in run("status", dsn=live.dsn).out
    refused(1, "enable always trigger zz_event_outbox_stamp")("doctor", dsn=live.dsn)


def test_doctor(live):
    """doctor reports no problem of a sound installation, and otherwise each problem with its remedy."""
    done = run("doctor", "--json", dsn=live.dsn)
    assert done.code == 0
    assert done.json["pass"] is True
    assert {f["level"] for f in done.json["findings"]} == {"ok"}
    assert {f["what"] for f in done.json["findings"]} >= {
        "server", "base", "package", "gates", "history", "health", "triggers", "connection", "lease",
        "notification queue", "open transactions",
    }  # fmt: skip

    execute(live.dsn, "alter table event_outbox disable trigger zz_event_outbox_bell")
    refused(1, "FAIL", "event_outbox.zz_event_outbox_bell",
            "alter table event_outbox enable always trigger zz_event_outbox_bell")("doctor", dsn=live.dsn)  # fmt: skip
    execute(live.dsn, "alter table event_outbox enable always trigger zz_event_outbox_bell")
    run("gate", "close", "worker", dsn=live.dsn)
    done = run("doctor", dsn=live.dsn)
    assert done.code == 0
    assert "closed: worker" in done.out
    assert "iu-listen gate open worker" in done.out


# -- gates, routes, cursor ---------------------------------------------------------------------------------------


def test_gate(live):
    """gate shows, opens and closes gates; closing a closed gate keeps the time of the first change."""
    done = run("gate", "close", "worker", "--json", dsn=live.dsn)
    assert done.code == 0
    assert {g["gate"]: (g["open"], g["value"]) for g in done.json} == {
        "master": (True, "true"),
        "worker": (False, "false"),
        "delivery": (False, "false"),
    }
    again = run("gate", "close", "worker", "--json", dsn=live.dsn)
    assert again.json == done.json == run("gate", "show", "--json", dsn=live.dsn).json
    assert table(run("gate", "show", dsn=live.dsn))[2][:2] == ["worker", "closed"]
    assert table(run("gate", "open", "worker", dsn=live.dsn))[2][:2] == ["worker", "open"]


def test_route(live):
    """route lists, shows, disables and enables; an event of a disabled route is skipped for that reason."""
    (found,) = run("route", "list", "--json", dsn=live.dsn).json
    assert (found["route"], found["enabled"], found["dry_run"]) == (ROUTE, True, True)
    assert run("route", "show", ROUTE, "--json", dsn=live.dsn).json == found
    assert ROUTE in run("route", "list", dsn=live.dsn).out

    done = run("route", "disable", ROUTE, "--json", dsn=live.dsn)
    assert done.code == 0
    assert done.json["enabled"] is False
    run("emit", dsn=live.dsn)
    execute(live.dsn, ROUTE_ONCE)
    assert run("attempts", "--json", dsn=live.dsn).json[0]["decision"] == "route_disabled"
    assert run("route", "enable", ROUTE, "--json", dsn=live.dsn).json["enabled"] is True


def test_a_route_that_would_deliver(live):
    """A route that is not a dry run cannot be enabled: the guard refuses, and its message is shown."""
    execute(live.dsn, "update iu_outbound_route set enabled = false, dry_run = false")
    refused(1, f"route {ROUTE} may not deliver: it is not on the list", "iu-listen route live")(
        "route", "enable", ROUTE, dsn=live.dsn
    )
    assert value(live.dsn, "select enabled from iu_outbound_route") is False


def test_cursor(live):
    """cursor reset needs a confirmation and a closed gate; to the beginning routes no event twice, to now skips the
    backlog.
    """
    dsn = live.dsn
    run("emit", "--count", "3", dsn=dsn)
    execute(dsn, ROUTE_ONCE)
    (shown,) = run("cursor", "show", "--json", dsn=dsn).json
    assert (shown["worker"], shown["backlog"], shown["total_seen"]) == ("iu_outbound_default", 0, 3)
    assert "iu_outbound_default" in run("cursor", "show", dsn=dsn).out

    before = portrait(dsn)
    refused(1, "all 3 events of domain iu will be read again", "--yes")("cursor", "reset", "--to", "beginning", dsn=dsn)
    done = run("cursor", "reset", "--to", "beginning", "--plan", "--json", dsn=dsn)
    assert done.code == 0
    assert done.json["done"] is False
    refused(1, "the worker gate is open", "gate close worker")("cursor", "reset", "--to", "now", "--yes", dsn=dsn)
    assert portrait(dsn) == before

    run("gate", "close", "worker", dsn=dsn)
    done = run("cursor", "reset", "--to", "beginning", "--yes", "--json", dsn=dsn)
    assert done.code == 0
    assert done.json["done"] is True
    assert run("cursor", "show", "--json", dsn=dsn).json[0]["backlog"] == 3
    run("gate", "open", "worker", dsn=dsn)
    execute(dsn, ROUTE_ONCE)
    assert value(dsn, "select count(*) from iu_route_attempt") == 3

    run("emit", "--count", "2", dsn=dsn)
    run("gate", "close", "worker", dsn=dsn)
    assert "will never route its backlog (2 events)" in run("cursor", "reset", "--to", "now", "--yes", dsn=dsn).out
    run("gate", "open", "worker", dsn=dsn)
    execute(dsn, ROUTE_ONCE)
    assert value(dsn, "select count(*) from iu_route_attempt") == 3


# -- appearance --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "health", "doctor", "gate show", "verify --live", "probe", "--help"])
def test_colours_only_on_a_terminal(live, command):
    """Colours and boxes are for terminals only: output to a pipe or a file has no escape sequence."""
    done = run(*command.split(), dsn=live.dsn)
    assert "\x1b" not in done.out + done.err


def test_colours_on_a_terminal(live):
    """On a terminal a closed gate is red."""
    main, terminal = pty.openpty()
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            [sys.executable, "-m", "iu_listen", "gate", "close", "worker"],
            env=environment(home, live.dsn), cwd=home, stdout=terminal, stderr=terminal, stdin=terminal,
        )  # fmt: skip
        os.close(terminal)
        said = b""
        try:
            while chunk := os.read(main, 4096):
                said += chunk
        except OSError:
            pass  # the other end is closed
        finally:
            os.close(main)
        assert process.wait(10) == 0
    assert b"\x1b[1;31mclosed" in said


def test_version_and_help(server):
    """--version is one line; --help lists every command and the exit codes."""
    done = run("--version")
    assert (done.code, len(done.out.split())) == (0, 1)
    done = run("--help")
    assert done.code == 0
    for word in ("probe", "apply", "verify", "rollback", "dead-letter", "doctor", "3 database not reachable"):
        assert word in done.out


@pytest.mark.parametrize(
    ("number", "background"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
def test_a_command_that_is_interrupted(live, number, background):
    """A signal ends a waiting command with the usual exit code of a shell; SIGTERM also if SIGINT is ignored."""
    with (
        holding(live.dsn, "lock table dot_config"),
        running("gate", "close", "worker", dsn=live.dsn, background=background) as command,
    ):
        seen(
            live.dsn,
            """select exists (select from pg_stat_activity
                               where wait_event_type = 'Lock' and datname = current_database())""",
        )
        assert command.end(number) == 128 + number
    assert value(live.dsn, "select value from dot_config where key like '%worker%'") == "true"


def test_a_database_that_quotes_every_name(live):
    """quote_all_identifiers and similar settings of the server change no answer, because the session sets them."""
    execute(live.dsn, """
        do $$
        begin
            execute format('alter database %I set quote_all_identifiers = on', current_database());
            execute format('alter database %I set standard_conforming_strings = off', current_database());
            execute format('alter database %I set transform_null_equals = on', current_database());
        end $$""")  # fmt: skip
    assert value(live.dsn, "show quote_all_identifiers") == "on"
    for command in (
        "status",
        "health",
        "doctor",
        "verify --live",
        "route list",
        "completeness",
        "probe",
        "retention plan",
    ):
        done = run(*command.split(), dsn=live.dsn)
        assert done.code == 0, (command, done.out, done.err)
    done = run("apply", "--plan", "--no-backup", "x", dsn=live.dsn)
    assert "half applied" not in done.out + done.err


def test_an_event_of_an_unregistered_type(live):
    """The emitter of the base raises for an unregistered type; the refusals are counted and shown.

    A closed master gate is not counted, and a reset ends the warning. Fails when: the emitter answers null; or the
    rollback undoes the count.
    """
    emit = "select fn_iu_emit_event('order_placed', 'order/1', gen_random_uuid(), 'shop', '{}')"
    for _ in range(2):
        with pytest.raises(asyncpg.UndefinedObjectError, match="order_placed is not registered and active"):
            execute(live.dsn, emit)
    refused(2, "order_placed is not registered", "Registered types:")("emit", "--type", "order_placed", dsn=live.dsn)

    # The command emit checks the type itself, so it is not counted.
    assert "2 events of unregistered types were refused" in run("doctor", dsn=live.dsn).out
    assert value(live.dsn, f"select figure from fn_iu_metrics('{WORKER}') where what = 'refused_emits'") == 2
    assert run("event-type", "refused", "--json", dsn=live.dsn).json == {"refused": 2, "reset": False}
    assert "Refused events: 2. The number is 0 now." in run("event-type", "refused", "--reset", dsn=live.dsn).out
    assert "unregistered types" not in run("doctor", dsn=live.dsn).out
    assert run("event-type", "refused", "--json", dsn=live.dsn).json["refused"] == 0
    execute(live.dsn, "update dot_config set value = 'false' where key like '%master%'")
    assert value(live.dsn, emit) is None

    execute(live.dsn, "drop sequence iu_emit_refused_seq")
    assert "not counted" in run("doctor", dsn=live.dsn).out
    assert "not counted" in run("event-type", "refused", dsn=live.dsn).out
    refused(2, "does not count refused events")("event-type", "refused", "--reset", dsn=live.dsn)
    assert value(live.dsn, f"select count(*) from fn_iu_metrics('{WORKER}') where what = 'refused_emits'") == 0
