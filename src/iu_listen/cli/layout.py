"""How rows fit a line: as a table, as a table without what can be spared, or one below the other.

Nothing is ever cut: ids, names and reasons are what people act on. Words are folded only where they are longer than
a column can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

#: Longest word that is kept whole, in characters: an id has 36. What is longer, as an address, may be folded.
LONGEST_WORD = 40
#: What has no more characters than this is kept in one line.
SHORT = 10
#: Characters between two columns: where there is room, where there is not, and between a name and its value.
ROOMY, NARROW, RECORD = 3, 2, 2
#: Characters to the left and to the right of a table with a header.
MARGIN = 1


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

    def lines(self, console: Console, width: int) -> list[Text]:
        """Its lines in a column of this width."""
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
    """Rows under the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def without(self, name: str) -> Form:
        """The same without a column."""
        kept = [i for i, column in enumerate(self.columns) if column != name]
        return Form([self.columns[i] for i in kept], [[row[i] for i in kept] for row in self.rows])

    @cached_property
    def least(self) -> list[int]:
        """The width of each column in which no word is folded."""
        return [
            max(map(cell_len, [*name.split(), *(word for row in self.rows for word in _words(row[i]))]), default=1)
            for i, name in enumerate(self.columns)
        ]

    @cached_property
    def most(self) -> list[int]:
        """The width of each column in which every cell is in one line."""
        return [max([cell_len(name), 1, *(_width(row[i]) for row in self.rows)]) for i, name in enumerate(self.columns)]


@dataclass(frozen=True)
class Grid:
    """Rows in columns whose widths are known.

    A table of rich draws each cell as a document of its own, which it measures, pads and crops: most of the time of a
    long list would go there. Here a cell that fits its column is written as it is.

    Attributes:
        rows: The cells.
        widths: Of the columns.
        gap: Characters between two columns.
        title: What stands above.
        columns: Names above a line; none for rows without a header.
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
            yield Segment.line()
            yield from _drawn(console, self._header(console), self.widths, self.gap, margin)
            yield Segment(" " * margin + "─" * (sum(self.widths) + self.gap * (len(self.widths) - 1)))
            yield Segment.line()
        for row in self.rows:
            cells = [_lines(console, cell, width) for cell, width in zip(row, self.widths, strict=True)]
            yield from _drawn(console, cells, self.widths, self.gap, margin)
        if self.columns:
            yield Segment.line()

    def _header(self, console: Console) -> list[list[Text]]:
        """The lines of the names of columns. The last ones stand side by side."""
        names = [
            _lines(console, Text(name, "table.header"), width)
            for name, width in zip(self.columns, self.widths, strict=True)
        ]
        height = max(map(len, names))
        return [[Text()] * (height - len(lines)) + lines for lines in names]


def _drawn(
    console: Console, cells: Sequence[Sequence[Text]], widths: Sequence[int], gap: int, margin: int
) -> Iterator[Segment]:
    """The lines of one row. Blanks are written where something follows them."""
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
    """The first of the forms that fits the console as a table; else the first one with its rows below each other."""
    for form in forms:
        for gap in (ROOMY, NARROW):
            room = console.width - 2 * MARGIN - gap * (len(form.columns) - 1)
            if widths := _widths(form, room, whole=gap == ROOMY):
                return Grid(form.rows, widths, gap, title, form.columns)
    return _records(console, forms[0], title)


def _widths(form: Form, room: int, *, whole: bool) -> list[int] | None:
    """The width of each column; None: there is no room, or, if ``whole``, not for every cell in one line."""
    if sum(form.most) <= room:
        return form.most
    if whole or sum(form.least) > room:
        return None
    # What is left goes first to those that want least.
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
        # An address or a name that is longer than a column can be is folded in a tree, too.
        return [cell.prefix + word[:LONGEST_WORD] for word in cell.words.split()]
    # A bar that is drawn is one word, its blanks included; and so is a figure with its unit.
    return (
        [cell.plain]
        if cell.no_wrap or len(cell.plain) <= SHORT
        else [word[:LONGEST_WORD] for word in cell.plain.split()]
    )


def _lines(console: Console, cell: Cell, width: int) -> list[Text]:
    """The lines of a cell in a column of this width."""
    if isinstance(cell, Branch):
        return cell.lines(console, width)
    if cell.no_wrap or ("\n" not in cell.plain and cell_len(cell.plain) <= width):
        return [cell]
    return list(cell.wrap(console, width, overflow="fold"))


def _records(console: Console, form: Form, title: str) -> Grid:
    """Each row below the other, its cells with their names."""
    names = max(map(cell_len, form.columns))
    return Grid(_separated(form), [names, console.width - names - RECORD], RECORD, title)


def _separated(form: Form) -> Iterator[tuple[Text, Cell]]:
    for number, row in enumerate(form.rows):
        if number:
            yield Text(""), Text("")
        for name, cell in zip(form.columns, row, strict=True):
            if cell.plain:
                yield Text(name, "bold"), cell
