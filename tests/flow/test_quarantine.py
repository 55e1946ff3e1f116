"""The quarantine: a delivery that may end the process is attempted alone, after its id was written."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import anyio
import pytest

from iu_listen.flow.call_executor import CallExecutor
from iu_listen.flow.in_flight import InFlightLedger
from iu_listen.flow.quarantine import Quarantine
from iu_listen.flow.routes import RouteTable
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.delivery import Delivery, Event, TakenDelivery
from iu_listen.model.errors import SessionLost


class FullDisk:
    """A delivery session whose next write fails, as on a full disk; it records the ids that it has written."""

    def __init__(self) -> None:
        self.full = True
        self.written: list[Sequence[tuple[str, int]]] = []

    async def record_in_flight(self, in_flight: Sequence[tuple[str, int]]) -> bool:
        """Write the ids of the deliveries in flight."""
        if self.full:
            raise SessionLost("could not extend file: No space left on device")
        self.written.append(in_flight)
        return True


def test_a_quarantined_delivery_whose_id_cannot_be_written_is_chosen_again():
    """If the ids cannot be written, the quarantined delivery is still given back with its route, and is chosen again.

    Fails when: it leaves the waiting deliveries before its id is written: the ledger then holds it forever.
    """
    event = Event(id=uuid4(), domain="d", type="t", stream="s")
    taken = TakenDelivery(Delivery(id=7, route="r", idempotency_key="k", attempt=1, event=event), alone=True)

    async def run() -> None:
        ledger, session = InFlightLedger(), FullDisk()
        routes = RouteTable(ledger)
        calls = CallExecutor(WakeEvent(), lambda: 0.0, lambda _: None, lambda *_: None)
        quarantine = Quarantine(calls, ledger)
        ledger.add(taken)
        quarantine.add(taken)
        with pytest.raises(SessionLost):
            await quarantine.write(session, 0.0, [], routes)
        assert quarantine.remove("r") == [taken]
        quarantine.add(taken)
        with pytest.raises(SessionLost):
            await quarantine.write(session, 0.0, [], routes)
        session.full = False
        assert await quarantine.write(session, 0.0, [], routes)
        assert session.written == [(("r", 7),)]

    anyio.run(run)
