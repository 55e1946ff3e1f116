"""The in-flight ledger: which deliveries of an answer are new, and what the ledger remembers for open marks."""

from __future__ import annotations

from uuid import uuid4

from iu_listen.flow.in_flight import InFlightLedger, Load
from iu_listen.model.delivery import Delivery, Event, TakenDelivery


def taken(id: int, route: str = "r", attempt: int = 1) -> TakenDelivery:
    """A delivery with a payload of two bytes."""
    event = Event(id=uuid4(), domain="d", type="t", stream="s")
    return TakenDelivery(Delivery(id=id, route=route, idempotency_key=f"k{id}", attempt=attempt, event=event))


def new_ids(ledger: InFlightLedger, mark: int, *ids: int) -> list[int]:
    """The ids of this answer that the ledger accepts."""
    return [new.delivery.id for new in ledger.new_since(mark, [taken(id) for id in ids], {"r"})]


def test_an_answer_does_not_bring_back_deliveries_that_left_since_its_mark():
    """A delivery that left the ledger during a query is ignored in its answer, and accepted in a later answer.

    Fails when: the answer is compared with the present content of the ledger only, or an id is ignored forever.
    """
    ledger = InFlightLedger()
    ledger.add(taken(1))
    with ledger.mark() as mark:
        assert new_ids(ledger, mark, 1, 2, 2) == [2]
        ledger.remove(1)
        assert new_ids(ledger, mark, 1, 2) == [2]
    with ledger.mark() as mark:
        assert new_ids(ledger, mark, 1, 2) == [1, 2]


def test_each_mark_has_its_own_moment():
    """Two queries that run at the same time ignore the ids that left since their own marks.

    Fails when: the end of one query makes the ledger forget ids for which the other one still needs its mark.
    """
    ledger = InFlightLedger()
    for id in (1, 2):
        ledger.add(taken(id))
    with ledger.mark() as batch:
        ledger.remove(1)
        with ledger.mark() as take:
            ledger.remove(2)
            assert (new_ids(ledger, batch, 1, 2), new_ids(ledger, take, 1, 2)) == ([], [1])
        assert new_ids(ledger, batch, 1, 2) == []


def test_a_delivery_that_is_settled_after_it_was_given_up_leaves_a_second_time():
    """A second removal counts for a mark that was opened after the first one.

    Fails when: the number of an id is kept from its first removal.
    """
    ledger = InFlightLedger()
    ledger.add(taken(1))
    with ledger.mark():
        assert ledger.remove(1)
        with ledger.mark() as mark:
            assert new_ids(ledger, mark, 1) == [1]
            assert not ledger.remove(1)
            assert new_ids(ledger, mark, 1) == []


def test_the_ledger_forgets_ids_that_no_open_mark_needs():
    """The ledger remembers only ids that left since the oldest open mark.

    Fails when: ids are kept after their marks were closed, so that memory grows with each delivery.
    """
    ledger = InFlightLedger()
    ledger.remove(1)
    assert ledger._left == {}
    for id in range(100):
        with ledger.mark():
            ledger.remove(id)
            with ledger.mark():
                ledger.remove(1000 + id)
                assert len(ledger._left) == 2
    assert ledger._left == {}


def test_the_load_of_a_route_is_that_of_its_deliveries():
    """The ledger counts deliveries and bytes for each route, and lists the deliveries that were attempted before.

    Fails when: a removal does not subtract, or subtracts twice.
    """
    ledger = InFlightLedger()
    ledger.add(taken(1))
    ledger.add(taken(2, attempt=2))
    ledger.add(taken(3, route="other"))
    assert (ledger.load("r"), ledger.load("none")) == (Load(2, 2 * taken(1).bytes), Load())
    assert sorted(ledger.retried_ids([3, 9, None])) == [2, 3]
    for _ in range(2):
        ledger.remove(2)
    assert (ledger.load("r"), ledger.bytes, ledger.retried_ids([])) == (Load(1, taken(1).bytes), 2 * taken(1).bytes, [])
