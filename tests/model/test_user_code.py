"""The frames of the application in a traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio
import pytest

from iu_listen.model.errors import safe_message
from iu_listen.model.user_code import is_user_code, user_traceback
from iu_listen.producer.payload import InvalidPayload, payload_json


def parse(text: str) -> None:
    """Code of an application that calls a library."""
    try:
        json.loads(text)
    except ValueError as error:
        raise RuntimeError("bad order") from error


def in_a_thread() -> BaseException:
    """The exception of a function of an application in a thread of anyio, as of a handler without async."""
    with pytest.raises(RuntimeError) as error:
        anyio.run(anyio.to_thread.run_sync, parse, "{")
    return error.value


def test_a_traceback_has_only_frames_of_the_application():
    """The traceback shows the lines of the application, its causes and the texts, and no frame of a library.

    Fails when: the frames are not filtered, also those of a cause.
    """
    text = user_traceback(in_a_thread())
    assert text.count("in parse") == 2
    assert "json.loads(text)" in text
    assert "The above exception was the direct cause" in text
    assert text.endswith("RuntimeError: bad order\n")
    files = {line.split('"')[1] for line in text.splitlines() if line.startswith("  File")}
    assert files == {__file__}


def test_an_error_that_only_wraps_another_one_is_left_out():
    """An error that iu-listen raises from one of the application is left out; without any frame the text remains."""

    def wrap() -> None:
        try:
            parse("{")
        except RuntimeError as error:
            raise ValueError("of a library") from error

    # The code of a library, as far as the name of its file tells.
    code = wrap.__code__.replace(co_filename="/usr/lib/python3/site-packages/library.py")
    wrap.__code__ = code
    with pytest.raises(ValueError, match="of a library") as error:
        wrap()
    error.value.__traceback__ = error.value.__traceback__.tb_next
    assert user_traceback(error.value).endswith("RuntimeError: bad order\n")
    with pytest.raises(InvalidPayload) as error:
        payload_json("x", {"a": object()})
    error.value.__traceback__ = error.value.__traceback__.tb_next
    assert user_traceback(error.value).startswith("iu_listen.producer.payload.InvalidPayload: ")


def test_an_error_in_a_library_is_placed_in_the_code_of_the_application():
    """The place of an error is the line of the application that called the library, relative to the directory."""
    with pytest.raises(ValueError, match="Expecting") as error:
        json.loads("{")
    here = Path(__file__).relative_to(Path.cwd())
    assert safe_message(error.value).startswith(f"JSONDecodeError ({here}, line ")


@pytest.mark.parametrize(
    ("file", "own"),
    [
        (__file__, True),
        ("/home/a/shop.py", True),
        (json.__file__, False),
        (anyio.__file__, False),
        (sys.modules["iu_listen.model.errors"].__file__, False),
        ("<string>", False),
        ("asyncpg/protocol/protocol.pyx", False),
    ],
)
def test_files_of_the_application(file, own):
    """A file belongs to the application if it is neither of the standard library, nor installed, nor of iu-listen."""
    assert is_user_code(file) is own
