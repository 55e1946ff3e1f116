"""The spans of one event for the trace command, and the end of an export that is no longer needed."""

from __future__ import annotations

from uuid import UUID

from iu_listen.admin.ids import MIN_PREFIX_CHARS, complete_id, id_range, is_id
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.spans import Span, attempt_span, call_span, event_span, letter_span
from iu_listen.postgres import queries
from iu_listen.postgres.lease import described
from iu_listen.postgres.session import Connection, translate_driver_errors
from iu_listen.postgres.trace import TRACE_KEY


async def end(connection: Connection, name: str) -> int | None:
    """Remove an export and its cursor.

    Returns:
        The number of spans that it had sent; None: there is no export of this name.

    Raises:
        Refused: A consumer is exporting with it.
    """
    # The lock ends with this transaction: behind a pooler the next transaction may run in another session.
    with translate_driver_errors():
        async with connection.transaction():
            if not await queries.value(connection, "trace/lock", TRACE_KEY, name):
                holder = described(await queries.value(connection, "lease_holder", TRACE_KEY, name))
                hint = "Stop that process first, or start it without OTEL_TRACES_EXPORTER."
                raise Refused(f"the trace export is running: {holder}", hint)
            spans: int | None = await queries.value(connection, "trace/forget", name)
    return spans


async def life(connection: Connection, what: str) -> list[Span]:
    """All spans of an event, in the order of their start; an empty list if no object has this id.

    Args:
        connection: A session.
        what: Id of an event, an attempt or a dead letter. A UUID may be without dashes, as in a trace id, and may be
            shortened to its first characters.

    Raises:
        ConfigurationError: The text is not an id, or several objects have an id that begins with it.
    """
    try:
        event = await _event(connection, what)
    except ValueError:
        hint = "Use the id of an event, the number of an attempt, the id of a dead letter, or a trace id."
        raise ConfigurationError(f"{what} is not an id", hint) from None
    if event is None:
        return []
    attempts = await queries.rows(connection, "trace/attempts_of", event)
    lineage = str(await queries.value(connection, "trace/lineage"))
    tried = [(row, attempt_span(row, lineage)) for row in attempts]
    spans = [span for _, span in tried]
    spans += filter(None, [call_span(row, span) for row, span in tried])
    spans += [letter_span(row) for row in await queries.rows(connection, "trace/dead_letters_of", event)]
    known = [row for row in attempts if row["event_at"] is not None]
    for row in known[:1] or await queries.rows(connection, "trace/event", event):
        spans.append(event_span(row))
    return sorted(spans, key=lambda span: (span.start, -span.kind.value if span.parent_id == "" else 0, span.end))


async def _event(connection: Connection, what: str) -> UUID | None:
    if what.isdecimal() and len(what) < len(str(2**63)):
        found: UUID | None = await queries.value(connection, "trace/event_of_attempt", int(what))
        # A number may also be the first characters of a UUID.
        if found or len(what) < MIN_PREFIX_CHARS:
            return found
    if not is_id(what):
        raise ValueError(what)
    low, high = id_range(what)
    if low == high:
        return UUID(str(await queries.value(connection, "trace/event_of_letter", low) or low))
    letters = await queries.rows(connection, "ids/dead_letter", low, high)
    events = await queries.rows(connection, "ids/event", low, high)
    if letters and events:
        both = ", ".join(str(row["id"]) for row in [*letters, *events])
        raise ConfigurationError(
            f"the id {what} is ambiguous; it begins the ids of dead letters and events: {both}",
            "Use more characters of the id.",
        )
    if letters:
        low = await complete_id(connection, "dead_letter", what)
        return UUID(str(await queries.value(connection, "trace/event_of_letter", low)))
    return await complete_id(connection, "event", what) if events else None
