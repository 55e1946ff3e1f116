"""Parses the header Retry-After of an HTTP answer (RFC 9110, 10.2.3)."""

from __future__ import annotations

import math
import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

#: Longest delay that is accepted from the header, in seconds.
MAX_RETRY_AFTER: Final = 3600.0


def parse_retry_after(value: str | None, now: float) -> float | None:
    """The delay that the header asks for, in seconds, at most MAX_RETRY_AFTER; None: it is absent or invalid.

    Args:
        value: The value of the header: a number of seconds, or a date.
        now: The current time, in seconds since 1970.
    """
    if not value:
        return None
    if re.fullmatch(r"\s*[0-9]+\s*", value, re.ASCII):
        return min(float(value), MAX_RETRY_AFTER)
    try:
        when = parsedate_to_datetime(value)
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(0.0, math.ceil(seconds)), MAX_RETRY_AFTER)
