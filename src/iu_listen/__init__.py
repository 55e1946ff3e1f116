"""iu-listen: listens to a PostgreSQL outbox, routes what it finds, and can be seen doing it.

The map of the house, in the order of an event's way:

    model/      what things are                        flow/       what happens, in order
    postgres/   where it is kept                       telemetry/  how it is seen
    targets/    where it is delivered to
    app.py      where the rooms meet                   cli/        how people come in
    embedded.py a real PostgreSQL without installing one

SQL lives in sql/, not in strings. docs/map.md walks through it in five minutes.
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
    """Consumer and Settings, which whoever only writes events does not pay for."""
    if name == "Consumer":
        from iu_listen.app import Consumer  # noqa: PLC0415

        return Consumer
    if name == "Settings":
        from iu_listen.model.settings import Settings  # noqa: PLC0415

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
