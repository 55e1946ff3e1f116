"""Schema versions: their text form, and which version of iu-listen works with which database."""

from __future__ import annotations

import pytest

from iu_listen.model.version import Compatibility, SchemaVersion, compatibility


@pytest.mark.parametrize(
    ("found", "own", "expected", "works"),
    [
        ("1.0", "1.0", Compatibility.SAME, True),
        ("1.4", "1.4", Compatibility.SAME, True),
        ("1.5", "1.4", Compatibility.NEWER, True),
        ("1.10", "1.9", Compatibility.NEWER, True),
        ("1.99", "1.4", Compatibility.NEWER, True),
        ("1.3", "1.4", Compatibility.OLDER, True),
        ("1.2", "1.4", Compatibility.TOO_OLD, False),
        ("2.0", "1.9", Compatibility.TOO_NEW, False),
        ("1.9", "2.0", Compatibility.TOO_OLD, False),
        ("1.9", "2.10", Compatibility.TOO_OLD, False),
    ],
)
def test_compatibility(found, own, expected, works):
    """A database may be newer within the major version, or one minor version older; numbers are not compared as text.

    Fails when: any other pair of versions works together.
    """
    answer = compatibility(SchemaVersion.parse(found), SchemaVersion.parse(own))
    assert (answer, answer.works) == (expected, works)


def test_text_form():
    """The text form can be parsed again."""
    assert str(SchemaVersion.parse("12.3")) == "12.3"
    assert SchemaVersion.parse("12.3") == SchemaVersion(12, 3)


@pytest.mark.parametrize("text", ["", "1", "1.", "1.0.0", "v1.0", "1.-1", " 1.0", "1.0\n", "1.x", "1.0000000"])
def test_other_texts_are_refused(text):
    """A text that is not a schema version is an error, and the message has the expected form."""
    with pytest.raises(ValueError, match=r"major\.minor"):
        SchemaVersion.parse(text)
