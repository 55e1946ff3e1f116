"""Confirmation of changes, and the check of reasons."""

from __future__ import annotations

import sys

from rich.prompt import Confirm

from iu_listen.cli import output
from iu_listen.model.errors import ConfigurationError, Refused


def not_confirmed(plan: str = "--plan") -> Refused:
    """The error of a command that was called without a confirmation.

    Args:
        plan: The option or the command that shows the change.
    """
    return Refused("nothing was changed", f"Add --yes to make the change, or see it first: {plan}")


def require_confirmation(question: str, *, yes: bool, plan: str = "--plan") -> None:
    """Continue only after a confirmation: --yes, or the answer of a user at a terminal.

    Args:
        question: The question to the user.
        yes: Whether the change is confirmed already.
        plan: The option or the command that shows the change.

    Raises:
        Refused: There was no confirmation.
    """
    if not yes and not (sys.stdin.isatty() and Confirm.ask(question, default=False, console=output.err())):
        raise not_confirmed(plan)


def require_reason(why: str) -> None:
    """Make sure that a reason is not empty.

    Raises:
        ConfigurationError: The reason is empty.
    """
    if not why.strip():
        raise ConfigurationError(
            "the reason is empty", "It is recorded with the change, for example: --why 'incident 7'"
        )
