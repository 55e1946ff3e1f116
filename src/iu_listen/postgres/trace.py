"""The session of the trace export: it reads pages of spans, and records up to where the collector accepted them.

The SQL of the export's cursor is in the file 017_trace of the package.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any, Final
from uuid import UUID

import anyio
import anyio.lowlevel

from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.settings import Settings
from iu_listen.model.trace import Page, Place, Span, attempt_span, attempt_spans, call_span, event_span, letter_span
from iu_listen.postgres import census
from iu_listen.postgres.former import Former, succeeding
from iu_listen.postgres.ids import SHORTEST, between, is_id, whole
from iu_listen.postgres.session import Connection, ask, ask_rows, errors_become_ours
from iu_listen.postgres.sqlfiles import query

#: Number of spans that are created without a pause for other tasks. It takes about 0.3 ms, in which the consumer in the
#: same process cannot run.
SLICE: Final = 32
#: Longest wait for the answer of a trivial query, in seconds. It is short, because a shutdown may wait for this answer.
PATIENCE: Final = 4.0
#: First key of the advisory lock that one export holds; the second key is a hash of the export's name.
TRACE_KEY: Final = 726006


class TraceSession:
    """Implements flow.ports.TraceSource. Created by trace_session()."""

    def __init__(self, connection: Connection, settings: Settings, name: str, batches: bool = True) -> None:
        self._connection = connection
        self._deadline = settings.batch_deadline
        self._name = name
        self._batches = batches
        # While a page is sent, two tasks use the session: one calls alive(), the other one calls beyond().
        self._one = anyio.Lock()

    async def take_lease(self) -> str | None:
        """Become the only reader of this export; a new export begins at the present.

        Returns:
            None if this session is the reader; otherwise a description of the session that is.
        """
        if not self._connection.pooled:
            (row,) = await self._rows("take_lease", TRACE_KEY, self._name)
            # A lock that a foreign role holds is ignored. Two readers would then share the pages and lose none.
            if not row["mine"] and not row["strangers"]:
                return str(row["words"])
        await ask(self._connection, self._deadline, query("trace/register"), self._name)
        return None

    async def tick(self) -> Place | None:
        """The place in the open tick up to which spans were accepted; None: there is nothing to export.

        Raises:
            Refused: The history of the database is not that of the export's cursor.
        """
        answer = json.loads(await ask(self._connection, self._deadline, query("trace/tick"), self._name))
        if answer["status"] == "refused":
            raise Refused(f"the cursor of the traces is not believed: {answer['reason']}", "docs/how-to/repair.md")
        if answer["status"] == "idle":
            return None
        return _place(answer)

    async def again(self, since: datetime) -> Place:
        """The place at which a repeated export of all spans since this time begins."""
        return _place(json.loads(await ask(self._connection, self._deadline, query("trace/again"), since)))

    async def beyond(self, place: Place) -> list[Span]:
        """The spans of the newest attempts after a place, in its tick or later."""
        async with self._one:
            rows = await self._rows("trace/beyond", place.prev, *place.attempt)
        return [attempt_span(row, self._lineage(place)) for row in rows]

    def _lineage(self, place: Place) -> str:
        """The history that is part of the names of batches; empty: batches are not spans, and attempts have no link."""
        return place.lineage if self._batches else ""

    async def alive(self) -> None:
        """Execute a trivial query, so that the server does not end the session as idle."""
        async with self._one:
            await ask(self._connection, min(self._deadline, PATIENCE), query("backend_pid"))

    async def page(self, place: Place, limit: int) -> Page:
        """The spans of the next ``limit`` attempts; after the last attempt also of ``limit`` dead letters."""
        rows = await self._rows("trace/attempts", place.prev, place.tick, *place.attempt, limit)
        spans: list[Span] = []
        made = attempt_spans(rows, self._lineage(place))
        while some := list(islice(made, SLICE)):
            spans += some
            await anyio.lowlevel.checkpoint()
        # Counted by event, because an event with a malformed trace context has one attempt for each route.
        odd = {
            row["event_ref"]
            for row in rows
            if row["event_context"] is not None and row["traceparent"] is None and row["attempt_no"] == 1
        }
        ignored = len(odd)
        if rows:
            place = replace(place, attempt=(str(rows[-1]["xact_id"]), rows[-1]["id"]))
        if len(rows) == limit:
            return Page(spans, place, ignored, last=False)
        letters = await self._rows("trace/letters", place.prev, place.tick, *place.letter, limit)
        spans += map(letter_span, letters)
        if letters:
            place = replace(place, letter=(str(letters[-1]["xact_id"]), letters[-1]["id"]))
        return Page(spans, place, ignored, last=len(letters) < limit)

    async def accepted(self, page: Page, rejected: int) -> bool:
        """Record that the collector accepted a page, except ``rejected`` of its spans.

        Returns:
            Whether routing has a backlog, so that the export should pause.
        """
        place = page.place
        behind = await ask(
            self._connection, self._deadline, query("trace/accepted"), self._name, place.tick, *place.attempt,
            *place.letter, page.last, len(page.spans) - rejected, rejected, page.ignored,
        )  # fmt: skip
        return bool(behind)

    async def _rows(self, name: str, *args: Any) -> list[Any]:
        return await ask_rows(self._connection, self._deadline, query(name), *args)


async def end(connection: Connection, name: str) -> int | None:
    """Remove an export and its cursor.

    Returns:
        The number of spans that it had sent; None: there is no export of this name.

    Raises:
        Refused: A consumer is exporting with it.
    """
    # The lock ends with this transaction: behind a pooler the next transaction may run in another session.
    with errors_become_ours():
        async with connection.transaction():
            if not await census.value(connection, "trace/lock", TRACE_KEY, name):
                holder = await census.value(connection, "lease_holder", TRACE_KEY, name)
                hint = "End that process first, or start it without OTEL_TRACES_EXPORTER."
                raise Refused(f"the export runs: {holder}", hint)
            spans: int | None = await census.value(connection, "trace/forget", name)
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
        hint = "An event's id, an attempt's number, a dead letter's id, or a trace id: iu-listen attempts"
        raise ConfigurationError(f"{what} is no id", hint) from None
    if event is None:
        return []
    attempts = await census.rows(connection, "trace/attempts_of", event)
    lineage = str(await census.value(connection, "trace/lineage"))
    tried = [(row, attempt_span(row, lineage)) for row in attempts]
    spans = [span for _, span in tried]
    spans += filter(None, [call_span(row, span) for row, span in tried])
    spans += [letter_span(row) for row in await census.rows(connection, "trace/letters_of", event)]
    known = [row for row in attempts if row["event_at"] is not None]
    for row in known[:1] or await census.rows(connection, "trace/event", event):
        spans.append(event_span(row))
    return sorted(spans, key=lambda span: (span.start, -span.kind.value if span.parent_id == "" else 0, span.end))


async def _event(connection: Connection, what: str) -> UUID | None:
    if what.isdecimal() and len(what) < len(str(2**63)):
        found: UUID | None = await census.value(connection, "trace/event_of_attempt", int(what))
        # A number may also be the first characters of a UUID.
        if found or len(what) < SHORTEST:
            return found
    if not is_id(what):
        raise ValueError(what)
    low, high = between(what)
    if low == high:
        return UUID(str(await census.value(connection, "trace/event_of_letter", low) or low))
    letters = await census.rows(connection, "ids/dead_letter", low, high)
    events = await census.rows(connection, "ids/event", low, high)
    if letters and events:
        both = ", ".join(str(row["id"]) for row in [*letters, *events])
        raise ConfigurationError(
            f"dead letters and events have an id that begins with {what}: {both}", "Type more of it."
        )
    if letters:
        low = await whole(connection, "dead_letter", what)
        return UUID(str(await census.value(connection, "trace/event_of_letter", low)))
    return await whole(connection, "event", what) if events else None


def _place(answer: dict[str, Any]) -> Place:
    (attempt_xid, attempt), (letter_xid, letter) = answer["attempt"], answer["letter"]
    return Place(answer["prev"], answer["tick"], answer["lineage"], (attempt_xid, attempt), (letter_xid, UUID(letter)))


@asynccontextmanager
async def trace_session(settings: Settings, former: Former, name: str, *, batches: bool) -> AsyncIterator[TraceSession]:
    """Open the session of the trace export.

    Args:
        settings: The connection string and the deadlines.
        former: The earlier sessions of the consumer.
        name: The name of the export.
        batches: Whether batches are spans, so that the spans of attempts link to them.

    Raises:
        SessionLost: No session could be opened.
    """
    async with succeeding(
        former, "traces", settings.dsn, name=f"iu-listen traces {name}", deadline=settings.deadline,
        patience=settings.batch_deadline, idle_timeout=4 * settings.lease,
    ) as connection:  # fmt: skip
        yield TraceSession(connection, settings, name, batches)
