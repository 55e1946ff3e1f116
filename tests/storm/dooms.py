"""The dooms of the storm: what an event does to the target of the live route, and how its delivery may end."""

from __future__ import annotations

from storm.model import SENT, Doom

#: Where the process is killed during the last attempt of any event, that attempt ends as this.
INTERRUPTED = "interrupted"


def _doom(name: str, code: str) -> Doom:
    return Doom(name, frozenset({code, INTERRUPTED}))


#: Raise at every attempt.
POISON = (
    _doom("value error", "target_error"),
    _doom("failed", "later"),
    _doom("BaseException", "target_error"),
    _doom("sys.exit", "target_exit"),
    _doom("reject", "reject"),
)
#: End the process at every attempt.
KILLS = tuple(Doom(what, frozenset({INTERRUPTED})) for what in ("exit", "kill", "segmentation fault"))
#: Are never given to the target.
HUGE = tuple(Doom(what, frozenset({"payload_too_large"})) for what in ("huge digits", "huge text"))
#: Outcomes that no database accepts as they are.
ODD = (
    _doom("NUL", "a\ufffdb"),
    *(_doom(f"retry after {what}", "failed") for what in ("text", "NaN", "timedelta")),
    _doom("surrogate", "failed"),
    _doom("reject with a number", "404"),
)
#: Outcomes of which the database refuses the record for a while: a failure, and a success.
UNWANTED = Doom("unwanted", frozenset({"unwanted", "outcome_refused"}))
ARRIVES = Doom("return", frozenset({SENT, "outcome_refused"}), arrives=True)
