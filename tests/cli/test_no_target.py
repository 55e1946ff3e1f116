"""A route without a usable target: every command shows the reason and the remedy until the problem is solved."""

from __future__ import annotations

import pytest

from cli.command import execute, on_one_server, rows, run, running, seen, value

pytestmark = on_one_server

ROUTE = "iu.version_applied.workflow"
MODULE = """
from iu_listen import Delivery, target

@target("event_outbox")
async def arrive(delivery: Delivery) -> None:
    pass
"""
#: Kind, reference and options of a target; the reason why it is unusable, and the remedy.
UNUSABLE = [
    ("workflow", "event_outbox", {}, "there is no target with the name event_outbox", "iu-listen run --app MODULE"),
    ("external_endpoint", "https://crm.example/", {"secrets": ["env:IU_SECRET_NOPE"]}, "IU_SECRET_NOPE is not set",
     "Set the variable IU_SECRET_NOPE"),
    ("external_endpoint", "http://127.0.0.1:8/", {}, "127.0.0.1 is loopback", "IU_LISTEN_ALLOW_PRIVATE"),
    ("external_endpoint", "http://[::1", {}, "cannot be parsed", "must be an address"),
    ("external_endpoint", "ftp://crm.example/x", {}, "there is no target for the scheme ftp", "must be an address"),
    ("external_endpoint", "nats://crm.example/x", {"password": "env:NOPE"}, "requires option user", ""),
]  # fmt: skip


@pytest.fixture
def ready(live):
    """All switches on, a live route, and an event for it."""
    run("gate", "open", "delivery", dsn=live.dsn)
    run("route", "live", ROUTE, "--why", "a test", "--yes", dsn=live.dsn)
    run("emit", dsn=live.dsn)
    return live.dsn


def aim(dsn, kind, reference, options):
    """Change the target of the live route by SQL."""
    import json

    rows(
        dsn,
        "update iu_outbound_route set target_kind = $2, target_ref = $3, delivery_policy = $4::jsonb where route_code = $1",
        ROUTE, kind, reference, json.dumps({"target": options}),
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "reference", "options", "why", "hint"), UNUSABLE, ids=[u[1] for u in UNUSABLE])
def test_a_missing_target_is_shown_by_every_command(ready, kind, reference, options, why, hint):
    """delivery list, status, doctor (which fails), health and their JSON show the reason and the hint.

    Fails when: the consumer does not store the reason, or an error of the opener ends its delivery session.
    """
    aim(ready, kind, reference, options)
    with running("run", "--log-format", "json", dsn=ready) as consumer:
        consumer.until_it_says("route paused")
        assert seen(ready, "select paused_by = 'no_target' from v_iu_delivery")
        for command in ("delivery", "list"), ("status",), ("doctor",):
            done = run(*command, dsn=ready)
            words = " ".join((done.out + done.err).split())
            assert ("no target" if command == ("doctor",) else "no_target") in words
            if command == ("doctor",):  # A table divides long texts among lines.
                words = " ".join(
                    f"{f['found']} {f['hint']}" for f in run("doctor", "--json", dsn=ready).json["findings"]
                )
            assert why in words, words
            assert hint in words, words
            assert done.code == (1 if command == ("doctor",) else 0)
        route = run("delivery", "list", "--json", dsn=ready).json["routes"][0]
        assert why in route["why"]
        assert hint in route["hint"]
        (finding,) = [f for f in run("doctor", "--json", dsn=ready).json["findings"] if f["what"] == "delivery"]
        assert finding["level"] == "fail"
        health = run("health", dsn=ready)
        assert health.code == 0
        assert f"no target: 1 ({ROUTE}: " in health.out
        assert "session failed" not in consumer.said


def test_it_is_written_on_change_and_cleared_when_it_works(ready, tmp_path):
    """The reason is written once, changes with the route, and is removed when the route has a target.

    Fails when: it is written at each check, or stays after the problem is solved.
    """
    (tmp_path / "my_targets.py").write_text(MODULE)
    with running("run", dsn=ready):
        assert seen(ready, "select count(*) = 1 from iu_delivery_unusable")
        first = rows(ready, "select xmin::text, why from iu_delivery_unusable")[0]
        # After two more checks it is the same row.
        execute(ready, "select pg_stat_force_next_flush()")
        assert seen(ready, "select renewed_at > now() - interval '1 s' from iu_delivery_lease")
        assert seen(ready, "select now() > since + interval '2.5 s' from iu_delivery_unusable")
        assert tuple(rows(ready, "select xmin::text, why from iu_delivery_unusable")[0]) == tuple(first)
        aim(ready, "external_endpoint", "ftp://x/y", {})
        assert seen(ready, "select why like 'there is no target for the scheme ftp%' from iu_delivery_unusable")
        aim(ready, "workflow", "event_outbox", {})
        assert seen(ready, "select why like 'there is no target with the name%' from iu_delivery_unusable")
    with running("run", "--app", "my_targets", dsn=ready, env={"PYTHONPATH": str(tmp_path)}):
        assert seen(ready, "select count(*) = 1 from iu_route_attempt where status = 'sent'")
        assert seen(ready, "select count(*) = 0 from iu_delivery_unusable")
        aim(ready, "external_endpoint", "ftp://x/y", {})
        assert seen(ready, "select count(*) = 1 from iu_delivery_unusable")
        aim(ready, "workflow", "event_outbox", {})
        assert seen(ready, "select count(*) = 0 from iu_delivery_unusable")
        assert run("doctor", "--json", dsn=ready).json["pass"] is True
        assert value(ready, "select paused_by from v_iu_delivery") is None


def test_deliveries_without_a_target_can_be_cancelled(ready):
    """A delivery of a live route that is paused because it has no usable target can be cancelled.

    Fails when: only the reasons that the database itself knows count as a pause.
    """
    with running("run", dsn=ready):
        assert seen(ready, "select count(*) = 1 from iu_delivery_unusable")
        done = run("delivery", "cancel", ROUTE, "--why", "a test", "--yes", dsn=ready)
        assert "Cancelled: 1 delivery" in done.out


def test_an_address_that_is_refused_at_the_connection_is_seen(ready):
    """A name that resolves to a private address pauses its route by the circuit breaker; doctor names the remedy.

    Fails when: it is shown as an outage that ends by itself.
    """
    aim(ready, "external_endpoint", "https://localhost/", {})
    with running("run", dsn=ready):
        assert seen(ready, "select why = 'address_refused' from v_iu_delivery")
        done = run("delivery", "list", dsn=ready)
        assert "IU_LISTEN_ALLOW_PRIVATE" in done.err
        findings = run("doctor", "--json", dsn=ready).json["findings"]
        (finding,) = [f for f in findings if f["what"] == "delivery"]
        assert finding["level"] == "fail"
        assert "IU_LISTEN_ALLOW_PRIVATE" in finding["hint"]
