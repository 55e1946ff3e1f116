"""A project of Django whose databases ``default`` and ``other`` are one database of a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.core.management import call_command
from django.db import connections

from conftest import Database, TestServer
from django_app.project import point_at


@pytest.fixture
def project(empty: Database) -> Iterator[str]:
    """The DSN of the empty database of the project."""
    point_at(empty.dsn)
    yield empty.dsn
    connections.close_all()


@pytest.fixture
def migrated(server: TestServer) -> Iterator[str]:
    """The DSN of the database of the project after ``migrate``."""
    for database in server.create("neutral"):
        point_at(database.dsn)
        call_command("migrate", verbosity=0)
        yield database.dsn
        connections.close_all()
