"""The dooms of the storm: how an event makes the target of the live route behave, and how its delivery may end."""

from __future__ import annotations

from storm.model import SENT, Doom

#: The ending of a delivery whose process was killed during its last attempt. It is possible for every event.
INTERRUPTED = "interrupted"


def _doom(name: str, code: str) -> Doom:
    return Doom(name, frozenset({code, INTERRUPTED}))


#: The target raises at every attempt.
POISON = (
    _doom("value error", "target_error"),
    _doom("failed", "later"),
    _doom("BaseException", "target_error"),
    _doom("sys.exit", "target_exit"),
    _doom("reject", "reject"),
)
#: The target ends the process at every attempt.
KILLS = tuple(Doom(what, frozenset({INTERRUPTED})) for what in ("exit", "kill", "segmentation fault"))
#: The payload is too large, so the target is never called.
HUGE = tuple(Doom(what, frozenset({"payload_too_large"})) for what in ("huge digits", "huge text"))
#: Outcomes with values that a database does not accept unchanged.
ODD = (
    _doom("NUL", "a\ufffdb"),
    *(_doom(f"retry after {what}", "failed") for what in ("text", "NaN", "timedelta")),
    _doom("surrogate", "failed"),
    _doom("reject with a number", "404"),
)
#: Outcomes that the database refuses to record for a while: a failure, and a success.
UNWANTED = Doom("unwanted", frozenset({"unwanted", "outcome_refused"}))
ARRIVES = Doom("return", frozenset({SENT, "outcome_refused"}), arrives=True)
