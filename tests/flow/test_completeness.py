"""The completeness check beside the work: when it is due, how slow it is, and that its
errors do not affect the work."""

from __future__ import annotations

import itertools
import re

import anyio
import pytest

from flow.fakes import World, consuming, until
from iu_listen.flow.completeness import CHECK_RETRY_PAUSE, CHECK_TIME_SHARE, FIRST_CHECK_DELAY, MAX_CHECK_EVENTS
from iu_listen.model.errors import Refused, SessionLost
from iu_listen.model.monitoring import CompletenessPage
from iu_listen.model.observation import BatchRan, CompletenessChecked, SessionFailed

pytestmark = pytest.mark.anyio

LONG = {"catch_up": 300, "session_timeout": 1000}


def pages(world: World) -> list[float]:
    return [at for at, what in world.audits if what.startswith("page")]


async def test_a_pass_is_run_when_it_is_due_and_told():
    """A due pass is run to its end, page by page with its number, and its figures are reported.

    Fails when: the consumer runs no completeness check.
    """
    world = World(
        completeness_due=-1, check_answer=CompletenessPage(status="passed", checked=9, missing=2, seconds=1.5)
    )
    async with consuming(world, **LONG) as (_, seen):
        passed = await seen.wait_for(CompletenessChecked)
        assert (passed.checked, passed.missing, passed.seconds) == (9, 2, 1.5)
        assert [what for _, what in world.audits] == ["open", "page of None", "page of 7", "page of 7", "close"]


async def test_it_takes_a_small_part_of_the_time():
    """The pause between two pages is so long that the check takes only its share of the time.

    Fails when: pages follow each other at once.
    """
    world = World(completeness_due=-1, check_pages=50, check_seconds=0.2)
    async with consuming(world, **LONG) as (_, seen):
        await seen.wait_for(CompletenessChecked)
        steps = [b - a for a, b in itertools.pairwise(pages(world))]
        assert min(steps) >= 0.2 / CHECK_TIME_SHARE * 0.999


async def test_a_page_is_as_large_as_it_is_quick():
    """The size of quick pages doubles up to the largest; if events are slow, a page takes a part of its deadline.

    Fails when: every page has the same number of events, at any cost.
    """
    world = World(completeness_due=-1, check_pages=8)
    async with consuming(world, **LONG) as (_, seen):
        await seen.wait_for(CompletenessChecked)
        assert world.check_limits == [32, 64, 128, 256, 512, MAX_CHECK_EVENTS, MAX_CHECK_EVENTS, MAX_CHECK_EVENTS]
    # One second for each event: 16 s is more than a fifth of 60 s; 8 s lies between a twentieth and a fifth.
    world = World(completeness_due=-1, check_pages=8, check_event_seconds=1)
    async with consuming(world, batch_deadline=60, **LONG) as (_, seen):
        await seen.wait_for(CompletenessChecked)
        assert world.check_limits == [32, 16] + 6 * [8]


async def test_passes_are_an_interval_apart_and_no_session_is_kept_between_them():
    """After a pass, or before one that is due, the consumer waits without a session; the
    first pass waits after the start."""
    world = World(completeness_due=-1, check_pages=1)
    async with consuming(world, completeness_interval=500, **LONG) as (_, seen):
        await anyio.sleep(1600)
        assert len(seen.of(CompletenessChecked)) == 4
        opened = [at for at, what in world.audits if what == "open"]
        assert opened[0] >= FIRST_CHECK_DELAY
        assert min(b - a for a, b in itertools.pairwise(opened)) >= 500
        assert [what for _, what in world.audits].count("close") >= 3
    world = World(completeness_due=40)
    async with consuming(world, completeness_interval=500, **LONG) as (_, seen):
        await anyio.sleep(100)
        assert pages(world) == []
        assert 40 <= world.audits[2][0] - world.audits[0][0] < 41


async def test_zero_switches_it_off():
    """With completeness_interval = 0 no session of the completeness check is ever opened."""
    world = World(completeness_due=-1)
    async with consuming(world, completeness_interval=0, **LONG) as (_, seen):
        await anyio.sleep(9000)
        assert len(seen.of(BatchRan)) > 30
        assert world.audits == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SessionLost("down"), r"down"),
        (Refused("permission denied"), "permission denied"),
        (ZeroDivisionError("a token"), r"ZeroDivisionError \((tests/flow/)?fakes\.py, line \d+\)"),
    ],
)
async def test_no_failure_of_the_audit_ends_the_work(error, said):
    """An error of the completeness check is reported once until it works again, and retried; batches go on.

    Fails when: an error of the check ends the consumer's task group, or the text of an unexpected exception is logged.
    """
    world = World(completeness_due=-1, check_lost=error)
    async with consuming(world, **LONG) as (_, seen):
        await anyio.sleep(4 * CHECK_RETRY_PAUSE)
        assert len(world.audits) >= 4
        told = seen.of(SessionFailed)
        assert [(t.session, t.retry_in) for t in told] == [("completeness", CHECK_RETRY_PAUSE)]
        assert re.fullmatch(said, told[0].why)
        world.insert(3)
        await seen.wait_for(BatchRan, lambda o: o.batch.seen == 3)
        assert world.calls.count("connect") == 1
        world.check_lost = None
        await seen.wait_for(CompletenessChecked)


async def test_a_pass_that_tells_nothing():
    """A refused pass, or one that another session replaced, is neither a result nor a failure."""
    for status in ("refused", "superseded"):
        world = World(completeness_due=-1, check_pages=1, check_answer=CompletenessPage(status=status))
        async with consuming(world, **LONG) as (_, seen):
            await anyio.sleep(4000)
            assert len(pages(world)) == 2
            assert seen.of(CompletenessChecked) == []
            assert seen.of(SessionFailed) == []


async def test_it_stops_with_the_work():
    """A consumer that is asked to stop does not wait for a page."""
    world = World(completeness_due=-1, check_seconds=10_000)
    async with consuming(world, **LONG) as (consumer, _):
        await until(lambda: pages(world))
        consumer.stop("test")
        await until(lambda: world.audits[-1][1] == "close", within=50)
