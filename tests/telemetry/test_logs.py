"""Observations as log lines: one line for each relevant one, at a suitable level, and none for an idle batch."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import get_args

import pytest
import structlog
from structlog.testing import capture_logs

from iu_listen.model.delivery import DeadLetters
from iu_listen.model.monitoring import Blocker
from iu_listen.model.observation import (
    BatchRan,
    BlockerCleared,
    BlockerFound,
    CallAbandoned,
    CompletenessChecked,
    DeliveriesSettled,
    ExportDelayed,
    GroupFailed,
    HeartbeatWritten,
    LeaseTaken,
    Listening,
    MetricsFailed,
    MetricsTaken,
    NotificationMissed,
    Observation,
    Polling,
    RoutePaused,
    RouteResumed,
    SessionFailed,
    SpansExported,
    StandingBy,
    Started,
    StateChanged,
    Stopped,
    Stopping,
)
from iu_listen.model.routing import DEFAULT_WORKER, Batch, State, Wake
from iu_listen.model.spans import batch_link
from iu_listen.telemetry.logs import (
    ABANDONED_HINT,
    LOGGED_BATCH_EVENTS,
    LOGGED_KINDS,
    PAUSE_HINTS,
    LogObserver,
    configure,
)

W = DEFAULT_WORKER
LATE = Blocker(what="late_event", who="pid 7", effect="it waits", pid=7, application="app", seconds=12.345)

LINES = [
    (Started(W, "iu@db1"), "info", "started", {"worker": W, "database": "iu@db1"}),
    (StandingBy(W, "pid 7"), "info", "standby: another consumer holds the lease", {"worker": W, "holder": "pid 7"}),
    (LeaseTaken(W), "info", "lease taken", {"worker": W}),
    (Listening(2), "info", "listening", {"slot": 2}),
    (Listening(None), "warning", "listening, but every bell slot is taken: polling", {}),
    (Polling("a pooler"), "warning", "LISTEN/NOTIFY is unavailable, polling", {"why": "a pooler"}),
    (StateChanged(W, State.IDLE, ""), "info", "working", {"worker": W}),
    (StateChanged(W, State.GATE_CLOSED, "worker_gate_closed"), "warning", "waiting: a gate is closed",
     {"worker": W, "gate": "worker_gate_closed"}),
    (StateChanged(W, State.REFUSING, "foreign_cursor"), "error", "not working",
     {"worker": W, "state": "refusing", "why": "foreign_cursor"}),
    (BatchRan(W, Wake.NOTIFY, Batch(status="ran", seen=3, dead_lettered=2)), "error", "events became dead letters",
     {"worker": W, "count": 2, "wake": "notify"}),
    (BatchRan(W, Wake.LINGER, Batch(status="ran", seen=LOGGED_BATCH_EVENTS, seconds=0.01234)), "info", "large batch",
     {"worker": W, "events": LOGGED_BATCH_EVENTS, "ms": 12.3, "wake": "linger"}),
    (NotificationMissed(W, 4), "error", "missed notification: the catch-up poll found committed events",
     {"worker": W, "events": 4}),
    (BlockerFound(W, LATE), "warning", "blocker found",
     {"worker": W, "what": "late_event", "who": "pid 7", "application": "app", "seconds": 12.3, "effect": "it waits"}),
    (BlockerCleared(W, LATE), "info", "blocker ended", {"worker": W, "what": "late_event", "who": "pid 7"}),
    (CompletenessChecked(W, 100, 25, 1.5), "error", "completeness check found events without attempts", {"worker": W, "events": 25, "checked": 100}),
    (CallAbandoned(W, "crm", "workflow crm", 3), "warning", "call abandoned: the target ignores its cancellation",
     {"worker": W, "route": "crm", "target": "workflow crm", "still_running": 3, "hint": ABANDONED_HINT}),
    (GroupFailed(W, "crm", "workflow crm", 3, "timeout"), "warning",
     "group failed: each of its deliveries is attempted in a call of its own",
     {"worker": W, "route": "crm", "target": "workflow crm", "deliveries": 3, "why": "timeout"}),
    (RoutePaused(W, "crm", "no_target", "none"), "warning", "route paused",
     {"worker": W, "route": "crm", "paused_by": "no_target", "why": "none", "hint": PAUSE_HINTS["no_target"]}),
    (RouteResumed(W, "crm", "breaker_open"), "info", "route resumed",
     {"worker": W, "route": "crm", "was_paused_by": "breaker_open"}),
    (DeliveriesSettled(W, [], 3), "error", "deliveries became dead letters", {"worker": W, "count": 3}),
    (SessionFailed("listener", "gone", 0.123), "warning", "session failed",
     {"session": "listener", "why": "gone", "retry_in_s": 0.12}),
    (ExportDelayed("it answered 503", 1.234, None), "warning", "trace export delayed: the spans are sent again",
     {"why": "it answered 503", "retry_in_s": 1.23}),
    (ExportDelayed("it answered 400", 0.0, "00f067aa0ba902b7"), "error",
     "span skipped: the collector calls it malformed", {"why": "it answered 400", "span_id": "00f067aa0ba902b7"}),
    (Stopping("SIGTERM"), "info", "stopping", {"why": "SIGTERM"}),
    (Stopped(W, 9), "info", "stopped", {"worker": W, "events": 9}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def structlog_as_it_was():
    """Restore structlog's global configuration after the test."""
    before = structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize(("observation", "level", "text", "fields"), LINES, ids=lambda v: type(v).__name__)
def test_an_observation_is_one_line(observation, level, text, fields):
    """Each observation that is relevant for an operator is one line with its level and its fields."""
    with capture_logs() as lines:
        LogObserver().observe(observation)
    assert len(lines) == 1
    assert (lines[0]["log_level"], lines[0]["event"]) == (level, text)
    assert {name: lines[0].get(name) for name in fields} == fields


def test_an_outage_is_told_once_a_minute():
    """The same failure of a session is logged once a minute, however often it is repeated; another failure at once.
    Fails when: every try is a line, so that a long outage fills the disk.
    """
    observer = LogObserver()
    with capture_logs() as lines:
        for why in ["refused"] * 100 + ["starting up"] * 100:
            observer.observe(SessionFailed("worker", why, 1.0))
        observer.observe(SessionFailed("listener", "refused", 1.0))
    assert [(line["session"], line["why"]) for line in lines] == [
        ("worker", "refused"), ("worker", "starting up"), ("listener", "refused"),
    ]  # fmt: skip


def test_lines_about_a_batch_lead_to_its_trace():
    """A line about a batch has the ids of its span, under OpenTelemetry's names; without a transaction it has none."""
    batch = Batch(status="ran", seen=3, dead_lettered=2, lineage="a history", xact_id=7)
    with capture_logs() as lines:
        LogObserver().observe(BatchRan(W, Wake.NOTIFY, batch))
        LogObserver().observe(BatchRan(W, Wake.NOTIFY, replace(batch, xact_id=0)))
    assert (lines[0]["trace_id"], lines[0]["span_id"]) == batch_link("a history", 7)
    assert "trace_id" not in lines[1]


def test_dead_letters_are_logged_by_route_and_failure_code():
    """A line names the route, the failure code and the reason of dead letters; the lines of one observation are few.

    Fails when: the line has only the number, or each of many kinds has a line.
    """
    kinds = [DeadLetters("crm", f"code_{n}", 2, f"event {n}", "the target said no") for n in range(LOGGED_KINDS + 3)]
    batch = Batch(status="ran", seen=9, dead_lettered=2)
    with capture_logs() as lines:
        LogObserver().observe(DeliveriesSettled(W, [], 2 * len(kinds), kinds))
        LogObserver().observe(BatchRan(W, Wake.NOTIFY, batch, 0.0, kinds[:1]))
    assert [line.get("failure_code") for line in lines] == [
        *(f"code_{n}" for n in range(LOGGED_KINDS)), None, "code_0",
    ]  # fmt: skip
    assert (lines[LOGGED_KINDS]["count"], lines[-1]["wake"]) == (6, "notify")
    for line in (lines[0], lines[-1]):
        assert {
            "worker": W,
            "route": "crm",
            "why": "the target said no",
            "count": 2,
            "event_id": "event 0",
        }.items() <= line.items()


def test_a_complete_audit_is_silent():
    """An audit without missing attempts writes no line."""
    with capture_logs() as lines:
        LogObserver().observe(CompletenessChecked(W, 100, 0, 1.5))
    assert lines == []


@pytest.mark.parametrize("seen", [0, 1, LOGGED_BATCH_EVENTS - 1])
def test_small_batches_are_silent(seen):
    """A batch with no or few events and without a dead letter writes no line.
    Fails when: every batch is logged, so that an idle consumer fills the disk.
    """
    with capture_logs() as lines:
        for wake in Wake:
            LogObserver().observe(BatchRan(W, wake, Batch(status="ran", seen=seen, attempts=seen)))
    assert lines == []


#: Observations without a line, because they repeat without end.
SILENT = {HeartbeatWritten, MetricsTaken, MetricsFailed, SpansExported}


@pytest.mark.parametrize("kind", sorted(set(get_args(Observation)) - SILENT, key=str), ids=lambda kind: kind.__name__)
def test_every_kind_of_observation_has_a_line(kind):
    """Every kind of observation except the silent ones is in the list of lines above.
    Fails when: an observation is added and the log does not handle it.
    """
    assert kind in {type(observation) for observation, *_ in LINES}


def test_what_needs_a_person_says_what_to_do():
    """Lines that need an action of an operator have a hint with the command."""
    acting = [
        o
        for o, level, *_ in LINES
        if isinstance(o, NotificationMissed | CompletenessChecked) or (isinstance(o, BatchRan) and level == "error")
    ]
    acting += [StateChanged(W, State.GATE_CLOSED, "worker_gate_closed")]
    with capture_logs() as lines:
        for observation in acting:
            LogObserver().observe(observation)
    assert len(lines) == 4
    assert all("iu-listen " in line["hint"] for line in lines)


@pytest.mark.parametrize("session", ["listener", "worker"])
def test_listening_is_logged_again_after_the_listener_session_has_ended(session):
    """The consumer logs that it listens once, and again after its listener session, or the worker session, was lost.

    Fails when: the loss of the worker session does not count, although it ends the listener session as well.
    """
    observer = LogObserver()
    with capture_logs() as lines:
        for observation in (Listening(1), Listening(1), SessionFailed(session, "lost", 0.1), Listening(1)):
            observer.observe(observation)
    assert [line["event"] for line in lines] == ["listening", "session failed", "listening"]


def test_json_is_one_object_a_line_on_stderr(capsys):
    """With log_format json each line on stderr is one object with level, time and text, and stdout stays empty."""
    configure("json")
    LogObserver().observe(SessionFailed("listener", 'a "quoted"\nwhy', 0.5))
    LogObserver().observe(LeaseTaken(W))
    out, err = capsys.readouterr()
    assert out == ""
    first, second = map(json.loads, err.splitlines())
    assert (first["level"], first["event"], first["why"]) == ("warning", "session failed", 'a "quoted"\nwhy')
    assert second["timestamp"].endswith("Z")


@pytest.mark.parametrize("log_format", ["console", "auto"])
def test_console_lines_are_for_people_and_auto_is_json_where_nobody_looks(capsys, log_format):
    """A console line begins with time and level; auto writes JSON if stderr is not a terminal."""
    configure(log_format)
    LogObserver().observe(LeaseTaken(W))
    line = capsys.readouterr().err
    assert "lease taken" in line
    assert line.startswith("{") == (log_format == "auto")


def test_the_event_loop_speaks_as_we_do(capsys):
    """A message of asyncio with three lines becomes one JSON line without the details of the task.

    Fails when: the asyncio logger is not configured.
    """
    configure("json")
    logging.getLogger("asyncio").error("Future exception was never retrieved\nfuture: <Future s3cret>\nat length")
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["event"], line["logger"]) == ("message of asyncio", "asyncio")
    assert "s3cret" not in json.dumps(line)


def test_the_sdk_speaks_as_we_do(capsys):
    """A message of OpenTelemetry's SDK becomes one JSON line, without its stack trace, once a minute from one place.

    Fails when: the SDK's logger is not configured.
    """
    configure("json")
    for tries in range(3):
        try:
            int("s3cret")
        except ValueError:
            logging.getLogger("opentelemetry.sdk.x").exception("try %s failed\nat length", f"s3cret {tries}")
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["event"], line["level"]) == ("message of the OpenTelemetry SDK", "warning")
    assert (line["logger"], line["why"]) == ("opentelemetry.sdk.x", "try %s failed (ValueError)")


def test_what_is_left_out_or_refused_is_a_line_a_minute():
    """A thousand malformed spans, and a thousand partial successes, are one line each, also with different reasons."""
    with capture_logs() as lines:
        observer = LogObserver()
        for number in range(1000):
            observer.observe(ExportDelayed(f"400 {number}", 0.0, f"{number:016x}"))
            observer.observe(SpansExported(9, 1, 0, "too old" if number else ""))
            observer.observe(SpansExported(10, 0, 0))
    assert [(line["event"], line["why"]) for line in lines] == [
        ("span skipped: the collector calls it malformed", "400 0"),
        ("the collector rejected spans for good", ""),
    ]
