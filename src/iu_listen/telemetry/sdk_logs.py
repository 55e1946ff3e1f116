"""Handles the log lines of the OpenTelemetry SDK without secrets, and ends the SDK in bounded time."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from threading import Thread
from typing import Final, Protocol

#: Shortest time between two lines from the same place in the code, in seconds.
SAME_LINE_INTERVAL: Final = 60.0
#: Longest time in which all exporters together may send their remaining data, in seconds.
SDK_CLOSE_TIMEOUT: Final = 2.0

# gRPC would write a line for each failed connection; the errors are also in the results of its calls.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


class Closable(Protocol):
    """An object that sends its remaining data when it is closed."""

    def close(self) -> None:
        """Send the remaining data."""


class _TemplateHandler(logging.Handler):
    """A handler that passes on the template of a line, not its arguments, once a minute for each place in the code.

    The arguments may contain a header or an address, and so a secret.
    """

    def __init__(self, say: Callable[[str, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say
        self._told: dict[tuple[str, int], float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on the first line of the template, and the name of the exception class."""
        place, now = (record.name, record.lineno), time.monotonic()
        if now - self._told.get(place, float("-inf")) < SAME_LINE_INTERVAL:
            return
        self._told[place] = now
        words = str(record.msg).partition("\n")[0][:200]
        if record.exc_info and record.exc_info[0]:
            words += f" ({record.exc_info[0].__name__})"
        self._say(record.name, words)


def _print(source: str, words: str) -> None:
    sys.stderr.write(f"{source}: {words}\n")


def install_sdk_log_filter(
    say: Callable[[str, str], None] = _print, loggers: Iterable[str] = ("opentelemetry",)
) -> None:
    """Send the warnings of these loggers to ``say`` instead of the handlers of ``logging``.

    Args:
        say: Called with the name of the logger and with the text.
        loggers: Names of the loggers.
    """
    lines = _TemplateHandler(say)
    for name in loggers:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [lines], False


def close_exporters(exporters: Iterable[Closable | None]) -> None:
    """Close exporters in parallel, in at most SDK_CLOSE_TIMEOUT seconds; the SDK would take up to 30 s for each."""
    threads = [Thread(target=exporter.close, daemon=True) for exporter in exporters if exporter is not None]
    for thread in threads:
        thread.start()
    until = time.monotonic() + SDK_CLOSE_TIMEOUT
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
