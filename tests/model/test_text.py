"""Text that is safe to show: nothing in it is obeyed by a terminal."""

from __future__ import annotations

import json
import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from iu_listen.model.text import UNSAFE, json_visible, visible

BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "B"}


def test_every_control_character_is_escaped():
    """Every character that Unicode calls a control, a surrogate, a line separator or a bidirectional control is unsafe."""
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or (
            unicodedata.bidirectional(character) in BIDIRECTIONAL
        ):
            assert UNSAFE.fullmatch(character), hex(number)


def test_text_of_people_stays():
    """Letters of all scripts, accents, joiners and emoji are shown as they are."""
    for text in ("naïve café", "ключ/鍵", "می‌خواهم", "👩‍👩‍👧", "a\u0301"):
        assert visible(text) == text


@given(st.text(alphabet=st.characters(codec=None)))
def test_visible_is_safe_and_stable(text):
    """What visible() gives has no unsafe character, and visible() changes it no more."""
    shown = visible(text)
    assert not UNSAFE.search(shown)
    assert visible(shown) == shown
    assert "\n" not in shown
    assert visible(text, keep="\n").count("\n") == text.count("\n")


@given(st.recursive(st.text(alphabet=st.characters(codec=None)), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_json_stays_the_same_document(value):
    """A JSON document without unsafe characters says the same as before."""
    shown = json_visible(json.dumps(value, ensure_ascii=False, indent=2))
    assert not UNSAFE.search(shown.replace("\n", ""))
    assert json.loads(shown) == value
