"""route live and route dry: the plan, the confirmation, the switches that are still off, and the way back."""

from __future__ import annotations

import pytest

from cli.command import execute, on_one_server, refused, rows, run, value
from postgres.routes import OPEN_DELIVERY, SQL_TARGET

pytestmark = on_one_server

ROUTE = "iu.version_applied.workflow"
TARGET = f"""
    update dot_config set value = 'public.arrive' where key = 'iu_core.delivery_sql_functions';
    update iu_outbound_route set target_kind = 'sql_function', target_ref = 'public.arrive' where route_code = '{ROUTE}'
"""
LIVE = f"select enabled and not dry_run from iu_outbound_route where route_code = '{ROUTE}'"
WORK = "select fn_iu_route_worker_run('iu_outbound_default', 100)"


@pytest.fixture
def ready(live):
    """A dry route with a target that works."""
    execute(live.dsn, SQL_TARGET + ";" + TARGET)
    return live.dsn


def test_from_dry_run_to_delivery_and_back(ready):
    """A plan changes nothing; live names the switches that are still off; events are delivered only while all are on.

    Fails when: --plan writes, or a command changes only one of the two settings of the route.
    """
    run("emit", dsn=ready)
    execute(ready, WORK)
    plan = run("route", "live", ROUTE, "--why", "x", "--plan", "--json", dsn=ready)
    assert plan.json == {
        "route": ROUTE, "target_kind": "sql_function", "target_ref": "public.arrive", "live": False, "master": True,
        "worker": True, "delivery": False, "listed": False, "problem": None, "done": False,
    }  # fmt: skip
    assert value(ready, LIVE) is False

    done = run("route", "live", ROUTE, "--why", "CRM-118", "--actor", "ann", "--yes", dsn=ready)
    assert "The delivery gate is still closed. Open it: iu-listen gate open delivery" in done.err
    assert "is live, but a switch is closed (delivery gate closed)" in run("doctor", dsn=ready).out
    run("gate", "open", "delivery", dsn=ready)
    run("emit", dsn=ready)
    execute(ready, WORK)
    assert value(ready, "select count(*) from arrived") == 1
    assert f"live routes: {ROUTE}" in run("doctor", dsn=ready).out
    assert run("verify", "--live", dsn=ready).code == 0

    back = run("route", "dry", ROUTE, "--why", "incident 7", "--json", dsn=ready)
    assert (back.json["live"], back.json["listed"], back.json["done"]) == (False, False, True)
    run("emit", dsn=ready)
    execute(ready, WORK)
    assert value(ready, "select count(*) from arrived") == 1
    assert [tuple(row) for row in rows(ready, "select live, why from iu_delivery_change order by id")] == [
        (True, "CRM-118"), (False, "incident 7"),
    ]  # fmt: skip
    assert value(ready, "select actor from iu_delivery_change order by id limit 1") == "ann"


@pytest.mark.parametrize(
    ("setup", "arguments", "code", "words"),
    [
        ("", (ROUTE, "--why", "x"), 1, "nothing was changed"),
        ("", (ROUTE,), 2, "--why"),
        ("", ("nowhere", "--why", "x"), 2, f"there is no route nowhere. Existing routes: {ROUTE}."),
        ("update iu_outbound_route set target_kind = 'vector'", (ROUTE, "--why", "x", "--yes"), 1,
         "there is no target for routes of the kind vector"),
        ("drop function public.arrive", (ROUTE, "--why", "x", "--yes"), 1, "there is no function public.arrive"),
        ("update dot_config set value = '' where key like '%sql_functions'", (ROUTE, "--why", "x", "--yes"), 1,
         "is not on the list of functions"),
    ],
)  # fmt: skip
def test_problems_that_refuse_a_live_route(ready, setup, arguments, code, words):
    """Without a confirmation, a reason, or a callable target, nothing is changed, and the message names the problem."""
    if setup:
        execute(ready, setup)
    refused(code, *words.split(". "))("route", "live", *arguments, dsn=ready)
    assert value(ready, LIVE) is False


def test_the_package_is_not_taken_back_while_a_route_is_live(ready):
    """rollback refuses while a route is live and says how to turn it to dry; then the check of IU Core is restored."""
    execute(ready, OPEN_DELIVERY.format(ROUTE))
    run("route", "live", ROUTE, "--why", "x", "--yes", dsn=ready)
    run("gate", "close", "worker", dsn=ready)
    refused(1, f"route {ROUTE} is live", "iu-listen route dry")("rollback", "--yes", dsn=ready)
    run("route", "dry", ROUTE, dsn=ready)
    assert run("rollback", "--yes", dsn=ready).code == 0
    assert value(ready, "select convalidated from pg_constraint where conname = 'iu_outbound_route_safe_chk'") is True
    assert value(ready, "select count(*) from dot_config where key like 'iu_core.delivery%'") == 0
