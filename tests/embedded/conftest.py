"""The directories of the tests of the embedded server.

Every test has its own directory below /tmp, which the unprivileged account can reach, and leaves no process behind,
which a fixture checks.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.embedded_helpers import processes, until
from iu_listen.embedded import places


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="iu-embedded-", dir="/tmp"))
    path.chmod(0o755)
    monkeypatch.setattr(places, "SYSTEM_DIRECTORIES", (path / "system",))
    try:
        yield path
        until(lambda: not processes(path))
    finally:
        for process in processes(path):
            process.kill()
        shutil.rmtree(path)


@pytest.fixture
def root(place: Path) -> Path:
    return place / "data"
