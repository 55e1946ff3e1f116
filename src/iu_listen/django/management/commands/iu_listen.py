"""The command ``manage.py iu_listen``: the commands of iu-listen, on a database of the project."""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER
from typing import Any, Literal

from django.core.management.base import BaseCommand, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from iu_listen.cli import main
from iu_listen.django.database import dsn


class Command(BaseCommand):
    """Runs a command of iu-listen with the database and the handlers of the project."""

    help = (
        "Run a command of iu-listen, for example: manage.py iu_listen status. "
        "The database is that of IU_LISTEN_DSN if it is set, else one of DATABASES; "
        "the handlers are those of IU_LISTEN_APP, else those in the modules handlers of all apps."
    )
    requires_system_checks: list[str] | tuple[str, ...] | Literal["__all__"] = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the arguments."""
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="Alias of the database. Default: default.")
        parser.add_argument("command", nargs=REMAINDER, help="The command of iu-listen, with its options.")

    def handle(self, *_: Any, database: str, command: list[str], **__: Any) -> None:
        """Run the command; exit with its exit code if it is not 0."""
        ours = {"IU_LISTEN_DSN": dsn(connections[database].settings_dict), "IU_LISTEN_APP": "iu_listen.django:handlers"}
        added = {name: text for name, text in ours.items() if name not in os.environ}
        os.environ.update(added)
        try:
            code = main(command)
        finally:
            for name in added:
                del os.environ[name]
        if code:
            sys.exit(code)
