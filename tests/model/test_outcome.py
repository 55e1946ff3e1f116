"""Every exception of a target becomes an outcome that the database accepts."""

from __future__ import annotations

import errno
import math
import socket
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iu_listen.model.delivery import DeliveryError, Failed, Reject, Result, Unavailable
from iu_listen.model.outcome import MAX_CODE_CHARS, MAX_DETAIL_CHARS, MAX_TARGET_DELAY, clean, delay, outcome_of


class Hostile:
    """A value that raises whenever it is converted to text or a number, or hashed."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __float__(self) -> float:
        raise SystemExit(3)

    __hash__ = None


class HostileText(str):
    """Text whose own conversion raises."""

    __slots__ = ()

    def __str__(self) -> str:
        raise KeyboardInterrupt


class RaisingAttributes(Unavailable):
    """A DeliveryError whose attributes raise when they are read."""

    def __init__(self) -> None:
        Exception.__init__(self)

    @property
    def reason(self):
        raise ValueError("no reason")

    code = retry_after = reason


class HostileErrno(Exception):
    errno = {}


class RaisingErrno(Exception):
    @property
    def errno(self):
        raise GeneratorExit


class WithoutInit(Failed):
    def __init__(self) -> None:
        pass


class OtherResult(Failed):
    result = "sent"


VALUES = st.one_of(
    st.none(), st.text(alphabet=st.characters()), st.integers(), st.floats(), st.binary(), st.booleans(), st.timedeltas(),
    st.decimals(), st.just(10**400), st.builds(Hostile), st.builds(HostileText, st.text()),
    st.lists(st.integers(), max_size=3), st.just("\x00\ud800" * 2000), st.builds(ValueError, st.text()),
)  # fmt: skip
ERRORS = st.one_of(
    st.builds(
        lambda kind, reason, code, retry_after: kind(reason, code=code, retry_after=retry_after),
        st.sampled_from([Reject, Failed, Unavailable, DeliveryError, OtherResult]), VALUES, VALUES, VALUES,
    ),
    st.builds(
        lambda kind, value: kind(value),
        st.sampled_from([
            ValueError, OSError, TimeoutError, ConnectionResetError, SystemExit, KeyboardInterrupt, GeneratorExit,
            BaseException, socket.gaierror,
        ]),
        VALUES,
    ),
    st.builds(RaisingAttributes), st.builds(HostileErrno), st.builds(RaisingErrno), st.builds(WithoutInit),
    st.builds(lambda: ExceptionGroup("group", [ValueError("a")])),
    st.builds(lambda: BaseExceptionGroup("group", [SystemExit(1), ValueError("b")])),
)  # fmt: skip


@given(ERRORS)
def test_every_error_has_an_outcome_that_can_be_stored(error):
    """outcome_of never raises; it returns text without NUL and surrogates, and a bounded delay.

    Fails when: a value that a target gave reaches the database, or code of a target runs, without a guard.
    """
    result, code, detail, retry_after = outcome_of(error)
    assert isinstance(result, Result)
    assert result is not Result.SENT
    for text, longest in ((code, MAX_CODE_CHARS), (detail, MAX_DETAIL_CHARS)):
        assert type(text) is str
        assert len(text) <= longest
        assert "\x00" not in text
        text.encode()
    assert code
    assert retry_after is None or (type(retry_after) is float and 0 <= retry_after <= MAX_TARGET_DELAY)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, (Result.SENT, "", "", None)),
        (Reject("gone", code=404), (Result.REJECTED, "404", "gone", None)),
        (Reject("bad \x00 byte"), (Result.REJECTED, "reject", "bad \ufffd byte", None)),
        (Failed("bad \ud800 byte"), (Result.FAILED, "failed", "bad \ufffd byte", None)),
        (Failed(None), (Result.FAILED, "failed", "", None)),
        (Unavailable("x", retry_after="120"), (Result.UNAVAILABLE, "unavailable", "x", 120.0)),
        (Unavailable("x", retry_after=timedelta(minutes=2)), (Result.UNAVAILABLE, "unavailable", "x", 120.0)),
        (Unavailable("x", retry_after=Decimal("0.5")), (Result.UNAVAILABLE, "unavailable", "x", 0.5)),
        (Failed("x", retry_after=math.nan), (Result.FAILED, "failed", "x", None)),
        (Failed("x", retry_after=1e15), (Result.FAILED, "failed", "x", MAX_TARGET_DELAY)),
        (Failed("x", retry_after=10**400), (Result.FAILED, "failed", "x", MAX_TARGET_DELAY)),
        (Failed("x", retry_after=-3), (Result.FAILED, "failed", "x", 0.0)),
        (OtherResult("x"), (Result.FAILED, "otherresult", "x", None)),
        (
            ConnectionRefusedError("secret"),
            (Result.UNAVAILABLE, "connectionrefusederror", "ConnectionRefusedError", None),
        ),
        (OSError(errno.EHOSTUNREACH, "secret"), (Result.UNAVAILABLE, "oserror", "OSError", None)),
        (TimeoutError("secret"), (Result.FAILED, "timeout", "TimeoutError", None)),
        (SystemExit(3), (Result.FAILED, "target_exit", "SystemExit", None)),
        (ValueError("secret"), (Result.FAILED, "target_error", "ValueError", None)),
    ],
    ids=repr,
)
def test_an_outcome_says_what_the_error_means(error, expected):
    """The class of an error decides its result; numbers, texts and timedeltas are accepted as delays."""
    assert outcome_of(error) == expected


def test_text_and_delays_are_bounded():
    """Text is cut before it is processed, and a delay that is no number becomes None."""
    assert clean("x" * 10**7, 3) == "xxx"
    assert delay("soon") is None
    assert delay(Hostile()) is None
