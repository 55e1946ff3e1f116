"""For producers: passes the trace context of the application to all events of a transaction.

The default of the column traceparent of event_outbox is the setting iu.traceparent. So each event gets the trace
context, whether the application, an ORM or a trigger inserts it.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

#: SET LOCAL with a parameter; the setting ends with the transaction.
_SET: Final = "select set_config('iu.traceparent', {}, true)"

#: The classes of SQLAlchemy that can execute statements.
_SQLALCHEMY: Final = frozenset({
    "sqlalchemy.Connection", "sqlalchemy.Session", "sqlalchemy.scoped_session", "sqlalchemy.AsyncConnection",
    "sqlalchemy.AsyncSession", "sqlalchemy.async_scoped_session",
})  # fmt: skip


def trace_context(connection: Any) -> Any:
    """Give the running transaction the trace context of the current span; call it once, after the transaction began.

    ``await trace_context(conn)`` for asyncpg, psycopg's AsyncConnection and SQLAlchemy's AsyncConnection and
    AsyncSession; ``trace_context(conn)`` for psycopg and SQLAlchemy without async. Without a current span, the events
    of the transaction have no context, also where one was set before.

    Args:
        connection: The connection or session that inserts the events, in a transaction.

    Returns:
        The result of the statement; an awaitable if the connection is asynchronous.

    Raises:
        TypeError: The object is not a connection or a session of these libraries, but for example a pool or an engine.

    Warns:
        RuntimeWarning: There is no transaction, so the setting ends at once and the events get no trace context. They
            are written nevertheless.
    """
    context = current_traceparent() or ""
    kinds = class_names(connection)
    if kinds & {"asyncpg.Connection", "asyncpg.PoolConnectionProxy"}:
        _expect(connection.is_in_transaction())
        return connection.execute(_SET.format("$1"), context)
    if kinds & {"psycopg.Connection", "psycopg.AsyncConnection"}:
        _expect(not connection.autocommit or connection.info.transaction_status != 0)
        return connection.execute(_SET.format("%s"), (context,))
    if kinds & _SQLALCHEMY:
        from sqlalchemy import text  # noqa: PLC0415 only SQLAlchemy's users have it

        return connection.execute(text(_SET.format(":context")), {"context": context})
    raise TypeError(
        f"trace_context() requires the connection that inserts the events, of asyncpg, psycopg or SQLAlchemy, "
        f"not {type(connection).__name__}"
    )


def class_names(connection: object) -> set[str]:
    """The names of the classes of an object, each with its top-level package, as ``asyncpg.Connection``."""
    return {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(connection).__mro__}


def current_traceparent() -> str | None:
    """The trace context of the current span of OpenTelemetry as a traceparent; None: there is no span."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 rarely used

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def _expect(transaction: bool) -> None:
    if not transaction:
        warnings.warn(
            "trace_context() was called outside a transaction: the setting ends at once; events get no context",
            RuntimeWarning,
            stacklevel=3,
        )
