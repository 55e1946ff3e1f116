"""The helper for producers: the trace of a request reaches the row with every library and any INSERT."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from iu_listen import trace_context
from support import connected

pytestmark = [pytest.mark.asyncio, pytest.mark.parametrize("server", ["pg18"], indirect=True)]

#: The second statement writes an event by the trigger of the versions, and not directly.
UNIT = "insert into information_unit (canonical_address, title) values ('kb/1', 'a unit')"
VERSIONS = "insert into unit_version (unit_id, version_seq) select u.id, n from information_unit u cross join generate_series(1, 2) n"

TRACER = TracerProvider().get_tracer("shop")


async def with_asyncpg(dsn: str) -> None:
    async with connected(dsn) as connection, connection.transaction():
        await trace_context(connection)
        await connection.execute(UNIT)
        await connection.execute(VERSIONS)


async def with_a_pool_of_asyncpg(dsn: str) -> None:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        async with connection.transaction():
            await trace_context(connection)
            await connection.execute(UNIT)
            await connection.execute(VERSIONS)
        assert await connection.fetchval("select current_setting('iu.traceparent', true)") in ("", None)


async def with_psycopg(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        trace_context(connection)
        connection.execute(UNIT)
        connection.execute(VERSIONS)


async def with_autocommit_and_a_transaction(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection, connection.transaction():
        trace_context(connection)
        connection.execute(UNIT)
        connection.execute(VERSIONS)


async def with_psycopg_async(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await trace_context(connection)
        await connection.execute(UNIT)
        await connection.execute(VERSIONS)


def url(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


async def with_sqlalchemy(dsn: str) -> None:
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"))
    with engine.begin() as connection:
        trace_context(connection)
        connection.execute(sqlalchemy.text(UNIT))
        connection.execute(sqlalchemy.text(VERSIONS))
    engine.dispose()


async def with_a_session_of_sqlalchemy(dsn: str) -> None:
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"))
    with Session(engine) as session, session.begin():
        trace_context(session)
        session.execute(sqlalchemy.text(UNIT))
        session.execute(sqlalchemy.text(VERSIONS))
    engine.dispose()


async def with_a_scoped_session_of_sqlalchemy(dsn: str) -> None:
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"))
    session = scoped_session(sessionmaker(engine))
    trace_context(session)
    session.execute(sqlalchemy.text(UNIT))
    session.execute(sqlalchemy.text(VERSIONS))
    session.commit()
    session.remove()
    engine.dispose()


async def with_sqlalchemy_async(dsn: str) -> None:
    engine = create_async_engine(url(dsn, "psycopg"))
    async with engine.begin() as connection:
        await trace_context(connection)
        await connection.execute(sqlalchemy.text(UNIT))
        await connection.execute(sqlalchemy.text(VERSIONS))
    await engine.dispose()


async def with_an_async_session_of_sqlalchemy(dsn: str) -> None:
    engine = create_async_engine(url(dsn, "psycopg"))
    async with AsyncSession(engine) as session, session.begin():
        await trace_context(session)
        await session.execute(sqlalchemy.text(UNIT))
        await session.execute(sqlalchemy.text(VERSIONS))
    await engine.dispose()


WAYS: list[Callable[[str], Awaitable[None]]] = [
    with_asyncpg, with_a_pool_of_asyncpg, with_psycopg, with_autocommit_and_a_transaction, with_psycopg_async,
    with_sqlalchemy, with_a_session_of_sqlalchemy, with_a_scoped_session_of_sqlalchemy, with_sqlalchemy_async, with_an_async_session_of_sqlalchemy,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_the_trace_of_a_request_reaches_the_row(live, way):
    """An event that a trigger writes has the context of the span around the transaction.

    Fails when: the context is set for one statement only, or by the statement that writes the event.
    """
    with TRACER.start_as_current_span("POST /units") as span:
        await way(live.dsn)
    context = span.get_span_context()
    async with connected(live.dsn) as connection:
        found = await connection.fetch("select traceparent from event_outbox")
    # The flags are those of the SDK: sampled, and in newer versions random.
    assert [row["traceparent"][:-3] for row in found] == [f"00-{context.trace_id:032x}-{context.span_id:016x}"]


async def test_without_a_span_there_is_no_context(live):
    """Outside of any span the event has no context, even if the transaction had one before."""
    async with connected(live.dsn) as connection:
        async with connection.transaction():
            with TRACER.start_as_current_span("POST /units"):
                await trace_context(connection)
            await trace_context(connection)
            await connection.execute(UNIT)
            await connection.execute(VERSIONS)
        assert await connection.fetchval("select traceparent from event_outbox") is None


async def test_outside_a_transaction_it_warns(live):
    """Outside a transaction, where the context would be lost at once, the helper warns and has no other effect."""
    async with connected(live.dsn) as connection:
        with pytest.warns(RuntimeWarning, match="outside a transaction"):
            await trace_context(connection)
    with psycopg.connect(live.dsn, autocommit=True) as connection, pytest.warns(RuntimeWarning):
        trace_context(connection)


@pytest.mark.parametrize("thing", [object(), None, "postgresql://"])
async def test_what_is_no_connection_is_refused(thing: Any, live):
    """An object that is not a connection is refused with its type."""
    with pytest.raises(TypeError, match=f"not {type(thing).__name__}"):
        trace_context(thing)


async def test_neither_a_pool_nor_an_engine_is_a_connection(live):
    """A pool or an engine, which may use another connection for each statement, is refused."""
    async with asyncpg.create_pool(live.dsn, min_size=1, max_size=1) as pool:
        with pytest.raises(TypeError, match="not Pool"):
            trace_context(pool)
    with pytest.raises(TypeError, match="not Engine"):
        trace_context(sqlalchemy.create_engine(url(live.dsn, "psycopg")))
