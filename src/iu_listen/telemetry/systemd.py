"""Observations as notes to systemd: ready after the first batch, alive after every one (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

from iu_listen.model.observation import BatchRan, Beaten, Observation, StandingBy, StateChanged, Stopping


class SystemdWatcher:
    """A Watcher that feeds the watchdog with progress: a batch that ran, or a lease that somebody else holds.

    A process that is alive and runs no batches feeds nothing, and is restarted.

    Args:
        environ: Where NOTIFY_SOCKET is looked up; without it every note is dropped.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._ready = False

    def note(self, observation: Observation, /) -> None:
        """Send what the observation means to systemd, if anything."""
        match observation:
            case BatchRan():
                self._send("WATCHDOG=1" if self._ready else "READY=1\nWATCHDOG=1")
                self._ready = True
            case StandingBy(_, holder):
                self._send(f"READY=1\nWATCHDOG=1\nSTATUS=standing by: {holder}")
                self._ready = True
            case Beaten():
                # StandingBy is said once an episode; the heartbeat goes on.
                self._send("WATCHDOG=1")
            case StateChanged(_, state, why):
                self._send(f"STATUS={state} {why}")
            case Stopping(why):
                self._send(f"STOPPING=1\nSTATUS=stopping: {why}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A service manager that does not listen is no reason to fail.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), self._address)
