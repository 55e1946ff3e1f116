"""Writes the outputs of the examples into the pages anew (make examples)."""

from __future__ import annotations

import sys
from pathlib import Path

from examples import session
from examples.preparations import PREPARATIONS
from examples.test_examples import ROOT, WITH_EXAMPLES


def main(*names: str) -> None:
    """Write the pages with these names, or all pages."""
    with session.server() as server:
        for page in [Path(name).absolute() for name in names] or WITH_EXAMPLES:
            text = page.read_text()
            new = session.rewritten(text, server, PREPARATIONS)
            print("changed" if new != text else "same   ", page.relative_to(ROOT))
            if new != text:
                page.write_text(new)


if __name__ == "__main__":
    main(*sys.argv[1:])
