"""The end of the service: nothing that code of a user has left behind keeps the process.

When the consumer has stopped, sessions are closed and telemetry is sent, two things may still keep the process for
ever: a task that ignores its cancellation, because asyncio.run waits for all tasks, and a thread that does not return,
because the interpreter waits for all threads. They have until the end of the grace period, then the process ends
without them, with the exit code that it would have had.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import Final

from iu_listen.model.observation import Observation, Stopping
from iu_listen.telemetry.logs import left_behind_line

#: Exit code of a fault of the program.
UNEXPECTED: Final = 70
#: How long what was left behind has at least, also where the grace period is over, in seconds.
AT_LEAST: Final = 1.0


class Ending:
    """Ends the process when something that was left behind keeps it. A Watcher, to know when it was asked to stop.

    Args:
        grace: How many seconds the end may take, from the signal that asks for it.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._until = 0.0
        self._loop_ended = False

    def note(self, observation: Observation, /) -> None:
        """The grace period begins when the service is asked to stop."""
        if isinstance(observation, Stopping):
            self._until = time.monotonic() + self._grace

    def begin(self, code: int) -> None:
        """The service has done all it had to do. What comes now is the end of the event loop and of the process."""
        timer = threading.Timer(max(AT_LEAST, self._until - time.monotonic()), self._leave, (code,))
        timer.daemon = True
        timer.start()

    def loop_ended(self) -> None:
        """The event loop has ended: no task can keep the process any more."""
        self._loop_ended = True

    def _leave(self, code: int) -> None:
        main = threading.main_thread()
        threads = sorted(t.name for t in threading.enumerate() if not t.daemon and t is not main)
        if threads or not self._loop_ended:
            left_behind_line(threads)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)
