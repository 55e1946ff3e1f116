"""Text that comes from a database, a network or a command line, made safe to show.

A terminal obeys control sequences in whatever is written to it: they clear the screen, forge lines, set the title or
the clipboard. Bidirectional controls show text in another order than it has. None of them may reach a terminal from
a value.
"""

from __future__ import annotations

import re
from typing import Final

#: C0, DEL, C1, lone surrogates, line separators, bidirectional controls, and characters that are not visible at all.
#: The joiners U+200C and U+200D are left: scripts and emoji need them, and they change no order.
UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    "\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def visible(text: str, keep: str = "") -> str:
    r"""The text with every unsafe character written as an escape, as in ``\x1b`` or ``\u202e``.

    Args:
        text: What to show.
        keep: Unsafe characters that stay: the line ends of a text of our own that has several lines.
    """
    return UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def json_visible(document: str) -> str:
    """A JSON document with every unsafe character inside its strings as an escape of JSON. Line ends stay."""
    return UNSAFE.sub(lambda found: found[0] if found[0] == "\n" else _json_escaped(found[0]), document)


def number(value: int) -> str:
    """A whole number as people read it: 300 000."""
    return f"{value:,}".replace(",", " ")


def duration(seconds: float) -> str:
    """A length of time in its two largest units: 3 d 23 h, 5 h 10 min, 2 min 5 s, 12 s, 40 ms."""
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
    """A sentence of the database with its numbers and its seconds as number() and duration() write them.

    Numbers of processes stay, and so does what is part of a word, a time or an id.
    """
    text = re.sub(r"(?<![\w.:-])(\d+)(?:\.\d+)? s\b", lambda found: duration(float(found[1])), text)
    return re.sub(r"(?<!pid )(?<![\w.:-])\d{5,15}(?![\w.:-])", lambda found: number(int(found[0])), text)


def _escaped(character: str) -> str:
    number = ord(character)
    if character in "\t\n\r":
        return {"\t": r"\t", "\n": r"\n", "\r": r"\r"}[character]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _json_escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
