"""System checks: whether each database has the package, in a fitting version, and the event types of the handlers.

A problem that ``migrate`` solves is a warning, because an error would keep ``migrate`` from running.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Warning
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from iu_listen.django.database import belongs_to, package_state, rows
from iu_listen.django.discovery import find_handlers
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.routing import DEFAULT_DOMAIN
from iu_listen.model.version import SCHEMA, VERSION, Compatibility, SchemaVersion, compatibility
from iu_listen.targets.handlers import Handler

_MIGRATE: Final = "python manage.py migrate iu_listen"


def check_databases(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """The problems of the given databases, without those that a router keeps away from the app."""
    if app_configs is not None and not any(config.label == "iu_listen" for config in app_configs):
        return []
    return [problem for alias in databases or () if belongs_to(alias) for problem in _problems(alias)]


def _problems(alias: str) -> Iterator[CheckMessage]:
    connection = connections[alias]
    if connection.vendor != "postgresql":
        yield Warning(
            f"iu-listen requires PostgreSQL, and the database {alias!r} is {connection.display_name}.",
            hint="A router whose allow_migrate() returns False for the app iu_listen and this database excludes it.",
            id="iu_listen.W001",
        )
        return
    state = package_state(connection)
    if state.version is None:
        command = "init" if state.missing else "apply"
        yield Warning(
            f"iu-listen is not installed in the database {alias!r}.",
            hint=f"{_MIGRATE} installs it. If it is recorded as applied: python manage.py iu_listen {command}",
            id="iu_listen.W002",
        )
        return
    if state.missing:
        yield Error(
            f"In the database {alias!r} a part of the outbox is missing: {state.missing[0]}.",
            hint="Restore it from a backup.",
            id="iu_listen.E001",
        )
        return
    yield from _version(alias, state.version)
    yield from _event_types(alias, connection)


def _version(alias: str, found: SchemaVersion) -> Iterator[CheckMessage]:
    text = f"The database {alias!r} has schema {found} of iu-listen, and iu-listen {VERSION} has schema {SCHEMA}."
    match compatibility(found):
        case Compatibility.OLDER | Compatibility.TOO_OLD:
            yield Warning(text, hint=f"{_MIGRATE} upgrades the database.", id="iu_listen.W003")
        case Compatibility.NEWER:
            yield Warning(text, hint="Install the version of iu-listen that has this schema.", id="iu_listen.W004")
        case Compatibility.TOO_NEW:
            yield Error(text, hint="Install the version of iu-listen that has this schema.", id="iu_listen.E002")


def _event_types(alias: str, connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    try:
        handlers = [handler for handler in find_handlers() if isinstance(handler, Handler)]
    except ConfigurationError as error:
        yield Error(f"A module of handlers is not usable: {error.message}", hint=error.hint, id="iu_listen.E003")
        return
    registered = {row[1] for row in rows(connection, "event_type/list", DEFAULT_DOMAIN)}
    for handler in handlers:
        if handler.event_type not in registered:
            yield Warning(
                f"The event type {handler.event_type!r} of the handler {handler.name!r} is not registered in the "
                f"database {alias!r}.",
                hint="Add it in a migration, AddEventTypes(...), or run: python manage.py iu_listen route sync",
                id="iu_listen.W005",
            )
