"""The database of an application on the neutral base."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cli.command import execute
from conftest import TestServer


@pytest.fixture
def neutral(server: TestServer) -> Iterator[str]:
    """The DSN of a database with the neutral base, the package, and one event type."""
    for database in server.create("neutral"):
        execute(database.dsn, "insert into public.event_type_registry (event_type) values ('order_placed')")
        yield database.dsn
