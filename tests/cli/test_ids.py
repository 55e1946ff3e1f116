"""Every command that takes an id also takes the beginning of one."""

from __future__ import annotations

import pytest

from cli.command import POISON, REMEDY, ROUTE, execute, on_one_server, refused, rows, run
from iu_listen.admin.ids import id_range, is_id
from iu_listen.postgres.sqlfiles import query

pytestmark = on_one_server

ONE, TWO, THREE = (f"{begin}-0000-4000-8000-000000000001" for begin in ("abcd0001", "abcd0002", "12345678"))


@pytest.fixture
def known(live):
    """Three events, two of them with the same beginning, and a dead letter of each with a different beginning."""
    execute(live.dsn, f"""
        {POISON}
        alter table event_outbox disable trigger user;
        alter table event_outbox enable trigger zz_event_outbox_stamp""")  # fmt: skip
    for number, event in enumerate((ONE, TWO, THREE)):
        execute(live.dsn, f"""
            select fn_iu_emit_event('version_applied', 'poison', null, 'x', '{{}}');
            update event_outbox set id = '{event}' where id not in ('{ONE}', '{TWO}', '{THREE}');
            select fn_iu_route_worker_run('iu_outbound_default', 1000);
            update iu_route_dead_letter set id = overlay(id::text placing 'feed000{number}' from 1 for 8)::uuid
             where event_ref = '{event}'""")  # fmt: skip
    execute(live.dsn, REMEDY)
    assert len(rows(live.dsn, "select from iu_route_dead_letter where id::text like 'feed000%'")) == 3
    return live


def test_a_beginning_is_enough(known):
    """A unique beginning stands for the id: attempts, trace, dead-letter show and replay."""
    dsn = known.dsn
    assert {a["event"] for a in run("attempts", "--event", "abcd0001", "--json", dsn=dsn).json} == {ONE}
    assert {a["event"] for a in run("attempts", "--event", "ABCD0001-00", "--json", dsn=dsn).json} == {ONE}
    whole = run("trace", ONE, dsn=dsn)
    assert whole.code == 0
    for what in ("abcd0001", "feed0000", ONE.replace("-", "")):
        assert run("trace", what, dsn=dsn).out == whole.out
    # The number is not the id of an attempt, but the beginning of an event id.
    assert run("trace", "12345678", dsn=dsn).out == run("trace", THREE, dsn=dsn).out
    assert run("dead-letter", "show", "feed0001", "--json", dsn=dsn).json["event"] == TWO
    (plan,) = run("dead-letter", "replay", "feed0001", "--plan", "--json", dsn=dsn).json
    assert plan["event"] == TWO
    (done,) = run("dead-letter", "replay", "feed0002", "--without-delivery", "--json", dsn=dsn).json
    assert done["resolved"] is True
    done = run("delivery", "cancel", ROUTE, "--event", "abcd0001", "--why", "x", "--plan", "--json", dsn=dsn)
    assert (done.code, done.json["would_cancel"]) == (0, 0)
    assert [d["event"] for d in run("dead-letter", "list", "--event", "abcd0002", "--json", dsn=dsn).json] == [TWO]


def test_a_beginning_of_several(known):
    """A beginning of several ids exits with 2 and lists them; an unknown or too short beginning exits with 2, too."""
    dsn = known.dsn
    for command in (
        ["attempts", "--event", "abcd"],
        ["trace", "abcd"],
        ["delivery", "cancel", ROUTE, "--why", "x", "--event", "abcd"],
    ):
        done = refused(2, "is ambiguous", "several events", ONE, TWO, "Use more characters")(*command, dsn=dsn)
        assert THREE not in done.err
    for command in (["dead-letter", "show", "feed"], ["dead-letter", "replay", "feed"], ["trace", "feed"]):
        refused(2, "several dead letters", "feed0000", "feed0002")(*command, dsn=dsn)
    refused(2, "there is no event")("attempts", "--event", "0bad", dsn=dsn)
    refused(2, "there is no dead letter")("dead-letter", "show", "0bad", dsn=dsn)
    refused(1, "there is no event, attempt or dead letter with the id 0bad")("trace", "0bad", dsn=dsn)
    for wrong in ("abc", "no-id", "abcd" * 9):
        refused(2, "UUID")("attempts", "--event", wrong, dsn=dsn)
        refused(2, "UUID")("dead-letter", "replay", wrong, dsn=dsn)


@pytest.mark.parametrize("kind", ["event", "dead_letter"])
def test_the_look_up_is_a_range_of_an_index(live, kind):
    """The query for an id by its beginning reads a range of the primary key, also in a large table."""
    execute(live.dsn, """
        select fn_iu_emit_event('version_applied', 'x', null, 'x', '{}') from generate_series(1, 5000);
        insert into iu_route_dead_letter (worker_name, event_ref, route_kind, route_code, idempotency_key, attempt_no,
                                          event_snapshot, failure_code, failure_detail)
        select 'w', gen_random_uuid(), 'outbound', 'r', 'k' || n, 1, '{}', 'c', 'd' from generate_series(1, 5000) n;
        analyze event_outbox, iu_route_dead_letter""")  # fmt: skip
    plan = rows(live.dsn, f"explain (analyze, buffers, format text) {query(f'ids/{kind}')}", *id_range("abcd"))
    text = "\n".join(row[0] for row in plan)
    assert "Index" in text, text
    assert "Seq Scan" not in text
    assert "Filter" not in text


def test_valid_and_invalid_ids(server):
    """An id is a UUID with or without dashes, or at least the first four characters of one."""
    for text in (ONE, ONE.replace("-", ""), "abcd", "ABCD0001-0000-4"):
        assert is_id(text)
    for text in ("", "abc", "-", "a-b-c", "xyz12", ONE + "0", "abcd ", "abcd\n"):
        assert not is_id(text)
    low, high = id_range("abcd0001-0000-4")
    assert str(low) == "abcd0001-0000-4000-0000-000000000000"
    assert str(high) == "abcd0001-0000-4fff-ffff-ffffffffffff"
