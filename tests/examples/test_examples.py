"""The outputs in the pages are those that the commands write today."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path

import pytest

from conftest import TestServer
from examples import session
from examples.page import MARKER, examples, fits, same, unmarked
from examples.preparations import PREPARATIONS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_EXAMPLES = [page for page in PAGES if examples(page.read_text())]


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    """The server for all pages."""
    with session.server() as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_outputs_in_a_page_are_those_of_its_commands(page, server):
    """The commands of the examples of a page are executed in their order, and write what the page shows.

    Fails when: the output of a command changes, and the page does not.
    """
    text = page.read_text()
    found = session.rewritten(text, server, PREPARATIONS)
    diff = "\n".join(unified_diff(text.split("\n"), found.split("\n"), "the page", "the commands", lineterm="", n=1))
    assert found == text, f"{page.relative_to(ROOT)} shows an output of the past; run: make examples\n{diff}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_output_in_a_page_is_an_example(page):
    """A console block with output is an example, or a comment above it says why it is not produced."""
    assert unmarked(page.read_text()) == []


def test_each_marker_is_above_a_block_and_each_preparation_is_used():
    """A marker without a block below it, and a preparation that no page names, are leftovers."""
    named = set()
    for page in PAGES:
        text = page.read_text()
        assert len(MARKER.findall(text)) == len(examples(text)), page
        named |= {example.preparation for example in examples(text)}

    assert named - {None} == set(PREPARATIONS)


@pytest.mark.parametrize(
    ("shown", "written", "equal"),
    [
        (["pid 4711 (…) for 3600 s"], ["pid 12 (psql, idle) for 9 s"], True),
        ([" a   b", " ─────", " 1   2"], ["", " a     b", " ───────", " 1     2", ""], True),
        (["...", "c"], ["a", "b", "c"], True),
        (["..."], [], True),
        (["a", "..."], ["b", "a"], False),
        (["a"], ["a", "b"], False),
        (["1 000 events"], ["1 001 events"], False),
        (["[info     ] working", "[info     ] active"], ["2026-11-23T18:32:59.1Z [info     ] active", "[info     ] working"], True),
        (["87dd0943-c13c-412f-97c4-3370338c962d"], ["c3ac036f-ee71-4f36-bf3f-60026b7d5de0"], True),
        (["11.2 ms", "6 s ago", "never"], ["0.9 ms", "1 h 2 min ago", "never"], True),
        (["older than 90 days"], ["older than 91 days"], False),
    ],
)  # fmt: skip
def test_the_rules_of_the_comparison(shown, written, equal):
    """What differs from run to run is equal; every other word and number must be the same."""
    assert same(shown, written) is equal


def test_a_line_fits_only_as_a_whole():
    """A line with … does not match a line that continues after its end."""
    assert fits("a … c", "a b c")
    assert not fits("a … c", "a b c d")
