"""examples/django-shop: the commands of its README.md, one after the other, in an empty directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cli.command import on_one_server, value
from conventions.files import ROOT

EXAMPLE = ROOT / "examples/django-shop"


@on_one_server
def test_the_commands_of_the_example(empty, tmp_path: Path):
    """Each command succeeds, the handler prints the promised line, and the order is marked as mailed.

    Fails when: a step is missing from the page, or the app does not find the handler.
    """
    shutil.copytree(EXAMPLE, tmp_path / "shop", ignore=shutil.ignore_patterns("__pycache__"))
    page = (EXAMPLE / "README.md").read_text()
    commands = re.findall(r"^\$ (python manage\.py .*)$", page, re.MULTILINE)
    (promised,) = re.findall(r"prints `(mail about .*)`", page)
    done = subprocess.run(
        ["/bin/sh", "-exc", "\n".join(commands)],
        cwd=tmp_path / "shop", text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "IU_LISTEN_DSN": empty.dsn},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert len(commands) == 9
    assert promised in done.stdout.splitlines()
    assert "Ran 1 test" in done.stdout
    assert "no issues" in done.stdout.splitlines()[-1]
    assert value(empty.dsn, "select mailed from shop_order")
