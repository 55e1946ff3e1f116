"""iu-listen: reads a PostgreSQL transactional outbox, routes its events and delivers them, with traces and metrics.

The packages:

    model/      data types                             flow/       control flow of the consumer
    postgres/   sessions and queries                   telemetry/  logs, metrics, traces
    targets/    targets of routes                      producer/   writes events in transactions of applications
    sqlalchemy  events on sessions of SQLAlchemy       django/     app for Django
    app.py      assembles the parts                    cli/        commands
    embedded/   a PostgreSQL server without an installation

SQL is in the files of sql/, not in Python strings. docs/map.md is a guide to the code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from iu_listen.model.delivery import Delivery, Event, Failed, Reject, Unavailable
from iu_listen.model.version import VERSION
from iu_listen.producer.emit import emit
from iu_listen.producer.trace_context import trace_context
from iu_listen.targets.handlers import on
from iu_listen.targets.python import target

if TYPE_CHECKING:
    from iu_listen.app import Consumer
    from iu_listen.install.script import migration_sql
    from iu_listen.model.settings import Settings

__version__ = VERSION
"""The version of iu-listen, as text, for example ``0.2.0``."""

#: Module of each name that is imported at its first use.
_LATE = {
    "Consumer": "iu_listen.app",
    "Settings": "iu_listen.model.settings",
    "migration_sql": "iu_listen.install.script",
}

__all__ = [
    "Consumer",
    "Delivery",
    "Event",
    "Failed",
    "Reject",
    "Settings",
    "Unavailable",
    "__version__",
    "emit",
    "migration_sql",
    "on",
    "target",
    "trace_context",
]


# A type checker that sees this function accepts every name, also a misspelt one.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a name at its first use, so that a program that only writes events starts faster."""
        module = _LATE.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(module), name)
