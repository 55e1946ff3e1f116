"""Formats text for users, and escapes text from a database, a network or a command line, so that it is safe to show.

A terminal executes control sequences in its input: they clear the screen, forge lines, or set the title or the
clipboard. Bidirectional controls change the visible order of characters. No value may send them to a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Final

#: C0, DEL, C1, lone surrogates, line separators, bidirectional controls, and invisible characters. The joiners U+200C
#: and U+200D are not included, because scripts and emoji need them and they do not change the order.
UNSAFE_CHARACTERS: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    "\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)

#: Largest number up to which rows are counted for display; a larger number is shown as "more than". The functions of
#: the database for health and metrics have the same bound.
MAX_COUNT: Final = 10_000

#: Number of the newest rows that a command searches if no index serves its filters.
MAX_SEARCHED: Final = 100_000

#: A number of five digits or more inside a sentence that is a count, and no id, port, code, time or part of a word.
_COUNT: Final = re.compile(r"(?<!pid )(?<!SQLSTATE )(?<!port )(?<![\w.:-])\d{5,15}(?![\w.:-])")
#: A number with a noun that has both forms, as in ``3 event(s) wait, the oldest for 9 s: no consumer routes them``.
_COUNTED: Final = re.compile(r"\b(\d+\+?) (\w+)\(s\)( wait\b)?(, the oldest\b)?([^;]*)")


def visible(text: str, keep: str = "") -> str:
    r"""The text with every unsafe character written as an escape, as in ``\x1b`` or ``\u202e``.

    Args:
        text: The text.
        keep: Unsafe characters that are not escaped, for example the line ends of a message of iu-listen.
    """
    return UNSAFE_CHARACTERS.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def json_visible(document: str) -> str:
    """A JSON document with every unsafe character in its strings written as a JSON escape. Line ends stay."""
    return UNSAFE_CHARACTERS.sub(lambda found: found[0] if found[0] == "\n" else _json_escaped(found[0]), document)


def number(value: int) -> str:
    """A whole number with groups of three digits: 300 000."""
    return f"{value:,}".replace(",", " ")


def counted(count: int) -> str:
    """The text for a number that may have been counted up to MAX_COUNT + 1 only: that number is "more than 10 000"."""
    return f"more than {number(MAX_COUNT)}" if count == MAX_COUNT + 1 else number(count)


def counted_up_to(count: int, *, more: bool) -> str:
    """The text for a number that was counted up to a bound, which is one less than the number if there are ``more``."""
    return f"more than {number(count - 1)}" if more else number(count)


def duration(seconds: float) -> str:
    """A duration, given in seconds, in its two largest units: 3 d 23 h, 5 h 10 min, 2 min 5 s, 12 s, 40 ms."""
    seconds = max(seconds, 0.0)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    whole = round(seconds)
    for large, small, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            count, rest = divmod(whole, size)
            return f"{count} {large}" + (f" {rest // part} {small}" if rest // part else "")
    return f"{whole} s"


def humane(text: str) -> str:
    """A sentence from the database with its numbers and durations formatted by number() and duration().

    Process ids, ports and SQLSTATE codes are not changed, and neither are digits of a word, a time or an id. A noun
    such as ``event(s)`` gets the form that its number needs, and so does its verb.
    """
    text = _COUNTED.sub(_counted, text)
    text = re.sub(r"(?<![\w.:-])(\d+)(?:\.\d+)? s\b", lambda found: duration(float(found[1])), text)
    return _COUNT.sub(lambda found: number(int(found[0])), text)


def _counted(found: re.Match[str]) -> str:
    count, noun, verb, oldest, rest = found.groups()
    if count == "1":
        return f"{count} {noun}{verb + 's' if verb else ''}{rest.replace('them', 'it')}"
    return f"{count} {noun}s{verb or ''}{oldest or ''}{rest}"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names, those that are most similar to a name first."""
    return sorted(known, key=lambda one: SequenceMatcher(None, name, one).ratio(), reverse=True)


def _escaped(character: str) -> str:
    """A character as the shortest escape of a Python string that exists for it."""
    code = ord(character)
    if character in "\t\n\r":
        return {"\t": r"\t", "\n": r"\n", "\r": r"\r"}[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escaped(character: str) -> str:
    """A character as one or two JSON escapes, which name its UTF-16 code units."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
