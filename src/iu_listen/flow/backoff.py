"""Exponential backoff with full jitter, for sessions that are opened again.

The retry policy of deliveries has its own backoff, fn_iu_delivery_backoff in SQL.

Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. The jitter prevents consumers that lost
their database at the same moment from reconnecting at the same moment.
"""

from __future__ import annotations

import random
from typing import Final

#: First pause, in seconds.
BACKOFF_BASE: Final = 0.1


def backoff(tries: int, cap: float, jitter: random.Random) -> float:
    """Seconds to wait after ``tries`` failures in a row (at least 1): from BACKOFF_BASE / 2 up to ``cap``."""
    ceiling = min(cap, BACKOFF_BASE * 2.0 ** min(tries - 1, 30))
    return float(jitter.uniform(min(BACKOFF_BASE / 2, ceiling), ceiling))
