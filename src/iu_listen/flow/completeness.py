"""The completeness check, concurrent with routing: deliberately slow, and none of its failures stops the consumer."""

from __future__ import annotations

import anyio

from iu_listen.flow.ports import CompletenessChecker, Observer, Sessions
from iu_listen.model.errors import safe_message
from iu_listen.model.observation import CompletenessChecked, SessionFailed
from iu_listen.model.routing import WorkerName
from iu_listen.model.settings import Settings

#: Most events of a page. For events that go to one route, it takes the database a few milliseconds.
MAX_CHECK_EVENTS = 1000
#: Events of the first page.
FIRST_PAGE_EVENTS = 32
#: Fractions of the deadline: after a page that took less than QUICK_PAGE the size is doubled, and after a page that
#: took more than SLOW_PAGE it is halved.
QUICK_PAGE, SLOW_PAGE = 1 / 20, 1 / 5
#: Largest fraction of the time during which a pass may use the database.
CHECK_TIME_SHARE = 0.05
#: Pause after a start of the consumer, in seconds, because routing has priority.
FIRST_CHECK_DELAY = 5.0
#: Longest pause after a failure, in seconds.
CHECK_RETRY_PAUSE = 60.0


class Pace:
    """The number of events of the next page. The cost of an event depends on the number of its routes.

    Args:
        most: Most events of a page.
        deadline: Longest duration of a page, in seconds.

    Attributes:
        events: Number of events of the next page.
    """

    def __init__(self, most: int, deadline: float) -> None:
        self._most, self._deadline = most, deadline
        self.events: int = min(FIRST_PAGE_EVENTS, most)

    def took(self, seconds: float) -> None:
        """Adapt the size to the duration of the last page, in seconds."""
        if seconds > self._deadline * SLOW_PAGE:
            self.events = max(1, self.events // 2)
        elif seconds < self._deadline * QUICK_PAGE:
            self.events = min(self._most, self.events * 2)


async def keep_checking(settings: Settings, sessions: Sessions, observer: Observer) -> None:
    """Run passes of the completeness check, ``completeness_interval`` seconds apart, until cancelled.

    Equal failures in a row are reported once. An ``completeness_interval`` of 0 switches the check off.
    """
    if not settings.completeness_interval:
        return
    last_reported = ""
    pause = min(FIRST_CHECK_DELAY, settings.completeness_interval)
    while True:
        await anyio.sleep(pause)
        try:
            async with sessions.completeness() as session:
                pause = await session.due()
                if pause <= 0:
                    await _pass(session, settings, observer)
                    pause = settings.completeness_interval
            last_reported = ""
        except Exception as failed:  # noqa: BLE001 no error may end this task
            pause = min(CHECK_RETRY_PAUSE, settings.completeness_interval)
            why = safe_message(failed)
            if why != last_reported:
                last_reported = why
                observer.observe(SessionFailed("completeness", why, pause))


async def _pass(session: CompletenessChecker, settings: Settings, observer: Observer) -> None:
    """Complete one pass, with pauses between its pages so that it uses at most CHECK_TIME_SHARE of the time."""
    number, pace = None, Pace(MAX_CHECK_EVENTS, settings.batch_deadline)
    while True:
        began = anyio.current_time()
        page = await session.page(pace.events, number)
        if page.over:
            break
        number = page.number
        took = anyio.current_time() - began
        pace.took(took)
        await anyio.sleep(took * (1 / CHECK_TIME_SHARE - 1))
    if page.status == "passed":
        observer.observe(CompletenessChecked(WorkerName(settings.worker), page.checked, page.missing, page.seconds))
