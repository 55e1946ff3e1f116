"""The SQL that ``apply`` and ``rollback`` run, as one script, for deployments through other tools.

Alembic, Django, Flyway and ``psql -1`` run the script in a transaction of their own. The script also fills the ledger,
so that afterwards every command recognizes the package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.version import SCHEMA, VERSION, SchemaVersion
from iu_listen.postgres.sqlfiles import Base, Migration, base_files, in_order, package_files, script

#: PostgreSQL refuses this word inside a transaction.
CONCURRENTLY: Final = re.compile(r"\bconcurrently\b")
#: Marks a statement that is executed until it changes no row; the text after it describes the statement.
REPEAT: Final = re.compile(r"^-- repeat: (.*)$", re.MULTILINE)


def in_one_transaction(migration: Migration) -> str:
    """The text of a forward file for a run inside a transaction.

    CONCURRENTLY, which PostgreSQL refuses there, is left out, and a repeated statement becomes a loop.
    """
    if migration.header("transaction") != "none":
        return migration.text()
    return "".join(f"{_looped(statement)};\n" for statement in migration.statements)


def _looped(statement: str) -> str:
    found = REPEAT.search(statement)
    if found is None:
        return CONCURRENTLY.sub("", statement).rstrip()
    body = script("repeat").format(statement=statement[found.end() :].strip()).strip()
    return f"{statement[: found.end()]}\n{body}"


def migration_sql(since: str | None = None, *, base: Base | None = None, down: bool = False) -> str:
    """The SQL that creates, upgrades or removes the package, as one script without transaction commands.

    Args:
        since: The schema version of the database, as in ``1.0``: the script upgrades it, and refuses any other version.
            None: the script creates the whole package.
        base: Create this base first: ``neutral`` for an application, ``iu_core`` for tests of IU Core. Only without
            ``since``.
        down: The script removes the package, or with ``since`` everything that was added since this version.

    Returns:
        The script. For ``down`` with ``since`` it does not restore the earlier text of functions, which the versions
        before also work with.

    Raises:
        ConfigurationError: ``since`` is not a schema version before the present one, or ``base`` is given with it.
    """
    start = None if since is None else _earlier(since)
    if base and (start or down):
        raise ConfigurationError("the base is only created together with the whole package", "Leave out --base.")
    files = [m for m in package_files() if start is None or m.since > start or (m.repeatable and not down)]
    parts = [f"-- The SQL package of iu-listen {VERSION}, schema {SCHEMA}. Run it in one transaction.\n"]
    if start:
        parts.append(script("guard").format(version=SCHEMA if down else start))
    if down:
        parts += _removed(files)
    else:
        parts += [m.text() for m in (base_files(base) if base else ())]
        parts += _applied(in_order(files))
    return "\n".join(parts)


def _earlier(text: str) -> SchemaVersion:
    try:
        version = SchemaVersion.parse(text)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    if version >= SCHEMA or version.major != SCHEMA.major:
        raise ConfigurationError(
            f"schema {version} cannot be upgraded to schema {SCHEMA} of this iu-listen",
            "Give the schema version of the database, which iu-listen doctor shows.",
        )
    return version


def _applied(files: Iterable[Migration]) -> Iterator[str]:
    for m in files:
        yield f"-- {m.name}\n\n{in_one_transaction(m)}"
        yield script("record").format(name=m.name, checksum=m.checksum, version=SCHEMA)


def _removed(files: Iterable[Migration]) -> Iterator[str]:
    for m in sorted(files, key=package_files().index, reverse=True):
        yield f"-- {m.name}\n\n{script('forget').format(name=m.name)}"
        yield m.text("down")
