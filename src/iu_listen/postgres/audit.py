"""The session of the completeness check, and the queries of the audit command.

The SQL of the check is in sql/worker/014_audit.up.sql.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from iu_listen.model.facts import AuditPage
from iu_listen.model.settings import Settings
from iu_listen.postgres import census
from iu_listen.postgres.former import Former, succeeding
from iu_listen.postgres.session import Connection, ask
from iu_listen.postgres.sqlfiles import query


class AuditSession:
    """Implements flow.ports.Auditor. Created by audit_session()."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings

    async def due(self) -> float:
        """The time until the next pass is due, in seconds; 0 or less: it is due now."""
        settings = self._settings
        due = await ask(
            self._connection, settings.deadline, query("audit_due"), settings.worker, settings.audit_interval
        )
        return float(due)

    async def page(self, limit: int, number: int | None) -> AuditPage:
        """Check the next ``limit`` events of pass ``number``; None means the running pass, else a new pass."""
        settings = self._settings
        answer = await ask(
            self._connection, settings.batch_deadline, query("audit_page"), settings.worker, limit, number
        )
        return AuditPage.from_answer(json.loads(answer))


@asynccontextmanager
async def audit_session(settings: Settings, former: Former) -> AsyncIterator[AuditSession]:
    """Open the session of the completeness check.

    Raises:
        SessionLost: No session could be opened.
    """
    async with succeeding(
        former, "audit", settings.dsn, name=f"iu-listen audit {settings.worker}", deadline=settings.deadline,
        patience=settings.batch_deadline,
    ) as connection:  # fmt: skip
        yield AuditSession(connection, settings)


async def page(connection: Connection, worker: str, limit: int, number: int | None) -> AuditPage:
    """As AuditSession.page(), for a command; number 0 always begins a new pass."""
    return AuditPage.from_answer(json.loads(await census.value(connection, "audit_page", worker, limit, number)))


async def confirm(connection: Connection, worker: str) -> None:
    """Check the events that are listed as incomplete once more, and remove the complete ones from the list."""
    await census.value(connection, "audit_confirm", worker)


async def repair(connection: Connection, worker: str, limit: int) -> census.Row:
    """Repair the next ``limit`` incomplete events; returns the answer of fn_iu_audit_repair.

    The worker routes them again. Events that it could not complete today are accepted as they are.
    """
    answer: census.Row = json.loads(await census.value(connection, "audit_repair", worker, limit))
    return answer


async def counts(connection: Connection, worker: str) -> census.Row:
    """The number of events that lack attempts, and the decisions that a repair would make."""
    return (await census.rows(connection, "audit_counts", worker))[0]
