"""iu-listen: reads a PostgreSQL transactional outbox, routes its events and delivers them, with traces and metrics.

The packages:

    model/      data types                             flow/       control flow of the consumer
    postgres/   sessions and queries                   telemetry/  logs, metrics, traces
    targets/    targets of routes                      cli/        commands
    app.py      assembles the parts                    embedded/   a PostgreSQL server without an installation

SQL is in the files of sql/, not in Python strings. docs/map.md is a guide to the code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iu_listen.model.delivery import Delivery, Event, Failed, Reject, Unavailable
from iu_listen.model.version import VERSION
from iu_listen.targets.python import target
from iu_listen.telemetry.producer import trace_context

if TYPE_CHECKING:
    from iu_listen.app import Consumer
    from iu_listen.model.settings import Settings

__version__ = VERSION

__all__ = [
    "Consumer",
    "Delivery",
    "Event",
    "Failed",
    "Reject",
    "Settings",
    "Unavailable",
    "__version__",
    "target",
    "trace_context",
]


def __getattr__(name: str) -> Any:
    """Import Consumer and Settings at their first use, so that a program that only writes events starts faster."""
    if name == "Consumer":
        from iu_listen.app import Consumer  # noqa: PLC0415

        return Consumer
    if name == "Settings":
        from iu_listen.model.settings import Settings  # noqa: PLC0415

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
