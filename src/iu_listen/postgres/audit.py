"""The audit session, and what the audit command asks for. The walk itself is sql/worker/014_audit.up.sql."""

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
    """Satisfies flow.ports.Auditor. Made by audit_session()."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings

    async def due(self) -> float:
        """In how many seconds the next pass is due; 0 or less: now."""
        settings = self._settings
        due = await ask(
            self._connection, settings.deadline, query("audit_due"), settings.worker, settings.audit_interval
        )
        return float(due)

    async def page(self, limit: int, number: int | None) -> AuditPage:
        """Look at the next ``limit`` events of this pass; None: of the one that is running, else of a new one."""
        settings = self._settings
        answer = await ask(
            self._connection, settings.batch_deadline, query("audit_page"), settings.worker, limit, number
        )
        return AuditPage.from_answer(json.loads(answer))


@asynccontextmanager
async def audit_session(settings: Settings, former: Former) -> AsyncIterator[AuditSession]:
    """Open the audit session.

    Raises:
        SessionLost: no session can be had.
    """
    async with succeeding(
        former, "audit", settings.dsn, name=f"iu-listen audit {settings.worker}", deadline=settings.deadline,
        patience=settings.batch_deadline,
    ) as connection:  # fmt: skip
        yield AuditSession(connection, settings)


async def page(connection: Connection, worker: str, limit: int, number: int | None) -> AuditPage:
    """As AuditSession.page(), for a command; number 0 begins a pass in any case."""
    return AuditPage.from_answer(json.loads(await census.value(connection, "audit_page", worker, limit, number)))


async def confirm(connection: Connection, worker: str) -> None:
    """Judge again what is listed as missing; what is complete is struck off."""
    await census.value(connection, "audit_confirm", worker)


async def repair(connection: Connection, worker: str, limit: int) -> census.Row:
    """Put the next few incomplete events before the cursor again; the answer of fn_iu_audit_repair."""
    answer: census.Row = json.loads(await census.value(connection, "audit_repair", worker, limit))
    return answer


async def counts(connection: Connection, worker: str) -> census.Row:
    """How many events lack attempts, and what would come of a repair."""
    return (await census.rows(connection, "audit_counts", worker))[0]
