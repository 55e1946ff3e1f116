"""What the storm's live route delivers to: a coroutine in the consumers' processes that notes every call in a file.

A line is begun and ended in two writes, so a consumer that is killed in between leaves a call that began and never
ended. The kernel keeps what was written, whoever dies. Some calls fail once, as the dice of the event have it.
"""

from __future__ import annotations

import os
import time

import anyio

from iu_listen import Delivery, Failed, target

#: One in so many events fails at its first attempt.
FAILS = 50


@target("storm")
async def arrive(delivery: Delivery) -> None:
    """Take some time, fail sometimes, and note when it began and ended."""
    event = delivery.event.id
    note("began", delivery)
    await anyio.sleep(event.int % 5 / 1000)
    if event.int % FAILS == 0 and delivery.attempt == 1:
        note("failed", delivery)
        raise Failed("as the dice have it")
    note("ended", delivery)


def note(what: str, delivery: Delivery) -> None:
    """Append a line. The clock is the machine's, so that lines of two processes can be compared."""
    line = f"{time.monotonic_ns()} {what} {delivery.event.id.hex} {delivery.event.subject or '-'} {delivery.attempt}\n"
    os.write(_FILE, line.encode())


_FILE = os.open(os.environ["STORM_ARRIVED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
