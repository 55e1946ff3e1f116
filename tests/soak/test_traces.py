"""Short bursts with every fault in them. `make soak` has the long ones."""

from __future__ import annotations

import asyncio

import pytest

from soak.strikes import FAULTS
from soak.traces import soak

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("server", ["pg18"], indirect=True)]


@pytest.mark.parametrize(
    ("fault", "protocol"),
    [(fault, "http/protobuf") for fault in FAULTS] + [("receiver killed", "grpc"), ("gone", "grpc")],
)
def test_every_row_is_a_span_exactly(live, fault, protocol):
    """After a burst with dead letters and replays, and a fault in its middle, the receiver has each row, and no other.

    It lacked some of them when the fault ended, else that would be no news.
    Fails when: the cursor moves before a page was accepted, spans are dropped after some tries, or replays are not read.
    """
    found = asyncio.run(soak(live.dsn, fault, events=2000, seconds=3, kills=4, protocol=protocol))

    assert (found.missing, found.invented) == (0, 0)
    assert bool(found.held) is (fault != "none")
    assert found.letters == 40
    assert found.rows == 2000 + found.letters + found.replays
    assert found.replays == found.letters
