"""The session of the trace export: it reads pages of spans, and records up to where the collector accepted them.

The SQL of the export is in sql/functions/traces.up.sql.
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

from iu_listen.model.errors import Refused
from iu_listen.model.settings import Settings
from iu_listen.model.spans import Page, Place, Span, attempt_span, attempt_spans, letter_span
from iu_listen.postgres.earlier_sessions import EarlierSessions, replacing_earlier
from iu_listen.postgres.lease import described
from iu_listen.postgres.session import Connection, ask, ask_rows
from iu_listen.postgres.sqlfiles import query

#: Number of spans that are created without a pause for other tasks. It takes about 0.3 ms, in which the consumer in the
#: same process cannot run.
SPANS_PER_TURN: Final = 32
#: Longest wait for the answer of a trivial query, in seconds. It is short, because a shutdown may wait for this answer.
KEEPALIVE_DEADLINE: Final = 4.0
#: First key of the advisory lock that one export holds; the second key is a hash of the export's name.
TRACE_KEY: Final = 726006


class TraceSession:
    """Implements flow.ports.TraceSource. Created by trace_session()."""

    def __init__(self, connection: Connection, settings: Settings, name: str, batches: bool = True) -> None:
        self._connection = connection
        self._deadline = settings.batch_deadline
        self._name = name
        self._batches = batches
        # While a page is sent, two tasks use the session: one calls keep_alive(), the other one calls spans_after().
        self._session_lock = anyio.Lock()

    async def take_lease(self) -> str | None:
        """Become the only reader of this export; a new export begins at the present.

        Returns:
            None if this session is the reader; otherwise a description of the session that is.
        """
        if not self._connection.pooled:
            (row,) = await self._rows("take_lease", TRACE_KEY, self._name)
            # A lock that a foreign role holds is ignored. Two readers would then share the pages and lose none.
            if not row["mine"] and not row["all_unauthorized"]:
                return described(row["description"])
        await ask(self._connection, self._deadline, query("trace/register"), self._name)
        return None

    async def tick(self) -> Place | None:
        """The place in the open tick up to which spans were accepted; None: there is nothing to export.

        Raises:
            Refused: The history of the database is not that of the export's cursor.
        """
        answer = json.loads(await ask(self._connection, self._deadline, query("trace/tick"), self._name))
        if answer["status"] == "refused":
            raise Refused(
                f"the cursor of the trace export does not belong to this database's history: {answer['reason']}",
                "See docs/how-to/repair.md.",
            )
        if answer["status"] == "idle":
            return None
        return _place(answer)

    async def place_since(self, since: datetime) -> Place:
        """The place at which a repeated export of all spans since this time begins."""
        return _place(json.loads(await ask(self._connection, self._deadline, query("trace/again"), since)))

    async def spans_after(self, place: Place) -> list[Span]:
        """The spans of the newest attempts after a place, in its tick or later."""
        async with self._session_lock:
            rows = await self._rows("trace/beyond", place.prev, *place.attempt)
        return [attempt_span(row, self._lineage(place)) for row in rows]

    def _lineage(self, place: Place) -> str:
        """The history that is part of the names of batches; empty: batches are not spans, and attempts have no link."""
        return place.lineage if self._batches else ""

    async def keep_alive(self) -> None:
        """Execute a trivial query, so that the server does not end the session as idle."""
        async with self._session_lock:
            await ask(self._connection, min(self._deadline, KEEPALIVE_DEADLINE), query("backend_pid"))

    async def page(self, place: Place, limit: int) -> Page:
        """The spans of the next ``limit`` attempts; after the last attempt also of ``limit`` dead letters."""
        rows = await self._rows("trace/attempts", place.prev, place.tick, *place.attempt, limit)
        spans: list[Span] = []
        made = attempt_spans(rows, self._lineage(place))
        while some := list(islice(made, SPANS_PER_TURN)):
            spans += some
            await anyio.lowlevel.checkpoint()
        # Counted by event, because an event with a malformed trace context has one attempt for each route.
        malformed = {
            row["event_ref"]
            for row in rows
            if row["event_context"] is not None and row["traceparent"] is None and row["attempt_no"] == 1
        }
        ignored = len(malformed)
        if rows:
            place = replace(place, attempt=(str(rows[-1]["xact_id"]), rows[-1]["id"]))
        if len(rows) == limit:
            return Page(spans, place, ignored, last=False)
        letters = await self._rows("trace/dead_letters", place.prev, place.tick, *place.letter, limit)
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


def _place(answer: dict[str, Any]) -> Place:
    (attempt_xid, attempt), (dead_letter_xid, letter) = answer["attempt"], answer["letter"]
    return Place(
        answer["prev"], answer["tick"], answer["lineage"], (attempt_xid, attempt), (dead_letter_xid, UUID(letter))
    )


@asynccontextmanager
async def trace_session(
    settings: Settings, earlier: EarlierSessions, name: str, *, batches: bool
) -> AsyncIterator[TraceSession]:
    """Open the session of the trace export.

    Args:
        settings: The connection string and the deadlines.
        earlier: The earlier sessions of the consumer.
        name: The name of the export.
        batches: Whether batches are spans, so that the spans of attempts link to them.

    Raises:
        SessionLost: No session could be opened.
    """
    async with replacing_earlier(
        earlier, "traces", settings.dsn, name=f"iu-listen traces {name}", deadline=settings.deadline,
        answer_timeout=settings.batch_deadline, idle_timeout=4 * settings.session_timeout,
    ) as connection:  # fmt: skip
        yield TraceSession(connection, settings, name, batches)
