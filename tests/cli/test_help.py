"""--help of every command describes each option, and shows no empty default."""

from __future__ import annotations

import pytest
from cyclopts import App

from cli.command import run
from iu_listen.cli import app


def _commands(group: App, *path: str) -> list[tuple[str, ...]]:
    """Every command below a group."""
    found = [path] if path else []
    for name in group:
        if not name.startswith("-"):
            found += _commands(group[name], *path, name)
    return found


@pytest.mark.parametrize("command", _commands(app), ids=" ".join)
def test_help_shows_no_empty_default(command):
    """A switch that is off, and an option without a default, show no default in the help."""
    done = run(*command, "--help")
    assert done.code == 0
    words = " ".join(done.out.replace("│", " ").split())
    for nothing in ("[default: False]", "[default: None]", '[default: ""]', "060"):
        assert nothing not in words
