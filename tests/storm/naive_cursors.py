"""For comparison: the events that two simple cursors would have lost under the same load.

The two naive cursors, ``created_at > last`` and ``event_seq > last``, read the same outbox during the storm. Neither
reads an event twice, so it is enough to count the events that it read: a committed event that it has not read at the
end of the storm is lost. Bulk transactions are excluded, because both cursors lose them completely, which would hide
all other losses.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from storm.environment import CONNECTION_ERRORS, Environment, Session

#: Pause between two reads, in seconds.
PAUSE = 0.015


@dataclass
class NaiveCursor:
    """A naive cursor.

    Attributes:
        name: The column that the cursor compares.
        look: The query for the newest position after the given one, and the number of events in between, without bulk.
        position: The current position.
        read: Number of events that it has read.
    """

    name: str
    query: str
    position: list[Any]
    read: int = 0

    async def step(self, session: Session) -> None:
        """Read the events that are new according to this cursor."""
        if found := await session.fetchrow(self.query, *self.position):
            *self.position, events = found
            self.read += events

    async def keep_reading(self, environment: Environment) -> None:
        """Read again and again; connect again after every restart of the server."""
        while True:
            session = None
            try:
                session = await environment.connect(f"storm naive {self.name}")
                while True:
                    await self.step(session)
                    await asyncio.sleep(PAUSE)
            except CONNECTION_ERRORS:
                await asyncio.sleep(0.05)
            finally:
                if session:
                    session.terminate()


def create_naive_cursors() -> list[NaiveCursor]:
    """Return both cursors at their initial positions."""
    return [
        NaiveCursor(
            "created_at",
            """select created_at, id, count(*) filter (where canonical_address is null) over () from event_outbox
                where event_domain = 'iu' and (created_at, id) > ($1, $2)
                order by created_at desc, id desc limit 1""",
            [datetime(1, 1, 1, tzinfo=UTC), UUID(int=0)],
        ),
        NaiveCursor(
            "event_seq",
            """select event_seq, count(*) filter (where canonical_address is null) over () from event_outbox
                where event_domain = 'iu' and event_seq > $1
                order by event_seq desc limit 1""",
            [-(2**62)],
        ),
    ]
