"""What is recorded of an attempt, whatever the target raised: a pure function that accepts every exception.

The code of a target belongs to its user. Its exceptions may have a reason that is no text, a delay that is no number,
or an attribute that raises when it is read. Whatever they are, the outcome is one that the database accepts: text
without NUL and without surrogates, a delay that is finite and bounded.
"""

from __future__ import annotations

import errno
import math
import re
import socket
from datetime import timedelta
from typing import Any, Final

from iu_listen.model.delivery import DeliveryError, Result
from iu_listen.model.errors import words

#: Longest detail and longest code of a failure that are kept, in characters.
LONGEST_DETAIL: Final = 1000
LONGEST_CODE: Final = 100
#: Longest delay that a target may ask for, in seconds.
LONGEST_DELAY: Final = 86_400.0

#: Operating system errors that mean: the host cannot be reached.
_UNREACHABLE: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})
#: Characters that PostgreSQL does not store in text: NUL, and halves of surrogate pairs.
_NOT_STORABLE: Final = re.compile("[\x00\ud800-\udfff]")


def outcome_of(error: BaseException | None) -> tuple[Result, str, str, float | None]:
    """The outcome of an attempt that ended with this error; None: it ended without one.

    The text of an error that is not a DeliveryError is not kept, because it may hold data that was being worked on.

    Args:
        error: What the target raised, of any class and with any attributes.

    Returns:
        Result, code (at most LONGEST_CODE characters), detail (at most LONGEST_DETAIL characters), and the delay that
        the target asked for (seconds from 0 to LONGEST_DELAY; None: it asked for none). Raises nothing.
    """
    if error is None:
        return Result.SENT, "", "", None
    if isinstance(error, DeliveryError):
        result = _attribute(error, "result")
        return (
            result if isinstance(result, Result) and result is not Result.SENT else Result.FAILED,
            clean(_attribute(error, "code"), LONGEST_CODE) or "target_error",
            clean(_attribute(error, "reason"), LONGEST_DETAIL),
            delay(_attribute(error, "retry_after")),
        )
    detail = clean(_described(error), LONGEST_DETAIL)
    number = _attribute(error, "errno")
    if isinstance(error, (ConnectionError, socket.gaierror)) or (type(number) is int and number in _UNREACHABLE):
        return Result.UNAVAILABLE, clean(type(error).__name__.lower(), LONGEST_CODE), detail, None
    kinds: tuple[tuple[type[BaseException], str], ...] = ((TimeoutError, "timeout"), (SystemExit, "target_exit"))
    code = next((code for kind, code in kinds if isinstance(error, kind)), "target_error")
    return Result.FAILED, code, detail, None


def clean(value: object, longest: int) -> str:
    """Text that PostgreSQL stores, at most ``longest`` characters, of any value; None becomes empty text."""
    if value is None:
        return ""
    try:
        text = str.__str__(value if isinstance(value, str) else str(value))
    except BaseException:  # noqa: BLE001 the code of a target raised it
        text = f"a {type(value).__name__} that has no text"
    return _NOT_STORABLE.sub("\ufffd", text[:longest])


def delay(value: object) -> float | None:
    """Seconds from 0 to LONGEST_DELAY, of a number, a text with a number, or a timedelta; None: it is none of these."""
    if value is None:
        return None
    try:
        seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)  # type: ignore[arg-type]
    except OverflowError:
        seconds = math.inf
    except BaseException:  # noqa: BLE001 the code of a target raised it
        return None
    return None if math.isnan(seconds) else min(max(0.0, seconds), LONGEST_DELAY)


def _attribute(error: BaseException, name: str) -> Any:
    try:
        return getattr(error, name, None)
    except BaseException:  # noqa: BLE001 the code of a target raised it
        return None


def _described(error: BaseException) -> str:
    try:
        return words(error)
    except BaseException:  # noqa: BLE001 the code of a target raised it
        return type(error).__name__
