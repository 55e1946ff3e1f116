"""Events with planned outcomes: how they make the target of the live route behave, and how their deliveries may end."""

from __future__ import annotations

from storm.model import SENT, PlannedOutcome

#: The outcome of a delivery whose process was killed during its last attempt. It is possible for every event.
INTERRUPTED = "interrupted"


def _planned(name: str, code: str) -> PlannedOutcome:
    return PlannedOutcome(name, frozenset({code, INTERRUPTED}))


#: The target raises at every attempt.
POISON = (
    _planned("value error", "target_error"),
    _planned("failed", "later"),
    _planned("BaseException", "target_error"),
    _planned("sys.exit", "target_exit"),
    _planned("reject", "reject"),
)
#: The target ends the process at every attempt.
PROCESS_KILLERS = tuple(
    PlannedOutcome(what, frozenset({INTERRUPTED})) for what in ("exit", "kill", "segmentation fault")
)
#: The payload is too large, so the target is never called.
HUGE_PAYLOADS = tuple(PlannedOutcome(what, frozenset({"payload_too_large"})) for what in ("huge digits", "huge text"))
#: Outcomes with values that a database does not accept unchanged.
INVALID_OUTCOMES = (
    _planned("NUL", "a\ufffdb"),
    *(_planned(f"retry after {what}", "failed") for what in ("text", "NaN", "timedelta")),
    _planned("surrogate", "failed"),
    _planned("reject with a number", "404"),
)
#: Outcomes that the database refuses to record for a while: a failure, and a success.
REFUSED_FAILURE = PlannedOutcome("unwanted", frozenset({"unwanted", "outcome_refused"}))
REFUSED_SUCCESS = PlannedOutcome("return", frozenset({SENT, "outcome_refused"}), calls_succeed=True)
