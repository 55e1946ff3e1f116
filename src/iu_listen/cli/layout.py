"""The layout of rows on a terminal: as a table, as a table with fewer columns, or as one block for each row.

Nothing is ever cut, because users need complete ids, names and reasons. A word is folded only if it is longer than the
widest possible column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

#: Longest word that is never folded, in characters: an id has 36. A longer word, for example an address, may be folded.
MAX_WORD_CHARS = 40
#: Longest text that is always kept in one line, in characters.
MAX_UNFOLDED_CHARS = 10
#: Number of blanks between two columns: with and without enough space, and between a name and its value.
WIDE_GAP, NARROW_GAP, RECORD_GAP = 3, 2, 2
#: Characters to the left and to the right of a table with a header.
MARGIN = 1


@dataclass(frozen=True)
class Branch:
    """A cell of a tree: a prefix, and a text whose further lines are indented by the length of the prefix.

    Attributes:
        prefix: The text before the first line.
        words: The text, of one line or several.
        style: The style of the lines after the first one.
    """

    prefix: str
    words: str
    style: str = ""

    @property
    def plain(self) -> str:
        """The cell as one line."""
        return "\n".join(self.prefix + line for line in self.words.split("\n"))

    def lines(self, console: Console, width: int) -> list[Text]:
        """The lines of the cell in a column of this width."""
        room = max(width - len(self.prefix), 1)
        wrapped = Text(self.words).wrap(console, room, overflow="fold")
        below = " " * len(self.prefix)
        return [
            Text(below).append(line.plain, self.style) if number else Text(self.prefix + line.plain)
            for number, line in enumerate(wrapped)
        ]


Cell = Text | Branch


@dataclass(frozen=True)
class Form:
    """Rows with the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def without(self, name: str) -> Form:
        """A copy without one column."""
        kept = [i for i, column in enumerate(self.columns) if column != name]
        return Form([self.columns[i] for i in kept], [[row[i] for i in kept] for row in self.rows])

    @cached_property
    def least(self) -> list[int]:
        """For each column the smallest width in which no word is folded."""
        return [
            max(map(cell_len, [*name.split(), *(word for row in self.rows for word in _words(row[i]))]), default=1)
            for i, name in enumerate(self.columns)
        ]

    @cached_property
    def most(self) -> list[int]:
        """For each column the smallest width in which every cell has one line."""
        return [max([cell_len(name), 1, *(_width(row[i]) for row in self.rows)]) for i, name in enumerate(self.columns)]


@dataclass(frozen=True)
class Grid:
    """Rows in columns with known widths.

    A table of rich renders each cell as a separate document, which it measures, pads and crops. That would take most of
    the time of a long list. Here a cell that fits its column is written unchanged.

    Attributes:
        rows: The cells of each row.
        widths: The widths of the columns, in characters.
        gap: Number of blanks between two columns.
        title: The title above the table.
        columns: The names of the columns; empty: there is no header.
    """

    rows: Iterable[Sequence[Cell]]
    widths: Sequence[int]
    gap: int
    title: str = ""
    columns: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield from Text(self.title, "table.title").wrap(console, options.max_width)
        margin = MARGIN if self.columns else 0
        if self.columns:
            yield from _drawn(console, self._header(console), self.widths, self.gap, margin)
            yield Segment(" " * margin + "─" * (sum(self.widths) + self.gap * (len(self.widths) - 1)))
            yield Segment.line()
        for row in self.rows:
            cells = [_lines(console, cell, width) for cell, width in zip(row, self.widths, strict=True)]
            yield from _drawn(console, cells, self.widths, self.gap, margin)

    def _header(self, console: Console) -> list[list[Text]]:
        """The lines of the header. The last lines of all names are in the same row."""
        names = [
            _lines(console, Text(name, "table.header"), width)
            for name, width in zip(self.columns, self.widths, strict=True)
        ]
        height = max(map(len, names))
        return [[Text()] * (height - len(lines)) + lines for lines in names]


def _drawn(
    console: Console, cells: Sequence[Sequence[Text]], widths: Sequence[int], gap: int, margin: int
) -> Iterator[Segment]:
    """The segments of one row, without trailing blanks."""
    for number in range(max(map(len, cells))):
        blank = margin
        for lines, width in zip(cells, widths, strict=True):
            if number < len(lines) and lines[number].plain:
                line = lines[number]
                yield Segment(" " * blank)
                yield from Segment.apply_style(line.render(console), console.get_style(line.style))
                blank = -cell_len(line.plain)
            blank += width + gap
        yield Segment.line()


def fitting(console: Console, forms: Sequence[Form], title: str) -> Grid:
    """The first form that fits the console as a table; if none fits, the first form with one block for each row."""
    for form in forms:
        for gap in (WIDE_GAP, NARROW_GAP):
            room = console.width - 2 * MARGIN - gap * (len(form.columns) - 1)
            if widths := _widths(form, room, whole=gap == WIDE_GAP):
                return Grid(form.rows, widths, gap, title, form.columns)
    return _records(console, forms[0], title)


def _widths(form: Form, room: int, *, whole: bool) -> list[int] | None:
    """The width of each column, for a table of at most ``room`` characters.

    Returns:
        None if no word may be folded and the room is not enough; with ``whole`` also if a cell needs two lines.
    """
    if sum(form.most) <= room:
        return form.most
    if whole or sum(form.least) > room:
        return None
    # The remaining width goes first to the columns that need the least.
    widths, left = form.least[:], room - sum(form.least)
    wanted = [most - least for most, least in zip(form.most, form.least, strict=True)]
    for number, i in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        more = min(wanted[i], left // (len(wanted) - number))
        widths[i] += more
        left -= more
    return widths


def _width(cell: Cell) -> int:
    return max(map(cell_len, cell.plain.split("\n")))


def _words(cell: Cell) -> list[str]:
    if isinstance(cell, Branch):
        # Words longer than MAX_WORD_CHARS are folded in a tree as well.
        return [cell.prefix + word[:MAX_WORD_CHARS] for word in cell.words.split()]
    # A bar with its blanks, and a figure with its unit, count as one word.
    return (
        [cell.plain]
        if cell.no_wrap or len(cell.plain) <= MAX_UNFOLDED_CHARS
        else [word[:MAX_WORD_CHARS] for word in cell.plain.split()]
    )


def _lines(console: Console, cell: Cell, width: int) -> list[Text]:
    """The lines of a cell in a column of this width."""
    if isinstance(cell, Branch):
        return cell.lines(console, width)
    if cell.no_wrap or ("\n" not in cell.plain and cell_len(cell.plain) <= width):
        return [cell]
    return list(cell.wrap(console, width, overflow="fold"))


def _records(console: Console, form: Form, title: str) -> Grid:
    """One block for each row: each cell on its own line, after the name of its column."""
    names = max(map(cell_len, form.columns))
    return Grid(_separated(form), [names, console.width - names - RECORD_GAP], RECORD_GAP, title)


def _separated(form: Form) -> Iterator[tuple[Text, Cell]]:
    for number, row in enumerate(form.rows):
        if number:
            yield Text(""), Text("")
        for name, cell in zip(form.columns, row, strict=True):
            if cell.plain:
                yield Text(name, "bold"), cell
