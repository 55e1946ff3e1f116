"""How long to wait before trying again: exponential, with full jitter.

Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. The jitter keeps a fleet that lost
its database at one moment from coming back at one moment.
"""

from __future__ import annotations

import random
from typing import Final

#: First pause, in seconds.
BASE: Final = 0.1


def backoff(tries: int, cap: float, jitter: random.Random) -> float:
    """Seconds to wait after ``tries`` failures in a row (1 or more): from BASE / 2 up to at most ``cap``."""
    ceiling = min(cap, BASE * 2.0 ** min(tries - 1, 30))
    return float(jitter.uniform(min(BASE / 2, ceiling), ceiling))
