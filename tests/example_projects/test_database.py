"""The database for trying the examples."""

from __future__ import annotations

import signal
import subprocess
import sys

from cli.command import environment, value
from clusters import place
from example_projects.readme import EXAMPLES


def test_the_line_that_it_prints():
    """The line names the connection string of a database, and Ctrl-C ends the server."""
    with place() as home:
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / "database.py"],
            cwd=home, env=environment(str(home)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            export, _, dsn = process.stdout.readline().strip().partition("=")
            assert export == "export IU_LISTEN_DSN"
            assert value(dsn, "select 1") == 1
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()
