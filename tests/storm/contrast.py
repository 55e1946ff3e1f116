"""For contrast: what the simple cursors would have lost under the same load.

Two cursors as one writes them first, ``created_at > last`` and ``event_seq > last``, look at the same outbox during the
storm. They never read an event twice, so it is enough to count what they read; what they have not read when the storm
is over, and everything is committed, they have lost. Bulk transactions are left out of the account: both lose them
whole, and nothing else would be seen beside them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from storm.ground import LOST, Ground, Session

#: Pause between two looks, in seconds.
PAUSE = 0.015


@dataclass
class Naive:
    """A naive cursor.

    Attributes:
        name: The column that it believes in.
        look: Answers the newest position, and the number of events (bulk aside), behind the position that it is given.
        position: Where it is.
        read: How many events it has read.
    """

    name: str
    look: str
    position: list[Any]
    read: int = 0

    async def step(self, session: Session) -> None:
        """Read what is new, as it sees it."""
        if found := await session.fetchrow(self.look, *self.position):
            *self.position, events = found
            self.read += events

    async def keep_looking(self, ground: Ground) -> None:
        """Look again and again, through every restart of the server."""
        while True:
            session = None
            try:
                session = await ground.connect(f"storm naive {self.name}")
                while True:
                    await self.step(session)
                    await asyncio.sleep(PAUSE)
            except LOST:
                await asyncio.sleep(0.05)
            finally:
                if session:
                    session.terminate()


def naive() -> list[Naive]:
    """Both of them, at their start."""
    return [
        Naive(
            "created_at",
            """select created_at, id, count(*) filter (where canonical_address is null) over () from event_outbox
                where event_domain = 'iu' and (created_at, id) > ($1, $2)
                order by created_at desc, id desc limit 1""",
            [datetime(1, 1, 1, tzinfo=UTC), UUID(int=0)],
        ),
        Naive(
            "event_seq",
            """select event_seq, count(*) filter (where canonical_address is null) over () from event_outbox
                where event_domain = 'iu' and event_seq > $1
                order by event_seq desc limit 1""",
            [-(2**62)],
        ),
    ]
