"""The app for Django: ``INSTALLED_APPS = [..., "iu_listen.django"]``.

It installs the SQL package by a migration, checks the databases, finds the handlers of the project, and runs the
commands of iu-listen on its databases. docs/how-to/django.md describes it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.transaction import TransactionManagementError

from iu_listen.producer.emit import emit as emit_on


def emit(event_type: str, payload: Any = None, *, using: str = DEFAULT_DB_ALIAS, **attributes: Any) -> UUID:
    """Write one event to the outbox, in the transaction of a database of the project.

    ```python
    with transaction.atomic():
        order = Order.objects.create(total=5)
        emit("order_placed", {"total": order.total}, subject=order.pk)
    ```

    Args:
        event_type: Type of the event; it must be registered, for example by ``AddEventTypes`` in a migration.
        payload: A mapping, a dataclass, or a model of pydantic or msgspec. Default: an empty object.
        using: Alias of the database. Default: ``default``.
        attributes: Further arguments of ``iu_listen.emit()``: ``subject``, ``actor``, ``correlation`` and so on.

    Returns:
        The id of the event, a UUID.

    Raises:
        InvalidPayload: The payload cannot be written as JSON. The transaction is not affected.
        TransactionManagementError: There is no transaction, so the event would not depend on a change of data.
        django.db.Error: The database refuses the event, for example because its type is not registered.
    """
    connection = connections[using]
    if connection.get_autocommit():
        raise TransactionManagementError(
            f"emit() requires a transaction, so that the event is written together with the change of the data: "
            f"use transaction.atomic(using={using!r})"
        )
    return emit_on(connection, event_type, payload, **attributes)  # type: ignore[no-any-return]


def __getattr__(name: str) -> Any:
    """``handlers``: the list of the handlers of the project, for ``--app iu_listen.django:handlers``."""
    if name != "handlers":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from iu_listen.django.discovery import find_handlers  # noqa: PLC0415 it needs the settings of the project

    return find_handlers()
