"""Measurements for metrics: the share of the database's time that they may take."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from flow.fakes import Recorder, until
from iu_listen.flow.metrics import MEASURE_INTERVAL, keep_measuring
from iu_listen.model.errors import Refused
from iu_listen.model.monitoring import MetricsSnapshot
from iu_listen.model.observation import SessionFailed
from iu_listen.model.routing import DEFAULT_WORKER


class Slow:
    """A database in which every measurement ends in an error, after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began: list[float] = []

    @asynccontextmanager
    async def metrics(self) -> AsyncIterator[Slow]:
        yield self

    async def measure(self) -> MetricsSnapshot:
        self.began.append(anyio.current_time())
        await anyio.sleep(self.seconds)
        raise Refused("canceling statement due to statement timeout")


@pytest.mark.anyio
@pytest.mark.parametrize(("seconds", "pause"), [(0.1, MEASURE_INTERVAL), (60, 19 * 60)])
async def test_what_took_long_in_vain_is_not_repeated_at_once(seconds, pause):
    """The pause after a measurement that failed after a minute is as long as after a successful one.

    Fails when: the pause after a failure is the shortest one.
    """
    seen, sessions = Recorder(), Slow(seconds)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_measuring, sessions, seen, DEFAULT_WORKER)
        await until(lambda: len(sessions.began) == 2, step=0.1)
        tasks.cancel_scope.cancel()
    assert sessions.began[1] - sessions.began[0] == pytest.approx(seconds + pause)
    assert [o.retry_in for o in seen.of(SessionFailed)] == [pytest.approx(pause)]
