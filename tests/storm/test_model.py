"""The storm's verdict detects errors: each possible error is made in a correct record."""

from __future__ import annotations

import random
from typing import Any

import pytest

from storm.model import SENT, TARGET_CALLS, Model, PlannedOutcome, Transaction, TransactionState, Verdict, Verifier

ROUTES = ("first", "second")

#: One attempt: event, route, decision.
Attempt = tuple[bytes, str, str]


def committed(model: Model, kind: str, rows: int = 1, turns: dict[int, tuple[int, int]] | None = None) -> Transaction:
    """A committed transaction; ``turns`` by row."""
    tx = model.begin(kind)
    tx.add(rows)
    tx.turns = tuple((row, *turn) for row, turn in (turns or {}).items())
    tx.state = TransactionState.COMMITTED
    return tx


def attempts(tx: Transaction, *rows: int) -> list[Attempt]:
    """The attempts that the audit should have for these rows."""
    return [(tx.event(row).bytes, route, "dry_run") for row in rows for route in ROUTES]


def judged(model: Model, audit: list[Attempt], read: int | None = None) -> Verdict:
    verifier = Verifier(model, ROUTES)
    for attempt in audit:
        verifier.add_attempt(*attempt)
    return verifier.verdict(read)


@pytest.fixture
def model() -> Model:
    return Model(random.Random(1))


@pytest.fixture
def audit(model) -> list[Attempt]:
    """Two events of one subject, a transaction of three of which one was undone, and one that rolled back."""
    first = committed(model, "short", turns={0: (7, 1)})
    second = committed(model, "short", turns={0: (7, 2)})
    savepoints = committed(model, "savepoints", rows=3)
    savepoints.undo([1])
    rolled_back = model.begin("aborted")
    rolled_back.add()
    rolled_back.state = TransactionState.ROLLED_BACK
    return [*attempts(first, 0), *attempts(second, 0), *attempts(savepoints, 0, 2)]


def test_a_correct_audit_has_no_violation(model, audit):
    """With one attempt for each committed event and route, and subjects in order, nothing is wrong."""
    verdict = judged(model, audit, read=4)

    assert verdict.passed
    assert verdict.violations == []
    assert model.events == 4


@pytest.mark.parametrize("gone", range(8))
def test_a_missing_attempt_is_a_lost_event(model, audit, gone):
    """Any attempt that is removed is counted as lost, and reported with its route and its kind."""
    event, route, _ = audit.pop(gone)
    verdict = judged(model, audit)

    assert verdict.lost == 1
    (violation,) = verdict.violations
    assert (violation.check, violation.event.bytes, violation.route) == ("lost", event, route)
    assert violation.kind == model.transactions[int.from_bytes(event[:8])].kind


def test_a_second_attempt_is_a_duplicate(model, audit):
    """A second attempt of an event on one route is a duplicate, also when it comes much later."""
    verdict = judged(model, [*audit, audit[0]])

    assert (verdict.duplicated, verdict.lost) == (1, 0)


def test_a_suppressed_second_reading_is_counted(model, audit):
    """A cursor that reports more events read than were routed has read some twice."""
    verdict = judged(model, audit, read=5)

    assert verdict.read_twice == 1
    assert not verdict.passed


@pytest.mark.parametrize("route", [0, 1])
def test_reversed_events_of_a_subject_are_disordered(model, audit, route):
    """Two events of one subject in reverse order are disordered, on the route on which they are reversed."""
    audit[route], audit[2 + route] = audit[2 + route], audit[route]
    verdict = judged(model, audit)

    assert verdict.disordered == 1
    assert verdict.violations[0].route == ROUTES[route]


def test_reversed_rows_of_one_transaction_are_disordered(model):
    """Two events that one transaction wrote for one subject must be in the order in which it wrote them."""
    tx = committed(model, "several", rows=2, turns={0: (3, 1), 1: (3, 1)})

    assert judged(model, attempts(tx, 0, 1)).passed
    assert judged(model, attempts(tx, 1, 0)).disordered == 2


def test_an_attempt_for_a_rolled_back_event_is_invented(model, audit):
    """An attempt for an event of a transaction that rolled back, is open or has an unknown outcome is invented."""
    for state in (TransactionState.ROLLED_BACK, TransactionState.OPEN, TransactionState.UNKNOWN):
        tx = model.begin("aborted")
        tx.add()
        tx.state = state
        audit += attempts(tx, 0)
    verdict = judged(model, audit)

    assert (verdict.invented, verdict.lost) == (6, 0)


def test_an_attempt_for_a_rolled_back_savepoint_is_invented(model, audit):
    """An attempt for a row that was rolled back to a savepoint is invented, although its transaction committed."""
    (savepoints,) = [tx for tx in model.transactions.values() if tx.undone]

    assert judged(model, [*audit, *attempts(savepoints, 1)]).invented == 2


def test_attempts_for_unknown_events_and_routes_are_invented(model, audit):
    """An attempt for an unknown event, for a disabled route, or with another decision is invented."""
    first = next(iter(model.transactions.values()))
    stranger = Transaction(5, "?", rows=1)
    wrong = [
        *attempts(stranger, 0)[:1],
        (first.event(9).bytes, "first", "dry_run"),
        (first.event(0).bytes, "disabled", "dry_run"),
        (first.event(0).bytes, "first", "no_route"),
    ]

    assert judged(model, [*audit, *wrong]).invented == 4


POISON = PlannedOutcome("poison", frozenset({"broken"}))
EITHER = PlannedOutcome("either", frozenset({SENT, "refused"}), calls_succeed=True)
#: Outcomes of these planned events, in the audit, in the log of the target and in the table of dead letters.
RIGHT = {
    "audit": [(0, "dead_letter", "broken"), (1, "delivered", ""), (2, "dead_letter", "refused")],
    "arrived": [1, 2],
    "letters": [(0, "broken"), (2, "refused")],
}
WRONG = {
    "poison was sent": {"audit": [(0, "delivered", ""), *RIGHT["audit"][1:]], "letters": [(2, "refused")]},
    "poison failed otherwise": {
        "audit": [(0, "dead_letter", "odd"), *RIGHT["audit"][1:]], "letters": [(0, "odd"), (2, "refused")],
    },
    "poison arrived": {"arrived": [0, 1, 2]},
    "a good event is a dead letter": {"good": ("dead_letter", "broken")},
    "a dead letter is missing": {"letters": [(0, "broken")]},
    "a dead letter is there twice": {"letters": [*RIGHT["letters"], (0, "broken")]},
    "a dead letter of something sent": {"letters": [*RIGHT["letters"], (1, "refused")]},
    "a dead letter has another code": {"letters": [(0, "odd"), (2, "refused")]},
}  # fmt: skip


def verdict_of(model: Model, **wrong: Any) -> Verdict:
    """The verdict on a poison event, two events that may end in two ways, and a good one."""
    said = {**RIGHT, "good": ("delivered", ""), **wrong}
    tx, good = committed(model, "planned", rows=3), committed(model, "short")
    tx.planned = {0: POISON, 1: EITHER, 2: EITHER}
    verifier = Verifier(model, ("live", TARGET_CALLS))
    for row, decision, code in said["audit"]:
        verifier.add_attempt(tx.event(row).bytes, "live", decision, code)
    verifier.add_attempt(good.event(0).bytes, "live", *said["good"])
    for event in [*(tx.event(row) for row in said["arrived"]), good.event(0)]:
        verifier.add_attempt(event.bytes, TARGET_CALLS, "delivered")
    letters = [(tx.event(row).bytes, "live", code) for row, code in said["letters"]]
    if said["good"][0] == "dead_letter":
        letters.append((good.event(0).bytes, "live", said["good"][1]))
    assert verifier.compare_dead_letters(letters) == len(letters)
    return verifier.verdict()


def test_planned_outcomes_have_no_violation(model):
    """A poison event that is one dead letter in audit and table, and events with either permitted outcome, have no violation."""
    assert verdict_of(model).passed


@pytest.mark.parametrize("what", WRONG)
def test_an_outcome_that_is_not_permitted_is_counted(model, what):
    """An event with an outcome that is not permitted is counted, and neither lost nor duplicated."""
    verdict = verdict_of(model, **WRONG[what])

    assert (verdict.wrong_outcome, verdict.lost, verdict.duplicated) == (1, 0, 0)
    assert not verdict.passed


def test_a_second_outcome_is_a_duplicate(model):
    """An event that was sent and became a dead letter as well is duplicated."""
    verdict = verdict_of(model, audit=[*RIGHT["audit"], (1, "dead_letter", "refused")], letters=[*RIGHT["letters"]])

    assert verdict.duplicated == 1


def test_an_event_without_an_outcome_is_lost(model):
    """A poison event without an outcome is lost, like any other event."""
    verdict = verdict_of(model, audit=RIGHT["audit"][1:], letters=RIGHT["letters"][1:])

    assert (verdict.lost, verdict.wrong_outcome) == (1, 0)


def test_an_unknown_commit_is_decided_by_all_rows_or_none(model):
    """All rows found means committed, none means rolled back; some means a torn transaction, and raises."""
    for found, state in ((3, TransactionState.COMMITTED), (0, TransactionState.ROLLED_BACK)):
        tx = model.begin("several")
        tx.add(4)
        tx.undo([2])
        tx.decide(found)
        assert tx.state is state
    with pytest.raises(AssertionError, match="2 of 3"):
        tx.decide(2)


def test_a_gap_in_the_turns_of_a_subject_is_reported(model, audit):
    """A missing turn is reported as a gap: the model is then wrong, and its verdict does not count."""
    assert model.gaps() == []
    committed(model, "short", turns={0: (7, 4)})
    assert model.gaps() == [7]
