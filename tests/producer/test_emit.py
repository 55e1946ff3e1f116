"""emit(): one table of tests for every kind of connection, in the transaction of the caller."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest
import sqlalchemy
from django.db.utils import ConnectionHandler
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from cli.command import on_one_server
from django_app.project import set_up
from django_app.settings import database
from iu_listen import emit
from iu_listen.producer.payload import InvalidPayload
from support import connected

pytestmark = [on_one_server, pytest.mark.asyncio]


@dataclasses.dataclass
class Order:
    """A typed payload."""

    total: int
    at: dt.date


class Aborted(Exception):
    """Rolls back the transaction of a test."""


async def with_asyncpg(dsn: str, work) -> Any:
    async with connected(dsn) as connection, connection.transaction():
        return await work(lambda *a, **k: emit(connection, *a, **k), connection.execute)


async def with_psycopg_async(dsn: str, work) -> Any:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        return await work(lambda *a, **k: emit(connection, *a, **k), connection.execute)


async def with_sqlalchemy_async(dsn: str, work) -> Any:
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"), poolclass=NullPool)
    async with engine.begin() as connection:
        return await work(lambda *a, **k: emit(connection, *a, **k), connection.exec_driver_sql)


async def with_async_session(dsn: str, work) -> Any:
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    async with AsyncSession(engine) as opened, opened.begin():
        execute = lambda text: opened.execute(sqlalchemy.text(text))  # noqa: E731
        return await work(lambda *a, **k: emit(opened, *a, **k), execute)


def _waiting(function):
    """An asynchronous form of a function, so that one test fits both."""

    async def run(*args, **named):
        return function(*args, **named)

    return run


async def with_psycopg(dsn: str, work) -> Any:
    with psycopg.connect(dsn) as connection:
        return await work(_waiting(lambda *a, **k: emit(connection, *a, **k)), _waiting(connection.execute))


async def with_sqlalchemy(dsn: str, work) -> Any:
    engine = sqlalchemy.create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    with engine.begin() as connection:
        execute = _waiting(connection.exec_driver_sql)
        return await work(_waiting(lambda *a, **k: emit(connection, *a, **k)), execute)


async def with_session(dsn: str, work) -> Any:
    engine = sqlalchemy.create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    with Session(engine) as opened, opened.begin():
        execute = _waiting(lambda text: opened.execute(sqlalchemy.text(text)))
        return await work(_waiting(lambda *a, **k: emit(opened, *a, **k)), execute)


async def with_django(dsn: str, work) -> Any:
    """A connection of Django, in a transaction; it refuses an event loop unless the environment allows it."""
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    set_up()
    connection = ConnectionHandler({"default": database(dsn)})["default"]

    def execute(text: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(text)

    connection.set_autocommit(False)
    try:
        answer = await work(_waiting(lambda *a, **k: emit(connection, *a, **k)), _waiting(execute))
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        connection.close()
    return answer


KINDS = (
    with_asyncpg, with_psycopg_async, with_sqlalchemy_async, with_async_session, with_psycopg, with_sqlalchemy, with_session,
    with_django,
)  # fmt: skip
every_kind = pytest.mark.parametrize("opened", KINDS, ids=lambda kind: kind.__name__.removeprefix("with_"))


@asynccontextmanager
async def outbox(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    async with connected(dsn) as connection:
        yield connection


@every_kind
async def test_an_event_is_written_with_all_its_attributes(neutral, opened):
    """The event has the id that emit() returns, and each attribute in its column.

    Fails when: parameters are exchanged, or a driver gets a type that the column does not accept.
    """
    id, at = uuid4(), dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC)
    payload = {"text": "ü %s $1 :x", "when": at, "price": Decimal("1.50"), "of": id, "deep": [{"a": None}]}

    async def work(emit, _):
        return await emit(
            "order_placed", payload, subject=7, subject_type="shop.orders", address="orders/7", actor="ann",
            source="shop", correlation="r1", occurred_at=at, id=id,
        )  # fmt: skip

    assert await opened(neutral, work) == id
    async with outbox(neutral) as connection:
        row = dict(await connection.fetchrow("select * from event_outbox"))
    assert (row["id"], row["event_type"], row["event_stream"], row["occurred_at"]) == (id, "order_placed", "event", at)
    assert [row[name] for name in ("event_subject_table", "event_subject_ref", "canonical_address", "actor_ref",
                                   "source_system", "correlation_id")] == [
        "shop.orders", "7", "orders/7", "ann", "shop", "r1",
    ]  # fmt: skip
    assert json.loads(row["safe_payload"]) == {
        "text": "ü %s $1 :x", "when": at.isoformat(), "price": "1.50", "of": str(id), "deep": [{"a": None}],
    }  # fmt: skip
    assert row["event_seq"] > 0


@every_kind
async def test_a_rollback_leaves_no_event(neutral, opened):
    """If the transaction is rolled back, there is no event.

    Fails when: the event is written on another connection, or outside the transaction.
    """

    async def work(emit, _):
        await emit("order_placed", {"total": 1})
        raise Aborted

    with pytest.raises(Aborted):
        await opened(neutral, work)
    async with outbox(neutral) as connection:
        assert await connection.fetchval("select count(*) from event_outbox") == 0


@every_kind
async def test_a_savepoint_that_is_rolled_back_leaves_no_event(neutral, opened):
    """Only the events outside the savepoint are written."""

    async def work(emit, execute):
        first = await emit("order_placed", {"n": 1})
        await execute("savepoint s")
        await emit("order_placed", {"n": 2})
        await execute("rollback to savepoint s")
        return first

    first = await opened(neutral, work)
    async with outbox(neutral) as connection:
        assert [row["id"] for row in await connection.fetch("select id from event_outbox")] == [first]


@every_kind
async def test_the_trace_context_arrives(neutral, opened):
    """The event has the trace context of the span that is current when it is written."""
    tracer = TracerProvider().get_tracer("test")

    async def work(emit, _):
        with tracer.start_as_current_span("checkout") as span:
            await emit("order_placed", {})
            return span.get_span_context()

    context = await opened(neutral, work)
    async with outbox(neutral) as connection:
        written = await connection.fetchval("select traceparent from event_outbox")
    assert written.startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")


@every_kind
async def test_a_bad_payload_does_not_harm_the_transaction(neutral, opened):
    """A payload that cannot be JSON raises before the database is asked, and the transaction goes on.

    Fails when: the payload is checked by the database, whose error ends the transaction.
    """
    bad = ({"a": object()}, {"a": float("nan")}, {"a": "\x00"}, {"a": "\ud800"}, [1], "text", 5)

    async def work(emit, _):
        for payload in bad:
            with pytest.raises(InvalidPayload, match="the payload of order_placed"):
                await emit("order_placed", payload)
        return await emit("order_placed", Order(5, dt.date(2026, 1, 2)))

    await opened(neutral, work)
    async with outbox(neutral) as connection:
        assert json.loads(await connection.fetchval("select safe_payload from event_outbox")) == {
            "total": 5, "at": "2026-01-02",
        }  # fmt: skip


@every_kind
async def test_an_unknown_type_names_the_command(neutral, opened):
    """An event type that is not registered is refused, and the error names the command that registers it."""

    async def work(emit, _):
        await emit("nope", {})

    with pytest.raises(Exception, match="nope") as error:
        await opened(neutral, work)
    raised = getattr(error.value, "orig", error.value)
    detail = str((getattr(raised, "diag", None) and raised.diag.message_hint) or getattr(raised, "hint", "") or raised)
    assert "iu-listen event-type add nope" in detail or "event type nope is not registered" in str(error.value)


async def test_a_connection_that_writes_jsonb_in_its_own_way(neutral):
    """emit() does not depend on the codecs of the connection, for example one that writes jsonb from dicts.

    Fails when: the parameter of the statement has the type jsonb.
    """
    async with connected(neutral) as connection:
        await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        await emit(connection, "order_placed", {"total": 5})
        assert await connection.fetchval("select safe_payload from event_outbox") == {"total": 5}


@every_kind
async def test_an_attribute_with_nul_does_not_harm_the_transaction(neutral, opened):
    """An attribute that PostgreSQL cannot store raises before the database is asked, and the transaction goes on."""

    async def work(emit, _):
        with pytest.raises(InvalidPayload, match="an attribute of order_placed contains the character NUL"):
            await emit("order_placed", {}, actor="ann\x00")
        return await emit("order_placed", {}, actor="ann")

    await opened(neutral, work)


@pytest.mark.parametrize("text", ["a\\u0000b", "\\\\u0000", "\\u0000 as text"])
async def test_a_text_that_only_looks_like_nul_is_written(neutral, text):
    """A backslash followed by u0000 is ordinary text."""

    async def work(emit, _):
        return await emit("order_placed", {"a": text})

    await with_asyncpg(neutral, work)
    async with outbox(neutral) as connection:
        assert json.loads(await connection.fetchval("select safe_payload from event_outbox")) == {"a": text}


async def test_an_event_on_the_base_of_iu_core(applied):
    """On the base of IU Core, where ids of subjects are UUIDs, emit() works as well."""
    subject = uuid4()
    async with connected(applied.dsn) as connection:
        id = await emit(connection, "version_applied", {"n": 1}, subject=subject)
        row = await connection.fetchrow("select event_subject_ref, event_stream from event_outbox where id = $1", id)
        assert tuple(row) == (UUID(str(subject)), "update")


@pytest.mark.parametrize("wrong", [object(), "postgresql://", None])
async def test_an_object_that_is_no_connection_is_refused(server, wrong):
    """An object that is no connection is a TypeError that names the libraries."""
    with pytest.raises(TypeError, match="requires a connection or session of asyncpg"):
        emit(wrong, "order_placed", {})
