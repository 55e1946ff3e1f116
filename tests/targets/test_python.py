"""Where the module of --app is searched, and what the error says if it cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from iu_listen.model.errors import ConfigurationError
from iu_listen.targets.python import load

MODULE = """
import httpcore2
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
    (tmp_path / "httpcore2.py").write_text("raise SystemExit('the file in the directory ran')\n")
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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import json\njson.loads('{')\n", "JSONDecodeError (app_{n}.py, line 2)"),
        ("x = 1\ny = (\n", "SyntaxError: '(' was never closed (app_{n}.py, line 2)"),
        ("\n\noops\n", "NameError: name 'oops' is not defined (app_{n}.py, line 3)"),
        ("from json import nothing\n", "ImportError: cannot import name 'nothing' from 'json' ("),
        ("raise SystemExit('canary')\n", "SystemExit (app_{n}.py, line 1)"),
        ("import json\njson.nothing\n", "AttributeError (app_{n}.py, line 2)"),
        ("raise ValueError('canary')\n", "ValueError (app_{n}.py, line 1)"),
    ],
    ids=range(7),
)
def test_an_import_error_names_file_and_line_of_the_application(tmp_path, monkeypatch, request, text, says):
    """A module that cannot be imported is named with the file and the line of its own code, without foreign texts.

    Fails when: the place is the innermost frame of all, which is in a library, or an AttributeError of the module is
    taken for a missing attribute of --app.
    """
    number = request.node.callspec.id
    (tmp_path / f"app_{number}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as error:
        load(f"app_{number}")
    assert f"app_{number} cannot be imported: {says.format(n=number)}" in error.value.message
    assert "canary" not in error.value.message
