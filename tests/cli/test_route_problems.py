"""route live, its plan, route policy and SQL agree on whether a route can deliver."""

from __future__ import annotations

import json
from importlib.metadata import entry_points

import asyncpg
import pytest

from cli.command import execute, on_one_server, refused, rows, run, value
from iu_listen.targets import ENTRY_POINT_GROUP
from iu_listen.targets.http.options import HTTP_OPTIONS
from iu_listen.targets.kafka import KAFKA_OPTIONS
from iu_listen.targets.nats import NATS_OPTIONS
from iu_listen.targets.redis import REDIS_OPTIONS

pytestmark = on_one_server

ROUTE = "iu.version_applied.workflow"
LIVE = "select enabled and not dry_run from iu_outbound_route"
GO_LIVE = f"select fn_iu_route_live('{ROUTE}', true, 'a test')"
ALLOWED = "update dot_config set value = '{}' where key = 'iu_core.delivery_{}'"

#: Each problem of a route: kind, reference, options, further SQL; the message; whether the database detects it, too.
PROBLEMS = {
    "kind": ("vector", "x", {}, "", "there is no target for routes of the kind vector", True),
    "function": ("sql_function", "public.nothing", {}, "", "is not on the list of functions", True),
    "no function": (
        "sql_function", "public.nothing", {}, ALLOWED.format("public.nothing", "sql_functions"), "there is no function", True,
    ),
    "no name": ("workflow", " ", {}, "", "its target_ref is empty", True),
    "no address": ("external_endpoint", "not a url", {}, "", "its target_ref is no address", True),
    "empty": ("external_endpoint", "", {}, "", "its target_ref is no address", True),
    "scheme": ("external_endpoint", "ftp://x/y", {}, "", "there is no target for the scheme ftp", True),
    "misspelt scheme": ("external_endpoint", "htps://x/y", {}, "", "there is no target for the scheme htps", True),
    "scheme of nobody": (
        "external_endpoint", "amqp://x/y", {}, ALLOWED.format("amqp", "schemes"), "there is no target for the scheme amqp", False,
    ),
    "password": ("external_endpoint", "https://user:S3cret@h/x", {}, "", "must not contain a user or a password", True),
    "bracket": ("external_endpoint", "http://[::1", {}, "", "cannot be parsed", False),
    "no topic": ("external_endpoint", "kafka://nope", {}, "", "must be a topic", False),
    "no subject": ("external_endpoint", "nats://h", {}, "", "must be tokens between dots", False),
    "no stream": ("external_endpoint", "redis://h", {}, "", "stream", False),
    "type": ("workflow", "x", {}, "update iu_outbound_route set event_type = 'nothing'", "is not registered", True),
    "inactive": ("workflow", "x", {}, "update event_type_registry set active = false", "is not registered and active", True),
    "stream": ("workflow", "x", {}, "update iu_outbound_route set event_stream = 'task'", "belongs to stream update", True),
    "value": ("external_endpoint", "https://h/", {"mode": "bunary"}, "", "must be structured or binary", False),
    "secret": ("external_endpoint", "https://h/", {"secrets": ["S3cret"]}, "", "invalid reference to a secret", False),
}  # fmt: skip
#: Options that no target of the scheme has.
MISSPELT = [
    ("https://h/", {"allow_privat": ["10.0.0.0/8"]}), ("kafka://h/t", {"topic": "t"}), ("nats://h/s", {"pasword": "env:X"}),
    ("redis://h/0?stream=s", {"max_len": 3}),
]  # fmt: skip
AIM = """update iu_outbound_route set target_kind = $1, target_ref = $2, delivery_policy = $3::jsonb"""


def aim(dsn, kind, reference, options):
    rows(dsn, AIM, kind, reference, json.dumps({"target": options}))


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_plan_of_a_refused_change_exits_with_1(live, name):
    """The plan and the command refuse with the same message and exit code 1, and change nothing.

    If the database can detect the problem, it also refuses with this message when the route goes live by SQL.

    Fails when: the plan does not check everything that the command checks; a password is shown.
    """
    kind, reference, options, further, words, known = PROBLEMS[name]
    aim(live.dsn, kind, reference, options)
    if further:
        execute(live.dsn, further)
    plan = refused(1, words, "cannot deliver")("route", "live", ROUTE, "--why", "x", "--plan", dsn=live.dsn)
    done = refused(1, words, "Nothing was changed")("route", "live", ROUTE, "--why", "x", "--yes", dsn=live.dsn)
    answer = run("route", "live", ROUTE, "--why", "x", "--plan", "--json", dsn=live.dsn)
    assert (answer.code, words in answer.json["problem"]) == (1, True)
    if known:
        with pytest.raises(asyncpg.FeatureNotSupportedError) as raised:
            execute(live.dsn, GO_LIVE)
        assert words in str(raised.value)
    assert value(live.dsn, LIVE) is False
    for said in plan, done, answer, run("route", "list", dsn=live.dsn):
        assert "S3cret" not in said.out + said.err


@pytest.mark.parametrize(("reference", "options"), MISSPELT)
def test_a_misspelt_option_is_refused_where_it_is_written(live, reference, options):
    """route policy and plain SQL refuse an option that the target does not have, and name the existing ones.

    A route that already has such an option can be stopped.

    Fails when: only the consumer checks options; or a route with such an option cannot be turned to dry run.
    """
    aim(live.dsn, "external_endpoint", reference, {})
    wrong = next(iter(options))
    refused(1, wrong)("route", "policy", ROUTE, f"target={json.dumps(options)}", dsn=live.dsn)
    with pytest.raises(asyncpg.CheckViolationError, match=f"have no option {wrong}"):
        aim(live.dsn, "external_endpoint", reference, options)
    execute(live.dsn, "alter table iu_outbound_route disable trigger zz_iu_outbound_route_guard")
    aim(live.dsn, "external_endpoint", reference, options)
    execute(
        live.dsn,
        "update iu_outbound_route set dry_run = false; "
        "alter table iu_outbound_route enable always trigger zz_iu_outbound_route_guard",
    )
    assert run("route", "dry", ROUTE, dsn=live.dsn).code == 0
    assert value(live.dsn, LIVE) is False
    refused(1, wrong)("route", "live", ROUTE, "--why", "x", "--plan", dsn=live.dsn)


def test_a_problem_that_the_consumer_may_not_have_is_a_warning(live):
    """Only the consumer decides whether a private host may be reached: the command names the host and continues.

    Fails when: the command refuses by the settings of its own process; or a route can permit the host by itself.
    """
    aim(live.dsn, "external_endpoint", "http://127.0.0.1:1/", {})
    assert run("route", "policy", ROUTE, "attempts=3", dsn=live.dsn).code == 0
    plan = run("route", "live", ROUTE, "--why", "x", "--plan", dsn=live.dsn)
    assert (plan.code, "is loopback" in plan.err, "IU_LISTEN_ALLOW_PRIVATE=127.0.0.1" in plan.err) == (0, True, True)
    options = json.dumps({"allow_private": ["127.0.0.1"]})
    refused(1, "allow_private")("route", "policy", ROUTE, f"target={options}", dsn=live.dsn)


def test_a_valid_route_goes_live_without_the_secrets_of_the_consumer(live):
    """A route with secrets and a CA file that only the consumer has is accepted by the command without them.

    Fails when: a secret or a file is read where the command runs.
    """
    options = {
        "secrets": ["env:NOT_HERE"],
        "headers": {"authorization": {"secret": "file:/not/here"}},
        "ca": "/not/here",
    }
    aim(live.dsn, "external_endpoint", "https://crm.example/hook", options)
    assert run("route", "live", ROUTE, "--why", "x", "--plan", dsn=live.dsn).code == 0
    refused(2, "the reason is empty")("route", "live", ROUTE, "--why", " ", "--yes", dsn=live.dsn)
    assert run("route", "live", ROUTE, "--why", "x", "--yes", dsn=live.dsn).code == 0
    assert value(live.dsn, LIVE) is True


def test_the_database_knows_the_schemes_and_options_that_there_are(live):
    """fn_iu_delivery_options has the schemes of the built-in targets, and the options of each.

    Fails when: an option is added to a target, and not to the function.
    """
    tables = {"http": HTTP_OPTIONS, "kafka": KAFKA_OPTIONS, "nats": NATS_OPTIONS, "redis": REDIS_OPTIONS}
    ours = {e.name: e.value for e in entry_points(group=ENTRY_POINT_GROUP) if e.value.startswith("iu_listen.targets.")}
    assert len(ours) >= 9
    for scheme, entry in ours.items():
        module = entry.removeprefix("iu_listen.targets.").partition(":")[0]
        known = value(live.dsn, "select fn_iu_delivery_options($1)", scheme)
        assert sorted(known) == sorted(tables[module]), scheme
