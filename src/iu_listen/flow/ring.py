"""The one thing that everybody waits for: something may have happened, look."""

from __future__ import annotations

import anyio


class Ring:
    """A flag to wait for, with a timeout. Setting it twice is the same as once; looking first clears it."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Ring. Wakes everybody who waits."""
        self._event.set()

    def clear(self) -> None:
        """Forget earlier rings. Clear before looking, never after: what rings during the look must not be lost."""
        if self._event.is_set():
            self._event = anyio.Event()

    async def wait_rung(self, timeout: float) -> bool:
        """Wait until it rings, at most ``timeout`` seconds. True: it rang."""
        with anyio.move_on_after(timeout):
            await self._event.wait()
        return self._event.is_set()
