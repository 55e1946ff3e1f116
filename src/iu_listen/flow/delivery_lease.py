"""The delivery lease in the dispatcher: waiting for it, and giving up deliveries before it expires."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

import anyio

from iu_listen.flow.call_executor import CallExecutor
from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.ports import DeliveryStore
from iu_listen.flow.quarantine import Quarantine
from iu_listen.flow.taken_deliveries import TakenDeliveries
from iu_listen.flow.wake_event import WakeEvent

#: Longest pause between two tries to take the lease, in seconds.
LEASE_RETRY_PAUSE: Final = 1.0
#: Fraction of the session timeout for which a renewed lease is considered valid.
LEASE_SHARE: Final = 0.75
#: Shortest pause between two checks whether the lease is about to expire, in seconds.
MIN_EXPIRY_PAUSE: Final = 0.05


class DeliveryLease:
    """The delivery lease of one worker, as the dispatcher of this consumer sees it.

    Args:
        session_timeout: The session timeout, which is also the duration of the lease, in seconds.
        calls: The calls of the consumer. No call begins after the lease has expired.
        taken: The deliveries that are given up when another consumer may hold the lease.
        ledger: The in-flight deliveries.
        quarantine: Started if the last lease was not given back.
        wake: Ends a pause between two tries.
        clock: Monotonic clock, in seconds.
        jitter: Source of randomness for pauses.

    Attributes:
        held: True while this consumer holds the lease and has a delivery session.
    """

    def __init__(
        self,
        session_timeout: float,
        calls: CallExecutor,
        taken: TakenDeliveries,
        ledger: InFlightLedger,
        quarantine: Quarantine,
        wake: WakeEvent,
        clock: Callable[[], float],
        jitter: random.Random,
    ) -> None:
        self._session_timeout = session_timeout
        self._calls = calls
        self._taken = taken
        self._ledger = ledger
        self._quarantine = quarantine
        self._wake = wake
        self._clock = clock
        self._jitter = jitter
        self.held: bool = False

    async def wait(self, session: DeliveryStore, wanted: Callable[[], bool]) -> bool:
        """Try to take the lease until this consumer holds it.

        Args:
            session: The delivery session.
            wanted: Whether this consumer still has to deliver.

        Returns:
            Whether this consumer holds the lease.
        """
        gone_holder = ""
        while not (lease := await session.take_lease(gone_holder)).held:
            self._taken.give_up()
            if not wanted():
                return False
            self._wake.clear()
            pause = LEASE_RETRY_PAUSE * self._jitter.uniform(0.5, 1)
            if lease.holder_gone:
                # The holder's session ended, but its process may run: wait until it has noticed the loss.
                gone_holder = lease.holder
                await anyio.sleep(pause)
            else:
                await self._wake.wait(pause)
        if not lease.continuous:
            self._taken.give_up()
        if lease.unclean:
            self._quarantine.start(self._clock())
        self.renewed(self._clock())
        self.held = True
        return True

    def renewed(self, since: float) -> None:
        """Note that the lease was valid at ``since``, and so until when no other consumer can hold it."""
        self._calls.lease_valid_until = since + self._session_timeout * LEASE_SHARE

    def lost(self) -> None:
        """Note that another consumer holds the lease, and give up all deliveries."""
        self.held = False
        self._taken.give_up()

    async def give_up_before_expiry(self) -> None:
        """Give up all in-flight deliveries before the lease expires, if it could not be renewed. Never returns."""
        while True:
            remaining = self._calls.lease_valid_until - self._clock() if self._ledger else math.inf
            await anyio.sleep(max(MIN_EXPIRY_PAUSE, min(remaining, self._session_timeout / 4)))
            if self._clock() >= self._calls.lease_valid_until and self._ledger:
                self._taken.give_up()
