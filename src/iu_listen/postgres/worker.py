"""The worker session: it holds the lease and runs the batches, so that losing one is losing the other."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import anyio
import anyio.lowlevel

from iu_listen.model.delivery import Taken, Want
from iu_listen.model.errors import NoAnswer, Refused, SessionLost
from iu_listen.model.facts import Batch, BatchFailure, State, Tally
from iu_listen.model.settings import Settings
from iu_listen.postgres.admission import WORDS, site_of
from iu_listen.postgres.delivery import columns, taken_of
from iu_listen.postgres.former import Former, succeeding
from iu_listen.postgres.lease import WorkerLease
from iu_listen.postgres.session import Connection, Prepared, ask, ask_rows, errors_become_ours
from iu_listen.postgres.sqlfiles import query

#: SQLSTATE of a statement that the server ended, because it took too long or was cancelled.
QUERY_CANCELED: Final = "57014"


class WorkerSession:
    """Satisfies flow.ports.Outbox. Made by worker_session()."""

    def __init__(self, connection: Connection, settings: Settings, consumer: UUID, version: str) -> None:
        self._connection = connection
        self._settings = settings
        self._consumer = consumer
        self._version = version
        # Each is prepared when it is needed first.
        self._batch: str | Prepared = query("run_batch")
        self._batch_and_take: str | Prepared = query("run_batch_and_take")
        self._abandoned = ""
        self._lease = WorkerLease(connection, settings, consumer)
        self.failure: BatchFailure | None = None

    @property
    def backend(self) -> int | None:
        """Its server process; None where a pooler hides it."""
        return None if self._connection.pooled else self._connection.get_server_pid()

    def abandon(self, why: str) -> None:
        """End the session at once: whoever waits for it gets SessionLost with this reason."""
        self._abandoned = why
        self._connection.terminate()

    async def prepare(self) -> None:
        """Prepare the statement that is asked for again and again."""
        with errors_become_ours(), anyio.fail_after(self._settings.deadline):
            self._batch = await self._connection.prepare_once(query("run_batch"))

    async def take_lease(self) -> str | None:
        """Become the worker's one active consumer. None: done. Else: who is it already.

        Behind a transaction pooler there are no session locks to take; there the row lock that every batch takes on
        the cursor keeps events single, and consumers of one worker merely take turns.
        """
        return None if self._connection.pooled else await self._lease.take()

    async def run_batch(
        self, limit: int, wants: Sequence[Want] = (), give: Callable[[Sequence[Taken], float], None] | None = None
    ) -> Batch:
        """Route at most ``limit`` events in one transaction. Cancelled midway, it is lost whole, with its session.

        What it queues that somebody wants it takes in the same round trip, and gives him.
        """
        began, began_ns = time.perf_counter(), time.time_ns()
        try:
            if wants and isinstance(self._batch_and_take, str):
                # Only where something is delivered.
                with errors_become_ours(), anyio.fail_after(self._settings.deadline):
                    self._batch_and_take = await self._connection.prepare_once(self._batch_and_take)
            statement, more = (self._batch_and_take, columns(wants)) if wants else (self._batch, ())
            rows = await ask_rows(
                self._connection, self._settings.batch_deadline, statement, self._settings.worker, limit, *more
            )
        except (SessionLost, Refused) as error:
            self.failure = _failure(error)
            if not self._abandoned:
                raise
            raise SessionLost(self._abandoned, error.hint) from error
        seconds = time.perf_counter() - began
        # Nothing is said of the routes: their terms are those that were known when it was asked.
        taken = taken_of(rows, {want.route: (want.deadline, want.span) for want in wants}) if wants else []
        if taken and give is not None:
            give(taken, seconds)
            # The calls begin before all that there is to say of the batch.
            await anyio.lowlevel.checkpoint()
        return Batch.from_answer(json.loads(rows[0][0]), seconds, began_ns, len(taken))

    async def note_failure(self, limit: int, failure: BatchFailure) -> None:
        """Note that a batch of at most ``limit`` events failed, so that the next ones look for its cause."""
        await ask(
            self._connection, self._settings.deadline, query("note_failure"), self._settings.worker, limit,
            failure.why, failure.timed_out, failure.event or None, failure.route or None,
        )  # fmt: skip

    async def beat(self, state: State, why: str, listening: bool, polling_why: str, tally: Tally) -> None:
        """Write the heartbeat.

        Raises:
            SessionLost: the lease, for which a row stood because a stranger held its lock, is another consumer's now.
        """
        if self._lease.around and (holder := await self._lease.take()) is not None:
            raise SessionLost(f"the lease is held by {holder}")
        await ask(
            self._connection, self._settings.deadline, query("beat"),
            self._consumer, self._settings.worker, platform.node(), os.getpid(), self._version,
            state.value, why or None, listening, self._settings.catch_up,
            tally.last_wake, tally.last_wake_at, json.dumps(tally.wakes), tally.events,
            polling_why or None,
        )  # fmt: skip


def _failure(error: SessionLost | Refused) -> BatchFailure:
    """With the event and the route, where fn_iu_route_worker_run names them in the fields of its error."""
    cause: Any = error.__cause__
    failure = BatchFailure(
        why=error.message,
        timed_out=isinstance(error, NoAnswer) or getattr(cause, "sqlstate", "") == QUERY_CANCELED,
    )
    if getattr(cause, "table_name", None) == "iu_outbound_route" and cause.column_name:
        # Not a UUID: an ordinary constraint of that table.
        with suppress(ValueError):
            return replace(failure, event=str(UUID(cause.constraint_name)), route=cause.column_name)
    return failure


@asynccontextmanager
async def worker_session(
    settings: Settings, consumer: UUID, version: str, former: Former
) -> AsyncIterator[WorkerSession]:
    """Open the worker session.

    Args:
        settings: Where, and how long anything may take.
        consumer: Identity of the process, for its heartbeat.
        version: Its version, for the same.
        former: The sessions that the consumer has had; what is left of them is ended, so that none keeps the lease.

    Raises:
        SessionLost: no session can be had, or it leads to a server that takes no writes.
    """
    name = f"iu-listen worker {settings.worker}"
    async with succeeding(
        former, "worker", settings.dsn, name=name, deadline=settings.deadline, patience=settings.batch_deadline,
        idle_timeout=settings.lease,
    ) as connection:  # fmt: skip
        for row in await ask_rows(connection, settings.deadline, query("takes_no_writes")):
            raise SessionLost(row["problem"], row["hint"])
        session = WorkerSession(connection, settings, consumer, version)
        await session.prepare()
        refusal = await ask(
            connection, settings.deadline, query("admission"), site_of(settings), settings.worker, consumer
        )
        # A site that is not known keeps from delivering only.
        if refusal not in (None, "foreign_site"):
            await session.beat(State.REFUSING, refusal, False, "", Tally())
            raise Refused(*WORDS[refusal])
        yield session
