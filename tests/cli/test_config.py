"""The configuration file: plan, apply and show, and what is wrong in a file."""

from __future__ import annotations

import asyncpg
import pytest

from cli.command import Done, execute, on_one_server, portrait, refused, run, value
from iu_listen.model.config_file import ConfigFile, RouteEntry, TypeEntry, parse
from iu_listen.model.errors import ConfigurationError

FILE = """
[types.order_placed]

[types."order.paid"]
stream = "money"

[routes.crm]
type = "order_placed"
to = "https://a.example/x"
policy = { attempts = 3, order = "subject", target = { mode = "binary" } }

[routes.mail]
type = "order.paid"
to = "send_mail"

[workers.crm]
domain = "crm"

[retention]
events = "90 days"
"""


@pytest.fixture
def file(tmp_path) -> str:
    """The path of a file with FILE."""
    path = tmp_path / "iu-listen.toml"
    path.write_text(FILE)
    return str(path)


def ok(*args: str, dsn: str) -> Done:
    done = run("config", *args, dsn=dsn)
    assert done.code == 0, done.out + done.err
    return done


@on_one_server
def test_a_file_is_planned_applied_and_shown(neutral, file, tmp_path):
    """plan changes nothing, apply makes every difference, and show prints a file without a difference.

    Fails when: plan writes, a difference is found again after apply, or show leaves something out.
    """
    before = portrait(neutral)
    plan = ok("plan", "--file", file, "--json", dsn=neutral).json
    assert portrait(neutral) == before
    assert [(c["kind"], c["name"]) for c in plan["changes"]] == [
        ("type", "order_placed"), ("type", "order.paid"), ("worker", "crm"), ("route", "crm"), ("policy", "crm"),
        ("route", "mail"), ("retention", "events"),
    ]  # fmt: skip
    refused(1, "nothing was changed", "--yes")("config", "apply", "--file", file, dsn=neutral)
    assert portrait(neutral) == before
    assert "7 changes made" in ok("apply", "--file", file, "--yes", dsn=neutral).out
    assert "The database is as the file says." in ok("apply", "--file", file, "--yes", dsn=neutral).out
    assert value(neutral, "select dry_run from iu_outbound_route where route_code = 'crm'")
    shown = tmp_path / "shown.toml"
    shown.write_text(ok("show", dsn=neutral).out)
    assert ok("plan", "--file", str(shown), "--json", dsn=neutral).json["changes"] == []
    assert {t.name for t in parse(shown.read_text()).types} == {"order_placed", "order.paid"}


@on_one_server
def test_other_entries_stay(neutral, file):
    """An entry that the file does not name stays, and a changed policy is set to that of the file."""
    for args in (
        ("event-type", "add", "other"), ("route", "add", "own", "--type", "other", "--to", "x"),
    ):  # fmt: skip
        assert run(*args, dsn=neutral).code == 0
    ok("apply", "--file", file, "--yes", dsn=neutral)
    assert run("route", "policy", "crm", "attempts=9", "backoff=2", dsn=neutral).code == 0
    (change,) = ok("plan", "--file", file, "--json", dsn=neutral).json["changes"]
    assert change["kind"] == "policy"
    ok("apply", "--file", file, "--yes", dsn=neutral)
    assert (
        value(neutral, "select delivery_policy ->> 'attempts' from iu_outbound_route where route_code = 'crm'") == "3"
    )
    assert value(neutral, "select count(*) from iu_outbound_route where route_code = 'own'") == 1


@on_one_server
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('stream = "money"', 'stream = "cash"', "has stream money"),
        ("https://a.example/x", "https://b.example/x", "route crm delivers order_placed to external_endpoint"),
        ('domain = "crm"', 'domain = "erp"', "worker crm reads domain crm"),
        ("https://a.example/x", "nats://ann:canary@a.example/x", "contains a password"),
    ],
)
def test_a_property_that_does_not_change_is_refused(neutral, file, tmp_path, old, new, says):
    """A stream, a target or a domain that differs is refused with both values, and nothing changes."""
    ok("apply", "--file", file, "--yes", dsn=neutral)
    before = portrait(neutral)
    other = tmp_path / "other.toml"
    other.write_text(FILE.replace(old, new).replace("[types.order_placed]", "[types.order_placed]\n[types.new]"))
    done = refused(1, says)("config", "apply", "--file", str(other), "--yes", dsn=neutral)
    assert "canary" not in done.err
    assert portrait(neutral) == before


@on_one_server
def test_an_apply_that_fails_changes_nothing(neutral, file, tmp_path):
    """If one change fails, the others are rolled back.

    Fails when: each change is a transaction of its own.
    """
    other = tmp_path / "other.toml"
    other.write_text(FILE.replace("attempts = 3", "attempts = -3"))
    before = portrait(neutral)
    refused(1, "policy crm: ", "attempts")("config", "apply", "--file", str(other), "--yes", dsn=neutral)
    assert portrait(neutral) == before


@on_one_server
@pytest.mark.parametrize(
    ("old", "new", "code", "says"),
    [
        ("attempts = 3", "attempts = -3", 1, "policy crm: delivery policy: attempts must be a whole number"),
        ("attempts = 3", "attemps = 3", 1, "policy crm: delivery policy: there is no setting attemps"),
        ('type = "order_placed"', 'type = "order_place"', 2, "route crm: event type order_place is not registered"),
        ("[workers.crm]", '[workers."c r m"]', 2, "c r m"),
    ],
    ids=["value", "setting", "type", "worker"],
)
def test_a_plan_refuses_each_file_that_apply_refuses(neutral, tmp_path, old, new, code, says):
    """A plan refuses what the database would refuse, names the entry, and changes nothing.

    Fails when: a plan only compares, so that a reviewed file fails when it is applied.
    """
    other = tmp_path / "other.toml"
    other.write_text(FILE.replace(old, new))
    before = portrait(neutral)
    for args in (("plan",), ("apply", "--yes")):
        refused(code, says)("config", *args, "--file", str(other), dsn=neutral)
    assert portrait(neutral) == before


@on_one_server
def test_a_plan_names_new_routes_that_cannot_be_made_live(neutral, tmp_path):
    """A route may be a dry run to a target that refuses deliveries; the plan says so, and does not fail."""
    other = tmp_path / "other.toml"
    other.write_text(FILE.replace('to = "send_mail"', 'to = "sql:public.nothing"'))
    done = ok("plan", "--file", str(other), dsn=neutral)
    assert "Route mail cannot be made live: " in done.err
    assert "crm" not in done.err


@on_one_server
def test_a_plan_with_differences_can_fail(neutral, file):
    """--check exits with 1 while there are differences, for a check in a pipeline."""
    assert run("config", "plan", "--check", "--file", file, dsn=neutral).code == 1
    ok("apply", "--file", file, "--yes", dsn=neutral)
    ok("plan", "--check", "--file", file, dsn=neutral)


@on_one_server
def test_a_plan_without_the_right_to_write_compares(neutral, file):
    """A session that may not write gets the differences, and a note that the changes were not tried."""
    done = ok("plan", "--file", file, dsn=f"{neutral}&options=-c%20default_transaction_read_only%3Don")
    assert "order.paid" in done.out
    assert "The changes were not tried: " in done.err


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("[types.a]\nstreem = 'x'\n", "line 2: unknown key streem of [types.a]", "Did you mean stream?"),
        ("\n\n[route.crm]\n", "line 3: unknown key route", "Did you mean routes?"),
        ("[routes.crm]\ntype = 'a'\n", "line 1: [routes.crm] lacks to", ""),
        ("[routes.crm]\ntype = 5\nto = 'x'\n", "line 2: type of [routes.crm] must be a text, not 5", ""),
        ("[routes.crm]\ntype = 'a'\nto = 'x'\npolicy = 3\n", "line 4: policy of [routes.crm] must be a table", ""),
        ("types = 3\n", "line 1: types must be a table", ""),
        ("[workers]\ncrm = 'crm'\n", "line 2: [workers.crm] must be a table", ""),
        ("[retention]\nevent = '1 day'\n", "line 2: unknown key event of [retention]", "Did you mean events?"),
        ("[types.a\n", "the file is not TOML", "toml.io"),
        ("[routes.a.b]\ntype = 'a'\n", "line 1: unknown key b of [routes.a]", 'Quote a name with dots: [routes."a.b"]'),
    ],
)
def test_what_is_wrong_in_a_file_has_a_line(text, says, hint):
    """Each mistake names its line, and an unknown key the nearest valid one."""
    with pytest.raises(ConfigurationError) as error:
        parse(text)
    assert says in error.value.message
    assert hint in error.value.hint


def test_a_file_is_read():
    """Defaults are filled in, and names with dots are possible."""
    config = parse(FILE)
    assert config.types == (TypeEntry("order_placed"), TypeEntry("order.paid", stream="money"))
    assert config.routes[1] == RouteEntry("mail", "order.paid", "send_mail")
    assert (config.workers, config.retention) == ({"crm": "crm"}, {"events": "90 days"})
    assert parse("") == ConfigFile()


def test_a_missing_file_is_named():
    """A file that does not exist is an error that names it."""
    refused(2, "nowhere.toml cannot be read", "config show")("config", "plan", "--file", "nowhere.toml")


def test_forbidden_keys_of_payloads(neutral, live, tmp_path):
    """[payload] forbids keys and permits them again; a file without it changes nothing; show prints the list.

    Fails when: the list is not set, an empty list forbids something, or IU Core's own list is taken for it.
    """
    path = tmp_path / "iu-listen.toml"

    def apply(text: str, dsn: str = neutral) -> Done:
        path.write_text(text)
        return run("config", "apply", "--file", str(path), "--yes", dsn=dsn)

    event = "insert into event_outbox (event_type, safe_payload) values ('t', '{\"token\": 1}')"
    assert apply('[types.t]\n[payload]\nforbidden_keys = ["token", "password"]').code == 0
    with pytest.raises(asyncpg.CheckViolationError, match="forbidden here"):
        execute(neutral, event)
    assert 'forbidden_keys = ["token", "password"]' in run("config", "show", dsn=neutral).out
    assert apply("[types.t]").code == 0
    path.write_text("[types.u]")
    refused(1, "iu-listen config plan")("config", "apply", "--file", str(path), dsn=neutral)
    assert value(neutral, "select value from dot_config where key like '%forbidden%'") == "token,password"
    assert apply("[payload]\nforbidden_keys = []").code == 0
    execute(neutral, event)
    assert "[payload]" not in run("config", "show", dsn=neutral).out
    done = apply('[payload]\nforbidden_keys = ["a,b"]')
    assert (done.code, "line 2" in done.err) == (2, True)
    assert "fixed list" in apply("[payload]\nforbidden_keys = []", live.dsn).err
