"""The common part of commands that change many rows: confirmation, reason and progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.prompt import Confirm

from iu_listen.cli import output
from iu_listen.model.errors import ConfigurationError, Refused

#: Interval of progress lines of a step with many batches, without a terminal, in seconds.
SAY_EVERY: Final = 10.0


def confirmed(question: str, *, yes: bool) -> None:
    """Continue only after a confirmation: --yes, or the answer of a user at a terminal.

    Raises:
        Refused: There was no confirmation.
    """
    if not yes and not (sys.stdin.isatty() and Confirm.ask(question, default=False, console=output.err())):
        raise Refused("nothing was changed", "Say --yes to do it, or --plan to only look.")


def reason(why: str) -> None:
    """Make sure that a reason is not empty.

    Raises:
        ConfigurationError: The reason is empty.
    """
    if not why.strip():
        raise ConfigurationError("the reason is empty", "It is kept with what is changed: --why 'incident 7'")


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; yields a function that is called with the number of further items that are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.err(), transient=True, disable=not output.err().is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, advance=done)


class Steps:
    """A progress bar with one step for each file; it is called with the name of the next file."""

    def __init__(self, bar: Progress, what: str, total: int) -> None:
        self._bar, self._what = bar, what
        self._task = bar.add_task(what, total=total)
        self._said = time.monotonic()

    def __call__(self, name: str) -> None:
        """Begin the next step."""
        self._bar.update(self._task, description=f"{self._what}: {name}", advance=1)

    def batch(self, name: str, what: str, rows: int) -> None:
        """Show that a batch of the current step is done; ``rows`` is the number of rows so far."""
        text = f"{name}: {what}, {rows:,} done".replace(",", " ").replace("  ", ", ")
        self._bar.update(self._task, description=f"{self._what}: {text}")
        if self._bar.disable and time.monotonic() - self._said > SAY_EVERY:
            self._said = time.monotonic()
            output.note(text)


@contextmanager
def steps(what: str, total: int) -> Iterator[Steps]:
    """A progress bar on a terminal; yields the Steps that are called with the name of each step."""
    console = output.err()
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        yield Steps(bar, what, total)
