"""The audit of completeness, beside the work: slow on purpose, and nothing that happens to it ends the work."""

from __future__ import annotations

import anyio

from iu_listen.flow.ports import Auditor, Sessions, Watcher
from iu_listen.model.errors import words
from iu_listen.model.facts import WorkerName
from iu_listen.model.observation import AuditPassed, SessionFailed
from iu_listen.model.settings import Settings

#: Events a page: a few milliseconds of the database's time.
PAGE = 1000
#: Part of the time that a pass may take from the database.
SHARE = 0.05
#: The work comes first after a start, in seconds.
FIRST_PAUSE = 5.0
#: Longest pause after a failure, in seconds.
RETRY_PAUSE = 60.0


async def keep_auditing(settings: Settings, sessions: Sessions, watcher: Watcher) -> None:
    """Audit again and again, ``audit_interval`` seconds apart, until cancelled. A failure is said once an episode."""
    if not settings.audit_interval:
        return
    told = ""
    pause = min(FIRST_PAUSE, settings.audit_interval)
    while True:
        await anyio.sleep(pause)
        try:
            async with sessions.auditor() as auditor:
                pause = await auditor.due()
                if pause <= 0:
                    await _pass(auditor, WorkerName(settings.worker), watcher)
                    pause = settings.audit_interval
            told = ""
        except Exception as failed:  # noqa: BLE001 whatever it is, the work goes on
            pause = min(RETRY_PAUSE, settings.audit_interval)
            why = words(failed)
            if why != told:
                told = why
                watcher.note(SessionFailed("audit", why, pause))


async def _pass(auditor: Auditor, worker: WorkerName, watcher: Watcher) -> None:
    """One pass to its end, with pauses that are long against its pages."""
    number = None
    while True:
        began = anyio.current_time()
        page = await auditor.page(PAGE, number)
        if page.over:
            break
        number = page.number
        await anyio.sleep((anyio.current_time() - began) * (1 / SHARE - 1))
    if page.status == "passed":
        watcher.note(AuditPassed(worker, page.checked, page.missing, page.seconds))
