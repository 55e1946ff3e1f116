"""The outcome of an attempt: a pure function of the exception that the target raised, of any class.

A target is user code. Its exceptions may have a reason that is not text, a delay that is not a number, or an attribute
that raises when it is read. In every case the outcome is valid for the database: text without NUL and without
surrogates, and a delay that is finite and bounded.
"""

from __future__ import annotations

import errno
import math
import re
import socket
from datetime import timedelta
from typing import Any, Final

from iu_listen.model.delivery import DeliveryError, Result
from iu_listen.model.errors import safe_message

#: Longest detail and longest code of a failure that are stored, in characters.
MAX_DETAIL_CHARS: Final = 1000
MAX_CODE_CHARS: Final = 100
#: Longest delay that a target may ask for, in seconds.
MAX_TARGET_DELAY: Final = 86_400.0

#: Error numbers of the operating system for a host that cannot be reached.
_UNREACHABLE: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})
#: Characters that PostgreSQL does not store in text: NUL, and halves of surrogate pairs.
_NOT_STORABLE: Final = re.compile("[\x00\ud800-\udfff]")


def outcome_of(error: BaseException | None) -> tuple[Result, str, str, float | None]:
    """The outcome of an attempt.

    The text of an error that is not a DeliveryError is not stored, because it may contain data that was processed.

    Args:
        error: Exception that the target raised, of any class and with any attributes; None: it raised none.

    Returns:
        Result, code (at most MAX_CODE_CHARS characters), detail (at most MAX_DETAIL_CHARS characters), and the delay
        that the target asked for (seconds from 0 to MAX_TARGET_DELAY; None: it asked for none). Raises nothing.
    """
    if error is None:
        return Result.SENT, "", "", None
    if isinstance(error, DeliveryError):
        result = _attribute(error, "result")
        return (
            result if isinstance(result, Result) and result is not Result.SENT else Result.FAILED,
            clean(_attribute(error, "code"), MAX_CODE_CHARS) or "target_error",
            clean(_attribute(error, "reason"), MAX_DETAIL_CHARS),
            delay(_attribute(error, "retry_after")),
        )
    detail = clean(_described(error), MAX_DETAIL_CHARS)
    number = _attribute(error, "errno")
    if isinstance(error, (ConnectionError, socket.gaierror)) or (type(number) is int and number in _UNREACHABLE):
        return Result.UNAVAILABLE, clean(type(error).__name__.lower(), MAX_CODE_CHARS), detail, None
    kinds: tuple[tuple[type[BaseException], str], ...] = ((TimeoutError, "timeout"), (SystemExit, "target_exit"))
    code = next((code for kind, code in kinds if isinstance(error, kind)), "target_error")
    return Result.FAILED, code, detail, None


def clean(value: object, longest: int) -> str:
    """Convert any value into text that PostgreSQL can store, of at most ``longest`` characters; None becomes empty."""
    if value is None:
        return ""
    try:
        text = str.__str__(value if isinstance(value, str) else str(value))
    except BaseException:  # noqa: BLE001 the code of a target raised it
        text = f"a {type(value).__name__} that cannot be converted into text"
    return _NOT_STORABLE.sub("\ufffd", text[:longest])


def delay(value: object) -> float | None:
    """Convert a number, a text with a number, or a timedelta into seconds from 0 to MAX_TARGET_DELAY; else None."""
    if value is None:
        return None
    try:
        seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)  # type: ignore[arg-type]
    except OverflowError:
        seconds = math.inf
    except BaseException:  # noqa: BLE001 the code of a target raised it
        return None
    return None if math.isnan(seconds) else min(max(0.0, seconds), MAX_TARGET_DELAY)


def _attribute(error: BaseException, name: str) -> Any:
    try:
        return getattr(error, name, None)
    except BaseException:  # noqa: BLE001 the code of a target raised it
        return None


def _described(error: BaseException) -> str:
    try:
        return safe_message(error)
    except BaseException:  # noqa: BLE001 the code of a target raised it
        return type(error).__name__
