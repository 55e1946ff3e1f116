"""The worker session: it holds the lease and runs the batches, so a consumer that loses the lease runs no batch."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import anyio

from iu_listen.model.delivery import DeadLetters, TakeRequest
from iu_listen.model.errors import NoAnswer, Refused, SessionLost
from iu_listen.model.routing import Batch, BatchAnswer, BatchFailure, State, Tally
from iu_listen.model.settings import Settings
from iu_listen.postgres.admission import ADMISSION_TEXTS, site_of
from iu_listen.postgres.delivery import columns, taken_of
from iu_listen.postgres.earlier_sessions import EarlierSessions, replacing_earlier
from iu_listen.postgres.lease import WorkerLease
from iu_listen.postgres.session import Connection, Prepared, ask, ask_rows, translate_driver_errors
from iu_listen.postgres.sqlfiles import query

#: SQLSTATE of a statement that the server cancelled, after a timeout or on request.
QUERY_CANCELED: Final = "57014"
#: Most kinds of dead letters of a batch that are read, for the log.
MAX_KINDS: Final = 5


class WorkerSession:
    """Implements flow.ports.BatchRunner. Created by worker_session()."""

    def __init__(self, connection: Connection, settings: Settings, consumer: UUID, version: str) -> None:
        self._connection = connection
        self._settings = settings
        self._consumer = consumer
        self._version = version
        # prepare() replaces the first text by a prepared statement; run_batch() replaces the second one when needed.
        self._batch: str | Prepared = query("run_batch")
        self._batch_and_take: str | Prepared = query("run_batch_and_take")
        self._abandoned = ""
        self._lease = WorkerLease(connection, settings, consumer)
        self.failure: BatchFailure | None = None
        #: The process id of the session on the server; None behind a pooler, where it is not known. It is read once,
        #: because the driver does not know it any more when the session has ended.
        self.backend: Final = None if connection.pooled else connection.get_server_pid()

    def abandon(self, why: str) -> None:
        """End the session at once: a batch that waits for its answer raises SessionLost with this reason."""
        self._abandoned = why
        self._connection.terminate()

    async def prepare(self) -> None:
        """Prepare the statement that is executed repeatedly."""
        with translate_driver_errors(), anyio.fail_after(self._settings.deadline):
            self._batch = await self._connection.prepare_once(query("run_batch"))

    async def take_lease(self) -> str | None:
        """Take the lease of the worker.

        Behind a transaction pooler there is no lease, because a client has no session locks there. Each batch locks the
        row of the cursor, so each event is still routed once; the consumers of the worker run their batches in turn.

        Returns:
            None if this consumer holds the lease; otherwise a description of the lease holder.
        """
        return None if self._connection.pooled else await self._lease.take()

    async def run_batch(self, limit: int, requests: Sequence[TakeRequest] = ()) -> BatchAnswer:
        """Route at most ``limit`` events in one transaction.

        A batch that is cancelled is rolled back as a whole, and its session is lost.

        Args:
            limit: Largest number of events.
            requests: The routes whose new deliveries the dispatcher has capacity for. The batch returns these
                deliveries in the same round trip.

        Raises:
            SessionLost: The session was lost or abandoned, or the server did not answer in time (NoAnswer).
            Refused: The server answered with an error.
        """
        began, began_ns = time.perf_counter(), time.time_ns()
        try:
            if requests and isinstance(self._batch_and_take, str):
                # Prepared here, because a consumer that delivers nothing does not need this statement.
                with translate_driver_errors(), anyio.fail_after(self._settings.deadline):
                    self._batch_and_take = await self._connection.prepare_once(self._batch_and_take)
            statement, more = (self._batch_and_take, columns(requests)) if requests else (self._batch, ())
            rows = await ask_rows(
                self._connection, self._settings.batch_deadline, statement, self._settings.worker, limit, *more
            )
        except (SessionLost, Refused) as error:
            self.failure = _failure(error)
            if not self._abandoned:
                raise
            raise SessionLost(self._abandoned, error.hint) from error
        seconds = time.perf_counter() - began
        # The answer does not contain the policies of the routes; the deadlines and spans of the requests are used.
        deliveries = taken_of(rows, {r.route: (r.deadline, r.span) for r in requests}) if requests else []
        return BatchAnswer(json=rows[0][0], seconds=seconds, began_ns=began_ns, deliveries=deliveries)

    async def dead_letters(self, batch: Batch) -> list[DeadLetters]:
        """The kinds of the dead letters that a batch has made, the most frequent first, each with one event.

        At most MAX_KINDS of them. A dead letter without an attempt is left out.
        """
        rows = await ask_rows(
            self._connection, self._settings.deadline, query("dead_letter/of_batch"), str(batch.xact_id), MAX_KINDS
        )
        return [DeadLetters(**dict(row)) for row in rows]

    async def note_failure(self, limit: int, failure: BatchFailure) -> None:
        """Record that a batch of at most ``limit`` events failed, so that the next batches isolate the cause."""
        await ask(
            self._connection, self._settings.deadline, query("note_failure"), self._settings.worker, limit,
            failure.why, failure.timed_out, failure.event or None, failure.route or None,
        )  # fmt: skip

    async def beat(self, state: State, why: str, listening: bool, polling_why: str, tally: Tally) -> None:
        """Write the heartbeat, and renew a lease that is held as a row (lease.py).

        Raises:
            SessionLost: The session was lost, or another consumer now holds the lease that was held as a row.
        """
        if self._lease.held_as_row and (holder := await self._lease.take()) is not None:
            raise SessionLost(f"another consumer has taken the lease of the worker: {holder}")
        await ask(
            self._connection, self._settings.deadline, query("beat"),
            self._consumer, self._settings.worker, platform.node(), os.getpid(), self._version,
            state.value, why or None, listening, self._settings.catch_up,
            tally.last_wake, tally.last_wake_at, json.dumps(tally.wakes), tally.events,
            polling_why or None,
        )  # fmt: skip


def _failure(error: SessionLost | Refused) -> BatchFailure:
    """The failure of a batch, with its event and route if fn_iu_route_worker_run put them into fields of its error."""
    cause: Any = error.__cause__
    failure = BatchFailure(
        why=error.message,
        timed_out=isinstance(error, NoAnswer) or getattr(cause, "sqlstate", "") == QUERY_CANCELED,
    )
    if getattr(cause, "table_name", None) == "iu_outbound_route" and cause.column_name:
        # The name of an ordinary constraint of that table is not a UUID.
        with suppress(ValueError):
            return replace(failure, event=str(UUID(cause.constraint_name)), route=cause.column_name)
    return failure


@asynccontextmanager
async def worker_session(
    settings: Settings, consumer: UUID, version: str, earlier: EarlierSessions
) -> AsyncIterator[WorkerSession]:
    """Open the worker session.

    Args:
        settings: The connection string and the deadlines.
        consumer: Identity of the consumer, for its heartbeat.
        version: Version of the consumer, for its heartbeat.
        earlier: The earlier sessions of the consumer. Those that still exist on the server are ended, so that none of
            them keeps the lease.

    Raises:
        SessionLost: No session could be opened, or the server does not accept writes.
        Refused: The consumer may not work on this database (admission.py).
    """
    name = f"iu-listen worker {settings.worker}"
    async with replacing_earlier(
        earlier, "worker", settings.dsn, name=name, deadline=settings.deadline, answer_timeout=settings.batch_deadline,
        idle_timeout=settings.session_timeout,
    ) as connection:  # fmt: skip
        for row in await ask_rows(connection, settings.deadline, query("takes_no_writes")):
            raise SessionLost(row["problem"], row["hint"])
        session = WorkerSession(connection, settings, consumer, version)
        await session.prepare()
        refusal = await ask(
            connection, settings.deadline, query("admission"), site_of(settings), settings.worker, consumer
        )
        # An unknown site forbids deliveries only, not routing.
        if refusal not in (None, "foreign_site"):
            await session.beat(State.REFUSING, refusal, False, "", Tally())
            raise Refused(*ADMISSION_TEXTS[refusal])
        yield session
