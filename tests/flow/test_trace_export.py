"""Trace export and measurements beside the work: when they give way, and that their errors do not affect the work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import anyio
import pytest

from flow.fakes import Recorder, until
from iu_listen.flow.metrics import MEASURE_INTERVAL, keep_measuring
from iu_listen.flow.trace_export import EXPORT_TIME_SHARE, IDLE_EXPORT_PAUSE, MAX_BACKLOG_PAUSE, TraceExport
from iu_listen.model.errors import SessionLost
from iu_listen.model.monitoring import MetricsSnapshot
from iu_listen.model.observation import MetricsFailed, MetricsTaken, SessionFailed, SpansExported
from iu_listen.model.routing import DEFAULT_WORKER
from iu_listen.model.spans import CollectorAnswer, Common, Page, Place, Span, SpanKind, Verdict

pytestmark = pytest.mark.anyio

PLACE = Place("1:1:", "9:9:", "l", ("0", 0), ("0", UUID(int=0)))
SPAN = Span("1" * 32, "2" * 16, "", "process", SpanKind.CONSUMER, 1, 2, Common({}), {})


class Source:
    """A source with one tick of some pages; routing may be behind."""

    def __init__(self, pages: int, behind: bool) -> None:
        self.left = pages
        self.behind = behind
        self.used = 0
        self.others: list[Span] = []

    async def tick(self) -> Place | None:
        return PLACE

    async def spans_after(self, place: Place) -> list[Span]:
        return self.others

    async def keep_alive(self) -> None:
        self.used += 1

    async def page(self, place: Place, limit: int) -> Page:
        self.left -= 1
        return Page([SPAN], place, 0, last=self.left == 0)

    async def accepted(self, page: Page, rejected: int) -> bool:
        return self.behind


class Hollow(Source):
    """A source with an endless sequence of ticks without rows."""

    def __init__(self) -> None:
        super().__init__(0, False)
        self.asked = 0

    @asynccontextmanager
    async def trace_source(self) -> AsyncIterator[Hollow]:
        yield self

    async def take_lease(self) -> None:
        return None

    async def tick(self) -> Place | None:
        self.asked += 1
        return PLACE

    async def page(self, place: Place, limit: int) -> Page:
        await anyio.sleep(0.001)
        return Page([], place, 0, last=True)


async def test_a_tick_without_a_row_is_followed_by_a_pause():
    """After a tick without rows the trace export pauses. Fails when: it pauses only if there is no new tick."""
    source = Hollow()
    with anyio.move_on_after(100):
        await TraceExport(source, Collector(0), Recorder()).run()  # type: ignore[arg-type]
    assert 150 <= source.asked <= 100 / IDLE_EXPORT_PAUSE + 1


class Endless(Hollow):
    """A source that always has another page."""

    async def page(self, place: Place, limit: int) -> Page:
        return Page([SPAN], place, 0, last=True)


async def test_a_command_ends_beside_a_steady_writer():
    """A single export sends the tick that was begun and the spans that exist at its start, and then ends.

    Fails when: it goes on until there are no new spans.
    """
    source, seen = Endless(), Recorder()
    with anyio.fail_after(100):
        await TraceExport(source, Collector(1), seen).once()  # type: ignore[arg-type]
    assert source.asked == 2
    assert len(seen.of(SpansExported)) == 2


class Collector:
    """A collector that accepts everything, after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def send(self, spans: Any) -> Verdict:
        await anyio.sleep(self.seconds)
        return Verdict(CollectorAnswer.ACCEPTED)


@pytest.mark.parametrize(
    ("behind", "seconds", "each"),
    [(False, 0.02, 0.02), (True, 0.02, 0.02 / EXPORT_TIME_SHARE), (True, 60.0, 60.0 + MAX_BACKLOG_PAUSE)],
)
async def test_it_gives_way_while_routing_is_behind(behind, seconds, each):
    """The trace export works without pauses, or a tenth of the time while routing is behind, with a bounded pause.

    Fails when: pages follow each other at once although routing is behind.
    """
    source = Source(10, behind)
    began = anyio.current_time()
    await TraceExport(None, Collector(seconds), Recorder()).tick(source)  # type: ignore[arg-type]
    assert anyio.current_time() - began == pytest.approx(10 * each)


class Surveys:
    """Sessions for measurements: the second and third fail to open, and each other one
    is lost after two measurements."""

    def __init__(self) -> None:
        self.opened = 0

    @asynccontextmanager
    async def metrics(self) -> AsyncIterator[Surveys]:
        self.opened += 1
        if self.opened in (2, 3):
            raise SessionLost("there is none")
        self.done = 0
        yield self

    async def measure(self) -> MetricsSnapshot:
        self.done += 1
        if self.done == 3:
            raise SessionLost("it is gone")
        await anyio.sleep(1 if self.opened == 1 else 100)
        return MetricsSnapshot(measures=(), latencies=(), since_commit=True)


async def test_measuring_goes_on_through_every_loss_and_takes_a_small_part_of_the_time():
    """A lost session is replaced; a slow measurement is followed by a long pause.

    A loss is logged once until the next success, and counted in metrics each time.

    Fails when: a lost session ends the measurements, or a huge backlog is counted all the time.
    """
    seen, sessions = Recorder(), Surveys()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_measuring, sessions, seen, DEFAULT_WORKER)
        await until(lambda: len(seen.of(MetricsTaken)) == 4, step=1)
        tasks.cancel_scope.cancel()
    moments = [at for at, observation in seen.seen if isinstance(observation, MetricsTaken)]
    assert moments[1] - moments[0] == pytest.approx(1 + max(MEASURE_INTERVAL, 19))
    assert moments[3] - moments[2] == pytest.approx(2000)
    assert [o.why for o in seen.of(SessionFailed)] == ["it is gone", "there is none"]
    assert [o.kind for o in seen.of(MetricsFailed)] == ["SessionLost"] * 3
    assert sessions.opened == 4
