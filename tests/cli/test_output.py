"""The output of commands: no control sequences of values, any encoding, any kind of file."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cli.command import ROUTE, Tree, environment, execute, on_one_server, refused, run, running, seen, value
from iu_listen.model.text import UNSAFE_CHARACTERS

pytestmark = on_one_server

ROUTE_ONCE = "select fn_iu_route_worker_run('iu_outbound_default', 1000)"
#: Title, clear screen, colour, one-byte CSI, right-to-left override, isolate, forged line, markup of rich, backslash.
HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31mFORGED\x1b]52;c;aGk=\x07\x9b2J\u202eevil\u2066\u200f\r\nok   forged [red]m[/] \\"
)
#: The escape sequences of the program's own colours.
COLOUR = re.compile("\x1b\\[[0-9;]*m")


@pytest.fixture
def hostile(live):
    """A database in which every text that a producer, a route or a target may set contains control sequences."""
    literal = "E'" + "".join(f"\\U{ord(c):08x}" for c in HOSTILE) + "'"
    execute(live.dsn, f"""
        create function boom() returns trigger language plpgsql as $$
        begin
            if new.route_code = '{ROUTE}' then raise exception '%', {literal}; end if;
            return new;
        end $$;
        create trigger boom before insert on iu_route_attempt for each row execute function boom();
        insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref)
        values ({literal}, 'iu', 'version_applied', 'update', 'workflow', {literal});
        select fn_iu_emit_event('version_applied', {literal}, null, {literal}, jsonb_build_object('n', {literal}));
        {ROUTE_ONCE};
        drop trigger boom on iu_route_attempt""")  # fmt: skip
    return live


def _commands(dsn: str) -> list[list[str]]:
    letter = value(dsn, "select id::text from iu_route_dead_letter limit 1")
    event = value(dsn, "select id::text from event_outbox limit 1")
    return [
        ["status"], ["health"], ["doctor"], ["attempts"], ["attempts", "--event", event], ["route", "list"],
        ["route", "show", HOSTILE], ["route", "show", f"no{HOSTILE}"], ["route", "backtest", HOSTILE],
        ["dead-letter", "list"], ["dead-letter", "show", letter], ["dead-letter", "replay", letter, "--plan"],
        ["trace", event], ["delivery", "list"], ["cursor", "show"], ["gate", "show"], ["retention", "plan"], ["completeness"],
        [HOSTILE],
    ]  # fmt: skip


def _unsafe(text: str) -> list[str]:
    return [line for line in COLOUR.sub("", text).splitlines() if UNSAFE_CHARACTERS.search(line)]


def test_no_control_sequence_of_a_value_reaches_a_pipe(hostile):
    """No control sequence of a database text is in any table or JSON: every console renders through visible()."""
    seen = 0
    for command in _commands(hostile.dsn):
        done = run(*command, dsn=hostile.dsn)
        assert not _unsafe(done.out + done.err), command
        seen += "FORGED" in done.out + done.err
        if command[0] != HOSTILE:
            done = run(*command, "--json", dsn=hostile.dsn)
            assert not _unsafe(done.out + done.err), command
            if done.out:
                json.loads(done.out)
    assert seen >= 7


def test_no_control_sequence_of_a_value_reaches_a_terminal(hostile):
    """On a terminal, only the program's own colours are control sequences: all output goes through _Console.render."""
    for command in _commands(hostile.dsn):
        with tempfile.TemporaryDirectory(prefix="iu-cli-") as home:
            ours, theirs = pty.openpty()
            process = subprocess.Popen(
                [sys.executable, "-m", "iu_listen", *command],
                env=environment(home, hostile.dsn), cwd=home, stdin=theirs, stdout=theirs, stderr=theirs,
            )  # fmt: skip
            os.close(theirs)
            said = b""
            try:
                while more := os.read(ours, 65536):
                    said += more
            except OSError:
                pass  # reading fails when the last process has closed the terminal
            process.wait()
            os.close(ours)
        assert b"Traceback" not in said
        text = said.decode().replace("\r\n", "\n")
        # Progress bars of rich move the cursor and hide it.
        text = re.sub("\x1b\\[(\\?25[lh]|[0-9]*[AKG]|2K)|\r", "", text)
        assert not _unsafe(text), command


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda env: next(iter(env.values())),
)
def test_any_encoding(live, env):
    """Characters that the encoding lacks are replaced, and the exit code is that of the answer.

    The mechanism: both streams have an error handler that never fails; JSON uses escapes, and stays the same document.
    """
    assert run("emit", "--address", "ключ/鍵", dsn=live.dsn).code == 0
    execute(live.dsn, ROUTE_ONCE)
    event = value(live.dsn, "select id::text from event_outbox")
    for command in (
        ["status"],
        ["doctor"],
        ["trace", event],
        ["gate", "show"],
        ["apply", "--plan", "--no-backup", "x"],
    ):
        with tempfile.TemporaryDirectory(prefix="iu-cli-") as home:
            done = subprocess.run(
                [sys.executable, "-m", "iu_listen", *command],
                env=environment(home, live.dsn, env), cwd=home, capture_output=True, check=False,
            )  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert done.returncode == run(*command, dsn=live.dsn).code, (command, done)
    with tempfile.TemporaryDirectory(prefix="iu-cli-") as home:
        done = subprocess.run(
            [sys.executable, "-m", "iu_listen", "trace", event, "--json"],
            env=environment(home, live.dsn, env), cwd=home, capture_output=True, check=False,
        )  # fmt: skip
    ours, theirs = json.loads(done.stdout), run("trace", event, "--json", dsn=live.dsn).json
    # The resource attributes differ, because they describe the process.
    assert ours["resourceSpans"][0]["scopeSpans"] == theirs["resourceSpans"][0]["scopeSpans"]


def cut_sessions(dsn: str) -> None:
    """End every session of consumers."""
    execute(dsn, """select pg_terminate_backend(pid) from pg_stat_activity
                     where application_name like 'iu-listen %' and datname = current_database()""")  # fmt: skip


def _exit(command: list[str], dsn: str, redirection: str) -> tuple[int, str]:
    with tempfile.TemporaryDirectory(prefix="iu-cli-") as home:
        done = subprocess.run(
            ["/bin/sh", "-c", f'"$0" -m iu_listen "$@" {redirection}', sys.executable, *command],
            env=environment(home, dsn), cwd=home, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_an_answer_that_cannot_be_written(live):
    """If standard output is full or closed, the exit code is 4 with a one-line message and no traceback or `healthy`.

    The mechanism: the stream keeps the failure, and main() checks it at the end. The command has still done its work.
    """
    for redirection in (">/dev/full", ">&-"):
        for command in (["gate", "show"], ["status", "--json"], ["--help"], ["--version"]):
            code, said = _exit(command, live.dsn, redirection)
            assert code == 4, (command, redirection, said)
            assert "the answer could not be written" in said
        assert _exit(["gate", "close", "worker"], live.dsn, redirection)[0] == 4
        assert value(live.dsn, "select value from dot_config where key like '%route_worker%'") == "false"
        assert _exit(["gate", "open", "worker"], live.dsn, redirection)[0] == 4
        # A negative answer is more important than the failed output.
        assert _exit(["health", "--worker", "nobodys"], live.dsn, redirection)[0] == 1
    assert _exit(["gate", "show"], live.dsn, "2>/dev/full") == (0, "")
    assert _exit(["gate", "show"], live.dsn, "2>&-") == (0, "")


def test_a_log_on_a_full_disk_stops_nothing(live, tmp_path):
    """A consumer whose log cannot be written continues, and writes again when there is space: the stream tries again.

    The file may not grow beyond a limit, as on a full disk, until it is emptied.
    """
    log = tmp_path / "log"
    log.write_bytes(b"x" * 4096)
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'ulimit -f 8; exec "$0" -m iu_listen run --log-format json 2>>"$1"', sys.executable, log],
        # Python also writes compiled modules; a truncated one would remain after the test.
        env=environment(str(tmp_path), live.dsn, {"PYTHONDONTWRITEBYTECODE": "1"}), cwd=tmp_path,
    )  # fmt: skip
    try:
        for room in (False, True):
            seen(live.dsn, "select exists (select from iu_consumer_heartbeat where state = 'idle')")
            if room:
                os.truncate(log, 0)
            cut_sessions(live.dsn)
            assert run("emit", dsn=live.dsn).code == 0
            seen(live.dsn, "select (select count(*) from event_outbox) = (select count(*) from iu_route_attempt)")
    finally:
        process.terminate()
        assert process.wait(15) == 0
    assert "stopped" in log.read_text()


@pytest.mark.parametrize(
    "payload", ["[" * 3000 + "]" * 3000, "[" * 400 + "]" * 400, "1" + "0" * 10_000, "1e400", "-1e-400"]
)
def test_a_dead_letter_that_python_cannot_read(live, payload):
    """A payload that is nested too deeply for Python, or has too long a number, is shown as its text."""
    execute(live.dsn, f"""
        insert into iu_route_dead_letter (worker_name, event_ref, route_kind, route_code, idempotency_key, attempt_no,
                                          event_snapshot, failure_code, failure_detail)
        values ('iu_outbound_default', gen_random_uuid(), 'outbound', '{ROUTE}', 'k', 1,
                jsonb_build_object('safe_payload', '{payload}'::jsonb), 'reject', 'x')""")  # fmt: skip
    letter = value(live.dsn, "select id::text from iu_route_dead_letter")
    shown = run("dead-letter", "show", letter, dsn=live.dsn)
    assert shown.code == 0
    assert "safe_payload" in shown.out
    shown = run("dead-letter", "show", letter, "--json", dsn=live.dsn)
    assert shown.code == 0
    assert "safe_payload" in shown.json["event_snapshot"]


def test_a_payload_that_python_cannot_read(live):
    """emit refuses a payload that Python cannot parse with 2."""
    refused(2, "nested too deeply", dsn=live.dsn)("emit", "--payload", '{"a":' + "[" * 5000 + "]" * 5000 + "}")
    refused(2, "too long", dsn=live.dsn)("emit", "--payload", '{"a":1' + "0" * 10_000 + "}")


def test_a_fault_of_the_program_is_no_answer(live, tmp_path):
    """An unexpected exception exits with 70 and its place in the code, without its text, which may contain a secret."""
    tree = Tree(tmp_path)
    tree.edit("src/iu_listen/admin/health.py", 'health: Row = json.loads(await value(connection, "worker_health", worker))',
              'health: Row = {}["hunter2 \\x1b[2J"]')  # fmt: skip
    with running("health", dsn=live.dsn, env=tree.env) as command:
        command.process.wait(30)
        command._reader.join(10)
        assert command.process.returncode == 70
        assert "KeyError" in command.said
        assert "health.py" in command.said
        assert "\x1b[2J" not in command.said


def test_watching_ends_with_its_reader(live):
    """status --watch ends when its output is closed or cannot be written. Fails when: it does not check its output."""
    for redirection in ("| head -1", ">/dev/full"):
        with tempfile.TemporaryDirectory(prefix="iu-cli-") as home:
            done = subprocess.run(
                ["/bin/sh", "-c", f'"$0" -m iu_listen status --watch 0.1 {redirection}', sys.executable],
                env=environment(home, live.dsn), cwd=home, capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
        assert "Traceback" not in done.stderr
