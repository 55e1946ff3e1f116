"""A program that uses the public API. `make package` type-checks it against the wheel; it is never run.

The wheel is installed without asyncpg-stubs there, as at most users, so a public name whose type depends on the driver
is an error. An error that is expected has an ignore comment, and a superfluous comment is an error, too.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

import iu_listen
from iu_listen import (
    Consumer,
    Delivery,
    Event,
    Failed,
    Reject,
    Settings,
    Unavailable,
    embedded,
    emit,
    migration_sql,
    on,
    target,
    trace_context,
)
from iu_listen.model.errors import ConfigurationError, DatabaseUnreachable, IuListenError
from iu_listen.model.observation import Observation, Stopped
from iu_listen.producer.payload import InvalidPayload
from iu_listen.testing.outbox import Outbox


@dataclass
class Order:
    """The payload of an event."""

    total: int


@on("order_placed")
async def mail(order: Order) -> None:
    """A handler."""
    if order.total < 0:
        raise Reject("a negative total", code="negative")


@target("crm")
async def crm(delivery: Delivery) -> None:
    """A target."""
    assert_type(delivery.event, Event)
    raise Failed("busy", retry_after=1.0) if delivery.attempt == 1 else Unavailable()


class Notes:
    """An observer."""

    def observe(self, observation: Observation, /) -> None:
        """Receive one observation."""
        if isinstance(observation, Stopped):
            print(observation)


async def main() -> None:
    """A program with a consumer."""
    assert_type(iu_listen.__version__, str)
    assert_type(migration_sql(), str)
    try:
        with embedded.running() as server:
            async with Consumer(Settings(dsn=server.dsn("shop")), targets=[crm, mail], observers=[Notes()]) as consumer:
                await consumer.ready(30)
                await consumer.drained()
                consumer.stop("the end")
    except (ConfigurationError, DatabaseUnreachable) as error:
        wider: IuListenError = error
        print(wider.message, wider.hint)


async def test_mail(iu_outbox: Outbox, connection: object) -> None:
    """A test with the fixture."""
    async with trace_context(connection):
        try:
            await emit(connection, "order_placed", Order(5))
        except InvalidPayload:
            return
    (decided,) = await iu_outbox.drain(mail)
    assert_type(decided.event.type, str)
    assert_type(decided.failure_code, str | None)


iu_listen.Consumr  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # noqa: B018
