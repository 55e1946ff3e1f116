"""Text that is safe to show: a terminal executes nothing in it."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iu_listen.model.text import UNSAFE_CHARACTERS, duration, humane, json_visible, visible

BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "B"}


def test_every_control_character_is_escaped():
    """Every character that Unicode calls a control, a surrogate, a line separator or a
    bidirectional control is unsafe."""
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or (
            unicodedata.bidirectional(character) in BIDIRECTIONAL
        ):
            assert UNSAFE_CHARACTERS.fullmatch(character), hex(number)


def test_text_of_people_stays():
    """Letters of all scripts, accents, joiners and emoji are shown unchanged."""
    for text in ("naïve café", "ключ/鍵", "می‌خواهم", "👩‍👩‍👧", "a\u0301"):
        assert visible(text) == text


@given(st.text(alphabet=st.characters(codec=None)))
def test_visible_is_safe_and_stable(text):
    """The result of visible() has no unsafe character, and a second visible() does not change it."""
    shown = visible(text)
    assert not UNSAFE_CHARACTERS.search(shown)
    assert visible(shown) == shown
    assert "\n" not in shown
    assert visible(text, keep="\n").count("\n") == text.count("\n")


@given(st.recursive(st.text(alphabet=st.characters(codec=None)), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_json_stays_the_same_document(value):
    """json_visible() removes unsafe characters from a JSON document and keeps its contents."""
    shown = json_visible(json.dumps(value, ensure_ascii=False, indent=2))
    assert not UNSAFE_CHARACTERS.search(shown.replace("\n", ""))
    assert json.loads(shown) == value


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0004, "0 ms"), (0.04, "40 ms"), (1, "1 s"), (59.4, "59 s"), (59.6, "1 min"), (125, "2 min 5 s"), (3600, "1 h"),
        (18_600, "5 h 10 min"), (86_399, "23 h 59 min"), (342_065, "3 d 23 h"), (172_800, "2 d"), (-5, "0 ms"),
    ],
)  # fmt: skip
def test_duration(seconds, words):
    """A duration has one form: its two largest units."""
    assert duration(seconds) == words


def test_humane():
    """Numbers and seconds inside a sentence of the database get the same form; ids, times, ports, process ids and SQLSTATE codes stay."""
    assert humane("silent for 342065 s, cadence is 5 s") == "silent for 3 d 23 h, cadence is 5 s"
    assert humane("302400 event(s) wait, the oldest for 90 s") == "302 400 events wait, the oldest for 1 min 30 s"
    one = "1 event(s) wait, the oldest for 9 s: no consumer routes them; 2 attempt(s) wait for the export"
    assert humane(one) == "1 event waits for 9 s: no consumer routes it; 2 attempts wait for the export"
    assert humane("1 event(s), the oldest for 9 s") == "1 event for 9 s"
    assert humane("10000+ event(s) wait, the oldest for 9 s") == "10 000+ events wait, the oldest for 9 s"
    for same in (
        "pid 123456, host:54321", "since 2026-11-25T21:04:29Z", "b65c1335-1234-4567-8901-123456789012", "route a12345",
        "checksum 12345678abcd", "version 0.12345", "permission denied (SQLSTATE 42501)", "no answer at port 54321",
    ):  # fmt: skip
        assert humane(same) == same
