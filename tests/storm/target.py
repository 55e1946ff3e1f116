"""The target of the storm's live route: a coroutine in the consumer processes that notes every call in a file.

The beginning and the end of a call are two lines, written separately, so a consumer that is killed in between leaves a
call that began and did not end. The kernel keeps written lines when the process is killed. One event in FAILURE_INTERVAL fails at
its first attempt, chosen by its id. An event with a planned outcome (model.py) makes the target do more than that.
"""

from __future__ import annotations

import os
import time

import anyio

from iu_listen import Delivery, Failed, target
from targets.misbehaving import ACTIONS as MISBEHAVIOUR

#: The actions that an event can ask for: those of targets/misbehaving.py, and a failure that a fault refuses to record.
ACTIONS = {**MISBEHAVIOUR, "unwanted": lambda: fail("unwanted")}

#: One in so many events fails at its first attempt.
FAILURE_INTERVAL = 50


@target("storm")
async def deliver(delivery: Delivery) -> None:
    """Wait for up to 4 ms, fail in some cases, and note when the call began and ended."""
    event = delivery.event.id
    log_call("began", delivery)
    await anyio.sleep(event.int % 5 / 1000)
    if '"do"' in delivery.event.payload:
        what = delivery.event.data["do"]
        # Note the end before the action: an action that ends the process could not note it afterwards.
        log_call("ended" if what == "return" else "failed", delivery)
        if what != "return":
            ACTIONS[what]()
        return
    if event.int % FAILURE_INTERVAL == 0 and delivery.attempt == 1:
        log_call("failed", delivery)
        raise Failed("fails at its first attempt, as planned")
    log_call("ended", delivery)


def fail(code: str) -> None:
    """Raise Failed with this failure code."""
    raise Failed("fails, as the event asks", code=code)


def log_call(what: str, delivery: Delivery) -> None:
    """Append a line. The time is that of the machine's monotonic clock, so lines of two processes can be compared."""
    line = f"{time.monotonic_ns()} {what} {delivery.event.id.hex} {delivery.event.subject or '-'} {delivery.attempt}\n"
    os.write(_FILE, line.encode())


_FILE = os.open(os.environ["STORM_CALL_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
