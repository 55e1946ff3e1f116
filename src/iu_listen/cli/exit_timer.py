"""Ends the process of the service, even if tasks or threads of a user's code are still running.

After the consumer has stopped, its sessions are closed and telemetry is sent, two things may still keep the process
running: a task that ignores its cancellation, because asyncio.run waits for all tasks, and a thread that does not
return, because the interpreter waits for all threads. They have time until the end of the grace period. Then the
process ends without them, with its normal exit code.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import Final

from iu_listen.model.observation import Observation, Stopping
from iu_listen.telemetry.logs import log_running_threads

#: Exit code of an internal error of the program.
EXIT_INTERNAL_ERROR: Final = 70
#: Shortest time that remaining tasks and threads get, even if the grace period is over, in seconds.
MIN_EXIT_DELAY: Final = 1.0


class ExitTimer:
    """Ends the process if remaining tasks or threads keep it running.

    It is an observer, because it has to notice the start of the shutdown.

    Args:
        grace: The grace period, in seconds from the signal that starts the shutdown.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._until = 0.0
        self._loop_ended = False

    def observe(self, observation: Observation, /) -> None:
        """Begin the grace period when the shutdown starts."""
        if isinstance(observation, Stopping):
            self._until = time.monotonic() + self._grace

    def begin(self, code: int) -> None:
        """Start the timer that ends the process. The service has finished; the event loop and the process end next.

        Args:
            code: The exit code.
        """
        timer = threading.Timer(max(MIN_EXIT_DELAY, self._until - time.monotonic()), self._leave, (code,))
        timer.daemon = True
        timer.start()

    def loop_ended(self) -> None:
        """Note that the event loop has ended, so that only threads can still keep the process running."""
        self._loop_ended = True

    def _leave(self, code: int) -> None:
        main = threading.main_thread()
        threads = sorted(t.name for t in threading.enumerate() if not t.daemon and t is not main)
        if threads or not self._loop_ended:
            log_running_threads(threads)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)
