"""The last release is upgraded in place while producers write and routes are live; `make upgrade-test` is longer."""

from __future__ import annotations

import asyncio

import pytest

from releases.archive import releases
from storm.upgrade import upgrade

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("major", "order"), [(16, "schema first"), (18, "consumers first")])
def test_an_upgrade_loses_and_repeats_nothing(major, order):
    """Schema and consumers are upgraded one after the other: nothing is lost or repeated, and decisions go on.

    The bound on the gap in decisions is longer than that of `make upgrade-test`, because other tests share the processors.

    Fails when: a consumer refuses the other version, the new functions break the old consumer, or the files hold a lock
    for longer than the bound.
    """
    result = asyncio.run(upgrade(releases()[-1], major, order, longest_gap=5.0))

    assert result.report.failures == [], result.report.logs
    assert result.events > 50
    assert result.report.calls >= result.report.events > 0
