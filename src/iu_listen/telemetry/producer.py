"""For applications that write events: their trace goes into the transaction, and so onto every event of it.

The column traceparent of event_outbox takes its default from the setting iu.traceparent. So whatever inserts the event,
a statement of the application's, an ORM's or a trigger's, it is stamped.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

#: SET LOCAL with a parameter; it ends with the transaction.
_SET: Final = "select set_config('iu.traceparent', {}, true)"

#: What of SQLAlchemy can be written with.
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
        connection: What the events are written with, in a transaction.

    Returns:
        To be awaited where the connection is asynchronous.

    Raises:
        TypeError: it is no connection of these libraries: a pool, an engine, something else.

    Warns:
        RuntimeWarning: there is no transaction, so the context would be forgotten at once. The events are written.
    """
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 not for all

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    context = carrier.get("traceparent", "")
    kinds = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(connection).__mro__}
    if kinds & {"asyncpg.Connection", "asyncpg.PoolConnectionProxy"}:
        _expect(connection.is_in_transaction())
        return connection.execute(_SET.format("$1"), context)
    if kinds & {"psycopg.Connection", "psycopg.AsyncConnection"}:
        _expect(not connection.autocommit or connection.info.transaction_status != 0)
        return connection.execute(_SET.format("%s"), (context,))
    if kinds & _SQLALCHEMY:
        from sqlalchemy import text  # noqa: PLC0415 only they have it

        return connection.execute(text(_SET.format(":context")), {"context": context})
    raise TypeError(
        f"trace_context() takes a connection of asyncpg, psycopg or SQLAlchemy, not {type(connection).__name__}: "
        "the one that the events are written with"
    )


def _expect(transaction: bool) -> None:
    if not transaction:
        warnings.warn(
            "trace_context() outside a transaction: the context is forgotten at once, and events have none",
            RuntimeWarning,
            stacklevel=3,
        )
