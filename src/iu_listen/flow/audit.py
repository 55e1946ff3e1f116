"""The audit of completeness, beside the work: slow on purpose, and nothing that happens to it ends the work."""

from __future__ import annotations

import anyio

from iu_listen.flow.ports import Auditor, Sessions, Watcher
from iu_listen.model.errors import words
from iu_listen.model.facts import WorkerName
from iu_listen.model.observation import AuditPassed, SessionFailed
from iu_listen.model.settings import Settings

#: Most events a page, which are a few milliseconds of the database's time where an event goes to one route.
PAGE = 1000
#: Events of the first page. One that takes less than the first part of its deadline is doubled, one that takes more
#: than the second part is halved.
FIRST_PAGE = 32
QUICK, SLOW = 1 / 20, 1 / 5
#: Part of the time that a pass may take from the database.
SHARE = 0.05
#: The work comes first after a start, in seconds.
FIRST_PAUSE = 5.0
#: Longest pause after a failure, in seconds.
RETRY_PAUSE = 60.0


class Pace:
    """How many events the next page has: what they cost depends on how many routes each of them went to.

    Args:
        most: No page has more.
        deadline: Within so many seconds a page has to end.

    Attributes:
        events: So many.
    """

    def __init__(self, most: int, deadline: float) -> None:
        self._most, self._deadline = most, deadline
        self.events = min(FIRST_PAGE, most)

    def took(self, seconds: float) -> None:
        """How long the last page took."""
        if seconds > self._deadline * SLOW:
            self.events = max(1, self.events // 2)
        elif seconds < self._deadline * QUICK:
            self.events = min(self._most, self.events * 2)


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
                    await _pass(auditor, settings, watcher)
                    pause = settings.audit_interval
            told = ""
        except Exception as failed:  # noqa: BLE001 whatever it is, the work goes on
            pause = min(RETRY_PAUSE, settings.audit_interval)
            why = words(failed)
            if why != told:
                told = why
                watcher.note(SessionFailed("audit", why, pause))


async def _pass(auditor: Auditor, settings: Settings, watcher: Watcher) -> None:
    """One pass to its end, with pauses that are long against its pages."""
    number, pace = None, Pace(PAGE, settings.batch_deadline)
    while True:
        began = anyio.current_time()
        page = await auditor.page(pace.events, number)
        if page.over:
            break
        number = page.number
        took = anyio.current_time() - began
        pace.took(took)
        await anyio.sleep(took * (1 / SHARE - 1))
    if page.status == "passed":
        watcher.note(AuditPassed(WorkerName(settings.worker), page.checked, page.missing, page.seconds))
