"""The export of traces: pages of the audit to a collector, at least once, held back when it is slow, never dropped.

The cursor moves when the collector has a page. So a collector that is down, busy or wrongly addressed costs time and no
span. Left out, and counted, is only a span that it calls malformed while it takes another one: what says no to
everything (a proxy, a port that wants TLS) says nothing about spans.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Final

import anyio

from iu_listen.flow.backoff import backoff
from iu_listen.flow.ports import Collector, Sessions, TraceSource, Watcher
from iu_listen.model.errors import Refused, SessionLost, words
from iu_listen.model.observation import SessionFailed, SpansExported, SpansHeld
from iu_listen.model.trace import Answer, Page, Place, Span, Verdict

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
#: How often a session is used while a page waits for the collector, in seconds: an idle one is ended by the server.
ALIVE = 5.0
#: Losses of the session in a row, without a page in between, after which a command gives up.
PATIENCE: Final = 5
#: Pause of a second reader between two tries to become the one, in seconds.
STANDBY_PAUSE = 5.0


class Export:
    """Exports attempts and dead letters.

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
        # Losses since the last page.
        self._losses = 0
        # A span that the collector took.
        self._witness: Span | None = None

    async def run(self) -> None:
        """Read, send, note; until cancelled, through every loss of the session. Nothing that happens ends the work."""
        while True:
            try:
                async with self._sessions.tracer() as source:
                    while await source.take_lease() is not None:  # noqa: ASYNC110 only asking tells
                        await anyio.sleep(STANDBY_PAUSE)
                    while True:
                        if not await self.tick(source):
                            await anyio.sleep(IDLE_PAUSE)
                        self._losses = 0
            except Exception as failed:  # noqa: BLE001 whatever it is, the work goes on
                await self._after(failed)

    async def once(self, since: datetime | None = None) -> None:
        """Export everything that there is now; or once more what was written ``since``, whatever the cursor says.

        Raises:
            Refused: another reader is at it, or the database answered with an error.
            SessionLost: the session was lost again and again.
        """
        place: Place | None = None
        lost = False
        while True:
            try:
                async with self._sessions.tracer() as source:
                    if since is None:
                        if holder := await source.take_lease():
                            # The server may not have noticed yet that our own last session is gone.
                            kind = SessionLost if lost else Refused
                            raise kind(f"another export is at it: {holder}", "It goes on where this one would begin.")
                        while await self.tick(source) is not None:
                            pass
                        return
                    place = place or (await source.again(since))[0]
                    async with aclosing(self._pages(source, place)) as pages:
                        async for page, verdict in pages:
                            place = page.place
                            self._tell(page, verdict)
                    return
            except SessionLost as failed:
                lost = True
                if self._losses == PATIENCE:
                    raise
                await self._after(failed)

    async def _after(self, failed: Exception) -> None:
        self._losses += 1
        pause = backoff(self._losses, RETRY_PAUSE, self._jitter)
        self._watcher.note(SessionFailed("traces", words(failed), pause))
        await anyio.sleep(pause)

    async def tick(self, source: TraceSource) -> int | None:
        """Export what there is now; how many spans that was. None: there was nothing."""
        place = await source.tick()
        if place is None:
            return None
        sent = 0
        began = anyio.current_time()
        async with aclosing(self._pages(source, place)) as pages:
            async for page, verdict in pages:
                behind = await source.accepted(page, verdict.rejected)
                self._tell(page, verdict)
                sent += len(page.spans)
                if behind:
                    await anyio.sleep(min((anyio.current_time() - began) * (1 / SHARE - 1), LONGEST_REST))
                began = anyio.current_time()
        return sent

    def _tell(self, page: Page, verdict: Verdict) -> None:
        self._losses = 0
        if page.spans:
            taken = len(page.spans) - verdict.rejected
            self._watcher.note(SpansExported(taken, verdict.rejected, page.ignored, verdict.why))

    async def _pages(self, source: TraceSource, place: Place) -> AsyncGenerator[tuple[Page, Verdict]]:
        """Every page from a place on, when the collector has it; with how many of its spans it refused for good."""
        self._witness = self._witness or await source.witness(place)
        last = False
        while not last:
            page = await source.page(place, self._page)
            yield page, await _meanwhile_alive(source, lambda spans=page.spans: self._send(spans))  # type: ignore[misc]
            place, last = page.place, page.last

    async def _send(self, spans: Sequence[Span]) -> Verdict:
        """Send until the collector has them; how many it refused for good, and why it did."""
        rejected, why, failures = 0, "", 0
        left = [spans] if spans else []
        while left:
            part = left.pop()
            verdict = await self._collector.send(part)
            if verdict.answer is Answer.ACCEPTED:
                failures, self._witness = 0, part[-1]
                if verdict.rejected:
                    rejected, why = rejected + verdict.rejected, verdict.why
            elif verdict.answer is not Answer.AGAIN and len(part) > 1:
                half = len(part) // 2
                left += part[half:], part[:half]
            elif verdict.answer is Answer.MALFORMED and await self._takes_another():
                rejected += 1
                self._watcher.note(SpansHeld(verdict.why, 0.0, part[0].span_id))
            else:
                failures += 1
                # What a collector asks for is kept, within reason: half an hour would be an outage of ours.
                asked = min(verdict.retry_after or 0.0, 10 * RETRY_PAUSE)
                pause = max(asked, backoff(failures, RETRY_PAUSE, self._jitter))
                self._watcher.note(SpansHeld(verdict.why, pause, None))
                await anyio.sleep(pause)
                left.append(part)
        return Verdict(Answer.ACCEPTED, why, rejected=rejected)

    async def _takes_another(self) -> bool:
        """Whether the collector takes a span that it took before, once more: a backend takes both for one."""
        if self._witness is None:
            return False
        return (await self._collector.send([self._witness])).answer is Answer.ACCEPTED


async def _meanwhile_alive(source: TraceSource, work: Callable[[], Awaitable[Verdict]]) -> Verdict:
    """Work, however long it takes, while the session is used, so that nobody takes it for dead.

    Raises:
        SessionLost, Refused: the session is of no use any more; the work was given up.
    """
    lost: Exception | None = None

    async def use() -> None:
        nonlocal lost
        try:
            while True:
                await anyio.sleep(ALIVE)
                # To its end: a question that is cancelled would leave the session in the middle of it.
                with anyio.CancelScope(shield=True):
                    await source.alive()
        except (SessionLost, Refused) as failed:
            lost = failed
            tasks.cancel_scope.cancel()

    verdict: Verdict | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        verdict = await work()
        tasks.cancel_scope.cancel()
    if lost is not None:
        raise lost
    assert verdict is not None
    return verdict
