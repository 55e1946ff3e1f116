"""route backtest: compares the effect of a new or changed route with the recorded attempts, and changes nothing."""

from __future__ import annotations

import pytest

from cli.command import POISON, ROUTE, execute, on_one_server, portrait, refused, run

pytestmark = on_one_server

TYPES = """
    insert into event_type_registry (event_domain, event_type, event_stream, delivery_lane)
    values ('iu', 'noted', 'update', 'immediate'), ('iu', 'moved', 'update', 'immediate')
"""
NEW = """
    insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled)
    values ('new', 'iu', 'noted', 'update', 'workflow', 'x', {})
"""
EVENTS = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, canonical_address, created_at)
    select 'iu', '{}', 'update', 'immediate', '{}', now() - interval '{}' from generate_series(1, {}) n
"""
WORK = "select fn_iu_route_worker_run('iu_outbound_default', 10000)"


@pytest.fixture
def past(live):
    """Three events of type noted without a route, an old one, two that are not routed yet, and five version events."""
    execute(live.dsn, TYPES)
    execute(live.dsn, EVENTS.format("noted", "kb/1", "1 hour", 3) + ";" + EVENTS.format("noted", "kb/0", "9 days", 1))
    execute(live.dsn, EVENTS.format("version_applied", "kb/2", "1 hour", 4))
    execute(live.dsn, POISON + ";" + EVENTS.format("version_applied", "poison", "1 hour", 1))
    execute(live.dsn, WORK)
    execute(live.dsn, EVENTS.format("noted", "kb/3", "1 minute", 2))
    return live


def backtest(dsn: str, code: str, *more: str) -> dict[tuple[str, str], int]:
    """Number of events by the effect of the route and the recorded result."""
    found = run("route", "backtest", code, *more, "--json", dsn=dsn).json
    assert found["route"] == code
    return {(row["would"], row["was"]): row["events"] for row in found["events"]}


def test_a_backtest_shows_the_events_that_a_new_route_would_take(past):
    """A new, disabled route would take events that no route took, of the last day or of the given period.

    Fails when: only enabled routes are considered, or the period is not applied.
    """
    execute(past.dsn, NEW.format("false"))
    assert backtest(past.dsn, "new") == {("take", "no_route"): 3, ("take", "not decided"): 2}
    assert backtest(past.dsn, "new", "--since", "30 days") == {("take", "no_route"): 4, ("take", "not decided"): 2}
    done = run("route", "backtest", "new", dsn=past.dsn)
    assert "skipped: no route selected it" in done.out
    assert "nothing was changed" in done.err
    assert "The route selects no event since" in run("route", "backtest", "new", "--since", "1 s", dsn=past.dsn).err


def test_a_backtest_shows_the_events_that_a_changed_route_would_leave(past):
    """A route with a changed type would leave the events that it took, failed ones included, and take others."""
    assert backtest(past.dsn, ROUTE) == {("take", "dry_run"): 4, ("take", "failed"): 1}
    execute(past.dsn, f"update iu_outbound_route set event_type = 'noted' where route_code = '{ROUTE}'")
    assert backtest(past.dsn, ROUTE) == {
        ("leave", "dry_run"): 4, ("leave", "failed"): 1, ("take", "no_route"): 3, ("take", "not decided"): 2
    }  # fmt: skip


def test_a_date_that_python_cannot_count(past):
    """Events with a date beyond the range of Python, or infinity, are counted; the year 9999 is shown for them.

    Fails when: the latest date is shown unchanged.
    """
    execute(past.dsn, NEW.format("false"))
    for events, created in ((3, "20000-01-01"), (4, "infinity")):
        execute(past.dsn, EVENTS.format("noted", "kb/9", "0", 1).replace("now() - interval '0'", f"'{created}'"))
        done = run("route", "backtest", "new", "--json", dsn=past.dsn).json
        (row,) = (r for r in done["events"] if r["was"] == "not decided")
        assert (row["events"], row["youngest"][:10]) == (events, "9999-12-30")


def test_nothing_is_changed(past):
    """A backtest only reads."""
    execute(past.dsn, NEW.format("true"))
    before = portrait(past.dsn)
    backtest(past.dsn, "new", "--since", "30 days")
    assert portrait(past.dsn) == before


def test_what_is_typed_wrong(past):
    """An unknown route or an invalid time is reported, with the permitted values."""
    refused(2, "there is no route nowhere", f"Existing routes: {ROUTE}", dsn=past.dsn)("route", "backtest", "nowhere")
    refused(2, "cannot read 'sometime' as a timestamp or an interval", dsn=past.dsn)(
        "route", "backtest", ROUTE, "--since", "sometime"
    )
