"""Coroutines that do as the event's payload asks: return, raise, block, ignore a cancellation, or end the process.

``{"do": ["exit", "return"]}`` ends the process at the first attempt and returns at every later one. Every call is noted
in the file that the variable CALLS names, so that a test also knows the calls that ended with their process.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.to_thread

from iu_listen import Delivery, Failed, Reject, Unavailable, target
from iu_listen.targets.python import PythonTarget

#: How long "block" blocks the event loop, in seconds: longer than the lease of the tests.
BLOCK = 4.0


class Own(BaseException):
    """An exception that ``except Exception`` does not catch."""


class Unreadable(Failed):
    """An exception whose reason cannot be read."""

    @property
    def reason(self) -> str:
        raise RuntimeError("no reason")

    @reason.setter
    def reason(self, value: str) -> None:
        pass


def _raise(error: BaseException) -> None:
    raise error


def _cancel_everything() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


#: Actions that end as a failed attempt; the process continues.
FAILS = {
    "value error": lambda: _raise(ValueError("odd")),
    "failed": lambda: _raise(Failed("not this time", code="later")),
    "no text": lambda: _raise(Failed(None, code=None)),
    "NUL": lambda: _raise(Failed("a \x00 byte", code="a\x00b")),
    "surrogate": lambda: _raise(Failed("half \ud800 of it")),
    "retry after text": lambda: _raise(Failed("x", retry_after="0.01")),
    "retry after NaN": lambda: _raise(Failed("x", retry_after=float("nan"))),
    "retry after timedelta": lambda: _raise(Failed("x", retry_after=timedelta(milliseconds=1))),
    "unreadable": lambda: _raise(Unreadable()),
    "sys.exit": lambda: sys.exit(3),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "BaseException": lambda: _raise(Own()),
    "group": lambda: _raise(BaseExceptionGroup("several", [SystemExit(1), ValueError("b")])),
    "cancelled": lambda: _raise(asyncio.CancelledError()),
}
#: Actions that make a dead letter at the first attempt.
REJECTS = {
    "reject": lambda: _raise(Reject("never")),
    "reject with a number": lambda: _raise(Reject("gone", code=404)),
    "reject with an error": lambda: _raise(Reject(ValueError("x"))),
}
#: Actions that count as an outage if no other delivery of the route succeeds.
UNAVAILABLE = {
    "unavailable": lambda: _raise(Unavailable("down")),
    "connection refused": lambda: _raise(ConnectionRefusedError("down")),
}
#: Actions that end the process, or the lease, so that no outcome of the attempt is recorded.
KILLS = {
    "exit": lambda: os._exit(7),
    "segmentation fault": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "block": lambda: time.sleep(BLOCK),
    "stop the loop": lambda: asyncio.get_running_loop().stop(),
    "cancel all tasks": _cancel_everything,
}


async def _swallow() -> None:
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


async def _behind_a_shield() -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep_forever()


async def _clean_up_for_ever() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        await _swallow()


async def _in_a_thread() -> None:
    await anyio.to_thread.run_sync(threading.Event().wait)


#: Actions that continue after their cancellation, and never end.
IGNORES = {
    "swallow": _swallow,
    "shield": _behind_a_shield,
    "clean up": _clean_up_for_ever,
    "thread": _in_a_thread,
}


async def _leave_a_task() -> None:
    _KEPT.append(asyncio.create_task(_swallow()))


async def _leave_a_thread() -> None:
    await asyncio.to_thread(threading.Event().wait)


_KEPT: list[asyncio.Task[None]] = []
#: Actions that return, but leave a task or a thread that never ends.
LEAVES = {"task": _leave_a_task, "thread of the loop": _leave_a_thread}
LONG = {**IGNORES, **LEAVES}
ACTIONS = {**FAILS, **REJECTS, **UNAVAILABLE, **KILLS}


def called() -> Counter[str]:
    """Number of calls of each event, by the hexadecimal event id."""
    return Counter(line.split()[0] for line in Path(os.environ["CALLS"]).read_text().splitlines())


async def act(delivery: Delivery) -> None:
    """Note the call, and do what the event asks for at this attempt."""
    before = called()[delivery.event.id.hex]
    os.write(_FILE, f"{delivery.event.id.hex} {delivery.route}\n".encode())
    script = delivery.event.data["do"]
    what = script[min(before, len(script) - 1)]
    await anyio.sleep(0.001)
    if what == "hang":
        await anyio.sleep_forever()
    elif what in LONG:
        await LONG[what]()
    elif what != "return":
        ACTIONS[what]()


if "CALLS" in os.environ:
    _FILE = os.open(os.environ["CALLS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    one: PythonTarget = target("one")(act)
    two: PythonTarget = target("two")(act)
    three: PythonTarget = target("three")(act)
