"""The call ahead: the target of a single new event is called before the batch that routes the event has ended.

A delivery that is called ahead is unconfirmed: it is in the in-flight ledger under a negative id, and its outcome
cannot be settled. It is confirmed when a batch or a take query returns the delivery of the same route and event. Then
it gets its id, and everything goes on as if it had been called after that. If the batch fails, or decides otherwise,
the database is asked for the delivery. docs/why/call-ahead.md has the conditions and the reasons.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import anyio

from iu_listen.flow.call_executor import CallExecutor
from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.ports import DeliveryStore
from iu_listen.flow.taken_deliveries import TakenDeliveries
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import Outcome, Result, TakenDelivery

#: Longest time for which a batch waits for a peek, in seconds.
MAX_PEEK: Final = 0.005


def settleable(done: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """Outcomes that can be settled, and those that wait for the confirmation of their deliveries."""
    if not any(outcome.taken.unconfirmed for outcome in done):
        return list(done), []
    return [o for o in done if not o.taken.unconfirmed], [o for o in done if o.taken.unconfirmed]


@dataclass(slots=True)
class CallAhead:
    """The deliveries that were called ahead and are not confirmed.

    Attributes:
        ledger: The in-flight deliveries.
        calls: The calls of the consumer.
        taken: Removes deliveries without a record of their outcomes.
        settle_wake: Wakes the task that settles outcomes.
        batch_runs: Whether a batch is running.
        batches: Number of batches that have ended.
    """

    ledger: InFlightLedger
    calls: CallExecutor
    taken: TakenDeliveries
    settle_wake: WakeEvent
    batch_runs: bool = False
    batches: int = 0
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(CallExecutor.NO_DELIVERY - 1, -1))

    def admitted(self, found: Sequence[TakenDelivery]) -> list[TakenDelivery]:
        """The deliveries of a peek with negative ids, each of which is used once."""
        return [
            replace(taken, delivery=replace(taken.delivery, id=next(self._ids), called_ahead=True)) for taken in found
        ]

    def batch_ended(self) -> None:
        """Note the end of a batch, successful or not."""
        self.batch_runs = False
        self.batches += 1

    def confirm(self, new: Sequence[TakenDelivery]) -> list[TakenDelivery]:
        """Confirm deliveries that were called ahead. Returns those that were not: they are still to be called."""
        others = []
        for taken in new:
            called = self.ledger.unconfirmed.get(taken.key)
            if called is None:
                others.append(taken)
            else:
                self._confirm(called, taken)
        return others

    def _confirm(self, called: TakenDelivery, row: TakenDelivery) -> None:
        before = called.delivery.id
        self.ledger.confirm(called, row)
        self.calls.renumber(before, called.delivery.id)
        self.settle_wake.set()

    async def ask(self, session: DeliveryStore, *, draining: bool) -> None:
        """Ask the database for the deliveries of calls that no batch has confirmed, unless a batch is running.

        The outcome of a call that failed is dropped if the event was decided otherwise: nothing was delivered, as the
        audit says. An event that is not decided yet waits for a later batch.

        Args:
            session: The delivery session.
            draining: True: the consumer stops. Then a call of an undecided event is given up; the event is routed
                and delivered later, with the same idempotency key.
        """
        for called in () if self.batch_runs else list(self.ledger.unconfirmed.values()):
            outcome = self._outcome(called)
            sent = outcome is not None and outcome.result is Result.SENT
            decided = await session.of_call(*called.key, sent=sent)
            if not called.unconfirmed or called.key not in self.ledger.unconfirmed:
                continue
            if decided is not None and decided.id is not None:
                delivery = replace(called.delivery, id=decided.id, attempt=decided.attempt)
                self._confirm(called, replace(called, delivery=delivery, subject_key=decided.subject_key))
            elif outcome is not None and (decided is not None or draining):
                self.calls.done = [other for other in self.calls.done if other is not outcome]
                self.taken.settled(outcome)
            elif draining and decided is None and called in self.calls.running():
                self.taken.give_up_call(called)

    def _outcome(self, called: TakenDelivery) -> Outcome | None:
        return next((outcome for outcome in self.calls.done if outcome.taken is called), None)


class Peeks:
    """Runs one peek at a time, in a task that waits for requests: a new task would begin later.

    Args:
        peek: Runs a peek in the delivery session, and begins the calls of what it finds.
    """

    def __init__(self, peek: Callable[[DeliveryStore], Awaitable[None]]) -> None:
        self._peek = peek
        self._asked = anyio.Event()
        self._answered = anyio.Event()
        self._serving = False

    def ask(self) -> None:
        """Request a peek. Neither raises nor waits, so that the callback of a notification can call it."""
        if self._serving and not self._asked.is_set():
            self._answered = anyio.Event()
            self._asked.set()

    async def answered(self) -> None:
        """Wait until the requested peek, if there is one, has ended, at most MAX_PEEK seconds."""
        if self._serving and self._asked.is_set():
            with anyio.move_on_after(MAX_PEEK):
                await self._answered.wait()

    async def serve(self, session: DeliveryStore, over: anyio.Event) -> None:
        """Run the requested peeks in this session, until ``over`` is set and end() is called.

        Raises:
            SessionLost: The session was lost.
        """
        self._asked, self._serving = anyio.Event(), True
        try:
            while not over.is_set():
                await self._asked.wait()
                if not over.is_set():
                    await self._peek(session)
                self._asked = anyio.Event()
                self._answered.set()
        finally:
            self._serving = False
            self._answered.set()

    def end(self) -> None:
        """Let serve() check whether it is over."""
        self._asked.set()
