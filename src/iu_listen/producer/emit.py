"""Writes an event in the transaction of the application, on the connection that the application has."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final
from uuid import UUID

from iu_listen.model.routing import DEFAULT_DOMAIN
from iu_listen.postgres.sqlfiles import query
from iu_listen.producer.event_id import new_event_id
from iu_listen.producer.payload import json_text, payload_json
from iu_listen.producer.trace_context import class_names, current_traceparent

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
        id: Id of the event. Default: a new UUID of version 7, which ascends in time.

    Returns:
        The id of the event, a UUID; an awaitable of it if the connection is asynchronous.

    Raises:
        InvalidPayload: The payload cannot be written as JSON. The transaction is not affected.
        TypeError: The object is no connection or session of these libraries, but for example a pool or an engine.
        Exception: The error of the driver if the database refuses the event, for example because its type is not
            registered; its hint names the command that registers it.
    """
    event = id or new_event_id()
    row = event_row(
        event, event_type, payload_json(event_type, {} if payload is None else payload), subject=subject,
        subject_type=subject_type, address=address, actor=actor, source=source, correlation=correlation,
        occurred_at=occurred_at, domain=domain, traceparent=current_traceparent(),
    )  # fmt: skip
    result = write_rows(connection, [row])
    return _answered(result, event) if isinstance(result, Awaitable) else event


def event_row(
    event: UUID,
    event_type: str,
    payload: str,
    *,
    subject: object,
    subject_type: str | None,
    address: str | None,
    actor: str | None,
    source: str | None,
    correlation: str | None,
    occurred_at: datetime | None,
    domain: str,
    traceparent: str | None,
) -> str:
    """An event as a JSON object with columns of event_outbox as keys.

    Args:
        event: Id of the event.
        event_type: Type of the event.
        payload: Its payload as JSON.
        subject: As the following arguments: see emit().
        subject_type: See emit().
        address: See emit().
        actor: See emit().
        source: See emit().
        correlation: See emit().
        occurred_at: See emit().
        domain: See emit().
        traceparent: Its trace context; None: that of the transaction.

    Raises:
        InvalidPayload: An attribute has a value that PostgreSQL cannot store.
    """
    columns = {
        "id": event, "event_domain": domain, "event_type": event_type, "event_subject_table": subject_type,
        "event_subject_ref": None if subject is None else str(subject), "canonical_address": address,
        "actor_ref": actor, "source_system": source, "correlation_id": correlation, "occurred_at": occurred_at,
        "traceparent": traceparent,
    }  # fmt: skip
    return f'{json_text(f"an attribute of {event_type}", columns)[:-1]}, "safe_payload": {payload}}}'


def write_rows(connection: Any, rows: Sequence[str]) -> Any:
    """Write events in one statement, in their order, on the connection of any library.

    Args:
        connection: The connection, as for emit().
        rows: Results of event_row().

    Returns:
        An awaitable if the connection is asynchronous.

    Raises:
        TypeError: The object is no connection or session of these libraries.
    """
    kinds = class_names(connection)
    values = (f"[{', '.join(rows)}]",)
    if kinds & _ASYNCPG:
        return connection.execute(_statement(), *values)
    if kinds & _PSYCOPG:
        return connection.execute(_percent_statement(), values)
    if kinds & _SQLALCHEMY:
        asyncpg = connection.dialect.driver == "asyncpg"
        return connection.exec_driver_sql(_statement() if asyncpg else _percent_statement(), values)
    if kinds & _SESSION:
        return write_rows(connection.connection(), rows)
    if kinds & _ASYNC_SESSION:
        return _in_async_session(connection, rows)
    if kinds & _DJANGO:
        with connection.cursor() as cursor:
            cursor.execute(_percent_statement(), values)
        return None
    raise TypeError(
        f"emit() requires a connection or session of asyncpg, psycopg, SQLAlchemy or Django, not "
        f"{type(connection).__name__}"
    )


@cache
def _statement() -> str:
    """The statement, without its comments, which name the parameter, too."""
    return re.sub(r"^--.*\n", "", query("producer/emit"), flags=re.MULTILINE).strip()


@cache
def _percent_statement() -> str:
    """The statement for drivers that write a parameter as %s."""
    return _statement().replace("$1", "%s")


async def _in_async_session(session: Any, rows: Sequence[str]) -> None:
    await write_rows(await session.connection(), rows)


async def _answered(result: Awaitable[Any], event: UUID) -> UUID:
    await result
    return event
