"""Observations as notifications of systemd: ready after the first batch, alive after each batch (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

from iu_listen.model.observation import BatchRan, HeartbeatWritten, Observation, StandingBy, StateChanged, Stopping


class SystemdObserver:
    """An observer that notifies the watchdog of systemd of progress. Implements Observer.

    Progress is a batch, a lease that another consumer holds, or a heartbeat in a state other than FAILING. A process
    without progress sends nothing, and systemd restarts it.

    Args:
        environ: The environment with NOTIFY_SOCKET; without this variable nothing is sent.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._ready = False

    def observe(self, observation: Observation, /) -> None:
        """Send the notification for an observation, if there is one."""
        match observation:
            case BatchRan():
                self._send("WATCHDOG=1" if self._ready else "READY=1\nWATCHDOG=1")
                self._ready = True
            case StandingBy(_, holder):
                self._send(f"READY=1\nWATCHDOG=1\nSTATUS=standing by: {holder}")
                self._ready = True
            case HeartbeatWritten():
                # StandingBy is reported once for each wait for the lease; the heartbeat continues meanwhile.
                self._send("WATCHDOG=1")
            case StateChanged(_, state, why):
                self._send(f"STATUS={state} {why}")
            case Stopping(why):
                self._send(f"STOPPING=1\nSTATUS=stopping: {why}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # The consumer must not fail because the service manager does not receive the notification.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), self._address)
