"""The project of Django in the process of the tests."""

from __future__ import annotations

import os

import django
from django.db import connections

from django_app import settings


def set_up() -> None:
    """Load the project; the second call does nothing."""
    os.environ["DJANGO_SETTINGS_MODULE"] = settings.__name__
    django.setup()


def point_at(dsn: str) -> None:
    """Make the connections of this process lead to a database."""
    set_up()
    for alias in ("default", "other"):
        connections[alias].close()
        connections.databases[alias].update(settings.database(dsn))
