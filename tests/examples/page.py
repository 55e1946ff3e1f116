"""The examples of a page: finds them, compares their output with what the commands write, and writes it anew.

An example is a fenced block after an HTML comment:

    <!-- example -->                 the block continues the session of the page
    <!-- example: PREPARATION -->    first, the function of that name in `preparations.py` is called

* In a `console` block each line that begins with `$ ` is a command; the lines below it are its output.
  A command without output on the page must end with exit code 0.
* A `text` block shows consecutive lines that the running service of the session has logged.
* A `sql` block is executed.

Two lines are equal if they are equal after these rules (`pattern`):

1. `…` in the page matches any text within a line, and a line `...` matches any number of lines.
2. Ids, moments, durations and rates, process ids, ports and versions of PostgreSQL match any value of their kind.
3. Blanks, lines of a table, bars of a chart, empty lines, and the time before a line of the log are ignored.
4. Consecutive lines of the log may have any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

MARKER = re.compile(r"<!-- example(?:: (?P<preparation>[\w ]+))? -->")
#: A block that shows output and is not an example has this comment instead, with the reason.
EXCEPTION = re.compile(r"<!-- not produced: .+ -->")
SKIPPED = "..."
#: Smallest likeness of a line of the page and a line of an output that shows the same fact in other words.
ALIKE = 0.5
ID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
#: The time that the log has before each line.
LOG_TIME = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z? +(?=\[)")

_NUMBER = r"(?:\d{1,3}(?: \d{3})+|\d+)(?:\.\d+)?"
#: What differs from run to run, in the order of the replacement, and its replacement.
RULES: tuple[tuple[str, str], ...] = (
    (ID.pattern, "<id>"),
    (r"\b(?:[0-9a-f]{32}|[0-9a-f]{16})\b", "<id>"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)?", "<moment>"),
    (r"\b\d{8}T\d{6}Z", "<moment>"),
    (r"\bms=[\d.]+", "ms=<duration>"),
    (r"\b\d+:\d+:(?=\s)", "<snapshot>"),
    (rf"[+]?(?:{_NUMBER} (?:ms|s|min|h|d)\b ?)+(?=\W|$)", "<duration> "),
    (rf"{_NUMBER}(?: (?:events|rows))?/s\b", "<rate>"),
    (r"\bpid \d+", "pid <pid>"),
    (r"\b[\w.-]+:\d{2,}(?=\s)", "<host>:<pid>"),
    (r"\bport=\d+", "port=<port>"),
    (r"\bPostgreSQL \d+(?:\.\d+)?", "PostgreSQL <version>"),
    (r"\bsystem identifier \d+", "system identifier <number>"),
    (r"\b\d+ bytes, \d+ entries", "<size>"),
    (r"\bchecksum \w{8} recorded, \w{8} now", "checksum <checksum>"),
    (r"[─━]+", "─"),
    (r"(?:─\s*)+(?=\S|$)", "─ "),
    (r"\s+", " "),
)


def plain(line: str) -> str:
    """A line after the rules."""
    line = LOG_TIME.sub("", line)
    for found, replacement in RULES:
        line = re.sub(found, replacement, line)
    return line.strip()


def fits(shown: str, written: str) -> bool:
    """Whether a line of a page shows this line of an output."""
    pattern = ".*".join(re.escape(part) for part in plain(shown).split("…"))
    return re.fullmatch(pattern, plain(written)) is not None


def _ordered(lines: Sequence[str]) -> list[str]:
    """The lines without empty ones; consecutive lines of the log are sorted."""
    result: list[str] = []
    log: list[str] = []
    for line in [*(line for line in lines if line.strip()), ""]:
        if re.match(r"\[\w+ *\]", LOG_TIME.sub("", line)):
            log.append(line)
        else:
            result += [*sorted(log, key=lambda line: plain(line).partition("]")[2]), line]
            log = []
    return result[:-1]


def same(shown: Sequence[str], written: Sequence[str]) -> bool:
    """Whether a page shows this output."""
    wanted, found = _ordered(shown), _ordered(written)
    # ``reached`` has every number of lines of the output that the lines of the page so far can show.
    reached = {0}
    for line in wanted:
        if line.strip() == SKIPPED:
            reached = set(range(min(reached), len(found) + 1)) if reached else set()
        else:
            reached = {n + 1 for n in reached if n < len(found) and fits(line, found[n])}
    return len(found) in reached


def anew(shown: Sequence[str], written: Sequence[str], ids: dict[str, str]) -> list[str]:
    """The lines that the page should show: this output, without the lines that the page leaves out.

    Args:
        shown: The lines of the page.
        written: The output.
        ids: The ids of the page for ids of the output; new ones are added, so that the page keeps its ids.
    """
    written = [LOG_TIME.sub("", line).rstrip() for line in written]
    written = [line for number, line in enumerate(written) if line or (number and written[number - 1])]
    written = "\n".join(written).strip("\n").split("\n")
    kept = written if SKIPPED not in [line.strip() for line in shown] else list(_without_skipped(shown, written))
    # A line whose words are the same stays as it is, so that a rewritten page changes as little as possible.
    kept = [next((old for old in shown if len(old) == len(line) and fits(old, line)), line) for line in kept]
    before, after = ID.findall("\n".join(shown)), ID.findall("\n".join(kept))
    if len(before) == len(after):
        for old, new in zip(before, after, strict=True):
            if old not in ids.values():
                ids.setdefault(new, old)
    return [ID.sub(lambda found: ids.setdefault(found[0], found[0]), line) for line in kept]


def _without_skipped(shown: Sequence[str], written: Sequence[str]) -> Iterator[str]:
    """The lines of an output that are most like those of the page, with the lines between them.

    Where the page has `...`, the lines between are left out.
    """
    position = 0
    skipping = True
    for line in shown:
        if line.strip() == SKIPPED:
            yield line
            skipping = True
            continue
        in_log = re.match(r"\[\w+ *\]", line)
        likeness = {
            number: SequenceMatcher(None, plain(line), plain(written[number])).ratio() + fits(line, written[number])
            for number in range(0 if in_log else position, len(written))
        }
        best = max(likeness, key=lambda number: likeness[number], default=None)
        if best is None or likeness[best] < ALIKE:
            continue
        if not skipping and not in_log:
            yield from written[position:best]
        yield line if "…" in line and fits(line, written[best]) else written[best]
        position = position if in_log else best + 1
        skipping = False


@dataclass
class Command:
    """A command of a console block, and the output that the page shows."""

    text: str
    shown: list[str] = field(default_factory=list)


@dataclass
class Example:
    """A block of a page.

    Attributes:
        language: console, text or sql.
        preparation: The name of a function of `preparations.py`; None: the block continues the session.
        begin: The index of the first line of the block's content.
        lines: The content.
    """

    language: str
    preparation: str | None
    begin: int
    lines: list[str]

    def commands(self) -> list[Command]:
        """The commands of a console block."""
        result: list[Command] = []
        for line in self.lines:
            if line.startswith("$ "):
                result.append(Command(line))
            else:
                result[-1].shown.append(line)
        return result


def blocks(lines: Sequence[str]) -> Iterator[tuple[str, Example]]:
    """All fenced blocks of a page, each with the line before it."""
    opened: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = number
        else:
            before = lines[opened - 1] if opened else ""
            marker = MARKER.fullmatch(before)
            yield (
                before,
                Example(
                    lines[opened][3:],
                    marker["preparation"] if marker else None,
                    opened + 1,
                    list(lines[opened + 1 : number]),
                ),
            )
            opened = None


def examples(text: str) -> list[Example]:
    """The examples of a page."""
    return [block for before, block in blocks(text.split("\n")) if MARKER.fullmatch(before)]


def unmarked(text: str) -> list[str]:
    """The first line of each console block that shows output and is neither an example nor an exception."""
    return [
        block.lines[0]
        for before, block in blocks(text.split("\n"))
        if block.language == "console"
        and not all(line.startswith("$ ") for line in block.lines)
        and not MARKER.fullmatch(before)
        and not EXCEPTION.fullmatch(before)
    ]
