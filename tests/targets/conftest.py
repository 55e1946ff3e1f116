"""Certificates, and one receiver for all tests of the HTTP target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from targets.http_receivers import Certificates, Receiver, granian


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate authority and certificates that it signed."""
    folder: Path = tmp_path_factory.mktemp("certificates")
    return Certificates(folder)


@pytest.fixture(scope="session")
def receiver(certificates: Certificates) -> Iterator[Receiver]:
    """A receiver over TLS, with HTTP/1.1 and HTTP/2."""
    with granian(certificates) as running:
        yield running
