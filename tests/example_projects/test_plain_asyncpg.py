"""The example plain-asyncpg."""

from __future__ import annotations

from cli.command import on_one_server
from example_projects.readme import project


@on_one_server
def test_the_commands_of_the_page(empty, tmp_path):
    """The script delivers the events of its own transactions, and a consumer of its own delivers them, too.

    Fails when: a command is missing from the page, or the script ends before its events are delivered.
    """
    with project("plain-asyncpg", tmp_path, empty.dsn) as script:
        script.play(script.commands, {"iu-listen run": "listening"})
