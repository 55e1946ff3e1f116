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

#: Largest number of events in one statement of a producer, and the number of producers.
MAX_EVENTS_OF_STATEMENT: Final = 200
PRODUCERS: Final = 4
FAULTS: Final = ("none", "receiver stopped", "503", "429", "no answer", "receiver killed", "consumer killed")
INSERT_EVENTS: Final = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, canonical_address)
    select 'iu', 'version_applied', 'update', 'immediate', case when n % 50 = 0 then 'poison' else 'kb/' || n end
      from generate_series($1::integer, $2::integer) n
"""
ALL_ROUTED: Final = "select count(*) = $1 from iu_route_attempt where attempt_no = 1"
COUNT_ROWS: Final = "select (select count(*) from iu_route_attempt) + (select count(*) from iu_route_dead_letter)"


class Producers:
    """Several concurrent producers that write up to a limit.

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
        """Run one producer until it is cancelled."""
        async with connected(dsn) as writer:
            while True:
                async with self._more:
                    await self._more.wait_for(lambda: self._begun < self.allowed)
                first, left = self._begun + 1, self.allowed - self._begun
                self._begun += min(MAX_EVENTS_OF_STATEMENT, -(-left // PRODUCERS))
                last = self._begun
                await writer.execute(INSERT_EVENTS, first, last)
                self.written += last - first + 1


async def query_after_pause(connection: asyncpg.Connection, question: str, *args: object) -> bool:
    """Run a query after a pause of 0.2 s, because frequent counting would disturb the measurement."""
    await asyncio.sleep(0.2)
    return bool(await connection.fetchval(question, *args))


@dataclass
class Participants:
    """The participants of a fault.

    Attributes:
        receiver: The receiver's process.
        start_consumer: Starts another consumer.
        consumer: The present consumer.
        producers: The producers.
        connection: A session for queries.
        delayed: Number of rows that the receiver lacked when the fault ended; with several faults, the largest.
    """

    receiver: Backend
    start_consumer: Callable[[], Running]
    consumer: Running
    producers: Producers
    connection: asyncpg.Connection
    delayed: int = 0

    async def wait_until_routed(self) -> None:
        """Wait until all permitted events are written and routed."""
        await wait_until(
            lambda: query_after_pause(self.connection, ALL_ROUTED, self.producers.allowed),
            f"all {self.producers.allowed} events are routed",
            1800,
        )

    async def wait_until_rows_are_missing(self, least: int) -> None:
        """While the receiver accepts nothing, wait until all is routed, and assert that it lacks at least so many
        rows.
        """
        await self.wait_until_routed()
        delayed = await self.connection.fetchval(COUNT_ROWS) - len(self.receiver.rows())
        assert delayed >= least > 0, (
            f"the fault had no effect: the receiver lacked {delayed} rows at its end, and at least {least} were expected"
        )
        self.delayed = max(self.delayed, delayed)

    async def wait_until_receiving(self) -> None:
        """Wait until the receiver has accepted another request, which proves that an export is running."""
        before = self.receiver.size()

        async def more() -> bool:
            return self.receiver.size() > before

        await wait_until(more, "the receiver has accepted another request", 120)


async def inject(fault: str, participants: Participants, events: int, seconds: float, kills: int) -> None:
    """Cause the fault, have ``events`` written during it, and end it after at least ``seconds``.

    If the fault is a kill, it happens ``kills`` times.
    """
    if fault == "none":
        await participants.producers.allow(events)
    elif fault == "receiver killed":
        for part in _divide(events, kills):
            await _kill_receiver(participants, part, seconds / kills)
    elif fault == "consumer killed":
        for number, part in enumerate(_divide(events, kills)):
            await (_kill_waiting_consumer if number % 2 else _kill_exporting_consumer)(
                participants, part, seconds / kills
            )
    else:
        participants.receiver.kill() if fault == "receiver stopped" else participants.receiver.behave(fault)
        await participants.producers.allow(events)
        await asyncio.sleep(seconds)
        await participants.wait_until_rows_are_missing(events)
        participants.receiver.start() if fault == "receiver stopped" else participants.receiver.behave("keep")


def _divide(events: int, kills: int) -> list[int]:
    """Divide so many events into parts, one for each kill."""
    return [events * (n + 1) // kills - events * n // kills for n in range(kills)]


async def _kill_receiver(participants: Participants, events: int, seconds: float) -> None:
    """Kill the receiver while it accepts spans; it lacks the events that are written until it is back."""
    await participants.producers.allow(events // 2)
    await participants.wait_until_receiving()
    participants.receiver.kill()
    await participants.producers.allow(events - events // 2)
    await participants.wait_until_rows_are_missing(events - events // 2)
    participants.receiver.start()
    await asyncio.sleep(seconds)


async def _kill_exporting_consumer(participants: Participants, events: int, seconds: float) -> None:
    """Kill the consumer while it exports: the receiver may have spans that the cursor does not know."""
    await participants.producers.allow(events)
    await participants.wait_until_receiving()
    _replace_consumer(participants)
    await asyncio.sleep(seconds)


async def _kill_waiting_consumer(participants: Participants, events: int, seconds: float) -> None:
    """Kill the consumer while it has rows that the receiver does not accept."""
    participants.receiver.behave("no answer")
    await participants.producers.allow(events)
    await participants.wait_until_rows_are_missing(events)
    _replace_consumer(participants)
    participants.receiver.behave("keep")
    await asyncio.sleep(seconds)


def _replace_consumer(participants: Participants) -> None:
    participants.consumer.process.kill()
    participants.consumer.close()
    participants.consumer = participants.start_consumer()
