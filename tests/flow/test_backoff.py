"""The pauses of the backoff: exponential, bounded, and different for each consumer."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from iu_listen.flow.backoff import BACKOFF_BASE, backoff

CAP = 10.0


class Highest(random.Random):
    """Always draws the upper end."""

    def uniform(self, a, b):
        return b


@pytest.mark.parametrize("tries", [1, 2, 5, 8, 100, 10_000])
def test_a_pause_lies_between_half_the_base_and_the_cap(tries):
    """Every pause is at least BACKOFF_BASE / 2 and at most the cap, after any number of failures."""
    jitter = random.Random(tries)
    pauses = [backoff(tries, CAP, jitter) for _ in range(500)]
    assert min(pauses) >= BACKOFF_BASE / 2
    assert max(pauses) <= min(CAP, BACKOFF_BASE * 2 ** (min(tries, 20) - 1))


def test_the_ceiling_doubles_until_the_cap():
    """Each failure doubles the longest possible pause until it is the cap.

    Fails when: the exponent is taken out, so that a database that is down is asked ten times a second for ever.
    """
    ceilings = [backoff(tries, CAP, Highest()) for tries in range(1, 12)]
    assert ceilings[0] == BACKOFF_BASE
    assert ceilings[-1] == CAP
    assert all(later == min(CAP, 2 * earlier) for earlier, later in pairwise(ceilings))


def test_pauses_are_spread_over_the_whole_range():
    """Consumers that lost their database at the same moment return at different times: over half the range is used.

    Fails when: the jitter is taken out.
    """
    pauses = [backoff(8, CAP, random.Random(seed)) for seed in range(200)]
    assert max(pauses) - min(pauses) > CAP / 2
    assert len(set(pauses)) == len(pauses)


def test_a_cap_below_the_base_is_kept():
    """A cap that is smaller than half the base is still the longest pause."""
    assert backoff(1, BACKOFF_BASE / 10, random.Random(1)) == pytest.approx(BACKOFF_BASE / 10)
