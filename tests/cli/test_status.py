"""status shows whether all is well, the reasons if it is not, and the host of the consumer."""

from __future__ import annotations

import re

from cli.command import execute, on_one_server, refused, run, value

pytestmark = on_one_server

WORKER = "iu_outbound_default"
SILENT = f"""
    insert into iu_consumer_heartbeat (consumer_id, worker_name, host, pid, version, state, started_at, beat_at,
                                       cadence_seconds)
    values (gen_random_uuid(), '{WORKER}', 'shop-a', 4711, '0.1.0', 'idle',
            now() - interval '4 days', now() - interval '95 hours 5 minutes', 5),
           (gen_random_uuid(), '{WORKER}', 'shop-old', 4710, '0.1.0', 'stopped',
            now() - interval '9 days', now() - interval '8 days', 5);
    select fn_iu_emit_event('version_applied', 'waits', null, 'x', '{{}}') from generate_series(1, 12345);
    update event_outbox set created_at = now() - interval '95 hours';
    update iu_route_worker_cursor set last_run_at = now() - interval '95 hours 5 minutes';
    alter table dot_config disable trigger user;
    update dot_config set updated_at = now() - interval '9 days'"""


def test_status_begins_with_the_verdict(live):
    """The first line states whether each worker is healthy, the next lines the reasons; durations read as 3 d 23 h."""
    execute(live.dsn, SILENT)
    done = run("status", dsn=live.dsn)
    assert done.code == 0
    first, *rest = done.out.splitlines()
    assert first.startswith(f"NOT HEALTHY  {WORKER}: silent")
    assert any("because silent for 3 d 23 h" in line for line in rest[:3]), rest
    assert any("10 000+ events wait" in line for line in rest[:3]), rest
    refused(1, "NOT HEALTHY")("status", "--exit-code", dsn=live.dsn)
    found = run("status", "--exit-code", "--json", dsn=live.dsn)
    assert (found.code, found.json["healthy"], found.json["health"][0]["condition"]) == (1, False, "silent")
    doctor = run("doctor", dsn=live.dsn).out
    assert not re.search(r"\b342\b", doctor), "seconds as a bare number"
    assert "3 d 23 h" in doctor


def test_the_last_consumer_is_named(live):
    """The consumer with the latest heartbeat is shown at any age, and no other one that is older than a day."""
    execute(live.dsn, SILENT)
    done = run("status", dsn=live.dsn)
    assert "shop-a:4711" in done.out
    assert "3 d 23 h ago" in done.out
    assert "shop-old" not in done.out


def test_a_stopped_consumer_is_not_shown_as_polling(live):
    """A stopped consumer is not shown as polling."""
    execute(live.dsn, SILENT.replace("'shop-old', 4710, '0.1.0', 'stopped',\n            now() - interval '9 days', now() - interval '8 days'",
                                     "'shop-old', 4710, '0.1.0', 'stopped', now(), now()"))  # fmt: skip
    done = run("status", dsn=live.dsn)
    line = next(line for line in done.out.splitlines() if "shop-old" in line)
    assert "polling" not in line
    assert "stopped" in line


def test_a_healthy_worker(live):
    """If all is well, status says so, and --exit-code gives 0."""
    execute(live.dsn, f"""
        insert into iu_consumer_heartbeat (consumer_id, worker_name, host, pid, version, state, started_at, beat_at,
                                           cadence_seconds, listening)
        values (gen_random_uuid(), '{WORKER}', 'shop-a', 4711, '0.1.0', 'idle', now(), now() + interval '1 s', 5, true);
        update iu_route_worker_cursor set last_run_at = now()""")  # fmt: skip
    done = run("status", "--exit-code", dsn=live.dsn)
    assert (done.code, done.out.splitlines()[0]) == (0, f"healthy  {WORKER}: idle")


def test_a_missing_privilege_names_the_roles(live):
    """A login without a role gets the name of the role that its command needs."""
    name = "stranger_" + value(live.dsn, "select md5(random()::text)")[:8]
    execute(live.dsn, f"create role {name} login")
    try:
        refused(1, "permission denied", "iu_listen_reader", "42501")(
            "attempts", dsn=live.dsn.replace("postgres@", f"{name}@")
        )
    finally:
        execute(live.dsn, f"drop role {name}")
