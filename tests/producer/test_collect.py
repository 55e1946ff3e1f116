"""collect(): one table of tests for every kind of session. A collected event ends as the pending objects of its session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from cli.command import execute, on_one_server, rows
from iu_listen import emit
from iu_listen.producer.payload import InvalidPayload
from iu_listen.sqlalchemy import collect

pytestmark = on_one_server
#: A function of a test: it gets the Session, and the function collect() of the session that the application has.
Work = Callable[[Session, Callable[..., Any]], Any]


class Model(DeclarativeBase):
    pass


class Order(Model):
    """An object with a generated primary key, and with a column that can refuse it."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int] = mapped_column(sqlalchemy.CheckConstraint("total > 0"))


@pytest.fixture
def shop(neutral) -> str:
    """The DSN of a database with the table of the orders; the first order has the id 41."""
    execute(neutral, "create table orders (id serial primary key, total integer not null check (total > 0))")
    execute(neutral, "select setval('orders_id_seq', 40)")
    return neutral


def in_session(dsn: str, work: Work) -> Any:
    engine = sqlalchemy.create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    with Session(engine) as session:
        return work(session, lambda *a, **k: collect(session, *a, **k))


def in_async_session(dsn: str, work: Work) -> Any:
    async def run() -> Any:
        engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"), poolclass=NullPool)
        async with AsyncSession(engine) as session:
            return await session.run_sync(work, lambda *a, **k: collect(session, *a, **k))

    return asyncio.run(run())


every_kind = pytest.mark.parametrize("opened", [in_session, in_async_session], ids=["Session", "AsyncSession"])


def written(dsn: str) -> list[tuple[str | None, Any]]:
    """Subject and payload of each event, in the order of their positions."""
    found = rows(dsn, "select event_subject_ref, safe_payload from event_outbox order by event_seq")
    return [(row[0], json.loads(row[1])) for row in found]


@every_kind
def test_a_commit_writes_all_events_in_one_statement(shop, opened):
    """Events are written in the order of the calls, in one statement, with generated primary keys.

    Fails when: the functions are called before the flush has ended, or each event has a statement of its own.
    """
    statements = []

    def work(session, collect):
        @event.listens_for(session.get_bind(), "before_cursor_execute")
        def note(connection, cursor, statement, *_):
            statements.append(statement)

        orders = [Order(total=n + 1) for n in range(50)]
        for order in orders:
            about = partial(lambda order: {"id": order.id, "persistent": sqlalchemy.inspect(order).persistent}, order)
            collect("order_placed", about, subject=partial(getattr, order, "id"), subject_type="orders", actor="ann")
            session.add(order)
        assert statements == []
        session.commit()

    opened(shop, work)
    assert written(shop) == [(str(id), {"id": id, "persistent": True}) for id in range(41, 91)]
    assert sum("event_outbox" in one for one in statements) == 1
    assert rows(shop, "select distinct event_subject_table, actor_ref, event_stream from event_outbox") == [
        ("orders", "ann", "event")
    ]


@every_kind
def test_an_event_without_another_change_is_written(shop, opened):
    """A session that has only collected events writes them at its commit, and before a query, as autoflush does.

    Fails when: the flush ends early because there is nothing else to write.
    """

    def work(session, collect):
        count = sqlalchemy.text("select count(*) from event_outbox")
        collect("order_placed", {"n": 1})
        assert session.execute(sqlalchemy.select(Order)).all() == []
        assert session.scalar(count) == 1
        collect("order_placed", {"n": 2})
        session.commit()
        assert session.scalar(count) == 2
        assert not session.new
        assert not session.dirty

    opened(shop, work)
    assert written(shop) == [(None, {"n": 1}), (None, {"n": 2})]


@every_kind
@pytest.mark.parametrize("ending", ["rollback", "close", "expunge_all"])
def test_a_rollback_leaves_no_event(shop, opened, ending):
    """A rollback and the other ways to drop pending objects drop the events, and the session can be used again."""

    def work(session, collect):
        session.add(Order(total=1))
        if ending == "rollback":
            collect("order_placed", {"n": 1})
            session.flush()
        collect("order_placed", {"n": 2})
        getattr(session, ending)()
        collect("order_placed", {"n": 3})
        session.commit()

    opened(shop, work)
    assert written(shop) == [(None, {"n": 3})]


@every_kind
@pytest.mark.parametrize("changed", [True, False])
def test_a_savepoint_that_is_rolled_back_leaves_no_event(shop, opened, changed):
    """Events that were collected before and after a savepoint stay, whether or not the session has other changes.

    Fails when: an event is still pending when the savepoint begins, and is written inside of it.
    """

    def work(session, collect):
        first = Order(total=1)
        session.add_all([first] if changed else [])
        collect("order_placed", {"n": 1})
        savepoint = session.begin_nested()
        session.add(Order(total=2))
        collect("order_placed", {"n": 2})
        session.flush()
        collect("order_placed", {"n": 3})
        savepoint.rollback()
        collect("order_placed", {"n": 4})
        with session.begin_nested():
            collect("order_placed", {"n": 5})
        session.commit()

    opened(shop, work)
    assert written(shop) == [(None, {"n": n}) for n in (1, 4, 5)]


@every_kind
def test_a_commit_with_an_open_savepoint_writes_everything(shop, opened):
    """The commit of the outer transaction also writes the events of a savepoint that was not released."""

    def work(session, collect):
        collect("order_placed", {"n": 1})
        session.begin_nested()
        collect("order_placed", {"n": 2})
        session.commit()

    opened(shop, work)
    assert written(shop) == [(None, {"n": 1}), (None, {"n": 2})]


@every_kind
def test_a_bad_payload_is_raised_when_it_is_collected(shop, opened):
    """A payload or an attribute that cannot be JSON raises at the call; the session, and its other events, go on.

    Fails when: the payload is only checked by the flush.
    """

    def work(session, collect):
        collect("order_placed", {"n": 1})
        for bad in ({"a": object()}, {"a": float("nan")}, {"a": "\x00"}, [1]):
            with pytest.raises(InvalidPayload, match="the payload of order_placed"):
                collect("order_placed", bad)
        with pytest.raises(InvalidPayload, match="an attribute of order_placed"):
            collect("order_placed", dict, actor="\x00")
        session.commit()

    opened(shop, work)
    assert written(shop) == [(None, {"n": 1})]


@every_kind
def test_a_payload_is_taken_at_the_call(shop, opened):
    """A later change of a dict does not change the event; the attributes and the trace context are those of the call."""
    tracer, payload = TracerProvider().get_tracer("test"), {"n": 1}

    def work(session, collect):
        with tracer.start_as_current_span("checkout") as span:
            id = collect("order_placed", payload)
        payload["n"] = 2
        session.commit()
        return id, span.get_span_context().trace_id

    id, trace = opened(shop, work)
    assert written(shop) == [(None, {"n": 1})]
    found = rows(shop, "select id, traceparent from event_outbox")[0]
    assert (found[0], found[1].split("-")[1]) == (id, f"{trace:032x}")


def _bad_function(session, collect):
    collect("order_placed", lambda: {"a": object()})


def _unknown_type(session, collect):
    collect("nope", {})


def _bad_order(session, collect):
    collect("order_placed", {})
    session.add(Order(total=-1))


@every_kind
def test_an_event_of_a_mapper_can_write_an_event(shop, opened):
    """emit() works on the connection that SQLAlchemy passes to a listener of a mapper, inside the flush."""

    def placed(_mapper, connection, order):
        emit(connection, "order_placed", {"id": order.id})

    def work(session, collect):
        session.add(Order(total=1))
        session.commit()

    event.listen(Order, "after_insert", placed)
    try:
        opened(shop, work)
    finally:
        event.remove(Order, "after_insert", placed)
    assert written(shop) == [(None, {"id": 41})]


@every_kind
def test_an_id_can_be_used_again(shop, opened):
    """The id of an event whose flush failed can be used in the next attempt.

    Fails when: the id identifies the event in its session, too.
    """
    id = uuid4()

    def work(session, collect):
        collect("nope", {"n": 1}, id=id)
        with pytest.raises(DBAPIError):
            session.commit()
        session.rollback()
        collect("order_placed", {"n": 2}, id=id)
        session.commit()

    opened(shop, work)
    assert rows(shop, "select id from event_outbox") == [(id,)]


@every_kind
@pytest.mark.parametrize(
    ("fault", "error"), [(_bad_function, InvalidPayload), (_unknown_type, DBAPIError), (_bad_order, IntegrityError)]
)
def test_a_flush_that_fails_writes_nothing(shop, opened, fault, error):
    """The error rolls the transaction back; after the rollback the session works, and the events do not come back.

    Fails when: the events of the failed flush are kept for the next one.
    """

    def work(session, collect):
        session.add(Order(total=1))
        fault(session, collect)
        with pytest.raises(error):
            session.flush()
        session.rollback()
        session.add(Order(total=3))
        collect("order_placed", {"n": 3})
        session.commit()

    opened(shop, work)
    assert written(shop) == [(None, {"n": 3})]
    assert [row[0] for row in rows(shop, "select total from orders")] == [3]


def test_the_session_of_a_scope(shop):
    """scoped_session and async_scoped_session are accepted, too; the events belong to the session of the scope."""
    engine = sqlalchemy.create_engine(shop.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    scoped = scoped_session(sessionmaker(engine))
    collect(scoped, "order_placed", {"n": 1}, id=uuid4())
    scoped.commit()
    scoped.remove()

    async def run() -> None:
        engine = create_async_engine(shop.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
        scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        collect(scoped, "order_placed", {"n": 2})
        await scoped.commit()
        await scoped.remove()

    asyncio.run(run())
    assert written(shop) == [(None, {"n": 1}), (None, {"n": 2})]


@pytest.mark.parametrize("wrong", [object(), None, sqlalchemy.create_engine("postgresql+psycopg://")])
def test_an_object_that_is_no_session_is_refused(server, wrong):
    """An object that is no session is a TypeError that names what is required."""
    with pytest.raises(TypeError, match="requires a Session or AsyncSession of SQLAlchemy"):
        collect(wrong, "order_placed", {})
