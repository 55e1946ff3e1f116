"""--json of every command: each thing has one name, and an error is a JSON document, too."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cli.command import POISON, REMEDY, ROUTE, Tree, execute, on_one_server, rows, run, running
from iu_listen.cli.output import FOREIGN_VALUE_KEYS, JSON_KEYS

pytestmark = on_one_server

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"
#: Keys whose contents have variable names: tables, routes, kinds of wake-ups, ids of checks.
NAMED_BY_OTHERS = {"wakes", "row_counts", "footprint", "seed", "apart", "removed", "answers"}
#: Commands that do not answer from this database, or that have another format.
ELSEWHERE = {"demo", "up", "run", "trace", "trace-export"}


@pytest.fixture
def busy(live):
    """A database in which every command has something to report."""
    execute(live.dsn, f"""
        {POISON}
        select fn_iu_emit_event('version_applied', 'poison', null, 'x', '{{}}') from generate_series(1, 3);
        select fn_iu_route_worker_run('iu_outbound_default', 1000);
        {REMEDY};
        select fn_iu_emit_event('version_applied', 'good', null, 'x', '{{}}');
        select fn_iu_route_worker_run('iu_outbound_default', 1000);
        insert into iu_consumer_heartbeat (consumer_id, worker_name, host, pid, version, state, started_at, beat_at,
                                           cadence_seconds)
        values (gen_random_uuid(), 'iu_outbound_default', 'shop', 4711, '0.1.0', 'idle', now(), now(), 5)""")  # fmt: skip
    return live


def _commands(dsn: str) -> list[list[str]]:
    one, two, three = (str(row[0]) for row in rows(dsn, "select id from iu_route_dead_letter order by id"))
    event = str(rows(dsn, "select id from event_outbox limit 1")[0][0])
    return [
        ["status"], ["health"], ["health", "--here"], ["health", "--worker", "nobodys"], ["doctor"], ["attempts"],
        ["attempts", "--event", event], ["completeness"], ["probe"], ["verify", "--live"], ["apply", "--plan", "--no-backup", "x"],
        ["rollback", "--plan"], ["gate", "show"], ["gate", "open", "master"], ["gate", "close", "delivery"],
        ["route", "list"], ["route", "show", ROUTE], ["route", "enable", ROUTE], ["route", "backtest", ROUTE],
        ["route", "policy", ROUTE], ["route", "resume", ROUTE], ["route", "live", ROUTE, "--why", "x", "--plan"],
        ["route", "dry", ROUTE], ["delivery", "list"], ["delivery", "cancel", ROUTE, "--why", "x", "--plan"],
        ["delivery", "cancel", ROUTE, "--why", "x"], ["cursor", "show"], ["cursor", "reset", "--to", "now", "--plan"],
        ["cursor", "reanchor", "--plan"], ["dead-letter", "list"], ["dead-letter", "show", one],
        ["dead-letter", "replay", one, "--plan"], ["dead-letter", "replay", "--all", "--plan"],
        ["dead-letter", "resolve", two, "--why", "x"], ["dead-letter", "replay", three, "--without-delivery"],
        ["dead-letter", "resolve", "--all", "--why", "x", "--plan"], ["dead-letter", "replay", "--all"],
        ["retention", "show"], ["retention", "set", "attempts", "--keep", "90d"], ["retention", "plan"],
        ["retention", "run", "--yes"], ["emit"],
    ]  # fmt: skip


def _keys(value: object) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_keys, value))
    if not isinstance(value, dict):
        return set()
    found = set(value)
    for key, below in value.items():
        if key not in FOREIGN_VALUE_KEYS | NAMED_BY_OTHERS:
            found |= _keys(below)
    return found


def test_one_name_for_one_thing(busy):
    """No answer uses a second name for a thing, and every key of every answer is on the page: see as_json()."""
    page = PAGE.read_text()
    known = set(re.findall(r"`([a-z_]+)`", page)) | set(re.findall(r'"([a-z_]+)":', page))
    for command in _commands(busy.dsn):
        done = run(*command, "--json", dsn=busy.dsn)
        assert done.out, (command, done.err)
        keys = _keys(json.loads(done.out))
        assert "error" not in keys, (command, done.out)
        assert not keys & set(JSON_KEYS), (command, keys & set(JSON_KEYS))
        assert not keys - known, (command, keys - known)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["staus"], 2), (["status", "--dsn", "postgresql://127.0.0.1:1/x"], 3), (["route", "show", "nowhere"], 2),
        (["dead-letter", "show", "x"], 2), (["rollback"], 1), (["retention", "run"], 1), (["trace", "0bad"], 1),
        (["status", "--dsn", "rubbish"], 2), (["gate", "open", "no\x1bgate"], 2),
    ],
    ids=lambda value: " ".join(value).replace("\x1b", "") if isinstance(value, list) else "",
)  # fmt: skip
def test_an_error_is_a_document(busy, command, code):
    """With --json stdout has one document also for an error; stderr has the usual message."""
    done = run(*command, "--json", dsn=busy.dsn)
    assert done.code == code, done.err
    answer = json.loads(done.out)
    if "error" in answer:
        assert answer["error"]["exit_code"] == code
        assert answer["error"]["message"]
    else:
        # These commands print their plan before they refuse.
        assert command[0] in ("rollback", "retention")
    assert done.err


def test_an_error_of_the_service_is_a_line_of_its_log(live):
    """run with a JSON log reports an error of its start as JSON."""
    for more, env in ((["--json"], {}), ([], {"IU_LISTEN_LOG_FORMAT": "json"})):
        done = run("run", "--worker", "nobodys", *more, dsn=live.dsn, env=env)
        assert (done.code, done.out) == (2, "")
        (line,) = [json.loads(line) for line in done.err.splitlines()]
        assert (line["level"], line["exit_code"]) == ("error", 2)
        assert "nobodys is not registered" in line["event"]


def test_figures_that_json_does_not_have(live, tmp_path):
    """Numbers that JSON cannot represent become text, so that the document is valid."""
    tree = Tree(tmp_path)
    tree.edit("src/iu_listen/cli/gate.py", '            _print_answer(await gates.all_gates(connection), options)\n        return 0\n\n    return anyio.run(run)\n\n\n@gate.command(name="open")',
              '            _print_answer([{"gate": float("inf")}, {"gate": float("nan")}], options)\n        return 0\n\n    return anyio.run(run)\n\n\n@gate.command(name="open")')  # fmt: skip
    with running("gate", "show", "--json", dsn=live.dsn, env=tree.env) as command:
        assert command.ended(30) == 0
        assert json.loads(command.said) == [{"gate": "inf"}, {"gate": "nan"}]
