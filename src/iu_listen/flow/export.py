"""The export of traces: pages of the audit to a collector, at least once, held back when it is slow, never dropped.

The cursor moves when the collector has a page. So a collector that is down, busy or wrongly addressed costs time and no
span. Left out, and counted, is only what it throws away of what it took (OTLP's partial success), and a span that it
calls malformed again and again, alone, while it takes new ones: what says no to everything (a proxy, a port that wants
TLS, a quota) says nothing about spans.
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
#: How often a span is refused, alone, before it is left out: who refuses at random hardly does so often in a row.
REFUSALS: Final = 12
#: Longest pause between these tries, in seconds.
REFUSAL_PAUSE: Final = 2.0
#: How many spans are refused before one is taken, until that is an outage: then the others need not be tried.
OUTAGE: Final = 8
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
                            said = f"another export is at it: {holder}"
                            raise kind(said, "It goes on where this one would begin.")
                        # What was begun, and what there is now; where somebody writes, there is always more.
                        if await self.tick(source) is not None:
                            await self.tick(source)
                        return
                    place = place or await source.again(since)
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
        last = False
        while not last:
            page = await source.page(place, self._page)
            yield page, await _meanwhile_alive(source, lambda it=page: self._send(source, it))  # type: ignore[misc]
            place, last = page.place, page.last

    async def _send(self, source: TraceSource, page: Page) -> Verdict:
        """Send until the collector has the page; how many of its spans it refused for good, and why it did."""
        parts: list[Sequence[Span]] = [page.spans] if page.spans else []
        refused: list[Span] = []
        thrown, why = 0, ""
        taken = failures = rounds = 0
        outage = sure = False
        while parts or refused:
            if not parts or (len(refused) >= OUTAGE and not taken and not sure):
                # A round is over, or goes on in vain. What is refused in every round, alone, is malformed.
                outage = bool(parts)
                rounds += 1
                if rounds >= REFUSALS and await self._takes_others(source, page):
                    if not outage:
                        for span in refused:
                            self._watcher.note(SpansHeld(why, 0.0, span.span_id))
                        return Verdict(Answer.ACCEPTED, why, rejected=thrown + len(refused))
                    # So it is no outage, but many of them: all rounds to their end, from now on.
                    sure, outage, rounds = True, False, 0
                failures += 1
                soon = not outage and rounds < REFUSALS
                await self._held(why, backoff(failures, REFUSAL_PAUSE if soon else RETRY_PAUSE, self._jitter))
                parts.append(refused)
                refused, taken = [], 0
            part = parts.pop()
            verdict = await self._collector.send(part)
            if verdict.answer is Answer.ACCEPTED:
                thrown, taken, failures = thrown + verdict.rejected, taken + len(part) - verdict.rejected, 0
                why = verdict.why or why
                # What was refused during an outage was not refused for its own sake.
                rounds, outage = 0 if outage else rounds, False
            elif verdict.answer is not Answer.AGAIN and len(part) > 1:
                half = len(part) // 2
                parts += part[half:], part[:half]
            elif verdict.answer is Answer.MALFORMED:
                refused += part
                why = verdict.why
            else:
                failures += 1
                # What a collector asks for is kept, within reason: half an hour would be an outage of ours.
                asked = min(verdict.retry_after or 0.0, 10 * RETRY_PAUSE)
                await self._held(verdict.why, max(asked, backoff(failures, RETRY_PAUSE, self._jitter)))
                parts.append(part)
        return Verdict(Answer.ACCEPTED, why if thrown else "", rejected=thrown)

    async def _held(self, why: str, pause: float) -> None:
        self._watcher.note(SpansHeld(why, pause, None))
        await anyio.sleep(pause)

    async def _takes_others(self, source: TraceSource, page: Page) -> bool:
        """Whether the collector takes spans at this moment: some that come after the page, which it has never had.

        What it has is no proof: at a limit it still takes what it knows. Without anything new there is no hurry either,
        nothing waits behind the page. What is sent before its turn is sent once more then, and is the same span.
        """
        others = await source.beyond(page.place)
        for span in self._jitter.sample(others, min(3, len(others))):
            verdict = await self._collector.send([span])
            if verdict.answer is not Answer.ACCEPTED or verdict.rejected:
                return False
        return bool(others)


async def _meanwhile_alive(source: TraceSource, work: Callable[[], Awaitable[Verdict]]) -> Verdict:
    """Work, however long it takes, while the session is used, so that nobody takes it for dead.

    Raises:
        SessionLost, Refused: the session is of no use any more; the work was given up.
    """
    lost: Exception | None = None
    verdict: Verdict | None = None
    over = anyio.Event()

    async def use() -> None:
        nonlocal lost
        try:
            while not over.is_set():
                with anyio.move_on_after(ALIVE):
                    await over.wait()
                if not over.is_set():
                    await source.alive()
        except (SessionLost, Refused) as failed:
            lost = failed
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        # A session that is lost while the group is open would come out wrapped in an ExceptionGroup.
        try:
            verdict = await work()
        except (SessionLost, Refused) as failed:
            lost = failed
        # Whatever is being asked of the session is asked to its end: cancelled, it would be left in the middle of it.
        over.set()
    if lost is not None:
        raise lost
    assert verdict is not None
    return verdict
