"""The receiver's process, as the soak starts, controls and kills it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parents[1]
#: Span names of attempts and dead letters; a truncated name is not among them.
NAMES: Final = frozenset({"process event_outbox", "dead_letter event_outbox"})


class Backend:
    """The receiver's process, and the spans that it has accepted.

    Attributes:
        endpoint: Its endpoint; the same after a restart.
    """

    def __init__(self, protocol: str, home: Path) -> None:
        self._protocol = protocol
        self._file = home / "accepted"
        self._port = 0
        self.start()

    def start(self) -> None:
        """Start the receiver, and wait until it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "soak.receiver", self._protocol, str(self._port), str(self._file)],
            cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.endpoint = self._answer()
        self._port = int(self.endpoint.rpartition(":")[2])

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def behave(self, how: str) -> None:
        """Change its behaviour: keep, 503, 429 or no answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{how}\n")
        self._process.stdin.flush()
        assert self._answer() == "yes"

    def kill(self) -> None:
        """Kill it at once, during any request."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def size(self) -> int:
        """Size of the file of accepted spans, in bytes; it grows with every accepted request."""
        return self._file.stat().st_size

    def accepted(self) -> list[tuple[str, str]]:
        """Span id and name of every accepted span, repetitions included; a truncated line does not count."""
        return [(line[:16], line[17:]) for line in self._file.read_text().splitlines() if len(line) > 17]

    def rows(self) -> set[str]:
        """Span ids of the accepted attempts and dead letters."""
        return {span for span, name in self.accepted() if name in NAMES}


@contextmanager
def backend(protocol: str) -> Iterator[Backend]:
    """Run a receiver for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="iu-soak-") as home:
        found = Backend(protocol, Path(home))
        try:
            yield found
        finally:
            found.kill()
