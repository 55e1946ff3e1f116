"""The session of the trace reader: pages of spans, and how far they were accepted. The cursor is in 017_trace."""

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

#: Spans that are made at a stretch: a third of a millisecond, in which the consumer beside us cannot wake.
SLICE: Final = 32
#: Longest wait for an answer that costs nothing, in seconds: the end of a process may wait for it.
PATIENCE: Final = 4.0
#: First key of the advisory lock that one export holds; the second is a hash of its name.
TRACE_KEY: Final = 726006


class TraceSession:
    """Satisfies flow.ports.TraceSource. Made by trace_session()."""

    def __init__(self, connection: Connection, settings: Settings, name: str, batches: bool = True) -> None:
        self._connection = connection
        self._deadline = settings.batch_deadline
        self._name = name
        self._batches = batches
        # While a page is sent, two ask.
        self._one = anyio.Lock()

    async def take_lease(self) -> str | None:
        """Become the one reader of this export, which begins now if it is new. None: done. Else: who is it already."""
        if not self._connection.pooled:
            (row,) = await self._rows("take_lease", TRACE_KEY, self._name)
            # The lock of a stranger is no lease; two readers would share the pages, and lose none.
            if not row["mine"] and not row["strangers"]:
                return str(row["words"])
        await ask(self._connection, self._deadline, query("trace/register"), self._name)
        return None

    async def tick(self) -> Place | None:
        """Where the open tick was accepted up to; None: there is nothing to export."""
        answer = json.loads(await ask(self._connection, self._deadline, query("trace/tick"), self._name))
        if answer["status"] == "refused":
            raise Refused(f"the cursor of the traces is not believed: {answer['reason']}", "docs/how-to/repair.md")
        if answer["status"] == "idle":
            return None
        return _place(answer)

    async def again(self, since: datetime) -> Place:
        """Where a repetition of all since then begins."""
        return _place(json.loads(await ask(self._connection, self._deadline, query("trace/again"), since)))

    async def beyond(self, place: Place) -> list[Span]:
        """The youngest of the attempts that follow a place, in this tick or after it."""
        async with self._one:
            rows = await self._rows("trace/beyond", place.prev, *place.attempt)
        return [attempt_span(row, self._lineage(place)) for row in rows]

    def _lineage(self, place: Place) -> str:
        """The history that the names of batches have in them; empty: no batch is a span, and none is linked to."""
        return place.lineage if self._batches else ""

    async def alive(self) -> None:
        """Use the session."""
        async with self._one:
            await ask(self._connection, min(self._deadline, PATIENCE), query("backend_pid"))

    async def page(self, place: Place, limit: int) -> Page:
        """The next spans: of ``limit`` attempts, and after the last attempt of as many dead letters."""
        rows = await self._rows("trace/attempts", place.prev, place.tick, *place.attempt, limit)
        spans: list[Span] = []
        made = attempt_spans(rows, self._lineage(place))
        while some := list(islice(made, SLICE)):
            spans += some
            await anyio.lowlevel.checkpoint()
        # An event whose context was malformed has an attempt for each route, and is one.
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
        """Note that the collector has a page, ``rejected`` of its spans aside. True: routing is behind, give way."""
        place = page.place
        behind = await ask(
            self._connection, self._deadline, query("trace/accepted"), self._name, place.tick, *place.attempt,
            *place.letter, page.last, len(page.spans) - rejected, rejected, page.ignored,
        )  # fmt: skip
        return bool(behind)

    async def _rows(self, name: str, *args: Any) -> list[Any]:
        return await ask_rows(self._connection, self._deadline, query(name), *args)


async def end(connection: Connection, name: str) -> int | None:
    """End an export for good; how many spans it had sent. None: there was none.

    Raises:
        Refused: somebody exports by it.
    """
    # In one transaction, and a lock that ends with it: behind a pooler the next one is another session's.
    with errors_become_ours():
        async with connection.transaction():
            if not await census.value(connection, "trace/lock", TRACE_KEY, name):
                holder = await census.value(connection, "lease_holder", TRACE_KEY, name)
                hint = "End that process first, or start it without OTEL_TRACES_EXPORTER."
                raise Refused(f"the export runs: {holder}", hint)
            spans: int | None = await census.value(connection, "trace/forget", name)
    return spans


async def life(connection: Connection, what: str) -> list[Span]:
    """Every span of an event, in order of their beginning; none: nothing of that name is known.

    Args:
        connection: A session.
        what: Id of an event, an attempt or a dead letter; a UUID may be without dashes, as a trace id is.

    Raises:
        ConfigurationError: it is no id.
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
        # The beginning of an id may be a number, too.
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
    """Open the session of the trace reader; attempts link to their batch where ``batches`` are spans.

    Raises:
        SessionLost: no session can be had.
    """
    async with succeeding(
        former, "traces", settings.dsn, name=f"iu-listen traces {name}", deadline=settings.deadline,
        patience=settings.batch_deadline, idle_timeout=4 * settings.lease,
    ) as connection:  # fmt: skip
        yield TraceSession(connection, settings, name, batches)
