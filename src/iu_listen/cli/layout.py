"""How rows fit a line: as a table, as a table without what can be spared, or one below the other.

Nothing is ever cut: ids, names and reasons are what people act on. Words are folded only where they are longer than
a column can be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

#: Longest word that is kept whole, in characters: an id has 36. What is longer, as an address, may be folded.
LONGEST_WORD = 40
#: What has no more characters than this is kept in one line.
SHORT = 10
#: Characters between two columns: where there is room, and where there is not.
ROOMY, NARROW = 3, 2


@dataclass(frozen=True)
class Branch:
    """A cell of a tree: what stands before it, and the words, which go on below themselves.

    Attributes:
        prefix: What stands before the first line.
        words: One line or several.
        style: Of the lines after the first.
    """

    prefix: str
    words: str
    style: str = ""

    @property
    def plain(self) -> str:
        """Its one line, were there room."""
        return "\n".join(self.prefix + line for line in self.words.split("\n"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(options.max_width - len(self.prefix), 1)
        lines = Text(self.words).wrap(console, room, overflow="fold")
        for number, line in enumerate(lines):
            before = self.prefix if number == 0 else " " * len(self.prefix)
            yield Text(before).append(line.plain, self.style if number else "")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        words = Measurement.get(console, options, Text(self.words))
        return Measurement(words.minimum + len(self.prefix), words.maximum + len(self.prefix))


Cell = Text | Branch


@dataclass(frozen=True)
class Form:
    """Rows under the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def without(self, name: str) -> Form:
        """The same without a column."""
        kept = [i for i, column in enumerate(self.columns) if column != name]
        return Form([self.columns[i] for i in kept], [[row[i] for i in kept] for row in self.rows])


def fitting(console: Console, forms: Sequence[Form], title: str) -> Table:
    """The first of the forms that fits the console as a table; else the first one with its rows below each other."""
    for form in forms:
        for gap in (ROOMY, NARROW):
            room = console.width - _around(gap, len(form.columns))
            if widths := _widths(form, room, whole=gap == ROOMY):
                return _table(form, title, widths, gap)
    return _records(forms[0], title)


def _around(gap: int, columns: int) -> int:
    """How much of a line is between and beside the columns."""
    return 2 + gap * (columns - 1)


def _widths(form: Form, room: int, *, whole: bool) -> list[int] | None:
    """The width of each column; None: there is no room, or, if ``whole``, not for every cell in one line."""
    names, rows = form.columns, form.rows
    least, most = [], []
    for i, name in enumerate(names):
        words = [*name.split(), *(word for row in rows for word in _words(row[i]))]
        least.append(max(map(cell_len, words), default=1))
        most.append(max([cell_len(name), 1, *(cell_len(line) for row in rows for line in row[i].plain.split("\n"))]))
    if sum(most) <= room:
        return most
    if whole or sum(least) > room:
        return None
    # What is left goes first to those that want least.
    widths, left = least[:], room - sum(least)
    for number, i in enumerate(sorted(range(len(names)), key=lambda i: most[i] - least[i])):
        more = min(most[i] - least[i], left // (len(names) - number))
        widths[i] += more
        left -= more
    return widths


def _words(cell: Cell) -> list[str]:
    if isinstance(cell, Branch):
        # An address or a name that is longer than a column can be is folded in a tree, too.
        return [cell.prefix + word[:LONGEST_WORD] for word in cell.words.split()]
    # A bar that is drawn is one word, its blanks included; and so is a figure with its unit.
    return (
        [cell.plain]
        if cell.no_wrap or len(cell.plain) <= SHORT
        else [word[:LONGEST_WORD] for word in cell.plain.split()]
    )


def _table(form: Form, title: str, widths: Sequence[int], gap: int) -> Table:
    shown = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        padding=(0, gap // 2, 0, (gap - 1) // 2),
    )  # fmt: skip
    for name, width in zip(form.columns, widths, strict=True):
        shown.add_column(name, overflow="fold", width=width)
    for row in form.rows:
        shown.add_row(*row)
    return shown


def _records(form: Form, title: str) -> Table:
    """Each row below the other, its cells with their names."""
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.title, shown.title_justify = title or None, "left"
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for row in _separated(form):
        shown.add_row(*row)
    return shown


def _separated(form: Form) -> Iterator[tuple[Text, Cell]]:
    for number, row in enumerate(form.rows):
        if number:
            yield Text(""), Text("")
        for name, cell in zip(form.columns, row, strict=True):
            if cell.plain:
                yield Text(name, "bold"), cell
