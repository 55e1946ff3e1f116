"""iu-listen: listens to a PostgreSQL outbox, routes what it finds, and can be seen doing it.

The map of the house, in the order of an event's way:

    model/      what things are                        flow/       what happens, in order
    postgres/   where it is kept                       telemetry/  how it is seen
    targets/    where it is delivered to
    app.py      where the rooms meet                   cli/        how people come in
    embedded.py a real PostgreSQL without installing one

SQL lives in sql/, not in strings. docs/map.md walks through it in five minutes.
"""

from iu_listen.model.delivery import Delivery, Event, Failed, Reject, Unavailable
from iu_listen.targets.python import target
from iu_listen.telemetry.producer import trace_context

__version__ = "0.1.0"

__all__ = ["Delivery", "Event", "Failed", "Reject", "Unavailable", "__version__", "target", "trace_context"]
