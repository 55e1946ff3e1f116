"""Where the module of --app is searched."""

from __future__ import annotations

import os
import subprocess
import sys

MODULE = """
import httpcore
from iu_listen import Delivery, target

@target("crm")
async def to_crm(delivery: Delivery) -> None:
    pass
"""


def test_no_file_in_the_current_directory_takes_the_place_of_a_library(tmp_path):
    """The module of --app is found in the current directory, but its imports find the installed libraries.

    Fails when: the current directory is searched first, and not last.
    """
    (tmp_path / "my_targets.py").write_text(MODULE)
    (tmp_path / "httpcore.py").write_text("raise SystemExit('the file in the directory ran')\n")
    code = "from iu_listen.targets.python import load; print([target.name for target in load('my_targets')])"
    # -P: the installed command does not search the directory of its script either.
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("['crm']\n", "")
