"""The databases of a Django project: queries of the package, its state, and the connection string for iu-listen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from django.db import router
from django.db.backends.base.base import BaseDatabaseWrapper

from iu_listen.model.address import KNOWN_PARAMETERS, written
from iu_listen.model.version import SchemaVersion
from iu_listen.postgres.sqlfiles import query

_PARAMETER: Final = re.compile(r"\$(\d+)")
#: The settings of Django that are parameters of libpq.
_PARAMETERS: Final = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}


def belongs_to(alias: str) -> bool:
    """Whether the routers of the project allow the package in this database."""
    return bool(router.allow_migrate(alias, "iu_listen"))


def statement(name: str, *values: Any) -> tuple[str, list[Any] | None]:
    """The text of sql/queries/<name>.sql with %s for its parameters, and the values in the order of their use."""
    text = re.sub(r"^--.*\n", "", query(name), flags=re.MULTILINE)
    order = [int(number) - 1 for number in _PARAMETER.findall(text)]
    return _PARAMETER.sub("%s", text), [values[index] for index in order] or None


def rows(connection: BaseDatabaseWrapper, name: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run a query of sql/queries/ on a connection of Django."""
    with connection.cursor() as cursor:
        cursor.execute(*statement(name, *values))
        return list(cursor.fetchall())


@dataclass(frozen=True, slots=True)
class PackageState:
    """The state of the package in a database.

    Attributes:
        missing: Objects of the base that are missing.
        version: The schema version; None: the package is not installed.
    """

    missing: tuple[str, ...]
    version: SchemaVersion | None


def package_state(connection: BaseDatabaseWrapper) -> PackageState:
    """Read the state of the package."""
    missing = tuple(f"{kind} {name}" for kind, name in rows(connection, "missing_base_objects"))
    [(installed,)] = rows(connection, "ledger_exists")
    versions = [SchemaVersion.parse(row[2]) for row in rows(connection, "ledger")] if installed else []
    return PackageState(missing, max(versions, default=None))


def dsn(settings: Mapping[str, Any]) -> str:
    """The connection string of a database.

    Args:
        settings: ``settings_dict`` of its connection, one entry of ``DATABASES``.
    """
    options = settings.get("OPTIONS") or {}
    parameters = {name: str(value) for name, value in options.items() if name in KNOWN_PARAMETERS}
    if role := options.get("assume_role"):
        parameters["role"] = role
    return written(parameters | {name: str(settings[key]) for key, name in _PARAMETERS.items() if settings.get(key)})
