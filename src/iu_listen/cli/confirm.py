"""Confirmation of changes, and the check of reasons."""

from __future__ import annotations

import sys

from rich.prompt import Confirm

from iu_listen.cli import output
from iu_listen.model.errors import ConfigurationError, Refused


def not_confirmed() -> Refused:
    """The error of a command that was called without a confirmation."""
    return Refused("nothing was changed", "Add --yes to make the change, or --plan to see it.")


def require_confirmation(question: str, *, yes: bool) -> None:
    """Continue only after a confirmation: --yes, or the answer of a user at a terminal.

    Raises:
        Refused: There was no confirmation.
    """
    if not yes and not (sys.stdin.isatty() and Confirm.ask(question, default=False, console=output.err())):
        raise not_confirmed()


def require_reason(why: str) -> None:
    """Make sure that a reason is not empty.

    Raises:
        ConfigurationError: The reason is empty.
    """
    if not why.strip():
        raise ConfigurationError(
            "the reason is empty", "It is recorded with the change, for example: --why 'incident 7'"
        )
