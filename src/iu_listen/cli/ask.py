"""What commands that change many rows share: the question before, the reason, the progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.prompt import Confirm

from iu_listen.cli import show
from iu_listen.model.errors import ConfigurationError, Refused


def confirmed(question: str, *, yes: bool) -> None:
    """Go on only after a yes: --yes, or the answer of a person at a terminal.

    Raises:
        Refused: there was none.
    """
    if not yes and not (sys.stdin.isatty() and Confirm.ask(question, default=False, console=show.err())):
        raise Refused("nothing was changed", "Say --yes to do it, or --plan to only look.")


def reason(why: str) -> None:
    """Make sure that a reason says something.

    Raises:
        ConfigurationError: it is empty.
    """
    if not why.strip():
        raise ConfigurationError("the reason is empty", "It is kept with what is changed: --why 'incident 7'")


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; call what it yields with how many more are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=show.err(), transient=True, disable=not show.err().is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, advance=done)
