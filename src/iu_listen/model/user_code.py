"""The frames of a traceback that are in the code of the application: neither in iu-listen nor in another library."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path
from typing import Final

_PACKAGE: Final = str(Path(__file__).parents[1]) + os.sep
_STANDARD_LIBRARY: Final = sysconfig.get_path("stdlib") + os.sep
_INSTALLED: Final = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


def is_user_code(filename: str) -> bool:
    """Whether a file of a frame belongs to the application. Code without a file, such as ``<string>``, does not."""
    return (
        filename.startswith(os.sep)
        and not filename.startswith((_PACKAGE, _STANDARD_LIBRARY))
        and not any(part in filename for part in _INSTALLED)
    )


def place(error: BaseException) -> str:
    """The place of an error, as ``shop.py, line 7``; empty: it is not known.

    It is the innermost frame in the code of the application, or without one the innermost frame of all. For a
    SyntaxError it is the line that cannot be parsed.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    found = next((frame for frame in reversed(frames) if is_user_code(frame.filename)), frames[-1] if frames else None)
    return f"{_short(found.filename)}, line {found.lineno}" if found else ""


def _short(filename: str) -> str:
    """The path of a file in the current directory, relative to it; of another file only the name."""
    try:
        return str(Path(filename).relative_to(Path.cwd()))
    except (OSError, ValueError):
        return Path(filename).name


def user_traceback(error: BaseException) -> str:
    """The traceback of an error, with only the frames in the code of the application, and with its text.

    The text of an error may contain data that was processed, so this is for development and tests. Errors in the chain
    that did not pass through the code of the application are left out; if none did, the text is only the error itself.
    """
    found = traceback.TracebackException.from_exception(error, compact=True)
    shown = _reduced(found)
    return "".join(shown.format() if shown else found.format_exception_only())


def _reduced(error: traceback.TracebackException) -> traceback.TracebackException | None:
    """The error without foreign frames. If it has no frame of the application: its cause; None: there is none, too."""
    error.stack[:] = [frame for frame in error.stack if is_user_code(frame.filename)]
    cause = _reduced(error.__cause__) if error.__cause__ else None
    context = _reduced(error.__context__) if error.__context__ and not error.__suppress_context__ else None
    members = [one for one in map(_reduced, error.exceptions or ()) if one]
    if not error.stack and not members:
        return cause or context
    error.__cause__, error.__context__ = cause, context
    if error.exceptions:
        error.exceptions = members
    return error
