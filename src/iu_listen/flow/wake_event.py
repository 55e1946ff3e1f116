"""The signal by which tasks of a consumer wake each other."""

from __future__ import annotations

import time

import anyio


class WakeEvent:
    """A flag that a task awaits, with a timeout. A task clears it before it checks for work; set() is idempotent."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._rung_at: float | None = None

    @property
    def age(self) -> float:
        """Seconds since the first set() after the last clear(); 0: it is not set."""
        return 0.0 if self._rung_at is None else time.perf_counter() - self._rung_at

    def set(self) -> None:
        """Set the flag and wake all waiting tasks."""
        if self._rung_at is None:
            self._rung_at = time.perf_counter()
        self._event.set()

    def clear(self) -> None:
        """Clear the flag. Clear it before a check for work, never after it: else a set() during the check is lost."""
        if self._event.is_set():
            self._event = anyio.Event()
        self._rung_at = None

    async def wait(self, timeout: float) -> bool:
        """Wait until the flag is set, at most ``timeout`` seconds. Returns whether it is set."""
        with anyio.move_on_after(timeout):
            await self._event.wait()
        return self._event.is_set()
