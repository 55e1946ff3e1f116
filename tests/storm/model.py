"""The model of the storm, and the verdict: compares the recorded attempts with the committed transactions.

This module does not use a database. The id of an event is computed: 64 bits for the transaction and 64 for the row in
it. So the model keeps one entry for each transaction, and none for each event.

The order is known without a clock: events of a subject are written under the lock of the subject's row, and the
transaction that holds the lock draws the subject's next turn from that row. A rollback returns the turn.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from uuid import UUID

#: Number of wrong events of each kind that are kept for the report.
KEPT = 10
#: The calls that the target has noted are judged like attempts of a route with this name.
ARRIVED = "arrived"
#: The ending of a delivery that succeeded; every other ending is the failure code of a dead letter.
SENT = "sent"


class Fate(Enum):
    """The fate of a transaction. GONE: it was committed, its server was lost, and the promoted standby lacks it."""

    OPEN = auto()
    COMMITTED = auto()
    ROLLED_BACK = auto()
    UNKNOWN = auto()
    GONE = auto()


@dataclass(frozen=True)
class Doom:
    """How an event makes the target of the live route behave, and how its delivery may end.

    Attributes:
        name: The action of the target, by its name in target.py.
        endings: The permitted endings: SENT, or the failure code of a dead letter.
        arrives: Whether the target notes a successful call.
    """

    name: str
    endings: frozenset[str]
    arrives: bool = False


@dataclass(slots=True)
class Transaction:
    """One transaction and its events.

    Attributes:
        key: Upper half of the ids of its events.
        kind: The name of its kind (kinds.py).
        rows: Number of events that it wrote, or tried to write.
        undone: Row numbers that do not count even if it commits: rolled back to a savepoint, or of another domain.
        turns: (row, subject, turn) of the events that have a subject.
        dooms: The doom of each row whose delivery does not simply succeed.
        gid: Its global identifier, if it was prepared.
        ended: When the answer to COMMIT came, as Unix time in seconds; 0: no answer came.
    """

    key: int
    kind: str
    rows: int = 0
    undone: frozenset[int] = frozenset()
    turns: tuple[tuple[int, int, int], ...] = ()
    dooms: dict[int, Doom] = field(default_factory=dict)
    fate: Fate = Fate.OPEN
    gid: str = ""
    ended: float = 0.0

    def committed(self) -> None:
        """Record that the answer to COMMIT has come."""
        self.fate, self.ended = Fate.COMMITTED, time.time()

    def event(self, row: int) -> UUID:
        """The id of the event in this row."""
        return UUID(int=self.key << 64 | row)

    def add(self, rows: int = 1) -> range:
        """Add rows, and return their numbers."""
        self.rows += rows
        return range(self.rows - rows, self.rows)

    def undo(self, rows: Iterable[int]) -> None:
        """Exclude these rows from the count."""
        self.undone |= frozenset(rows)

    @property
    def counting(self) -> int:
        """Number of events that count if it commits."""
        return self.rows - len(self.undone)

    def ends_on(self, row: int, route: str) -> bool:
        """Whether this row must have an ending on this route; on ARRIVED it has none if its doom never arrives."""
        return route != ARRIVED or row not in self.dooms or self.dooms[row].arrives

    def may_end(self, row: int, route: str, decision: str, code: str) -> bool:
        """Whether this ending of the row is permitted on this route."""
        if decision == "dry_run":
            return True
        if route == ARRIVED:
            return self.ends_on(row, route)
        endings = self.dooms[row].endings if row in self.dooms else frozenset({SENT})
        return (SENT if decision == "delivered" else code) in endings

    def settle(self, found: int) -> None:
        """Decide an unknown outcome, after its session has ended, by the number of its events that are in the outbox.

        Raises:
            AssertionError: only some of the events are there, so the transaction was not atomic.
        """
        assert found in (0, self.counting), f"{self.kind}: {found} of {self.counting} events are there"
        self.fate = Fate.COMMITTED if found else Fate.ROLLED_BACK


@dataclass
class Model:
    """All transactions of a storm.

    Attributes:
        dice: Random numbers for the keys of transactions.
        transactions: The transactions, by key.
        retried: Number of serialization failures and deadlocks, by SQLSTATE.
        cut: Number of writers' sessions that a fault ended.
        errors: All other errors of writers; there should be none.
    """

    dice: random.Random
    transactions: dict[int, Transaction] = field(default_factory=dict)
    retried: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    errors: list[str] = field(default_factory=list)

    def begin(self, kind: str) -> Transaction:
        """Begin a new transaction. Keys are random, so that ids carry no information about the order."""
        key = self.dice.getrandbits(63)
        self.transactions[key] = transaction = Transaction(key, kind)
        return transaction

    def of(self, fate: Fate) -> list[Transaction]:
        """Transactions with this fate."""
        return [t for t in self.transactions.values() if t.fate is fate]

    def holes(self) -> list[int]:
        """Subjects whose turns are not 1, 2, 3, … without a gap: then the model is wrong, or a commit was lost."""
        turns: dict[int, set[int]] = {}
        for transaction in self.of(Fate.COMMITTED):
            for _, subject, turn in transaction.turns:
                turns.setdefault(subject, set()).add(turn)
        return [subject for subject, drawn in turns.items() if len(drawn) != max(drawn)]

    @property
    def events(self) -> int:
        """Number of committed events."""
        return sum(t.counting for t in self.of(Fate.COMMITTED))


@dataclass(frozen=True)
class Blocker:
    """A wrong event.

    Attributes:
        wrong: lost, duplicated, invented, disordered or misended.
        event: Its id.
        route: The route on which it is wrong.
        kind: The kind of its transaction.
        detail: More information from the model.
    """

    wrong: str
    event: UUID
    route: str
    kind: str
    detail: str


@dataclass
class Verdict:
    """The numbers of wrong events, and the first wrong events of each kind.

    ``reread`` counts events that a cursor read twice: the idempotency key hides such a repetition from the audit.
    ``misended`` counts events with a wrong ending: a good event that became a dead letter, a poison event that was
    sent, or a dead letter that is not exactly once both in the audit and in the table of dead letters.
    """

    lost: int = 0
    duplicated: int = 0
    reread: int = 0
    invented: int = 0
    disordered: int = 0
    misended: int = 0
    blockers: list[Blocker] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        wrong = self.lost or self.duplicated or self.reread or self.invented or self.disordered or self.misended
        return not wrong


class Judge:
    """Takes all attempts in the order in which they were written, and gives the verdict.

    Args:
        model: The expected transactions.
        routes: The routes that every committed event takes.
    """

    def __init__(self, model: Model, routes: Iterable[str]) -> None:
        self._model = model
        self._routes = {route: number for number, route in enumerate(routes)}
        self._heard: dict[int, bytearray] = {}
        self._last: dict[tuple[str, int], tuple[int, int]] = {}
        self._letters: dict[tuple[bytes, str], str] = {}
        self._verdict = Verdict()

    def hear(self, event: bytes, route: str, decision: str, code: str = "") -> None:
        """Take the last attempt of an event on a route: id in 16 bytes, decision, failure code of a dead letter."""
        key, row = int.from_bytes(event[:8]), int.from_bytes(event[8:])
        transaction, number = self._model.transactions.get(key), self._routes.get(route)
        if transaction is None or row >= transaction.rows:
            self._wrong("invented", event, route, "?", "nobody wrote it")
            return
        if transaction.fate is Fate.GONE and route == ARRIVED:
            # The call of the target came before the promotion that lost the event.
            return
        if transaction.fate is not Fate.COMMITTED or row in transaction.undone:
            why = transaction.fate.name.lower() + (", this row was undone" if row in transaction.undone else "")
            self._wrong("invented", event, route, transaction.kind, why)
            return
        if number is None or decision not in ("dry_run", "delivered", "dead_letter"):
            self._wrong("invented", event, route, transaction.kind, f"decision {decision}")
            return
        if not transaction.may_end(row, route, decision, code):
            self._wrong("misended", event, route, transaction.kind, f"ended as {decision} {code}".rstrip())
        if decision == "dead_letter":
            self._letters[event, route] = code
        if (heard := self._heard.get(key)) is None:
            heard = self._heard[key] = bytearray(transaction.rows * len(self._routes))
        place = row * len(self._routes) + number
        if heard[place]:
            self._wrong("duplicated", event, route, transaction.kind, "another attempt")
            return
        heard[place] = 1
        if transaction.turns:
            self._in_order(transaction, row, route, event)

    def _in_order(self, transaction: Transaction, row: int, route: str, event: bytes) -> None:
        for at, subject, turn in transaction.turns:
            if at == row:
                last = self._last.get((route, subject), (0, 0))
                if (turn, row) < last:
                    detail = f"turn {turn} of subject {subject} came after turn {last[0]}"
                    self._wrong("disordered", event, route, transaction.kind, detail)
                self._last[route, subject] = max(last, (turn, row))

    def compare_letters(self, letters: Iterable[tuple[bytes, str, str]]) -> int:
        """Compare the dead letters (event, route, failure code) with those of the audit, and return their number.

        Each must be there once. Call this after the last hear().
        """
        expected, count = dict(self._letters), 0
        for event, route, code in letters:
            count += 1
            if expected.pop((event, route), None) != code:
                self._wrong("misended", event, route, self._kind(event), f"a dead letter {code} that the audit lacks")
        for (event, route), code in expected.items():
            self._wrong("misended", event, route, self._kind(event), f"the dead letter {code} is missing")
        return count

    def _kind(self, event: bytes) -> str:
        transaction = self._model.transactions.get(int.from_bytes(event[:8]))
        return transaction.kind if transaction else "?"

    def verdict(self, read: int | None = None) -> Verdict:
        """Return the verdict; call this after the last attempt.

        Args:
            read: Number of events that the cursor says it has read; None: do not compare it.
        """
        for transaction in self._model.of(Fate.COMMITTED):
            heard = self._heard.get(transaction.key, bytes(transaction.rows * len(self._routes)))
            if sum(heard) == transaction.counting * len(self._routes):
                continue
            for row in range(transaction.rows):
                for route, number in self._routes.items():
                    if row in transaction.undone or not transaction.ends_on(row, route):
                        continue
                    if not heard[row * len(self._routes) + number]:
                        event = transaction.event(row).bytes
                        self._wrong("lost", event, route, transaction.kind, f"row {row + 1} of {transaction.rows}")
        if read is not None:
            first = next(iter(self._routes.values()))
            width = len(self._routes)
            self._verdict.reread = max(0, read - sum(sum(h[first::width]) for h in self._heard.values()))
        return self._verdict

    def _wrong(self, wrong: str, event: bytes, route: str, kind: str, detail: str) -> None:
        count = getattr(self._verdict, wrong) + 1
        setattr(self._verdict, wrong, count)
        if count <= KEPT:
            self._verdict.blockers.append(Blocker(wrong, UUID(bytes=event), route, kind, detail))
