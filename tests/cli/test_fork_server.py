"""A command of the tests is a fork of a process that has imported all modules; the result must be the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cli.command import environment, on_one_server, seen
from cli.fork_server import IMPORTED, READ_BY_IMPORTS, READ_LATE, born, may_be_born

NOWHERE = "postgresql://nobody:secret@127.0.0.1:1/nowhere"
#: A program that records the environment variables that imports read, and the number of threads that they start.
WATCH = f"""
import importlib, json, os, threading
seen, look = set(), type(os.environ).__getitem__
type(os.environ).__getitem__ = lambda self, name: seen.add(name) or look(self, name)
for module in {IMPORTED}: importlib.import_module(module)
print(json.dumps([sorted(seen), threading.active_count()]))
"""


@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (("--version",), {}),
        (("--help",), {}),
        (("nonsense",), {}),
        (("status", "--json"), {"IU_LISTEN_DSN": NOWHERE}),
        (("run", "--log-format", "console"), {"IU_LISTEN_BATCH_LIMIT": "0", "IU_LISTEN_DSN": NOWHERE}),
        (("trace-export",), {"OTEL_TRACES_EXPORTER": "nobodys", "IU_LISTEN_DSN": NOWHERE}),
    ],
    ids=" ".join,
)
def test_a_copy_does_what_a_process_of_its_own_does(tmp_path, arguments, env):
    """A forked command has the same output on the same streams, and the same exit code, as a new process.

    Fails when: it gets other arguments, another environment or other streams, or its exit code is lost.
    """
    whole = environment(str(tmp_path), env=env)
    started = subprocess.run(
        [sys.executable, "-m", "iu_listen", *arguments],
        env=whole, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    done = born(arguments, whole, str(tmp_path), 60)
    assert (done.returncode, done.stdout, done.stderr) == (started.returncode, started.stdout, started.stderr)
    assert done.stdout + done.stderr


def test_no_import_reads_what_a_copy_may_be_given():
    """Imports read none of the variables that a forked command may have, and start no thread, which a fork would lack.

    Fails when: a library that reads its settings during the import is added, and READ_BY_IMPORTS does not list them.
    """
    done = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, check=True)
    names, threads = json.loads(done.stdout)
    assert threads == 1
    assert {name for name in names if name.startswith(READ_LATE)} == READ_BY_IMPORTS
    assert not any(may_be_born({name: ""}) for name in names)


@on_one_server
def test_a_command_that_takes_too_long_is_ended(live, tmp_path):
    """A command that exceeds its timeout is killed, and raises the same exception as subprocess.run.

    Fails when: the time is not checked, or a late command is not killed.
    """
    with pytest.raises(subprocess.TimeoutExpired):
        born(["run"], environment(str(tmp_path), live.dsn), str(tmp_path), 1.5)
    seen(live.dsn, "select count(*) = 0 from pg_stat_activity where application_name like 'iu-listen %'")
