"""How answers look: tables for people, JSON for machines, colours only on a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

#: Width of tables that go to a file or a pipe.
PIPE_WIDTH = 200


class _Console(Console):
    """A console whose reader may leave: whoever read us has read enough, and the exit code stays the answer's."""

    def on_broken_pipe(self) -> None:
        """Write no more, also not at the end of the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _console(stream: Any) -> Console:
    return _Console(file=stream, highlight=False, soft_wrap=True, width=None if stream.isatty() else PIPE_WIDTH)


def out() -> Console:
    """The console of answers."""
    return _console(sys.stdout)


def err() -> Console:
    """The console of errors, hints and progress."""
    return _console(sys.stderr)


def as_json(answer: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(answer, default=_plain, indent=2, ensure_ascii=False))  # noqa: T201 stdout is the interface


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print a table; cells may hold markup made by mark() and dim()."""
    shown = Table(*columns, title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Markup) else escape(text(cell)) for cell in row))
    out().print(shown)


class Markup(str):
    """Text in rich's markup, not to be escaped again."""

    __slots__ = ()


def mark(good: bool, yes: str = "ok", no: str = "FAIL") -> Markup:
    """A word that is green or red on a terminal."""
    return Markup(f"[green]{yes}[/]" if good else f"[bold red]{no}[/]")


def text(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def ago(when: datetime | None) -> str:
    """How long ago something was: 3 s, 12 min, 5 h, 2 d."""
    return "never" if when is None else f"{duration((datetime.now(UTC) - when).total_seconds())} ago"


def duration(seconds: float) -> str:
    """A length of time in its natural unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s" if seconds >= 1 else f"{max(seconds, 0) * 1000:.0f} ms"


def line(words: str, markup: bool = False) -> None:
    """Print one line of an answer."""
    out().print(words if markup else escape(words))


def note(words: str) -> None:
    """Tell a person something beside the answer."""
    err().print(f"[dim]{escape(words)}[/]")


def problem(message: str, hint: str) -> None:
    """Tell what is wrong, and what to do."""
    err().print(f"[bold red]iu-listen:[/] {escape(message)}")
    if hint:
        err().print(f"  {escape(hint)}")
