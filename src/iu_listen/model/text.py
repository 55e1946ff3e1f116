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


def _escaped(character: str) -> str:
    number = ord(character)
    if character in "\t\n\r":
        return {"\t": r"\t", "\n": r"\n", "\r": r"\r"}[character]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _json_escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
