"""The errors of iu-listen. Each package translates foreign exceptions into these at its boundary, and nowhere else.

IuListenError
├── ConfigurationError      exit 2: arguments, settings or installation cannot work
├── DatabaseUnreachable     exit 3: no session can be opened
├── Refused                 exit 1: the request was refused, and nothing was changed
└── SessionLost             never leaves the consumer: a session ended, and a new one is opened
    └── NoAnswer            no answer within the deadline: the network path may be broken
"""

from __future__ import annotations

from typing import ClassVar, Final

from iu_listen.model.user_code import place

#: Errors of an exception group that are described.
MAX_GROUP_ERRORS: Final = 3


class IuListenError(Exception):
    """Base of all errors that iu-listen raises on purpose.

    Args:
        message: The error, in one sentence, without secrets.
        hint: Advice for the operator; empty: there is none.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def safe_message(error: BaseException) -> str:
    """Description of an error for a line of the log.

    For an IuListenError it is the message, for any other error the name of its class and its place, if possible in the
    code of the application. The text of other errors is left out, because it may contain data that was processed, for
    example a token.
    For a group it is the descriptions of its errors, each one once, at most ``MAX_GROUP_ERRORS`` of them.
    """
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(list(dict.fromkeys(safe_message(one) for one in error.exceptions))[:MAX_GROUP_ERRORS])
    if isinstance(error, IuListenError):
        return error.message
    where = place(error)
    return f"{type(error).__name__} ({where})" if where else type(error).__name__


class ConfigurationError(IuListenError):
    """Arguments, settings or installation cannot work; a retry will not help. Commands end with exit code 2."""

    exit_code = 2


class DatabaseUnreachable(IuListenError):
    """No session to the database can be opened, because of host, port, name, password or network. Exit code 3."""

    exit_code = 3


class Refused(IuListenError):
    """The request was refused: a check failed, a gate is closed, or a rule forbids it. Nothing was changed.

    Args:
        message: The error, in one sentence, without secrets.
        hint: Advice for the operator; empty: there is none.
        sqlstate: Error code of PostgreSQL; empty: the refusal does not come from the database.
    """

    def __init__(self, message: str, hint: str = "", sqlstate: str = "") -> None:
        super().__init__(message, hint)
        self.sqlstate = sqlstate


class SessionLost(IuListenError):
    """A session of the running consumer ended or stopped answering. The consumer opens a new one."""


class NoAnswer(SessionLost):
    """Neither an answer nor a refusal came within the deadline: the network path may be broken."""
