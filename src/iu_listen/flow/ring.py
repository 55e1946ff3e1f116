"""The one thing that everybody waits for: something may have happened, look."""

from __future__ import annotations

import time

import anyio


class Ring:
    """A flag to wait for, with a timeout. Setting it twice is the same as once; looking first clears it."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._rung_at: float | None = None

    @property
    def age(self) -> float:
        """Seconds since it rang; 0: it has not."""
        return 0.0 if self._rung_at is None else time.perf_counter() - self._rung_at

    def set(self) -> None:
        """Ring. Wakes everybody who waits."""
        if self._rung_at is None:
            self._rung_at = time.perf_counter()
        self._event.set()

    def clear(self) -> None:
        """Forget earlier rings. Clear before looking, never after: what rings during the look must not be lost."""
        if self._event.is_set():
            self._event = anyio.Event()
        self._rung_at = None

    async def wait_rung(self, timeout: float) -> bool:
        """Wait until it rings, at most ``timeout`` seconds. True: it rang."""
        with anyio.move_on_after(timeout):
            await self._event.wait()
        return self._event.is_set()
