"""Workers: each reads the events of one domain from a cursor of its own."""

from __future__ import annotations

from iu_listen.admin.event_types import require_name
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.routing import DEFAULT_WORKER
from iu_listen.postgres.lease import LEASE_KEY
from iu_listen.postgres.queries import rows, value
from iu_listen.postgres.session import Connection


async def add_worker(connection: Connection, name: str, domain: str) -> None:
    """Register a worker. It begins with the first event of its domain; decisions that exist are not repeated.

    Args:
        connection: A session.
        name: Name of the worker, for ``iu-listen run --worker``.
        domain: The domain of its events.

    Raises:
        ConfigurationError: A text is not a name.
        Refused: There is a worker of this name.
    """
    require_name("the worker", name)
    require_name("the domain", domain)
    if not await rows(connection, "worker/add", name, domain):
        raise Refused(f"there is a worker {name} already", "iu-listen worker list shows all workers.")


async def require_removable(connection: Connection, name: str) -> None:
    """Make sure that a worker exists, is not the default worker, and has no consumer.

    Raises:
        ConfigurationError: There is no such worker.
        Refused: It is the default worker, or a consumer works for it.
    """
    if not await value(connection, "cursor_exists", name):
        raise ConfigurationError(f"there is no worker {name}", "iu-listen worker list shows all workers.")
    if name == DEFAULT_WORKER:
        raise Refused(f"{name} is the default worker", "Only iu-listen rollback removes it.")
    (lease,) = await rows(connection, "lease_holder", LEASE_KEY, name)
    if lease["description"] and not lease["all_unauthorized"]:
        raise Refused(f"a consumer works for {name}: {lease['description']}", "Stop the consumer first.")


async def remove_worker(connection: Connection, name: str) -> None:
    """Remove a worker and its cursor. Its attempts and dead letters stay.

    Raises:
        Refused: Its deliveries wait.
    """
    if not await rows(connection, "worker/remove", name):
        raise Refused(f"deliveries of {name} wait", "See iu-listen delivery list, and delivery cancel ROUTE.")
