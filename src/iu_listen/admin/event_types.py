"""Event types: which events may be written to the outbox."""

from __future__ import annotations

import re
from typing import Final

from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.routing import DEFAULT_DOMAIN
from iu_listen.postgres.queries import Row, rows
from iu_listen.postgres.session import Connection

#: A name of an event type, a stream or a route: letters, digits, dots, hyphens and underscores.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def require_name(what: str, name: str) -> None:
    """Make sure that a text is usable as a name.

    Raises:
        ConfigurationError: It has other characters, or more than 100.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what} {name!r} is not a name",
            "A name has up to 100 letters, digits, dots, hyphens and underscores, and begins with a letter or digit.",
        )


async def list_types(connection: Connection, domain: str | None = None) -> list[Row]:
    """The registered event types of a domain, or of all domains, each with the number of its routes."""
    return await rows(connection, "event_type/list", domain)


async def add_type(
    connection: Connection,
    name: str,
    *,
    domain: str = DEFAULT_DOMAIN,
    stream: str = "event",
    lane: str = "immediate",
    severity: str = "info",
) -> None:
    """Register an event type. A type that is registered in this way is activated, or stays as it is.

    Args:
        connection: A session.
        name: The event type, for example ``order_placed``.
        domain: The domain of its events; the default worker reads ``iu``.
        stream: The stream of its events.
        lane: The lane of its events.
        severity: The severity of its events.

    Raises:
        ConfigurationError: A text is not a name.
        Refused: The type is registered with another stream or lane.
    """
    for what, text in (("the event type", name), ("the domain", domain), ("the stream", stream), ("the lane", lane)):
        require_name(what, text)
    if not await rows(connection, "event_type/add", domain, name, stream, lane, severity):
        found = next(t for t in await list_types(connection, domain) if t["event_type"] == name)
        raise Refused(
            f"event type {name} is registered with stream {found['event_stream']} and lane {found['delivery_lane']}",
            "The stream and the lane of a type do not change, because its events exist with them. Use another type.",
        )


async def remove_type(connection: Connection, name: str, *, domain: str = DEFAULT_DOMAIN) -> None:
    """Remove an event type that has no routes. Its events stay.

    Raises:
        ConfigurationError: The type is not registered.
        Refused: Routes select it.
    """
    found = await require_type(connection, name, domain=domain)
    if found["routes"]:
        raise Refused(
            f"event type {name} has routes: {found['routes']}", "Remove them first: iu-listen route remove CODE"
        )
    await rows(connection, "event_type/remove", domain, name)


async def refused(connection: Connection) -> int | None:
    """The number of events that the emitter has refused since the last reset, because their type is not registered.

    None: the emitter of this base does not count them.
    """
    found = await rows(connection, "refused_emits")
    return found[0]["refused"] if found else None


async def reset_refused(connection: Connection) -> None:
    """Let the number of refused events begin at 0, after an operator has dealt with the events.

    Raises:
        ConfigurationError: The emitter of this base does not count them.
        Refused: The role lacks the privilege.
    """
    if await refused(connection) is None:
        raise ConfigurationError(
            "the emitter of this base does not count refused events",
            "docs/how-to/producers.md#an-event-that-is-refused describes how it can.",
        )
    await rows(connection, "event_type/reset_refused")


async def require_type(connection: Connection, name: str, *, domain: str = DEFAULT_DOMAIN) -> Row:
    """A registered event type.

    Raises:
        ConfigurationError: It is not registered; the hint names the command that registers it.
    """
    types = await list_types(connection, domain)
    for found in types:
        if found["event_type"] == name:
            return found
    known = ", ".join(t["event_type"] for t in types)
    raise ConfigurationError(
        f"event type {name} is not registered",
        f"Register it: iu-listen event-type add {name}. Registered types: {known or 'none'}.",
    )
