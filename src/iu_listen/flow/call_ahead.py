"""The call ahead: the target of a single new event is called before the batch that routes the event has ended.

A delivery that is called ahead is unconfirmed: it is in the in-flight ledger under a negative id, and its outcome
cannot be settled. It is confirmed when a batch or a take query returns the delivery of the same route and event. Then
it gets its id, and everything goes on as if it had been called after that. If the batch fails, or decides otherwise,
the database is asked for the delivery. docs/why/call-ahead.md has the conditions and the reasons.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from iu_listen.flow.call_executor import CallExecutor
from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.ports import DeliveryStore
from iu_listen.flow.taken_deliveries import TakenDeliveries
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import Outcome, Result, TakenDelivery


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
        batch_over: Whether the batch of the last deliveries that were called ahead has ended.
    """

    ledger: InFlightLedger
    calls: CallExecutor
    taken: TakenDeliveries
    settle_wake: WakeEvent
    batch_over: bool = True
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(CallExecutor.NO_DELIVERY - 1, -1))

    def admitted(self, found: Sequence[TakenDelivery]) -> list[TakenDelivery]:
        """The deliveries of a peek with negative ids, each of which is used once."""
        self.batch_over = False
        return [
            replace(taken, delivery=replace(taken.delivery, id=next(self._ids), called_ahead=True)) for taken in found
        ]

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
        """Ask the database for the deliveries of calls that the batch has not confirmed.

        The outcome of a call that failed is dropped if the event was decided otherwise: nothing was delivered, as the
        audit says. An event that is not decided yet waits for a later batch.

        Args:
            session: The delivery session.
            draining: True: the consumer stops. Then a call of an undecided event is given up; the event is routed
                and delivered later, with the same idempotency key.
        """
        for called in list(self.ledger.unconfirmed.values()) if self.batch_over else ():
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
