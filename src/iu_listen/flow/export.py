"""The export of traces: pages of the audit to a collector, at least once, held back when it is slow, never dropped.

The cursor moves when the collector has a page. So a collector that is down or busy costs time and no span; only spans
that it calls malformed are left out, one by one, and counted.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence

import anyio

from iu_listen.flow.backoff import backoff
from iu_listen.flow.ports import Collector, Sessions, TraceSource, Watcher
from iu_listen.model.errors import words
from iu_listen.model.observation import SessionFailed, SpansExported, SpansHeld
from iu_listen.model.trace import Answer, Page, Place, Span

#: Attempts, or dead letters, a page: what makes the most of a core.
PAGE = 500
#: The same beside a consumer, who waits while a page is read and sent.
SMALL_PAGE = 100
#: Part of the time that the export may take while routing is behind.
SHARE = 0.1
#: Longest pause for that reason, in seconds.
LONGEST_REST = 1.0
#: Pause when there is nothing to export, in seconds: how late a trace is at most.
IDLE_PAUSE = 0.5
#: Longest pause after a failure, in seconds.
RETRY_PAUSE = 30.0
#: Pause of a second reader between two tries to become the one, in seconds.
STANDBY_PAUSE = 5.0


class Export:
    """Exports until cancelled.

    Args:
        sessions: Where the trace reader's session comes from.
        collector: Where spans go.
        watcher: Who sees what happens.
        page: Attempts, or dead letters, a page; None: PAGE.
        jitter: Source of randomness for backoff.
    """

    def __init__(
        self,
        sessions: Sessions,
        collector: Collector,
        watcher: Watcher,
        page: int | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self._sessions = sessions
        self._collector = collector
        self._watcher = watcher
        self._page = page or PAGE
        self._jitter = jitter or random.Random()

    async def run(self) -> None:
        """Read, send, note; for ever, through every loss of the session. Nothing that happens here ends the work."""
        failures = 0
        while True:
            try:
                async with self._sessions.tracer() as source:
                    while await source.take_lease() is not None:  # noqa: ASYNC110 only asking tells
                        await anyio.sleep(STANDBY_PAUSE)
                    while True:
                        if not await self.tick(source):
                            await anyio.sleep(IDLE_PAUSE)
                        failures = 0
            except Exception as failed:  # noqa: BLE001 whatever it is, the work goes on
                failures += 1
                pause = backoff(failures, RETRY_PAUSE, self._jitter)
                why = words(failed)
                self._watcher.note(SessionFailed("traces", why, pause))
                await anyio.sleep(pause)

    async def tick(self, source: TraceSource) -> bool:
        """Export what there is now. False: there was nothing."""
        place = await source.tick()
        if place is None:
            return False
        began = anyio.current_time()
        async for page, rejected in self.pages(source, place):
            behind = await source.accepted(page, rejected)
            if page.spans:
                self._watcher.note(SpansExported(len(page.spans) - rejected, rejected, page.ignored))
            if behind:
                await anyio.sleep(min((anyio.current_time() - began) * (1 / SHARE - 1), LONGEST_REST))
            began = anyio.current_time()
        return True

    async def pages(self, source: TraceSource, place: Place) -> AsyncIterator[tuple[Page, int]]:
        """Every page from a place on, when the collector has it; with how many of its spans it refused for good."""
        last = False
        while not last:
            page = await source.page(place, self._page)
            yield page, await self._send(page.spans) if page.spans else 0
            place, last = page.place, page.last

    async def _send(self, spans: Sequence[Span]) -> int:
        """Send until the collector has them; how many it refused for good."""
        failures = 0
        while True:
            verdict = await self._collector.send(spans)
            if verdict.answer is Answer.ACCEPTED:
                return verdict.rejected
            if verdict.answer is Answer.MALFORMED:
                if len(spans) == 1:
                    self._watcher.note(SpansHeld(verdict.why, 0.0, spans[0].span_id))
                    return 1
                half = len(spans) // 2
                return await self._send(spans[:half]) + await self._send(spans[half:])
            failures += 1
            # What a collector asks for is kept, within reason: half an hour would be an outage of ours.
            asked = min(verdict.retry_after or 0.0, 10 * RETRY_PAUSE)
            pause = max(asked, backoff(failures, RETRY_PAUSE, self._jitter))
            self._watcher.note(SpansHeld(verdict.why, pause, None))
            await anyio.sleep(pause)
