"""A wall clock that can be set while programs run under it, by libfaketime where it is installed.

The monotonic clock is not changed, as with the kernel's wall clock.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from iu_listen.embedded.keeper import Server, server_account

HOUR = 3600

LIBRARY = next(
    (path for folder in ("/usr/lib", "/usr/local/lib") for path in sorted(Path(folder).glob("**/libfaketimeMT.so.1"))),
    None,
)


def unavailable() -> str:
    """The reason why no clock can be set here; empty if it can."""
    return "" if LIBRARY else "libfaketime is not installed"


class Clock:
    """A wall clock; made by wall_clock().

    Attributes:
        env: Environment variables that make a program use this clock.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)
        self.env = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            # The file is read at each query of the time, which costs about 10 µs; so no program uses an old offset.
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, seconds: float) -> None:
        """Set the clock so many seconds ahead of the real time; negative: behind it."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+f}\n")
        new.chmod(0o644)
        new.rename(self._file)


@contextmanager
def wall_clock() -> Iterator[Clock]:
    """A wall clock with the real time, until it is set."""
    with TemporaryDirectory(prefix="iu-listen-clock-") as name:
        home = Path(name)
        home.chmod(0o755)
        yield Clock(home / "time")


@contextmanager
def using_clock(clock: Clock, server: Server) -> Iterator[None]:
    """Make the server use this clock for the length of a block; it is restarted before and after."""
    server.stop()
    account = server_account(server.data)
    uid, gid = account or (None, None)
    try:
        done = subprocess.run(
            [server.bin / "pg_ctl", "start", "-s", "-w", "-D", server.data, "-l", server.log],
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"} | clock.env, cwd="/", start_new_session=True,
            user=uid, group=gid, extra_groups=None if account is None else [],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield
    finally:
        server.stop()
        server.start()
