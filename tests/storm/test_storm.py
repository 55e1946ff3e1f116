"""A short storm with every fault in it, on both embedded versions. `make storm` is the long one; docs/how-to/storm.md."""

from __future__ import annotations

import asyncio

import pytest

from storm import faults
from storm.kinds import KINDS
from storm.report import HARD_ENOUGH, Plan
from storm.run import storm

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("major", [16, 18])
def test_nothing_is_lost_in_a_storm(major):
    """Through every fault of the table, each committed event has one attempt a route, in the order of its subject.

    Fails when: the cursor loses late commits, the stamp believes what it is sent, two consumers work at once, or
    anything that was struck does not recover by itself; docs/how-to/storm.md lists what was tried.
    """
    report = asyncio.run(storm(Plan(seed=3, minutes=1, major=major, bulk_rows=2_000, lull=(0.1, 0.8))))

    assert report.failures == [], report.logs
    assert report.lost == report.duplicated == report.reread == report.invented == report.disordered == 0
    assert report.writer_errors == 0
    assert set(report.faults) | set(report.skipped_faults) == set(faults.FAULTS)
    assert {kind for kind, fates in report.transactions.items() if sum(fates.values())} >= set(KINDS)
    assert report.attempts == 2 * report.events
    assert min(report.naive_lost.values()) > HARD_ENOUGH
