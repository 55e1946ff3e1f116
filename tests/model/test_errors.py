"""The description of an error in a line of the log."""

from __future__ import annotations

import pytest

from iu_listen.model.errors import SessionLost, safe_message


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SessionLost("no answer within 4 s"), "no answer within 4 s"),
        (ValueError("a secret"), "ValueError"),
        (ExceptionGroup("g", [SessionLost("lost"), SessionLost("lost")]), "lost"),
        (ExceptionGroup("g", [SessionLost("lost"), ExceptionGroup("h", [OSError("x")])]), "lost; OSError"),
        (ExceptionGroup("g", [SessionLost(f"loss {n}") for n in range(9)]), "loss 0; loss 1; loss 2"),
    ],
)
def test_an_error_is_described_by_its_causes(error, says):
    """A group is described by its distinct errors, at most three, and the text of a foreign error is left out.

    Fails when: a group is described by its own class, so that the log hides the reason of a lost session.
    """
    assert safe_message(error) == says
