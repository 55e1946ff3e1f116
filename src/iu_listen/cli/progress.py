"""Progress bars of commands that change many rows or apply many files."""

from __future__ import annotations

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

from iu_listen.cli import output

#: Interval of progress lines of a step with many batches, without a terminal, in seconds.
PROGRESS_LINE_INTERVAL: Final = 10.0


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; yields a function that is called with the number of further items that are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.err(), transient=True, disable=not output.err().is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, advance=done)


class Steps:
    """A progress bar with one step for each file; it is called with the name of the next file."""

    def __init__(self, bar: Progress, title: str, total: int) -> None:
        self._bar, self._title = bar, title
        self._task = bar.add_task(title, total=total)
        self._last_line_at = time.monotonic()

    def __call__(self, name: str, /) -> None:
        """Begin the next step."""
        self._bar.update(self._task, description=f"{self._title}: {name}", advance=1)

    def batch(self, name: str, what: str, rows: int, /) -> None:
        """Show that a batch of the current step is done; ``rows`` is the number of rows so far."""
        text = f"{name}: {what}, {rows:,} done".replace(",", " ").replace("  ", ", ")
        self._bar.update(self._task, description=f"{self._title}: {text}")
        if self._bar.disable and time.monotonic() - self._last_line_at > PROGRESS_LINE_INTERVAL:
            self._last_line_at = time.monotonic()
            output.note(text)


@contextmanager
def step_progress(title: str, total: int) -> Iterator[Steps]:
    """A progress bar on a terminal; yields the Steps that are called with the name of each step."""
    console = output.err()
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        yield Steps(bar, title, total)
