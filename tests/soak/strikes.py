"""The faults of the receiver, or of the consumer, in the middle of a burst.

Half of the events are written during the fault, which does not end before they are routed: routing does not wait for a
receiver. So the receiver lacks them when the fault ends, on a machine of any speed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import asyncpg

from cli.command import Running
from soak.backend import Backend
from support import connected, wait_until

#: Largest number of events in one statement of a writer, and the number of writers.
CHUNK: Final = 200
WRITERS: Final = 4
FAULTS: Final = ("none", "gone", "503", "429", "hangs", "receiver killed", "consumer killed")
EVENTS: Final = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, canonical_address)
    select 'iu', 'version_applied', 'update', 'immediate', case when n % 50 = 0 then 'poison' else 'kb/' || n end
      from generate_series($1::integer, $2::integer) n
"""
ROUTED: Final = "select count(*) = $1 from iu_route_attempt where attempt_no = 1"
ROWS: Final = "select (select count(*) from iu_route_attempt) + (select count(*) from iu_route_dead_letter)"


class Pen:
    """Several concurrent writers that write up to a limit.

    Attributes:
        allowed: Number of events that may have been written.
        written: Number of committed events.
    """

    def __init__(self) -> None:
        self.allowed = self.written = self._begun = 0
        self._more = asyncio.Condition()

    async def allow(self, events: int) -> None:
        """Allow so many more events."""
        async with self._more:
            self.allowed += events
            self._more.notify_all()

    async def write(self, dsn: str) -> None:
        """Run one writer until it is cancelled."""
        async with connected(dsn) as writer:
            while True:
                async with self._more:
                    await self._more.wait_for(lambda: self._begun < self.allowed)
                first, left = self._begun + 1, self.allowed - self._begun
                self._begun += min(CHUNK, -(-left // WRITERS))
                last = self._begun
                await writer.execute(EVENTS, first, last)
                self.written += last - first + 1


async def asked(watching: asyncpg.Connection, question: str, *args: object) -> bool:
    """Run a query after a pause of 0.2 s, because frequent counting would disturb the measurement."""
    await asyncio.sleep(0.2)
    return bool(await watching.fetchval(question, *args))


@dataclass
class Scene:
    """The participants of a fault.

    Attributes:
        there: The receiver's process.
        begin: Starts another consumer.
        consumer: The present consumer.
        pen: The writers.
        watching: A session for queries.
        held: Number of rows that the receiver lacked when the fault ended; with several faults, the largest.
    """

    there: Backend
    begin: Callable[[], Running]
    consumer: Running
    pen: Pen
    watching: asyncpg.Connection
    held: int = 0

    async def routed(self) -> None:
        """Wait until all permitted events are written and routed."""
        await wait_until(
            lambda: asked(self.watching, ROUTED, self.pen.allowed), f"all of {self.pen.allowed} are routed", 1800
        )

    async def lacking(self, least: int) -> None:
        """While the receiver accepts nothing, wait until all is routed, and assert that it lacks at least so many
        rows.
        """
        await self.routed()
        held = await self.watching.fetchval(ROWS) - len(self.there.rows())
        assert held >= least > 0, f"the fault ends, and the receiver lacks {held} rows instead of {least}"
        self.held = max(self.held, held)

    async def taking(self) -> None:
        """Wait until the receiver has accepted another request, which proves that an export is running."""
        before = self.there.size()

        async def more() -> bool:
            return self.there.size() > before

        await wait_until(more, "the receiver takes more", 120)


async def strike(fault: str, scene: Scene, events: int, seconds: float, kills: int) -> None:
    """Cause the fault, have ``events`` written during it, and end it after at least ``seconds``.

    If the fault is a kill, it happens ``kills`` times.
    """
    if fault == "none":
        await scene.pen.allow(events)
    elif fault == "receiver killed":
        for part in _shares(events, kills):
            await _kill_receiver(scene, part, seconds / kills)
    elif fault == "consumer killed":
        for number, part in enumerate(_shares(events, kills)):
            await (_kill_waiting_consumer if number % 2 else _kill_exporting_consumer)(scene, part, seconds / kills)
    else:
        scene.there.kill() if fault == "gone" else scene.there.behave(fault)
        await scene.pen.allow(events)
        await asyncio.sleep(seconds)
        await scene.lacking(events)
        scene.there.start() if fault == "gone" else scene.there.behave("keep")


def _shares(events: int, kills: int) -> list[int]:
    """Divide so many events into parts, one for each kill."""
    return [events * (n + 1) // kills - events * n // kills for n in range(kills)]


async def _kill_receiver(scene: Scene, events: int, seconds: float) -> None:
    """Kill the receiver while it accepts spans; it lacks the events that are written until it is back."""
    await scene.pen.allow(events // 2)
    await scene.taking()
    scene.there.kill()
    await scene.pen.allow(events - events // 2)
    await scene.lacking(events - events // 2)
    scene.there.start()
    await asyncio.sleep(seconds)


async def _kill_exporting_consumer(scene: Scene, events: int, seconds: float) -> None:
    """Kill the consumer while it exports: the receiver may have spans that the cursor does not know."""
    await scene.pen.allow(events)
    await scene.taking()
    _replace(scene)
    await asyncio.sleep(seconds)


async def _kill_waiting_consumer(scene: Scene, events: int, seconds: float) -> None:
    """Kill the consumer while it has rows that the receiver does not accept."""
    scene.there.behave("hangs")
    await scene.pen.allow(events)
    await scene.lacking(events)
    _replace(scene)
    scene.there.behave("keep")
    await asyncio.sleep(seconds)


def _replace(scene: Scene) -> None:
    scene.consumer.process.kill()
    scene.consumer.close()
    scene.consumer = scene.begin()
