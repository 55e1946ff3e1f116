"""iu-listen cursor reanchor: text and JSON."""

from __future__ import annotations

import signal

from cli.command import execute, holding, on_one_server, portrait, refused, rows, run, running, seen, value

pytestmark = on_one_server

ROUTE = "select fn_iu_route_worker_run('iu_outbound_default', 1000)"
#: Makes anchor and events as a dump restores them: the same contents, written by another transaction.
RESTORED = """
    create table kept as select * from iu_outbox_anchor; delete from iu_outbox_anchor;
    insert into iu_outbox_anchor select * from kept; drop table kept;
    update event_outbox set actor_ref = actor_ref
"""
WAITS = "select count(*) = 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


def foreign(dsn: str) -> None:
    """Make three events that were read, two that were not, and a foreign history."""
    run("emit", "--count", "3", dsn=dsn)
    execute(dsn, ROUTE)
    run("emit", "--count", "2", dsn=dsn)
    execute(dsn, RESTORED)


def test_from_the_refusal_to_the_end(live):
    """reanchor shows its plan, needs a confirmation and a closed gate, and afterwards no event is missing."""
    dsn = live.dsn
    foreign(dsn)
    assert run("status", "--json", dsn=dsn).json["workers"][0]["refusal"] == "foreign_history"
    assert "cursor reanchor" in refused(1, "foreign_history")("doctor", dsn=dsn).out

    before = portrait(dsn)
    done = run("cursor", "reanchor", "--plan", dsn=dsn)
    assert done.code == 0
    assert "refuses: foreign_history" in done.out
    assert "nothing was changed" in done.out
    refused(1, "Add --yes")("cursor", "reanchor", dsn=dsn)
    refused(1, "the worker gate is open", "gate close worker")("cursor", "reanchor", "--yes", dsn=dsn)
    assert portrait(dsn) == before

    run("gate", "close", "worker", dsn=dsn)
    done = run("cursor", "reanchor", "--yes", dsn=dsn)
    assert (done.code, done.out.strip()) == (0, "Done: to be read: 2 events; counted as read: 0 events.")
    assert "gate open worker" in done.err
    assert "iu-listen completeness" in done.err
    run("gate", "open", "worker", dsn=dsn)
    execute(dsn, ROUTE)
    assert value(dsn, "select count(*) from iu_route_attempt") == 5
    assert run("verify", "--live", dsn=dsn).code == 0


def test_for_machines(applied):
    """--json has the figures of every worker, and the changes."""
    dsn = applied.dsn
    run("emit", "--count", "2", dsn=dsn)
    execute(dsn, RESTORED)
    done = run("cursor", "reanchor", "--plan", "--json", "--since", "2020-01-01", dsn=dsn)
    assert done.json == {
        "done": False, "since": "2020-01-01T00:00:00+00:00", "foreign": True, "numbers_behind": 0,
        "workers": [{"worker": "iu_outbound_default", "event_domain": "iu", "refusal": "foreign_history",
                     "events": 2, "unread": 2, "uncertain": 0, "again": 2, "past": 0}],
    }  # fmt: skip
    assert refused(1)("cursor", "reanchor", "--json", dsn=dsn).json["done"] is False
    done = run("cursor", "reanchor", "--yes", "--json", dsn=dsn)
    assert (done.json["done"], done.json["again"], done.json["past"]) == (True, 2, 0)
    assert done.json["lineage"] == str(value(dsn, "select lineage from iu_outbox_anchor"))


def test_our_own_history(applied):
    """If no worker refuses its history, reanchor changes nothing without --force."""
    dsn = applied.dsn
    run("emit", dsn=dsn)
    before = portrait(dsn)
    assert "No worker refuses" in run("cursor", "reanchor", "--plan", dsn=dsn).out
    refused(1, "no worker refuses", "--force")("cursor", "reanchor", "--yes", dsn=dsn)
    assert portrait(dsn) == before
    assert "to be read: 1 event;" in run("cursor", "reanchor", "--yes", "--force", dsn=dsn).out


def test_an_invalid_time_is_refused(applied):
    """An invalid time is refused with an example of a valid one."""
    refused(2, "cannot read 'yesterday' as a timestamp or an interval", "2026-11-24T15:00:00Z")(
        "cursor", "reanchor", "--since", "yesterday", dsn=applied.dsn
    )


def test_uncertain_events_are_explained(live):
    """If a cursor cannot prove which events were read, the plan says so, and names the alternatives."""
    dsn = live.dsn
    run("emit", "--count", "3", dsn=dsn)
    execute(dsn, ROUTE)
    execute(dsn, "delete from iu_outbox_anchor; select setval('event_outbox_event_seq', 1)")
    done = run("cursor", "reanchor", "--plan", dsn=dsn)
    assert "refuses: anchor_missing" in done.out
    assert "Uncertain events are read again" in done.out
    assert "--since" in done.out
    assert "behind the newest event" in done.out


def test_reanchor_is_refused_while_a_cursor_is_locked(applied):
    """reanchor waits for a running batch for a limited time."""
    execute(applied.dsn, RESTORED)
    with holding(applied.dsn, "select from iu_route_worker_cursor for update"):
        refused(1, "a cursor is locked", "Repeat the command")("cursor", "reanchor", "--yes", dsn=applied.dsn)


def test_killed_in_the_middle(applied):
    """A command that is killed before its end has changed nothing, and can be run again.

    Fails when: it commits before the end.
    """
    dsn = applied.dsn
    run("emit", "--count", "3", dsn=dsn)
    execute(dsn, RESTORED)
    before = rows(
        dsn, "select xmin, o::text from event_outbox o union all select xmin, a::text from iu_outbox_anchor a"
    )
    with (
        holding(dsn, "select from event_outbox for update"),
        running("cursor", "reanchor", "--yes", dsn=dsn) as command,
    ):
        assert seen(dsn, WAITS)
        command.end(signal.SIGKILL)
    assert seen(dsn, "select count(*) = 1 from pg_stat_activity where datname = current_database()")
    assert before == rows(
        dsn, "select xmin, o::text from event_outbox o union all select xmin, a::text from iu_outbox_anchor a"
    )
    assert run("cursor", "reanchor", "--yes", "--json", dsn=dsn).json["again"] == 3
