"""Writes an event in the transaction of the application, on the connection that the application has."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from datetime import datetime
from functools import cache
from typing import Any, Final
from uuid import UUID, uuid4

from iu_listen.model.routing import DEFAULT_DOMAIN
from iu_listen.postgres.sqlfiles import query
from iu_listen.producer.payload import payload_json
from iu_listen.producer.trace_context import class_names, current_traceparent

_PARAMETER: Final = re.compile(r"\$(\d+)")
#: Class names of the connections, by the way in which they execute a statement.
_ASYNCPG: Final = frozenset({"asyncpg.Connection", "asyncpg.PoolConnectionProxy"})
_PSYCOPG: Final = frozenset({"psycopg.Connection", "psycopg.AsyncConnection"})
_SQLALCHEMY: Final = frozenset({"sqlalchemy.Connection", "sqlalchemy.AsyncConnection"})
_SESSION: Final = frozenset({"sqlalchemy.Session", "sqlalchemy.scoped_session"})
_ASYNC_SESSION: Final = frozenset({"sqlalchemy.AsyncSession", "sqlalchemy.async_scoped_session"})
_DJANGO: Final = frozenset({"django.BaseDatabaseWrapper", "django.ConnectionProxy"})


def emit(
    connection: Any,
    event_type: str,
    payload: Any = None,
    *,
    subject: object = None,
    subject_type: str | None = None,
    address: str | None = None,
    actor: str | None = None,
    source: str | None = None,
    correlation: str | None = None,
    occurred_at: datetime | None = None,
    domain: str = DEFAULT_DOMAIN,
    id: UUID | None = None,
) -> Any:
    """Write one event to the outbox, in the transaction of the connection.

    ``await emit(connection, …)`` for asyncpg, psycopg's AsyncConnection, and SQLAlchemy's AsyncConnection and
    AsyncSession; ``emit(connection, …)`` for psycopg, SQLAlchemy and Django without async. The event exists if and only
    if the transaction commits. It has the trace context of the current span of OpenTelemetry, if there is one.

    Args:
        connection: The connection or session of the transaction that changes the data.
        event_type: Type of the event; it must be registered (``iu-listen event-type add``).
        payload: A mapping, a dataclass, or a model of pydantic or msgspec. Default: an empty object.
        subject: Id of the subject, for example a primary key; it is written as text. Events of one subject can be
            delivered in their order.
        subject_type: Type of the subject, for example the name of its table.
        address: Human-readable address of the subject.
        actor: The person or process that caused the event.
        source: The application that writes the event.
        correlation: Id of the request or process to which the event belongs.
        occurred_at: Time of the event. Default: the begin of the transaction.
        domain: Domain of the event. Default: ``iu``, which the default worker reads.
        id: Id of the event. Default: a random one.

    Returns:
        The id of the event, a UUID; an awaitable of it if the connection is asynchronous.

    Raises:
        InvalidPayload: The payload cannot be written as JSON. The transaction is not affected.
        TypeError: The object is no connection or session of these libraries, but for example a pool or an engine.
        Exception: The error of the driver if the database refuses the event, for example because its type is not
            registered; its hint names the command that registers it.
    """
    event = id or uuid4()
    text = payload_json(event_type, {} if payload is None else payload)
    values = (
        event, domain, event_type, subject_type, None if subject is None else str(subject), address, actor, source,
        correlation, text, occurred_at, current_traceparent(),
    )  # fmt: skip
    result = _execute(connection, _statement(), values)
    return _answered(result, event) if isinstance(result, Awaitable) else event


@cache
def _statement() -> str:
    """The statement without its comments, which name the parameters, too."""
    return re.sub(r"^--.*\n", "", query("producer/emit"), flags=re.MULTILINE).strip()


async def _answered(result: Awaitable[Any], event: UUID) -> UUID:
    await result
    return event


def _execute(connection: Any, statement: str, values: tuple[Any, ...]) -> Any:
    """Execute a statement with parameters such as $1 on the connection of any library."""
    kinds = class_names(connection)
    if kinds & _ASYNCPG:
        return connection.execute(statement, *values)
    if kinds & _PSYCOPG:
        return connection.execute(*_in_percent_style(statement, values))
    if kinds & _SQLALCHEMY:
        return connection.exec_driver_sql(*_for_dialect(connection.dialect.driver, statement, values))
    if kinds & _SESSION:
        return _execute(connection.connection(), statement, values)
    if kinds & _ASYNC_SESSION:
        return _in_async_session(connection, statement, values)
    if kinds & _DJANGO:
        with connection.cursor() as cursor:
            cursor.execute(*_in_percent_style(statement, values))
        return None
    raise TypeError(
        f"emit() requires a connection or session of asyncpg, psycopg, SQLAlchemy or Django, not "
        f"{type(connection).__name__}"
    )


async def _in_async_session(session: Any, statement: str, values: tuple[Any, ...]) -> None:
    connection = await session.connection()
    await _execute(connection, statement, values)


def _for_dialect(driver: str, statement: str, values: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    return (statement, values) if driver == "asyncpg" else _in_percent_style(statement, values)


def _in_percent_style(statement: str, values: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """The statement with %s instead of $1, and the values in the order in which they occur."""
    order = [int(number) - 1 for number in _PARAMETER.findall(statement)]
    return _PARAMETER.sub("%s", statement), tuple(values[index] for index in order)
