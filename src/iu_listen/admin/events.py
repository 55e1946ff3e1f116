"""Emits events through the governed emitter."""

from __future__ import annotations

from uuid import UUID

import asyncpg

from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.text import nearest
from iu_listen.postgres.queries import rows
from iu_listen.postgres.session import Connection
from iu_listen.postgres.sqlfiles import query


async def emit(
    connection: Connection, event_type: str, address: str, subject: UUID | None, actor: str, payload: str, count: int
) -> list[UUID]:
    """Emit events through the governed emitter.

    Raises:
        ConfigurationError: The payload has a forbidden key or cannot be stored, or the type is not registered.
        Refused: The master gate is closed.
    """
    # The emitter would count the event as refused, and `doctor` would warn of a mistyped command.
    known = [row["event_type"] for row in await rows(connection, "registered_types")]
    if event_type not in known:
        raise ConfigurationError(
            f"the event type {event_type} is not registered and active",
            f"Register it: iu-listen event-type add {event_type}. "
            f"Registered types: {', '.join(nearest(event_type, known)) or 'none'}.",
        )
    try:
        found = await connection.fetch(query("emit_event"), event_type, address, subject, actor, payload, count)
    except asyncpg.CheckViolationError as error:
        if error.constraint_name != "event_outbox_safe_payload_chk":
            raise
        hint = (
            "Events contain metadata only. Forbidden: body, content, raw, vector, embedding, secret, token, password."
        )
        raise ConfigurationError("the payload has a forbidden key", hint) from error
    except (asyncpg.InvalidTextRepresentationError, asyncpg.UntranslatableCharacterError) as error:
        # Python accepts NaN and NUL in JSON. PostgreSQL refuses them, and characters that its encoding does not have.
        raise ConfigurationError(f"the database cannot store this value: {error}") from error
    ids = [row["id"] for row in found if row["id"] is not None]
    if ids:
        return ids
    raise Refused("no event was written, because the master gate is closed", "Open it: iu-listen gate open master")
