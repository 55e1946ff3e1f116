"""Short bursts with each fault; `make soak` runs the long ones."""

from __future__ import annotations

import asyncio

import pytest

from soak.burst import soak
from soak.faults import FAULTS

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("server", ["pg18"], indirect=True)]


@pytest.mark.parametrize(
    ("fault", "protocol"),
    [(fault, "http/protobuf") for fault in FAULTS] + [("receiver killed", "grpc"), ("receiver stopped", "grpc")],
)
def test_each_row_is_exported_as_one_span(live, fault, protocol):
    """After a burst with dead letters, replays and a fault in its middle, the receiver has each row, and no other.

    When the fault ended, the receiver lacked some rows; otherwise the test would prove nothing.
    Fails when: the cursor moves before a page was accepted, spans are dropped after some tries, or replays are not
    read.
    """
    found = asyncio.run(soak(live.dsn, fault, events=2000, seconds=3, kills=4, protocol=protocol))

    assert (found.missing, found.invented) == (0, 0)
    assert bool(found.delayed) is (fault != "none")
    assert found.dead_letters == 40
    assert found.rows == 2000 + found.dead_letters + found.replays
    assert found.replays == found.dead_letters
