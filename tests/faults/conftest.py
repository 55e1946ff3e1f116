"""Fixtures of servers that a test may damage."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from iu_listen import embedded
from support import apply_package


@pytest.fixture(params=embedded.MAJORS, ids=lambda major: f"pg{major}")
def primary(request: pytest.FixtureRequest) -> Iterator[embedded.Server]:
    """A server for one test, with TCP; its database iu has the package, and the gate is open."""
    with TemporaryDirectory(prefix="iu-listen-tests-") as root:
        Path(root).chmod(0o755)
        options = {"max_prepared_transactions": "10"}
        with embedded.running(Path(root), request.param, durable=False, tcp=True, options=options) as server:
            asyncio.run(apply_package(server.tcp_dsn()))
            yield server
