"""The session of the completeness check, and the queries of the audit command.

The SQL of the check is in sql/functions/completeness.up.sql.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from iu_listen.model.monitoring import CompletenessPage
from iu_listen.model.settings import Settings
from iu_listen.postgres import queries
from iu_listen.postgres.earlier_sessions import EarlierSessions, replacing_earlier
from iu_listen.postgres.session import Connection, ask
from iu_listen.postgres.sqlfiles import query


class CompletenessSession:
    """Implements flow.ports.CompletenessChecker. Created by completeness_session()."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings

    async def due(self) -> float:
        """The time until the next pass is due, in seconds; 0 or less: it is due now."""
        settings = self._settings
        due = await ask(
            self._connection,
            settings.deadline,
            query("completeness/due"),
            settings.worker,
            settings.completeness_interval,
        )
        return float(due)

    async def page(self, limit: int, number: int | None) -> CompletenessPage:
        """Check the next ``limit`` events of pass ``number``; None means the running pass, else a new pass."""
        settings = self._settings
        answer = await ask(
            self._connection, settings.batch_deadline, query("completeness/page"), settings.worker, limit, number
        )
        return CompletenessPage.from_answer(json.loads(answer))


@asynccontextmanager
async def completeness_session(settings: Settings, earlier: EarlierSessions) -> AsyncIterator[CompletenessSession]:
    """Open the session of the completeness check.

    Raises:
        SessionLost: No session could be opened.
    """
    async with replacing_earlier(
        earlier, "completeness", settings.dsn, name=f"iu-listen completeness {settings.worker}",
        deadline=settings.deadline,
        answer_timeout=settings.batch_deadline,
    ) as connection:  # fmt: skip
        yield CompletenessSession(connection, settings)


async def page(connection: Connection, worker: str, limit: int, number: int | None) -> CompletenessPage:
    """As CompletenessSession.page(), for a command; number 0 always begins a new pass."""
    return CompletenessPage.from_answer(
        json.loads(await queries.value(connection, "completeness/page", worker, limit, number))
    )


async def confirm(connection: Connection, worker: str) -> None:
    """Check the events that are listed as incomplete once more, and remove the complete ones from the list."""
    await queries.value(connection, "completeness/confirm", worker)


async def repair(connection: Connection, worker: str, limit: int) -> queries.Row:
    """Repair the next ``limit`` incomplete events; returns the answer of fn_iu_completeness_repair.

    The worker routes them again. Events that it could not complete today are accepted as they are.
    """
    answer: queries.Row = json.loads(await queries.value(connection, "completeness/repair", worker, limit))
    return answer


async def counts(connection: Connection, worker: str) -> queries.Row:
    """The number of events that lack attempts, and the decisions that a repair would make."""
    return (await queries.rows(connection, "completeness/counts", worker))[0]
