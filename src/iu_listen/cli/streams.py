"""The output streams of a command: they replace characters that they cannot encode, and never raise an error.

A command may have changed the database before it writes its answer. So an answer that cannot be written, for example
because the disk is full, raises no error: the command finishes its work, and its exit code reports that the answer is
missing. A reader that has closed the pipe, as `head` does, is not a failure.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from typing import Final

#: Replacements for the non-ASCII characters of this program's texts, for terminals and files with ASCII only.
ASCII_REPLACEMENTS: Final = str.maketrans({
    "–": "-", "—": "-", "→": "->", "…": "...", "└": "`", "├": "|", "│": "|", "─": "-", "━": "=", "·": ".",
    "↻": "o", "•": "*", "×": "x", "≥": ">=", "≤": "<=", "“": '"', "”": '"', "’": "'", "╸": "=", "╺": "=",
})  # fmt: skip


def _replace(error: UnicodeError) -> tuple[str, int]:
    """The replacement for characters that an encoding lacks: from ASCII_REPLACEMENTS, else a backslash escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    plain = missing.translate(ASCII_REPLACEMENTS)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error("iu_listen_plain", _replace)


class _SafeStream(io.RawIOBase):
    """A stream on a file descriptor whose write() never raises an OSError.

    Args:
        descriptor: The file descriptor.
        retry: Whether later writes are tried after a write has failed.

    Attributes:
        failed: The error of a write; None: all writes succeeded.
        reader_closed: Whether the reader has closed the pipe.
    """

    def __init__(self, descriptor: int, *, retry: bool) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._retry = retry
        self.failed: OSError | None = None
        self.reader_closed = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: object, /) -> int:
        whole = memoryview(data).cast("B")  # type: ignore[arg-type]
        # After an error nothing more is written to stdout: an answer with a gap is worse than a truncated one. A log on
        # stderr continues when writing is possible again.
        if (self.failed or self.reader_closed) and not self._retry:
            return len(whole)
        while True:
            try:
                return os.write(self._descriptor, whole)
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                self.reader_closed = True
                return len(whole)
            except OSError as error:
                self.failed = error
                return len(whole)


def install() -> None:
    """Replace sys.stdout and sys.stderr by these streams. Streams that are not files, as in tests, are kept."""
    absent = [number for number in (0, 1, 2) if not _is_open(number)]
    for _ in absent:
        # Otherwise the next file or socket would get this descriptor, and would receive the output.
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
        safe = _SafeStream(number, retry=name == "stderr")
        if number in absent:
            safe.failed = OSError(9, "stdout is closed")
        new = io.TextIOWrapper(
            io.BufferedWriter(safe), encoding, "iu_listen_plain", line_buffering=buffering or name == "stderr",
            write_through=name == "stderr",
        )  # fmt: skip
        new.mode = "w"  # type: ignore[misc]
        setattr(sys, name, new)


def answer_lost() -> OSError | None:
    """The error because of which the answer is incomplete; None: it is complete, or its reader closed the pipe."""
    stream = _stdout_stream()
    sys.stdout.flush()
    return stream.failed if stream else None


def reader_closed() -> bool:
    """Whether further output is useless: the reader has closed the pipe, or a write has failed."""
    stream = _stdout_stream()
    return stream is not None and (stream.reader_closed or stream.failed is not None)


def _stdout_stream() -> _SafeStream | None:
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, _SafeStream) else None


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
