"""What the storm's live route delivers to: a coroutine in the consumers' processes that notes every call in a file.

A line is begun and ended in two writes, so a consumer that is killed in between leaves a call that began and never
ended. The kernel keeps what was written, whoever dies. Some calls fail once, as the dice of the event have it; and an
event may ask for more than that (model.py, Doom).
"""

from __future__ import annotations

import os
import time

import anyio

from iu_listen import Delivery, Failed, target
from targets.misbehaving import ACTIONS as MISBEHAVIOUR

#: What an event can ask for: what targets/misbehaving.py knows, and a failure whose record a fault refuses.
ACTIONS = {**MISBEHAVIOUR, "unwanted": lambda: fail("unwanted")}

#: One in so many events fails at its first attempt.
FAILS = 50


@target("storm")
async def arrive(delivery: Delivery) -> None:
    """Take some time, fail sometimes, and note when it began and ended."""
    event = delivery.event.id
    note("began", delivery)
    await anyio.sleep(event.int % 5 / 1000)
    if '"do"' in delivery.event.payload:
        what = delivery.event.data["do"]
        # Before it: what ends the process notes nothing afterwards.
        note("ended" if what == "return" else "failed", delivery)
        if what != "return":
            ACTIONS[what]()
        return
    if event.int % FAILS == 0 and delivery.attempt == 1:
        note("failed", delivery)
        raise Failed("as the dice have it")
    note("ended", delivery)


def fail(code: str) -> None:
    """Fail with this code."""
    raise Failed("as the event asks", code=code)


def note(what: str, delivery: Delivery) -> None:
    """Append a line. The clock is the machine's, so that lines of two processes can be compared."""
    line = f"{time.monotonic_ns()} {what} {delivery.event.id.hex} {delivery.event.subject or '-'} {delivery.attempt}\n"
    os.write(_FILE, line.encode())


_FILE = os.open(os.environ["STORM_ARRIVED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
