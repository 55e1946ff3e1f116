"""The trace export (span export): sends attempts and dead letters to a collector, at least once and without loss.

The export's cursor moves when the collector has accepted a page. So a collector that is down, busy or wrongly addressed
delays spans, and none is lost. A slow collector slows the export down. Only two kinds of spans are left out, and both
are counted: those that the collector rejects in an accepted request (OTLP's partial success), and a span that it
repeatedly calls malformed when it is sent alone, while it accepts new spans. The second condition is needed because a
proxy, a port that requires TLS, or a quota refuses every request, which proves nothing about a span.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Final

import anyio

from iu_listen.flow.backoff import backoff
from iu_listen.flow.ports import Collector, Observer, Sessions, TraceSource
from iu_listen.model.errors import Refused, SessionLost, safe_message
from iu_listen.model.observation import ExportDelayed, SessionFailed, SpansExported
from iu_listen.model.spans import CollectorAnswer, Page, Place, Span, Verdict

#: Rows of a page (attempts, or dead letters). This size has the highest throughput on one core.
PAGE_ROWS = 500
#: Rows of a page if the export runs in the process of a consumer, which is delayed while a page is read and sent.
SMALL_PAGE_ROWS = 100
#: Largest fraction of the time that the export may use while routing is behind.
EXPORT_TIME_SHARE = 0.1
#: Longest pause after a page while routing is behind, in seconds.
MAX_BACKLOG_PAUSE = 1.0
#: Pause when there is nothing to export, in seconds. It bounds the delay of a trace.
IDLE_EXPORT_PAUSE = 0.5
#: Longest pause after a failure, in seconds.
MAX_EXPORT_BACKOFF = 30.0
#: Interval at which the session is used while a page waits for the collector, in seconds, because the session timeout
#: ends an idle session.
KEEPALIVE_INTERVAL = 5.0
#: Number of refusals of a span that is sent alone after which it is left out. A collector that refuses at random hardly
#: refuses the same span that often in a row.
MAX_REFUSALS: Final = 12
#: Longest pause between two tries to send refused spans, in seconds.
MAX_REFUSAL_BACKOFF: Final = 2.0
#: Number of refused spans, without an accepted one, from which an outage is assumed and no further span is tried.
OUTAGE_AFTER: Final = 8
#: Losses of the session in a row, without an accepted page in between, after which a command gives up.
MAX_SESSION_LOSSES: Final = 5
#: Pause of a second reader between two tries to become the only reader, in seconds.
EXPORT_STANDBY_PAUSE = 5.0


class TraceExport:
    """Exports attempts and dead letters as spans.

    Args:
        sessions: Opens the session of the trace export.
        collector: Receiver of the spans.
        observer: Observer that receives observations.
        page: Rows of a page (attempts, or dead letters); None: PAGE_ROWS.
        jitter: Source of randomness for backoff.
    """

    def __init__(
        self,
        sessions: Sessions,
        collector: Collector,
        observer: Observer,
        page: int | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self._sessions = sessions
        self._collector = collector
        self._observer = observer
        self._page = page or PAGE_ROWS
        self._jitter = jitter or random.Random()
        # Losses of the session since the last accepted page.
        self._failures = 0

    async def run(self) -> None:
        """Export until cancelled. After any error, including a lost session, wait for a backoff and go on."""
        while True:
            try:
                async with self._sessions.trace_source() as source:
                    while await source.take_lease() is not None:  # noqa: ASYNC110 only a query can tell
                        await anyio.sleep(EXPORT_STANDBY_PAUSE)
                    while True:
                        if not await self.tick(source):
                            await anyio.sleep(IDLE_EXPORT_PAUSE)
                        self._failures = 0
            except Exception as failed:  # noqa: BLE001 no error may end the export
                await self._after(failed)

    async def once(self, since: datetime | None = None) -> None:
        """Export all rows that exist now.

        Args:
            since: Export the rows that were written since this time once more, and do not move the cursor; None: export
                from the cursor on.

        Raises:
            Refused: another reader exports, or the database answered with an error.
            SessionLost: the session was lost more than MAX_SESSION_LOSSES times in a row.
        """
        place: Place | None = None
        lost = False
        while True:
            try:
                async with self._sessions.trace_source() as source:
                    if since is None:
                        if holder := await source.take_lease():
                            # The lease may still belong to this command's last session: the server may not have
                            # noticed its loss yet.
                            kind = SessionLost if lost else Refused
                            message = f"another process is exporting the traces: {holder}"
                            raise kind(message, "It exports the rows that this command would export.")
                        # Complete the open tick, and export one new tick. Not more: while events are written, there
                        # is always another tick.
                        if await self.tick(source) is not None:
                            await self.tick(source)
                        return
                    place = place or await source.place_since(since)
                    async with aclosing(self._pages(source, place)) as pages:
                        async for page, verdict in pages:
                            place = page.place
                            self._report(page, verdict)
                    return
            except SessionLost as failed:
                lost = True
                if self._failures == MAX_SESSION_LOSSES:
                    raise
                await self._after(failed)

    async def _after(self, failed: Exception) -> None:
        self._failures += 1
        pause = backoff(self._failures, MAX_EXPORT_BACKOFF, self._jitter)
        self._observer.observe(SessionFailed("traces", safe_message(failed), pause))
        await anyio.sleep(pause)

    async def tick(self, source: TraceSource) -> int | None:
        """Export the open tick, or a new one. Returns the number of its spans; None: there was nothing to export."""
        place = await source.tick()
        if place is None:
            return None
        sent = 0
        began = anyio.current_time()
        async with aclosing(self._pages(source, place)) as pages:
            async for page, verdict in pages:
                behind = await source.accepted(page, verdict.rejected)
                self._report(page, verdict)
                sent += len(page.spans)
                if behind:
                    await anyio.sleep(
                        min((anyio.current_time() - began) * (1 / EXPORT_TIME_SHARE - 1), MAX_BACKLOG_PAUSE)
                    )
                began = anyio.current_time()
        return sent

    def _report(self, page: Page, verdict: Verdict) -> None:
        self._failures = 0
        if page.spans:
            taken = len(page.spans) - verdict.rejected
            self._observer.observe(SpansExported(taken, verdict.rejected, page.ignored, verdict.why))

    async def _pages(self, source: TraceSource, place: Place) -> AsyncGenerator[tuple[Page, Verdict]]:
        """Send each page from a place on. Yields the page, once the collector has accepted it, and the verdict."""
        last = False
        while not last:
            page = await source.page(place, self._page)
            yield page, await _keeping_session_alive(source, lambda it=page: self._send(source, it))  # type: ignore[misc]
            place, last = page.place, page.last

    async def _send(self, source: TraceSource, page: Page) -> Verdict:
        """Send a page until the collector has accepted it. The verdict has the number of spans that were left out."""
        parts: list[Sequence[Span]] = [page.spans] if page.spans else []
        refused: list[Span] = []
        left_out, why = 0, ""
        taken = failures = rounds = 0
        outage = many_malformed = False
        while parts or refused:
            if not parts or (len(refused) >= OUTAGE_AFTER and not taken and not many_malformed):
                # The round is complete, or an outage is assumed. A span that is refused alone in every round is
                # malformed.
                outage = bool(parts)
                rounds += 1
                if rounds >= MAX_REFUSALS and await self._accepts_other_spans(source, page):
                    if not outage:
                        for span in refused:
                            self._observer.observe(ExportDelayed(why, 0.0, span.span_id))
                        return Verdict(CollectorAnswer.ACCEPTED, why, rejected=left_out + len(refused))
                    # The collector accepts other spans, so this is no outage: many spans are malformed. From now on
                    # complete every round.
                    many_malformed, outage, rounds = True, False, 0
                failures += 1
                soon = not outage and rounds < MAX_REFUSALS
                await self._delay(
                    why, backoff(failures, MAX_REFUSAL_BACKOFF if soon else MAX_EXPORT_BACKOFF, self._jitter)
                )
                parts.append(refused)
                refused, taken = [], 0
            part = parts.pop()
            verdict = await self._collector.send(part)
            if verdict.answer is CollectorAnswer.ACCEPTED:
                left_out, taken, failures = left_out + verdict.rejected, taken + len(part) - verdict.rejected, 0
                why = verdict.why or why
                # Refusals during an outage do not count as refusals of a span.
                rounds, outage = 0 if outage else rounds, False
            elif verdict.answer is not CollectorAnswer.AGAIN and len(part) > 1:
                half = len(part) // 2
                parts += part[half:], part[:half]
            elif verdict.answer is CollectorAnswer.MALFORMED:
                refused += part
                why = verdict.why
            else:
                failures += 1
                # Obey the delay that the collector asks for, at most 10 * MAX_EXPORT_BACKOFF.
                asked = min(verdict.retry_after or 0.0, 10 * MAX_EXPORT_BACKOFF)
                await self._delay(verdict.why, max(asked, backoff(failures, MAX_EXPORT_BACKOFF, self._jitter)))
                parts.append(part)
        return Verdict(CollectorAnswer.ACCEPTED, why if left_out else "", rejected=left_out)

    async def _delay(self, why: str, pause: float) -> None:
        self._observer.observe(ExportDelayed(why, pause, None))
        await anyio.sleep(pause)

    async def _accepts_other_spans(self, source: TraceSource, page: Page) -> bool:
        """Whether the collector accepts spans at present: sends at most 3 spans of rows after the page.

        Those spans are new to it. Known spans prove nothing, because a collector at its limit may still accept them. If
        there is no row after the page, the answer is False: then no row waits for the page either. The spans that are
        sent here are sent again with their own page, with the same ids.
        """
        others = await source.spans_after(page.place)
        for span in self._jitter.sample(others, min(3, len(others))):
            verdict = await self._collector.send([span])
            if verdict.answer is not CollectorAnswer.ACCEPTED or verdict.rejected:
                return False
        return bool(others)


async def _keeping_session_alive(source: TraceSource, work: Callable[[], Awaitable[Verdict]]) -> Verdict:
    """Await ``work``, and use the session every KEEPALIVE_INTERVAL seconds meanwhile, so that it does not time out.

    Raises:
        SessionLost, Refused: the session cannot be used any more; the work was cancelled.
    """
    lost: Exception | None = None
    verdict: Verdict | None = None
    over = anyio.Event()

    async def use() -> None:
        nonlocal lost
        try:
            while not over.is_set():
                with anyio.move_on_after(KEEPALIVE_INTERVAL):
                    await over.wait()
                if not over.is_set():
                    await source.keep_alive()
        except (SessionLost, Refused) as failed:
            lost = failed
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        # The task group would wrap these errors in an ExceptionGroup.
        try:
            verdict = await work()
        except (SessionLost, Refused) as failed:
            lost = failed
        # Let a running statement end by itself: its cancellation would leave the session in an undefined state.
        over.set()
    if lost is not None:
        raise lost
    assert verdict is not None
    return verdict
