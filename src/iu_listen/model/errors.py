"""What can go wrong, by situation. Foreign exceptions become one of these at the border of a room, nowhere else.

IuListenError
├── ConfigurationError      exit 2: what was typed or set cannot work
├── DatabaseUnreachable     exit 3: there is no session to be had
├── Refused                 exit 1: the answer is no, and nothing was changed
└── SessionLost             never leaves the consumer: a session ended, another one is tried
    └── NoAnswer            nothing came back in time: the path may be dead
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import ClassVar


class IuListenError(Exception):
    """Base of everything that we raise on purpose: what is wrong, and what to do about it.

    Args:
        message: What is wrong, one sentence, without secrets.
        hint: What to do about it; empty when there is nothing to say.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def words(error: BaseException) -> str:
    """What is wrong, for a line of the log: our own words, else the kind of somebody else's, and where it was raised.

    Not its text: that may hold what was being worked on, a token among it.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, IuListenError):
        return error.message
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{where}"


class ConfigurationError(IuListenError):
    """What was typed, set or installed cannot work; trying again will not help."""

    exit_code = 2


class DatabaseUnreachable(IuListenError):
    """No session to the database: host, port, name, password or network."""

    exit_code = 3


class Refused(IuListenError):
    """The answer is no: a check failed, a gate is closed, a rule forbids it. Nothing was changed.

    Args:
        message: What is wrong, one sentence, without secrets.
        hint: What to do about it; empty when there is nothing to say.
        sqlstate: The error code of PostgreSQL; empty when the answer is not the database's.
    """

    def __init__(self, message: str, hint: str = "", sqlstate: str = "") -> None:
        super().__init__(message, hint)
        self.sqlstate = sqlstate


class SessionLost(IuListenError):
    """A session of the running consumer ended or stopped answering. Another one is tried."""


class NoAnswer(SessionLost):
    """Nothing came back within the deadline, neither an answer nor a refusal: the path may be dead."""
