"""The in-flight ledger: the deliveries that the dispatcher holds, and the ids that have left it since a mark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from uuid import UUID

from iu_listen.model.delivery import TakenDelivery


@dataclass(slots=True)
class Load:
    """The in-flight deliveries of one route: their number, and their size in bytes (TakenDelivery.bytes)."""

    deliveries: int = 0
    bytes: int = 0


class InFlightLedger:
    """In-flight deliveries by id, from the moment when they are taken until they are settled or given back.

    A query that returns deliveries may run while deliveries leave the ledger, so its answer may contain deliveries that
    were settled meanwhile. They must not be attempted again. Therefore each id that leaves the ledger gets a running
    number, and the sender of a query does this:

        with ledger.mark() as mark:
            answer = await query()
            new = ledger.new_since(mark, answer, …)

    new_since() leaves out the deliveries that are in the ledger, and those that have left it since the mark. When the
    mark is closed, the ledger forgets the ids that left it before the oldest mark that is still open.

    Attributes:
        bytes: Size of all deliveries in the ledger, in bytes (TakenDelivery.bytes).
        unconfirmed: Deliveries that were called ahead and that the database has not returned yet (flow/call_ahead.py),
            by route and event id.
    """

    def __init__(self) -> None:
        self._deliveries: dict[int, TakenDelivery] = {}
        self.unconfirmed: dict[tuple[str, UUID], TakenDelivery] = {}
        self._loads: dict[str, Load] = {}
        #: Ids that were attempted before. In the database they look like deliveries that are due.
        self._retried: set[int] = set()
        #: The number with which each id left the ledger, in the order of the numbers.
        self._left: dict[int, int] = {}
        self._last_number = 0
        #: How many senders hold each mark that is open.
        self._open_marks: Counter[int] = Counter()
        self.bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self._deliveries)

    def __len__(self) -> int:
        return len(self._deliveries)

    def __contains__(self, id: int) -> bool:
        return id in self._deliveries

    def __iter__(self) -> Iterator[TakenDelivery]:
        return iter(list(self._deliveries.values()))

    def load(self, route: str) -> Load:
        """The in-flight deliveries of a route."""
        return self._loads.get(route) or Load()

    def retried_ids(self, trial_ids: Iterable[int | None]) -> list[int]:
        """Ids that a take query must leave out: in-flight deliveries that were attempted before, and trial deliveries.

        Args:
            trial_ids: Ids of the trial deliveries of the routes; None: a route has none.
        """
        trials = {id for id in trial_ids if id is not None and id in self._deliveries}
        return [*self._retried | trials]

    def add(self, taken: TakenDelivery) -> None:
        """Add a delivery that was taken."""
        self._deliveries[taken.delivery.id] = taken
        load, size = self._loads.setdefault(taken.delivery.route, Load()), taken.bytes
        load.deliveries += 1
        load.bytes += size
        self.bytes += size
        if taken.delivery.attempt > 1:
            self._retried.add(taken.delivery.id)
        if taken.unconfirmed:
            self.unconfirmed[taken.key] = taken

    def confirm(self, called: TakenDelivery, row: TakenDelivery) -> None:
        """Give a delivery that was called ahead the id and the attempt number of its row in the database.

        Args:
            called: The delivery in the ledger.
            row: The same delivery as the database returns it.
        """
        self.remove(called.delivery.id)
        called.delivery = replace(called.delivery, id=row.delivery.id, attempt=row.delivery.attempt)
        called.subject_key = row.subject_key
        self.add(called)

    def remove(self, id: int) -> bool:
        """Remove a delivery that was settled or given back. Returns whether it was in the ledger.

        A delivery that was given up while its settlement was running is removed a second time when it is settled. It
        then gets a higher number, because an answer from the time between may still contain it.
        """
        if self._open_marks:
            self._last_number += 1
            self._left.pop(id, None)
            self._left[id] = self._last_number
        self._retried.discard(id)
        taken = self._deliveries.pop(id, None)
        if taken is None:
            return False
        if taken.unconfirmed:
            del self.unconfirmed[taken.key]
        load, size = self._loads[taken.delivery.route], taken.bytes
        load.deliveries -= 1
        load.bytes -= size
        self.bytes -= size
        if not load.deliveries:
            del self._loads[taken.delivery.route]
        return True

    # -- marks ---------------------------------------------------------------------------------------------------

    @contextmanager
    def mark(self) -> Iterator[int]:
        """Open a mark: the ledger remembers the ids that leave it until the end of this context."""
        mark = self._last_number
        self._open_marks[mark] += 1
        try:
            yield mark
        finally:
            self._close(mark)

    def left_since(self, mark: int, id: int) -> bool:
        """Whether a delivery has left the ledger since a mark, which must be open."""
        return self._left.get(id, 0) > mark

    def _close(self, mark: int) -> None:
        self._open_marks[mark] -= 1
        if not self._open_marks[mark]:
            del self._open_marks[mark]
        oldest = min(self._open_marks, default=self._last_number)
        while self._left and self._left[first := next(iter(self._left))] <= oldest:
            del self._left[first]

    def new_since(
        self, mark: int, answer: Sequence[TakenDelivery], valid_routes: Collection[str]
    ) -> list[TakenDelivery]:
        """The deliveries of an answer that can be accepted, each once, in the order of the answer.

        Left out are deliveries that are in the ledger, and deliveries that have left it since the mark.

        Args:
            mark: The mark that was opened before the query.
            answer: Deliveries in the answer. A delivery of an unblocked subject may occur twice.
            valid_routes: Codes of the routes for which the answer is valid.
        """
        new = {
            taken.delivery.id: taken
            for taken in answer
            if taken.delivery.route in valid_routes
            and taken.delivery.id not in self._deliveries
            and not self.left_since(mark, taken.delivery.id)
        }
        return list(new.values())
