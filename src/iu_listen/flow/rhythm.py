"""When to look, when to pause, when to sleep: interrupts when idle, polling when busy, like NAPI in a network driver.

Asleep, a notification costs nothing and a poll would cost latency. Under load it is the other way round: each
notification holds a lock over the whole cluster for a commit, and a poll finds something every time. So:

    AWAKE ── drained, and not busy ──► arm ──► ARMED ── wait for the bell ──► look
      ▲                                          │
      └──────── two events in a row, each within BUSY_GAP of the one before ────┘ disarm

and AWAKE it stays, looking every ``busy_interval``, until events have stopped for ``linger``. Arming fails while a
writer that stayed silent is not visible yet; then it looks again after a growing pause of at most ARM_WAIT_MAX.
The lock protocol behind arming is in sql/worker/010_wake.up.sql. Decisions only: nothing here waits or reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

#: Events closer together than this, twice in a row, are a busy spell. Seconds; a wake-up costs about 1 ms.
BUSY_GAP: Final = 0.005
#: A batch of so many events is a busy spell by itself.
BUSY_BATCH: Final = 16
#: Longest pause between tries to arm, in seconds.
ARM_WAIT_MAX: Final = 0.05


class Act(Enum):
    """What to do next."""

    PAUSE = auto()
    ARM = auto()
    DISARM = auto()
    SLEEP = auto()


@dataclass(slots=True)
class Rhythm:
    """The consumer's sense of time. Times are seconds of one monotonic clock.

    Attributes:
        linger: Silence that ends a busy spell, in seconds.
        busy_interval: Pause between looks in a busy spell, in seconds.
        poll_interval: Pause between looks where there is no bell, in seconds.
        bell: Whether there is a bell to sleep by.
        armed: Whether writers are told to ring.
    """

    linger: float
    busy_interval: float
    poll_interval: float
    bell: bool = False
    armed: bool = False
    _streak: int = 0
    _last_event: float = field(default=float("-inf"))
    _arm_wait: float = 0.0
    _refused: bool = False

    def looked(self, seen: int, now: float) -> None:
        """A batch found ``seen`` events."""
        if not seen:
            return
        # Their mean distance: where looks are slow, several come with each of them.
        close = now - self._last_event < BUSY_GAP * seen
        self._streak = 2 if seen >= BUSY_BATCH else self._streak + 1 if close else 0
        self._last_event = now

    def arm_tried(self, granted: bool) -> None:
        """The bell was armed, or a silent writer was in the way."""
        self.armed, self._refused = granted, not granted
        if granted:
            self._streak, self._arm_wait = 0, 0.0
        else:
            self._arm_wait = min(max(self.busy_interval, 1.5 * self._arm_wait), ARM_WAIT_MAX)

    def bell_changed(self, bell: bool) -> None:
        """A bell session began or ended; a new one is not armed."""
        self.bell, self.armed, self._arm_wait, self._refused = bell, False, 0.0, False

    def disarmed(self) -> None:
        """Writers are told to stay silent."""
        self.armed = False

    def next(self, now: float) -> tuple[Act, float]:
        """What to do after a look that left nothing behind, and for PAUSE how long, in seconds."""
        busy = self._streak >= 2 and now - self._last_event < self.linger
        if not self.bell:
            return Act.PAUSE, self.busy_interval if busy else self.poll_interval
        if self.armed:
            return (Act.DISARM, 0.0) if busy else (Act.SLEEP, 0.0)
        if busy:
            return Act.PAUSE, self.busy_interval
        if self._refused:
            # One pause and one look, then arming is tried again.
            self._refused = False
            return Act.PAUSE, self._arm_wait
        return Act.ARM, 0.0
