"""Events that a session of SQLAlchemy collects, and writes with its flush.

A collected event is a pending object of its session, and ends as one: a flush writes it; a rollback, also that of a
savepoint, ``expunge_all()`` and ``close()`` drop it. But no mapper writes it, because it may need the primary keys of
other objects:

    before_flush           takes the events out of the session, and makes sure that the flush does not end early
    flush                  writes the other objects; they get their primary keys
    after_flush_postexec   writes the events, in one statement

This module imports SQLAlchemy; ``iu_listen`` does not import it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, Column, MetaData, Table, event
from sqlalchemy.orm import Session, UOWTransaction, make_transient_to_detached, registry
from sqlalchemy.orm.attributes import flag_dirty

from iu_listen.model.routing import DEFAULT_DOMAIN
from iu_listen.producer.emit import event_row, write_rows
from iu_listen.producer.event_id import new_event_id
from iu_listen.producer.payload import payload_json
from iu_listen.producer.trace_context import class_names, current_traceparent

#: Key of Session.info: the events that the running flush will write.
_IN_FLUSH: Final = "iu_listen.in_flush"
_numbers: Final = count()


class CollectedEvent:
    """An event that its session has not yet written.

    Args:
        row: Returns the event as event_row() does; called after the flush of the other objects.

    Attributes:
        id: Number of the event in this process, and its primary key, which SQLAlchemy requires.
    """

    def __init__(self, row: Callable[[], str]) -> None:
        self.id: int = next(_numbers)
        self.row = row


# A session accepts objects of mapped classes only. The table does not exist, and nothing is written to it.
registry().map_imperatively(
    CollectedEvent, Table("iu_listen_collected_event", MetaData(), Column("id", BigInteger, primary_key=True))
)


def collect(
    session: Any,
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
) -> UUID:
    """Collect an event on a session of SQLAlchemy. The next flush writes it, at the latest that of the commit.

    ```python
    session.add(order)
    collect(session, "order_placed", lambda: {"id": order.id, "total": order.total}, subject=lambda: order.id)
    ```

    The call does not use the database, and needs no ``await`` for an AsyncSession. A flush writes all events of the
    session in one statement, in the order in which they were collected, after the other objects. The event has the
    trace context of the span of OpenTelemetry that is current at the call.

    Args:
        session: A Session, AsyncSession, scoped_session or async_scoped_session.
        event_type: Type of the event; it must be registered (``iu-listen event-type add``), else the flush fails.
        payload: A payload as for emit(), or a function without parameters that returns it. The flush calls the function
            when the other objects have their primary keys. Default: an empty object.
        subject: Id of the subject as for emit(), or a function without parameters that returns it.
        subject_type: As for emit().
        address: As for emit().
        actor: As for emit().
        source: As for emit().
        correlation: As for emit().
        occurred_at: As for emit().
        domain: As for emit().
        id: As for emit().

    Returns:
        The id of the event, a UUID.

    Raises:
        InvalidPayload: The payload or an attribute cannot be written as JSON. The session is not affected. If a
            function returned the value, the flush raises the error, and the transaction is rolled back.
        TypeError: The object is no session of SQLAlchemy.
    """
    session = _sync_session(session)
    event_id = id or new_event_id()
    finish = partial(
        event_row, event_id, event_type, subject_type=subject_type, address=address, actor=actor, source=source,
        correlation=correlation, occurred_at=occurred_at, domain=domain, traceparent=current_traceparent(),
    )  # fmt: skip
    text = "" if callable(payload) else payload_json(event_type, {} if payload is None else payload)
    # The result is not used: the call checks the attributes before the session is changed.
    finish(text, subject=None if callable(subject) else subject)

    def row() -> str:
        return finish(
            payload_json(event_type, payload()) if callable(payload) else text,
            subject=subject() if callable(subject) else subject,
        )

    session.add(CollectedEvent(row))
    for name, listener in (("before_flush", _before_flush), ("after_flush_postexec", _after_flush)):
        if not event.contains(session, name, listener):
            event.listen(session, name, listener)
    return event_id


def _sync_session(given: Any) -> Session:
    """The Session in which SQLAlchemy's other kinds of sessions work."""
    scoped = class_names(given) & {"sqlalchemy.scoped_session", "sqlalchemy.async_scoped_session"}
    session = given() if scoped else given
    session = getattr(session, "sync_session", session)
    if not isinstance(session, Session):
        raise TypeError(f"collect() requires a Session or AsyncSession of SQLAlchemy, not {type(given).__name__}")
    return session


def _before_flush(session: Session, _context: UOWTransaction, _instances: object) -> None:
    """Take the events out of the session, because the flush would write them as rows of their table."""
    events = sorted((one for one in session.new if isinstance(one, CollectedEvent)), key=lambda one: one.id)
    for one in events:
        session.expunge(one)
    if events:
        # A flush without any object ends before after_flush_postexec. So one event takes part in it, as an object that
        # exists in the database and may have changed; SQLAlchemy finds no change, and writes nothing.
        make_transient_to_detached(events[0])
        session.add(events[0])
        flag_dirty(events[0])
    session.info[_IN_FLUSH] = events


def _after_flush(session: Session, _context: UOWTransaction) -> None:
    """Write the events in the transaction of the flush. An error makes the flush fail."""
    events: list[CollectedEvent] = session.info.pop(_IN_FLUSH, [])
    if events:
        write_rows(session.connection(), [one.row() for one in events])
