"""The two streams of a command: what they cannot encode is replaced, and what they cannot take never stops the work.

A command may have changed something before it answers. So an answer that cannot be written, because the disk is full or
nothing is there to take it, raises nothing: the command does its work to the end, and its exit code says that the
answer is missing. A reader that has left, as `head` does, has read enough, and is no failure.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from typing import Final

#: What our own texts use beyond ASCII, for terminals and files that have no more than ASCII.
PLAIN: Final = str.maketrans({
    "–": "-", "—": "-", "→": "->", "…": "...", "└": "`", "├": "|", "│": "|", "─": "-", "━": "=", "·": ".",
    "↻": "o", "•": "*", "×": "x", "≥": ">=", "≤": "<=", "“": '"', "”": '"', "’": "'", "╸": "=", "╺": "=",
})  # fmt: skip


def _replace(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding does not have: our own have a plain form, others are escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    plain = missing.translate(PLAIN)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error("iu_listen_plain", _replace)


class _Outlet(io.RawIOBase):
    """A file descriptor that never refuses.

    Attributes:
        failed: Why something could not be written; None: everything was.
        left: The reader has closed its end.
    """

    def __init__(self, descriptor: int, *, again: bool) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._again = again
        self.failed: OSError | None = None
        self.left = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: object, /) -> int:
        whole = memoryview(data).cast("B")  # type: ignore[arg-type]
        # An answer with a hole in it is worse than one that ends early; a log goes on when there is room again.
        if (self.failed or self.left) and not self._again:
            return len(whole)
        while True:
            try:
                return os.write(self._descriptor, whole)
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                self.left = True
                return len(whole)
            except OSError as error:
                self.failed = error
                return len(whole)


def install() -> None:
    """Put these streams in the place of sys.stdout and sys.stderr; those that are no files, as in tests, stay."""
    absent = [number for number in (0, 1, 2) if not _is_open(number)]
    for _ in absent:
        # Otherwise the next file or session would get the number, and be written to as if it were the output.
        os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if number in absent:
            encoding, buffering = "utf-8", False
        elif isinstance(stream, io.TextIOWrapper) and _number(stream) == number:
            stream.flush()
            encoding, buffering = stream.encoding, stream.line_buffering
        else:
            continue
        outlet = _Outlet(number, again=name == "stderr")
        if number in absent:
            outlet.failed = OSError(9, "it is closed")
        new = io.TextIOWrapper(
            io.BufferedWriter(outlet), encoding, "iu_listen_plain", line_buffering=buffering or name == "stderr",
            write_through=name == "stderr",
        )  # fmt: skip
        new.mode = "w"  # type: ignore[misc]
        setattr(sys, name, new)


def answer_lost() -> OSError | None:
    """Why the answer could not be written whole; None: it was, or its reader had enough."""
    outlet = _outlet()
    sys.stdout.flush()
    return outlet.failed if outlet else None


def reader_left() -> bool:
    """Whether nothing reads the answers any more: the reader is gone, or they cannot be written."""
    outlet = _outlet()
    return outlet is not None and (outlet.left or outlet.failed is not None)


def _outlet() -> _Outlet | None:
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Outlet) else None


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _number(stream: io.TextIOWrapper) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None
