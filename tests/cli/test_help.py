"""--help of every command describes each option, and shows no empty default."""

from __future__ import annotations

import pytest
from cyclopts import App

from cli.command import run
from iu_listen.cli import GROUPS, app


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


def test_the_list_of_commands_begins_with_a_first_use():
    """Every command is in one group; a first use comes first, and the options of iu-listen itself come last.

    Fails when: a command has no group, so that it stands in a group of its own before all others.
    """
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(name for (name, *more) in _commands(app) if not more)
    words = run("--help").out
    first_words = [line.strip("│ ").partition(" ")[0] for line in words.splitlines() if line.startswith("│ ")]
    assert [word for word in first_words if word in grouped] == grouped
    assert words.rindex("--version") > words.rindex("completion")
    assert (words.index("─ Try it out ─") < words.index("─ Set up a database ─"), "─ Commands ─" in words) == (
        True,
        False,
    )
