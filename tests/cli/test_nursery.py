"""A command of the tests is a copy of a process that has imported everything: it must not make a difference."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cli.command import environment, on_one_server, seen
from cli.nursery import READ_BY_IMPORTS, READ_LATE, born, may_be_born

NOWHERE = "postgresql://nobody:secret@127.0.0.1:1/nowhere"
#: What imports look at, and how many threads they begin.
WATCH = """
import json, os, threading
seen, look = set(), type(os.environ).__getitem__
type(os.environ).__getitem__ = lambda self, name: seen.add(name) or look(self, name)
import iu_listen.cli
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
    """A command that is born says the same, on the same streams, with the same exit code, as one that is started.

    Fails when: it is given other arguments, another environment or other streams, or its exit code is lost.
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
    """Of the variables that a command may be born with imports read none, and they begin no thread, which a copy lacks.

    Fails when: a library that reads its settings while it is imported is added, and READ_BY_IMPORTS does not say so.
    """
    done = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, check=True)
    names, threads = json.loads(done.stdout)
    assert threads == 1
    assert {name for name in names if name.startswith(READ_LATE)} == READ_BY_IMPORTS
    assert not any(may_be_born({name: ""}) for name in names)


@on_one_server
def test_what_takes_too_long_is_ended(live, tmp_path):
    """A command that is not over in time is killed, and raises what subprocess.run would.

    Fails when: nobody looks at the time, or what is late is left alone.
    """
    with pytest.raises(subprocess.TimeoutExpired):
        born(["run"], environment(str(tmp_path), live.dsn), str(tmp_path), 1.5)
    seen(live.dsn, "select count(*) = 0 from pg_stat_activity where application_name like 'iu-listen %'")
