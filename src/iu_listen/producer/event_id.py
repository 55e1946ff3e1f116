"""Event ids that ascend in time: UUIDs of version 7."""

from __future__ import annotations

import secrets
import time
from uuid import UUID


def new_event_id() -> UUID:
    """A new event id: a UUID of version 7 (RFC 9562, section 5.7), 48 bits of time in milliseconds and 74 random bits.

    Ids that ascend in time keep the inserts into the indexes of outbox and audit on few pages (docs/why/event-ids.md).
    """
    random = secrets.randbits(74)
    milliseconds = time.time_ns() // 1_000_000
    return UUID(int=milliseconds << 80 | 7 << 76 | (random >> 62) << 64 | 2 << 62 | random & (1 << 62) - 1)
