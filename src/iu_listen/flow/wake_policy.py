"""Adaptive wake-up: notifications while idle, polling while busy, like NAPI in a network driver.

While the consumer is idle, a notification is cheap and polling would add latency. Under load the reverse holds: each
notification takes a lock of the whole cluster during a commit, and each poll finds events. So:

    AWAKE ── nothing to route, not busy ──► arm ──► ARMED ── notification or catch-up poll ──► batch
      ▲                                               │
      └── two gaps in a row below BUSY_GAP: disarm ───┘

AWAKE means not armed. A busy consumer stays AWAKE and runs a batch every ``busy_interval``, until no event has come for
``linger``. Arming fails while the events of a producer that sent no NOTIFY are not visible yet. Then the consumer runs
a batch after a growing pause of at most ARM_WAIT_MAX. sql/functions/wake.up.sql defines the lock protocol of arming.
This module only decides; it neither waits nor reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

#: Distance of events, in seconds, below which the consumer becomes busy if it occurs twice in a row. A wake-up costs
#: about 1 ms.
BUSY_GAP: Final = 0.005
#: Number of events in one batch from which the consumer becomes busy at once.
BUSY_BATCH: Final = 16
#: Longest pause between tries to arm, in seconds.
ARM_WAIT_MAX: Final = 0.05


class Act(Enum):
    """The next action of the consumer."""

    PAUSE = auto()
    ARM = auto()
    DISARM = auto()
    SLEEP = auto()


@dataclass(slots=True)
class WakePolicy:
    """Decides when a consumer runs a batch, pauses or sleeps. All times are in seconds, by one monotonic clock.

    Attributes:
        linger: Time without events after which a busy consumer becomes idle, in seconds.
        busy_interval: Pause between two batches while busy, in seconds.
        poll_interval: Pause between two batches if there is no listener session, in seconds.
        listening: Whether there is a listener session.
        armed: Whether producers are told to send NOTIFY.
    """

    linger: float
    busy_interval: float
    poll_interval: float
    listening: bool = False
    armed: bool = False
    _streak: int = 0
    _last_event: float = field(default=float("-inf"))
    _arm_wait: float = 0.0
    _refused: bool = False

    def batch_ran(self, seen: int, now: float) -> None:
        """Note that a batch read ``seen`` events at the time ``now``."""
        if not seen:
            return
        # Compare the mean distance of the events, because a slow batch reads several events at once.
        close = now - self._last_event < BUSY_GAP * seen
        self._streak = 2 if seen >= BUSY_BATCH else self._streak + 1 if close else 0
        self._last_event = now

    def arm_result(self, granted: bool) -> None:
        """Note a try to arm the bell. False: refused because of a producer that sends no NOTIFY, or without a slot."""
        self.armed, self._refused = granted, not granted
        if granted:
            self._streak, self._arm_wait = 0, 0.0
        else:
            self._arm_wait = min(max(self.busy_interval, 1.5 * self._arm_wait), ARM_WAIT_MAX)

    def listener_changed(self, listening: bool) -> None:
        """Note that a listener session began or ended. A new session is not armed."""
        self.listening, self.armed, self._arm_wait, self._refused = listening, False, 0.0, False

    def disarmed(self) -> None:
        """Note that producers are told not to send NOTIFY."""
        self.armed = False

    def next(self, now: float) -> tuple[Act, float]:
        """The action after a batch that left no events, and its duration in seconds (0 unless it is PAUSE)."""
        busy = self._streak >= 2 and now - self._last_event < self.linger
        if not self.listening:
            return Act.PAUSE, self.busy_interval if busy else self.poll_interval
        if self.armed:
            return (Act.DISARM, 0.0) if busy else (Act.SLEEP, 0.0)
        if busy:
            return Act.PAUSE, self.busy_interval
        if self._refused:
            # One pause and one batch, then the next try to arm.
            self._refused = False
            return Act.PAUSE, self._arm_wait
        return Act.ARM, 0.0
