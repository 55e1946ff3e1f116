"""Notifications to a service manager, received by a real datagram socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from iu_listen.model.observation import (
    BatchRan,
    LeaseTaken,
    Listening,
    SessionFailed,
    StandingBy,
    Started,
    StateChanged,
    Stopped,
    Stopping,
)
from iu_listen.model.routing import DEFAULT_WORKER, Batch, State, Wake
from iu_listen.telemetry.systemd import SystemdObserver

W = DEFAULT_WORKER
BATCH = BatchRan(W, Wake.CATCH_UP, Batch(status="ran"))


class Manager:
    """The receiver of the notifications."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self._sock = sock
        self.environ = {"NOTIFY_SOCKET": address}

    def received(self) -> list[str]:
        """Everything that has arrived; local datagrams have arrived when sendto() returns."""
        notes = []
        while True:
            try:
                notes.append(self._sock.recv(4096).decode())
            except BlockingIOError:
                return notes


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path) -> Iterator[Manager]:
    """A service manager on a socket file, and on an abstract address, as systemd may use it."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + path if request.param == "abstract" else path)
        sock.setblocking(False)
        yield Manager(sock, "@" + path if request.param == "abstract" else path)


def test_ready_after_the_first_batch_and_alive_after_each(manager):
    """READY=1 is sent with the first batch, once; each batch sends WATCHDOG=1.
    Fails when: readiness is sent before a batch ran, or batches do not send WATCHDOG=1.
    """
    observer = SystemdObserver(manager.environ)
    for observation in (Started(W, "db"), LeaseTaken(W), Listening(1)):
        observer.observe(observation)
    assert manager.received() == []
    for _ in range(3):
        observer.observe(BATCH)
    assert manager.received() == ["READY=1\nWATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]


def test_a_standby_is_ready(manager):
    """A standby is ready and alive, and its status names the lease holder."""
    observer = SystemdObserver(manager.environ)
    observer.observe(StandingBy(W, "pid 7"))
    observer.observe(BATCH)
    assert manager.received() == ["READY=1\nWATCHDOG=1\nSTATUS=standing by: pid 7", "WATCHDOG=1"]


def test_what_is_no_progress_feeds_no_watchdog(manager):
    """Lost sessions and changes of state send no WATCHDOG=1, so a consumer that runs no batches is restarted.
    Fails when: WATCHDOG=1 is sent by a timer or by an observation that is not progress.
    """
    observer = SystemdObserver(manager.environ)
    observer.observe(SessionFailed("worker", "gone", 1.0))
    observer.observe(StateChanged(W, State.REFUSING, "foreign_cursor"))
    observer.observe(Stopped(W, 0))
    assert manager.received() == ["STATUS=refusing foreign_cursor"]


def test_stopping_is_told(manager):
    """STOPPING=1 is sent with the reason at the beginning of a graceful shutdown."""
    SystemdObserver(manager.environ).observe(Stopping("SIGTERM"))
    assert manager.received() == ["STOPPING=1\nSTATUS=stopping: SIGTERM"]


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/notify"}])
def test_without_a_service_manager_nothing_happens(environ):
    """Without NOTIFY_SOCKET, or without a receiver, notifications are dropped without an error."""
    observer = SystemdObserver(environ)
    for observation in (BATCH, Stopping("SIGTERM"), StandingBy(W, "pid 7")):
        observer.observe(observation)
