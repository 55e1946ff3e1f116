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

#: Largest number of violations of each kind that the report shows.
MAX_REPORTED = 10
#: The calls that the target has logged are verified like attempts of a route with this name.
TARGET_CALLS = "arrived"
#: The outcome of a delivery that succeeded; every other outcome is the failure code of a dead letter.
SENT = "sent"


class TransactionState(Enum):
    """The state of a transaction. LOST_BY_PROMOTION: it was committed, its server was lost, and the promoted standby lacks it."""

    OPEN = auto()
    COMMITTED = auto()
    ROLLED_BACK = auto()
    UNKNOWN = auto()
    LOST_BY_PROMOTION = auto()


@dataclass(frozen=True)
class PlannedOutcome:
    """How an event makes the target of the live route behave, and how its delivery may end.

    Attributes:
        name: The action of the target, by its name in target.py.
        outcomes: The permitted outcomes: SENT, or the failure code of a dead letter.
        calls_succeed: Whether the target notes a successful call.
    """

    name: str
    outcomes: frozenset[str]
    calls_succeed: bool = False


@dataclass(slots=True)
class Transaction:
    """One transaction and its events.

    Attributes:
        key: Upper half of the ids of its events.
        kind: The name of its kind (transaction_kinds.py).
        rows: Number of events that it wrote, or tried to write.
        undone: Row numbers that do not count even if it commits: rolled back to a savepoint, or of another domain.
        turns: (row, subject, turn) of the events that have a subject.
        planned: The planned outcome of each row whose delivery does not simply succeed.
        gid: Its global identifier, if it was prepared.
        ended: When the answer to COMMIT came, as Unix time in seconds; 0: no answer came.
    """

    key: int
    kind: str
    rows: int = 0
    undone: frozenset[int] = frozenset()
    turns: tuple[tuple[int, int, int], ...] = ()
    planned: dict[int, PlannedOutcome] = field(default_factory=dict)
    state: TransactionState = TransactionState.OPEN
    gid: str = ""
    ended: float = 0.0

    def committed(self) -> None:
        """Record that the answer to COMMIT has come."""
        self.state, self.ended = TransactionState.COMMITTED, time.time()

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

    def has_outcome_on(self, row: int, route: str) -> bool:
        """Whether this row must have an outcome on this route; TARGET_CALLS has none if its calls never succeed."""
        return route != TARGET_CALLS or row not in self.planned or self.planned[row].calls_succeed

    def permits(self, row: int, route: str, decision: str, code: str) -> bool:
        """Whether this outcome of the row is permitted on this route."""
        if decision == "dry_run":
            return True
        if route == TARGET_CALLS:
            return self.has_outcome_on(row, route)
        outcomes = self.planned[row].outcomes if row in self.planned else frozenset({SENT})
        return (SENT if decision == "delivered" else code) in outcomes

    def decide(self, found: int) -> None:
        """Decide an unknown outcome, after its session has ended, by the number of its events that are in the outbox.

        Raises:
            AssertionError: only some of the events are there, so the transaction was not atomic.
        """
        assert found in (0, self.counting), f"{self.kind}: {found} of {self.counting} events are there"
        self.state = TransactionState.COMMITTED if found else TransactionState.ROLLED_BACK


@dataclass
class Model:
    """All transactions of a storm.

    Attributes:
        rng: Random numbers for the keys of transactions.
        transactions: The transactions, by key.
        retried: Number of serialization failures and deadlocks, by SQLSTATE.
        sessions_cut: Number of producers' sessions that a fault ended.
        errors: All other errors of producers; there should be none.
    """

    rng: random.Random
    transactions: dict[int, Transaction] = field(default_factory=dict)
    retried: Counter[str] = field(default_factory=Counter)
    sessions_cut: int = 0
    errors: list[str] = field(default_factory=list)

    def begin(self, kind: str) -> Transaction:
        """Begin a new transaction. Keys are random, so that ids carry no information about the order."""
        key = self.rng.getrandbits(63)
        self.transactions[key] = transaction = Transaction(key, kind)
        return transaction

    def of(self, state: TransactionState) -> list[Transaction]:
        """Transactions in this state."""
        return [t for t in self.transactions.values() if t.state is state]

    def gaps(self) -> list[int]:
        """Subjects whose turns are not 1, 2, 3, … without a gap: then the model is wrong, or a commit was lost."""
        turns: dict[int, set[int]] = {}
        for transaction in self.of(TransactionState.COMMITTED):
            for _, subject, turn in transaction.turns:
                turns.setdefault(subject, set()).add(turn)
        return [subject for subject, drawn in turns.items() if len(drawn) != max(drawn)]

    @property
    def events(self) -> int:
        """Number of committed events."""
        return sum(t.counting for t in self.of(TransactionState.COMMITTED))


@dataclass(frozen=True)
class Violation:
    """An event that violates a check.

    Attributes:
        check: lost, duplicated, invented, disordered or wrong_outcome.
        event: Its id.
        route: The route on which it violates the check.
        kind: The kind of its transaction.
        detail: More information from the model.
    """

    check: str
    event: UUID
    route: str
    kind: str
    detail: str


@dataclass
class Verdict:
    """The numbers of violations, and the first violations of each kind.

    ``read_twice`` counts events that a cursor read twice: the idempotency key hides such a repetition from the audit.
    ``wrong_outcome`` counts events with an outcome that is not permitted: a good event that became a dead letter, a poison event that was
    sent, or a dead letter that is not exactly once both in the audit and in the table of dead letters.
    """

    lost: int = 0
    duplicated: int = 0
    read_twice: int = 0
    invented: int = 0
    disordered: int = 0
    wrong_outcome: int = 0
    violations: list[Violation] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        check = (
            self.lost or self.duplicated or self.read_twice or self.invented or self.disordered or self.wrong_outcome
        )
        return not check


class Verifier:
    """Takes all attempts in the order in which they were written, and gives the verdict.

    Args:
        model: The expected transactions.
        routes: The routes that every committed event takes.
    """

    def __init__(self, model: Model, routes: Iterable[str]) -> None:
        self._model = model
        self._routes = {route: number for number, route in enumerate(routes)}
        self._seen: dict[int, bytearray] = {}
        self._last: dict[tuple[str, int], tuple[int, int]] = {}
        self._dead_letters: dict[tuple[bytes, str], str] = {}
        self._verdict = Verdict()

    def add_attempt(self, event: bytes, route: str, decision: str, code: str = "") -> None:
        """Take the last attempt of an event on a route: id in 16 bytes, decision, failure code of a dead letter."""
        key, row = int.from_bytes(event[:8]), int.from_bytes(event[8:])
        transaction, number = self._model.transactions.get(key), self._routes.get(route)
        if transaction is None or row >= transaction.rows:
            self._add_violation("invented", event, route, "?", "no producer wrote it")
            return
        if transaction.state is TransactionState.LOST_BY_PROMOTION and route == TARGET_CALLS:
            # The call of the target came before the promotion that lost the event.
            return
        if transaction.state is not TransactionState.COMMITTED or row in transaction.undone:
            why = transaction.state.name.lower() + (
                ", this row was rolled back to a savepoint" if row in transaction.undone else ""
            )
            self._add_violation("invented", event, route, transaction.kind, why)
            return
        if number is None or decision not in ("dry_run", "delivered", "dead_letter"):
            self._add_violation("invented", event, route, transaction.kind, f"decision {decision}")
            return
        if not transaction.permits(row, route, decision, code):
            self._add_violation("wrong_outcome", event, route, transaction.kind, f"ended as {decision} {code}".rstrip())
        if decision == "dead_letter":
            self._dead_letters[event, route] = code
        if (seen := self._seen.get(key)) is None:
            seen = self._seen[key] = bytearray(transaction.rows * len(self._routes))
        place = row * len(self._routes) + number
        if seen[place]:
            self._add_violation("duplicated", event, route, transaction.kind, "a second attempt")
            return
        seen[place] = 1
        if transaction.turns:
            self._in_order(transaction, row, route, event)

    def _in_order(self, transaction: Transaction, row: int, route: str, event: bytes) -> None:
        for at, subject, turn in transaction.turns:
            if at == row:
                last = self._last.get((route, subject), (0, 0))
                if (turn, row) < last:
                    detail = f"turn {turn} of subject {subject} came after turn {last[0]}"
                    self._add_violation("disordered", event, route, transaction.kind, detail)
                self._last[route, subject] = max(last, (turn, row))

    def compare_dead_letters(self, dead_letters: Iterable[tuple[bytes, str, str]]) -> int:
        """Compare the dead letters (event, route, failure code) with those of the audit, and return their number.

        Each must be there once. Call this after the last hear().
        """
        expected, count = dict(self._dead_letters), 0
        for event, route, code in dead_letters:
            count += 1
            if expected.pop((event, route), None) != code:
                self._add_violation(
                    "wrong_outcome", event, route, self._kind(event), f"a dead letter {code} that the audit lacks"
                )
        for (event, route), code in expected.items():
            self._add_violation("wrong_outcome", event, route, self._kind(event), f"the dead letter {code} is missing")
        return count

    def _kind(self, event: bytes) -> str:
        transaction = self._model.transactions.get(int.from_bytes(event[:8]))
        return transaction.kind if transaction else "?"

    def verdict(self, read: int | None = None) -> Verdict:
        """Return the verdict; call this after the last attempt.

        Args:
            read: Number of events that the cursor says it has read; None: do not compare it.
        """
        for transaction in self._model.of(TransactionState.COMMITTED):
            seen = self._seen.get(transaction.key, bytes(transaction.rows * len(self._routes)))
            if sum(seen) == transaction.counting * len(self._routes):
                continue
            for row in range(transaction.rows):
                for route, number in self._routes.items():
                    if row in transaction.undone or not transaction.has_outcome_on(row, route):
                        continue
                    if not seen[row * len(self._routes) + number]:
                        event = transaction.event(row).bytes
                        self._add_violation(
                            "lost", event, route, transaction.kind, f"row {row + 1} of {transaction.rows}"
                        )
        if read is not None:
            first = next(iter(self._routes.values()))
            width = len(self._routes)
            self._verdict.read_twice = max(0, read - sum(sum(h[first::width]) for h in self._seen.values()))
        return self._verdict

    def _add_violation(self, check: str, event: bytes, route: str, kind: str, detail: str) -> None:
        count = getattr(self._verdict, check) + 1
        setattr(self._verdict, check, count)
        if count <= MAX_REPORTED:
            self._verdict.violations.append(Violation(check, UUID(bytes=event), route, kind, detail))
