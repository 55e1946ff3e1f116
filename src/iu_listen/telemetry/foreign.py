"""What OpenTelemetry's SDK says, and how it is ended: in our words, without secrets, in bounded time."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from threading import Thread
from typing import Final, Protocol

#: The same thing is worth a line once in so many seconds.
AGAIN: Final = 60.0
#: How long all of it may take to send what is left, in seconds.
GOODBYE: Final = 2.0

# gRPC writes a line for each connection that fails; what is wrong is in its answers.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


class Closing(Protocol):
    """Something that sends what is left when it is closed."""

    def close(self) -> None:
        """Send what is left."""


class _Lines(logging.Handler):
    """Lines by their template, once a minute from one place: what is put into it may be a header, or an address."""

    def __init__(self, say: Callable[[str, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say
        self._told: dict[tuple[str, int], float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Say the first line of it."""
        place, now = (record.name, record.lineno), time.monotonic()
        if now - self._told.get(place, float("-inf")) < AGAIN:
            return
        self._told[place] = now
        words = str(record.msg).partition("\n")[0][:200]
        if record.exc_info and record.exc_info[0]:
            words += f" ({record.exc_info[0].__name__})"
        self._say(record.name, words)


def _print(who: str, words: str) -> None:
    sys.stderr.write(f"{who}: {words}\n")


def tame(say: Callable[[str, str], None] = _print, loggers: Iterable[str] = ("opentelemetry",)) -> None:
    """From now on ``say`` is told by which logger and what, instead of whatever logging would do with it."""
    lines = _Lines(say)
    for name in loggers:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [lines], False


def close_all(things: Iterable[Closing | None]) -> None:
    """Close them side by side, for GOODBYE seconds at most: the SDK would take half a minute each."""
    threads = [Thread(target=thing.close, daemon=True) for thing in things if thing is not None]
    for thread in threads:
        thread.start()
    until = time.monotonic() + GOODBYE
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
