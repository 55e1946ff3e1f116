"""The output of commands: tables for users, JSON for programs, and colours only on a terminal."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from iu_listen.cli.layout import Branch, Cell, Form, fitting
from iu_listen.model import text as plain
from iu_listen.model.text import UNSAFE_CHARACTERS, json_visible, number, visible

duration: Final = plain.duration

#: Width of tables in a file or a pipe, in characters.
PIPE_WIDTH = 200


#: Smallest and largest width of a line, in characters, whatever the terminal or COLUMNS says.
MIN_WIDTH, MAX_WIDTH = 40, 1000


class _Console(Console):
    """The console for all text output: it makes control characters in values visible, so that none has an effect."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with control characters of texts made visible. Rich's own control codes are kept."""
        for segment in super().render(renderable, options):
            if segment.control is None and UNSAFE_CHARACTERS.search(segment.text):
                yield Segment(visible(segment.text, keep="\n"), segment.style)
            else:
                yield segment


def _console(stream: Any, *, soft_wrap: bool = True) -> Console:
    columns = shutil.get_terminal_size((PIPE_WIDTH, 0) if not stream.isatty() else (80, 0)).columns
    return _Console(file=stream, highlight=False, soft_wrap=soft_wrap, width=min(max(columns, MIN_WIDTH), MAX_WIDTH))


def out() -> Console:
    """The console of answers."""
    return _console(sys.stdout)


def err() -> Console:
    """The console of errors, hints and progress."""
    return _console(sys.stderr)


def help_out() -> Console:
    """The console of help texts, which are wrapped between words."""
    return _console(sys.stdout, soft_wrap=False)


def usage_err() -> Console:
    """The console of usage errors, which are wrapped between words."""
    return _console(sys.stderr, soft_wrap=False)


#: Names of keys in JSON answers, by the name of the column or of the function's result.
JSON_KEYS: Final = {
    "worker_name": "worker",
    "route_code": "route",
    "event_ref": "event",
    "event_id": "event",
    "dead_letter_id": "id",
}
#: Keys whose values come from users; their content is not renamed.
FOREIGN_VALUE_KEYS: Final = frozenset({"event_snapshot", "policy", "set", "options"})

_answered = False
#: Whether the last output was a table, which ends with a blank line.
_after_blank_line = False


def as_json(answer: Any, *, named: bool = True) -> None:
    """Print one JSON document.

    Args:
        answer: The value to print.
        named: Whether keys are renamed as in JSON_KEYS; False: the names of another format are kept.
    """
    global _answered  # noqa: PLW0603 a command has one answer, and so has a process
    # With an encoding other than UTF, JSON escapes keep the text unchanged; replaced characters would change it.
    whole = "utf" in (sys.stdout.encoding or "").lower()
    document = json.dumps(_renamed(answer) if named else answer, default=_plain, indent=2, ensure_ascii=not whole)
    print(json_visible(document), flush=True)  # noqa: T201 stdout is the interface
    _answered = True


def answered() -> bool:
    """Whether a JSON document was printed."""
    return _answered


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {JSON_KEYS.get(k, k): v if k in FOREIGN_VALUE_KEYS else _renamed(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(one) for one in value]
    # JSON has no representation of NaN and infinity.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def parsed(document: str) -> Any:
    """The value of a JSON document of the database, or its text if it is nested too deeply or a number is too long."""
    try:
        value = json.loads(document)
        json.dumps(value, indent=2, allow_nan=False)
    except (ValueError, RecursionError):
        return document
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    return str(value)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    title: str = "",
    spare: Sequence[str] = (),
    narrow: tuple[Sequence[str], Iterable[Sequence[Any]]] | None = None,
) -> None:
    """Print a table, or another form if it does not fit. Nothing is cut.

    Args:
        columns: Names of the columns.
        rows: Cells: values, markup made by mark(), or branches of a tree.
        title: The title above the table.
        spare: Columns that are left out if the line is too short, beginning with the first one.
        narrow: Columns and rows that are used instead if the line is still too short. Without them each row is shown as
            a block.
    """
    forms = [Form(columns, [[_cell(cell) for cell in row] for row in rows])]
    for name in spare:
        forms.append(forms[-1].without(name))
    if narrow:
        forms.append(Form(narrow[0], [[_cell(cell) for cell in row] for row in narrow[1]]))
    global _after_blank_line  # noqa: PLW0603 stdout is one stream
    console = out()
    if not _after_blank_line:
        console.print()
    console.print(fitting(console, forms, title))
    console.print()
    _after_blank_line = True


def _cell(value: Any) -> Cell:
    if isinstance(value, Text | Branch):
        return value
    return Text.from_markup(value) if isinstance(value, Markup) else Text(text(value))


class Markup(str):
    """A text that is already in rich's markup, and must not be escaped."""

    __slots__ = ()


def mark(good: bool, yes: str = "ok", no: str = "FAIL") -> Markup:
    """A word that is green or red on a terminal."""
    return Markup(f"[green]{escape(text(yes))}[/]" if good else f"[bold red]{escape(text(no))}[/]")


def text(value: Any) -> str:
    """A value formatted for users."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, int):
        return number(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return visible(str(value))


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun, for example ``1 file`` or ``3 files``."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def ago(when: datetime | None) -> str:
    """The time since a moment, for example ``3 s ago`` or ``5 h 10 min ago``."""
    return "never" if when is None else f"{duration((datetime.now(UTC) - when).total_seconds())} ago"


def _text_follows() -> None:
    global _after_blank_line  # noqa: PLW0603 stdout is one stream
    _after_blank_line = False


def line(words: str, markup: bool = False) -> None:
    """Print one line of an answer."""
    _text_follows()
    out().print(words if markup else escape(visible(words)))


def block(words: str) -> None:
    """Print several lines of an answer unchanged."""
    _text_follows()
    out().print(escape(visible(words, keep="\n")))


def note(words: str) -> None:
    """Print a remark for the user on stderr, apart from the answer."""
    _text_follows()
    shown = escape(visible(words, keep="\n"))
    err().print(f"[dim]{shown}[/]")


def problem(message: str, hint: str) -> None:
    """Print an error and its hint on stderr."""
    err().print(f"[bold red]iu-listen:[/] {escape(visible(message))}")
    if hint:
        err().print(f"  {escape(visible(hint))}")


def trace(title: str, text: str) -> None:
    """Print a traceback on stderr, in colour on a terminal.

    Args:
        title: The line above it; empty: there is none.
        text: The traceback.
    """
    from rich.syntax import Syntax  # noqa: PLC0415 its import takes long, and a traceback is rare

    console = err()
    if title:
        console.print(f"[bold red]{escape(visible(title))}[/]")
    console.print(Syntax("", "pytb", theme="ansi_dark", background_color="default").highlight(text.rstrip()))
