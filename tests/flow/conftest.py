"""The tests of the flow use trio's clock, which jumps to the next timer when all tasks wait: an hour takes no time."""

from __future__ import annotations

import pytest
from trio.testing import MockClock


@pytest.fixture
def anyio_backend():
    return "trio", {"clock": MockClock(autojump_threshold=0)}
