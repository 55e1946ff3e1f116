"""The command group worker: workers of further domains, without SQL."""

from __future__ import annotations

import pytest

from cli.command import execute, ok, on_one_server, portrait, refused, running, seen, value

pytestmark = on_one_server


def test_a_worker_of_another_domain_routes_its_events(live):
    """A worker that was added reads the events of its domain, from the first one, and no others.

    Fails when: it starts at the present, or reads another domain.
    """
    ok("event-type", "add", "lead_won", "--domain", "crm", "--stream", "update", dsn=live.dsn)
    event = """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
               values ('crm', 'lead_won', 'update', 'immediate')"""
    execute(live.dsn, event)
    ok("worker", "add", "crm", "--domain", "crm", dsn=live.dsn)
    ok("route", "add", "crm.mail", "--type", "lead_won", "--to", "mail", "--domain", "crm", dsn=live.dsn)
    execute(live.dsn, event + "; select fn_iu_route_worker_run('crm', 10)")
    found = {w["worker"]: w for w in ok("worker", "list", "--json", dsn=live.dsn).json}
    assert (found["crm"]["event_domain"], found["crm"]["total_seen"], found["crm"]["backlog"]) == ("crm", 2, 0)
    assert found["iu_outbound_default"]["total_seen"] == 0
    assert value(live.dsn, "select count(*) from iu_route_attempt where route_code = 'crm.mail'") == 2


def test_a_removed_worker_leaves_only_its_attempts(live):
    """remove deletes the cursor and the state of the worker; its attempts stay, and --plan removes nothing."""
    ok("worker", "add", "second", "--domain", "iu", dsn=live.dsn)
    execute(
        live.dsn,
        """select fn_iu_emit_event('version_applied', 'a', gen_random_uuid(), 'test', '{}');
           select fn_iu_route_worker_run('second', 10);
           insert into iu_completeness_pass (worker_name) values ('second')""",
    )
    before = portrait(live.dsn)
    ok("worker", "remove", "second", "--plan", dsn=live.dsn)
    assert portrait(live.dsn) == before
    refused(1, "nothing was changed", "--yes")("worker", "remove", "second", dsn=live.dsn)
    ok("worker", "remove", "second", "--yes", dsn=live.dsn)
    for table in ("iu_route_worker_cursor", "iu_completeness_pass", "iu_consumer_heartbeat"):
        assert value(live.dsn, f"select count(*) from {table} where worker_name = 'second'") == 0
    assert value(live.dsn, "select count(*) from iu_route_attempt") == 1


def test_a_worker_with_waiting_deliveries_stays(live):
    """A worker is not removed while its deliveries wait, because no other worker would deliver them."""
    ok("worker", "add", "second", "--domain", "iu", dsn=live.dsn)
    execute(
        live.dsn,
        """insert into iu_route_delivery (worker_name, route_code, event_ref)
           values ('second', 'x', gen_random_uuid())""",
    )
    refused(1, "deliveries of second wait", "delivery cancel")("worker", "remove", "second", "--yes", dsn=live.dsn)


def test_a_worker_with_a_consumer_stays(live):
    """A worker is not removed while a session holds its lease."""
    ok("worker", "add", "second", "--domain", "iu", dsn=live.dsn)
    with running("run", "--worker", "second", dsn=live.dsn):
        assert seen(live.dsn, "select exists (select from iu_consumer_heartbeat where worker_name = 'second')")
        refused(1, "a consumer works for second", "Stop the consumer")(
            "worker", "remove", "second", "--yes", dsn=live.dsn
        )


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("add", "iu_outbound_default", "--domain", "iu"), 1, "there is a worker iu_outbound_default already"),
        (("add", "bad name", "--domain", "iu"), 2, "is not a name"),
        (("remove", "nope", "--yes"), 2, "there is no worker nope"),
        (("remove", "iu_outbound_default", "--yes"), 1, "is the default worker"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input(live, args, code, says):
    """Wrong names are refused, and nothing changes."""
    before = portrait(live.dsn)
    refused(code, says)("worker", *args, dsn=live.dsn)
    assert portrait(live.dsn) == before
