"""init and the commands for event types and routes: an application without IU Core needs no SQL."""

from __future__ import annotations

import re

import pytest

from cli.command import execute, ok, on_one_server, portrait, refused, run, value
from iu_listen.admin.routes import parse_target

pytestmark = on_one_server


def test_init_makes_an_inert_outbox_without_tables_of_iu_core(neutral):
    """After init the W checks pass and the gates are closed; no table, type or route of IU Core exists.

    Fails when: the neutral base contains business data of IU Core, or the package needs it.
    """
    assert value(neutral, "select to_regclass('information_unit') is null and to_regclass('unit_version') is null")
    assert value(neutral, "select count(*) from event_type_registry") == 0
    assert value(neutral, "select count(*) from iu_outbound_route") == 0
    ok("verify", dsn=neutral)
    assert {g["gate"]: g["open"] for g in ok("gate", "show", "--json", dsn=neutral).json} == {
        "master": True, "worker": False, "delivery": False,
    }  # fmt: skip
    assert ok("doctor", "--json", dsn=neutral).json["pass"]


def test_the_probe_passes_on_the_neutral_base(neutral):
    """The probe passes all scenarios and leaves nothing behind, although the base has neither its type nor its route."""
    before = portrait(neutral)
    ok("probe", dsn=neutral)
    assert portrait(neutral) == before


def test_init_beside_tables_of_an_application(empty):
    """init keeps the tables of the application, and can be planned."""
    execute(empty.dsn, "create table orders (id bigint primary key); insert into orders values (7)")
    before = portrait(empty.dsn)
    assert run("init", "--plan", dsn=empty.dsn).code == 1
    assert portrait(empty.dsn) == before
    ok("init", dsn=empty.dsn)
    assert value(empty.dsn, "select id from orders") == 7


def test_init_prints_a_summary(empty):
    """init prints a few lines: what was done, or only what prevents it; --verbose and --json have all gates and checks.

    The number of files is the same everywhere. Fails when: a check that passed is a line of its own, or a gate that
    fails only because of another one.
    """
    done = run("init", "--plan", dsn=empty.dsn)
    assert done.out == "Plan: the tables of the neutral base and the package would be created; nothing was changed.\n"
    done = run("init", "--expect-database", "other", dsn=empty.dsn)
    assert (done.code, done.out.count("FAIL")) == (1, 2)
    assert "expected database other" in done.out
    assert done.out.endswith("Nothing was changed.\n")
    shown = run("init", "--verbose", "--plan", dsn=empty.dsn).out
    (files,) = re.findall(r"(\d+) files and the commands 070 and 080, each with its rollback", shown)
    first, second = ok("init", dsn=empty.dsn).out.splitlines()
    assert first == f"The outbox and iu-listen are ready: {files} files applied, 31 checks passed."
    assert second.startswith("Gates: master open, worker closed, delivery closed.")
    assert f"{files} files are applied" in ok("doctor", dsn=empty.dsn).out


def test_init_verbose_shows_every_check(empty):
    """init --verbose shows every gate with its evidence, and every check."""
    shown = ok("init", "--verbose", dsn=empty.dsn).out
    assert (shown.count("PASS  gate"), " W28 " in shown) == (8, True)


def test_a_second_init_changes_nothing(neutral):
    """A second init says what is there, and succeeds."""
    before = portrait(neutral)
    assert "iu-listen is there: schema" in ok("init", dsn=neutral).out
    assert ok("init", "--json", dsn=neutral).json["base"] == "present"
    assert portrait(neutral) == before


@pytest.mark.parametrize(
    ("kind", "says"), [("substrate", "an outbox without iu-listen"), ("applied", "iu-listen is there")]
)
def test_init_refuses_a_database_of_iu_core(server, kind, says, request):
    """In a database of IU Core, init changes nothing and names the right command."""
    dsn = request.getfixturevalue(kind).dsn
    before = portrait(dsn)
    refused(1, says, "on the base of IU Core; nothing was changed", "iu-listen apply")("init", dsn=dsn)
    assert portrait(dsn) == before


def test_an_event_of_an_own_type_is_routed_without_sql(neutral):
    """Commands alone register a type, create a route, and route an event; subjects have any text as id."""
    ok("event-type", "add", "order_placed", dsn=neutral)
    ok("route", "add", "crm", "--type", "order_placed", "--to", "to_crm", dsn=neutral)
    ok("gate", "open", "worker", dsn=neutral)
    ok("emit", "--type", "order_placed", "--payload", '{"body": "any key"}', dsn=neutral)
    execute(neutral, "insert into event_outbox (event_type, event_subject_ref) values ('order_placed', 'order 7')")
    execute(neutral, "select fn_iu_route_worker_run('iu_outbound_default', 10)")
    found = ok("attempts", "--json", dsn=neutral).json
    assert [(a["route"], a["status"]) for a in found] == [("crm", "dry_run")] * 2


def test_types_and_routes_are_listed_and_removed(neutral):
    """A type is added twice, listed, and removed after its route; --plan removes nothing."""
    for _ in range(2):
        ok("event-type", "add", "order_placed", dsn=neutral)
    ok("route", "add", "hook", "--type", "order_placed", "--to", "https://a.example/x", dsn=neutral)
    (found,) = ok("event-type", "list", "--json", dsn=neutral).json
    assert (found["event_type"], found["event_stream"], found["active"], found["routes"]) == (
        "order_placed", "event", True, 1,
    )  # fmt: skip
    refused(1, "order_placed has routes: 1", "route remove")(
        "event-type", "remove", "order_placed", "--yes", dsn=neutral
    )
    ok("route", "remove", "hook", "--plan", dsn=neutral)
    refused(1, "nothing was changed", "--yes")("route", "remove", "hook", dsn=neutral)
    ok("route", "remove", "hook", "--yes", dsn=neutral)
    ok("event-type", "remove", "order_placed", "--plan", dsn=neutral)
    ok("event-type", "remove", "order_placed", "--yes", dsn=neutral)
    assert ok("event-type", "list", "--json", dsn=neutral).json == []


def test_a_live_route_is_not_removed(neutral):
    """A live route is removed only after it was made a dry run."""
    ok("event-type", "add", "order_placed", dsn=neutral)
    ok("route", "add", "crm", "--type", "order_placed", "--to", "to_crm", dsn=neutral)
    ok("route", "live", "crm", "--why", "a test", "--yes", dsn=neutral)
    refused(1, "crm is live, or has deliveries that wait", "route dry crm")(
        "route", "remove", "crm", "--yes", dsn=neutral
    )
    ok("route", "dry", "crm", dsn=neutral)
    ok("route", "remove", "crm", "--yes", dsn=neutral)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("emit", "--type", "nope"), 2, ("nope",)),
        (("event-type", "add", "bad name"), 2, ("is not a name",)),
        (("event-type", "add", "order_placed", "--stream", "other"), 1, ("is registered with stream event",)),
        (("event-type", "remove", "nope", "--yes"), 2, ("not registered", "event-type add nope")),
        (("route", "add", "x", "--type", "nope", "--to", "y"), 2, ("nope is not registered", "event-type add nope")),
        (("route", "add", "there", "--type", "order_placed", "--to", "y"), 1, ("there is a route there already",)),
        (("route", "remove", "nope", "--yes"), 2, ("there is no route nope",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_bad_input_names_the_remedy(neutral, args, code, says):
    """Wrong names are refused, change nothing, and the message names the command that helps."""
    ok("event-type", "add", "order_placed", dsn=neutral)
    ok("route", "add", "there", "--type", "order_placed", "--to", "y", dsn=neutral)
    before = portrait(neutral)
    refused(code, *says)(*args, dsn=neutral)
    assert portrait(neutral) == before


def test_payload_keys_can_be_forbidden(neutral):
    """The list of forbidden payload keys is off by default; if it is set, an event with such a key is refused."""
    ok("event-type", "add", "order_placed", dsn=neutral)
    emit = ("emit", "--type", "order_placed", "--payload", '{"token": "x"}')
    ok(*emit, dsn=neutral)
    execute(neutral, "insert into dot_config (key, value) values ('iu_listen.forbidden_payload_keys', 'body, token')")
    done = run(*emit, dsn=neutral)
    assert done.code == 1
    assert "forbidden" in done.err
    ok("emit", "--type", "order_placed", "--payload", '{"total": 5}', dsn=neutral)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("to_crm", ("workflow", "to_crm")),
        ("coroutine:to_crm", ("workflow", "to_crm")),
        ("https://a.example/x", ("external_endpoint", "https://a.example/x")),
        ("sql:public.arrive", ("sql_function", "public.arrive")),
    ],
)
def test_the_short_form_of_a_target(server, text, target):
    """--to names a coroutine, an address, or an SQL function."""
    assert parse_target(text) == target
