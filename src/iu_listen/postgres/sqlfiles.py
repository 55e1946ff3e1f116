"""Finds the folder sql/ in a wheel or in a checkout, and reads its files. It uses no database.

base/             the tables of IU Core
neutral/          the neutral base, for applications without IU Core: it replaces files of base/ with the same number
worker/ runtime/  NNN_name.up.sql, .down.sql, .verify.sql: versioned files, applied once, in the order of their numbers
functions/        name.up.sql, .down.sql, .verify.sql: repeatable files, applied again when their text has changed
queries/          one statement in each file, named after the method that executes it
scripts/          parts of the output of the command sql
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.version import SchemaVersion

#: The folders of the package.
PACKAGE_FOLDERS = ("worker", "functions", "runtime")


@cache
def sql_root() -> Path:
    """The folder sql/: inside the Python package in a wheel, at the top of a checkout.

    Raises:
        ConfigurationError: The folder is missing.
    """
    here = Path(__file__).resolve()
    for root in (here.parents[1] / "sql", here.parents[3] / "sql"):
        if (root / "queries").is_dir():
            return root
    raise ConfigurationError("the folder sql/ is missing from this installation", "Install iu-listen again.")


@cache
def query(name: str) -> str:
    """The text of sql/queries/<name>.sql."""
    return (sql_root() / "queries" / f"{name}.sql").read_text(encoding="utf-8")


@cache
def script(name: str) -> str:
    """The text of sql/scripts/<name>.sql: a part of the output of the command sql, with fields for str.format()."""
    return (sql_root() / "scripts" / f"{name}.sql").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True, order=True)
class Migration:
    """One forward file of the package, with its down file and its verify file.

    Attributes:
        name: Folder and file name without suffix, as recorded in the ledger: ``worker/008_route_worker_substrate`` or
            ``functions/wake``.
    """

    name: str

    @property
    def number(self) -> str:
        """The three digits at the beginning of the file name; empty for a file in functions/."""
        found = re.match(r"\d{3}", self.name.partition("/")[2])
        return found[0] if found else ""

    @property
    def short_name(self) -> str:
        """The number, or folder and name of a file without a number."""
        return self.number or self.name

    @property
    def repeatable(self) -> bool:
        """Whether the file is applied again when its text has changed; a versioned file is applied once."""
        return self.header("kind") == "repeatable"

    @property
    def since(self) -> SchemaVersion:
        """The first schema version that has this file."""
        return SchemaVersion.parse(self.header("since") or "1.0")

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the files that must be applied before this one; objects of the base are not named.

        Raises:
            ConfigurationError: The header names a file that does not exist.
        """
        return tuple(_find(name, self) for name in self._listed("needs"))

    @property
    def calls(self) -> tuple[str, ...]:
        """The names of further files whose objects the bodies of plpgsql functions use; they may be applied later."""
        return tuple(_find(name, self) for name in self._listed("calls"))

    def _listed(self, key: str) -> list[str]:
        names = [name.strip() for name in self.header(key).split(",")]
        return [name for name in names if name and name != "nothing" and not name.startswith("base")]

    def path(self, kind: str) -> Path:
        """Path of the ``up``, ``down`` or ``verify`` file; the file need not exist."""
        return sql_root() / f"{self.name}.{kind}.sql"

    def text(self, kind: str = "up") -> str:
        """Text of the ``up``, ``down`` or ``verify`` file."""
        return self.path(kind).read_text(encoding="utf-8")

    @property
    def checksum(self) -> str:
        """SHA-256 of the forward file, in hexadecimal."""
        return hashlib.sha256(self.path("up").read_bytes()).hexdigest()

    @property
    def title(self) -> str:
        """The first sentence of the file's header."""
        header = " ".join(line.removeprefix("--").strip() for line in self.text().split("\n--\n")[0].splitlines())
        return header.partition(". ")[0].strip().removesuffix(".")

    def header(self, key: str) -> str:
        """The value of the line ``-- key: value`` of the header; empty if there is no such line."""
        found = re.search(rf"^-- {key}: (.*)$", self.text(), re.MULTILINE)
        return found[1] if found else ""

    @property
    def statements(self) -> list[str]:
        """The texts to execute separately: the whole file, or each statement of a ``transaction: none`` file.

        A ``transaction: none`` file contains no function bodies, so a semicolon at the end of a line ends a statement.
        """
        if self.header("transaction") != "none":
            return [self.text()]
        return [part for part in re.split(r";[ \t]*$", self.text(), flags=re.MULTILINE) if _code(part)]


def _code(text: str) -> str:
    return re.sub(r"--.*$", "", text, flags=re.MULTILINE).strip()


#: The two bases: the tables of IU Core, and open tables for applications without it.
Base = Literal["iu_core", "neutral"]


@cache
def base_files(base: Base = "iu_core") -> tuple[Migration, ...]:
    """The files of a base, in order. The neutral base shares the files of IU Core that it does not replace."""
    core = _folder("base")
    if base == "iu_core":
        return tuple(core)
    own = {m.number: m for m in _folder("neutral")}
    return tuple(own.get(m.number, m) for m in core)


@cache
def package_files() -> tuple[Migration, ...]:
    """The forward files that are applied and recorded, in the order of a first apply, without the commands 070, 080."""
    return in_order(m for m in all_files() if not m.header("kind").startswith("command"))


@cache
def all_files() -> tuple[Migration, ...]:
    """All forward files of the package by folder and name, with the commands 070 and 080."""
    return tuple(m for folder in PACKAGE_FOLDERS for m in _folder(folder))


def in_order(files: Iterable[Migration]) -> tuple[Migration, ...]:
    """The order in which to apply these files of the package; the other files are applied already.

    Versioned files in the order of their numbers, each preceded by the repeatable files that it needs, for example the
    functions of its triggers; then the other repeatable files, each preceded by those that it needs; then runtime/.

    Raises:
        ConfigurationError: The files need each other in a circle.
    """
    given = set(files)
    by_name = {m.name: m for m in all_files()}
    ordered: list[Migration] = []
    done: set[str] = set()

    def place(migration: Migration, path: tuple[str, ...]) -> None:
        if migration.name in path:
            raise ConfigurationError(f"SQL files need each other: {' -> '.join((*path, migration.name))}")
        if migration.name in done:
            return
        # What an applied versioned file needs was there when it was applied.
        if migration in given or migration.repeatable:
            for name in sorted(migration.needs, key=_position):
                place(by_name[name], (*path, migration.name))
            if migration in given:
                ordered.append(migration)
        done.add(migration.name)

    for migration in sorted(given, key=_position):
        place(migration, ())
    return tuple(ordered)


def _position(file: Migration | str) -> tuple[int, str]:
    """The sort key of files among which no need decides: worker/, then repeatable files, then runtime/."""
    migration = Migration(file) if isinstance(file, str) else file
    folder = migration.name.partition("/")[0]
    return (2 if folder == "runtime" else 1 if migration.repeatable else 0), migration.name


def _find(name: str, asker: Migration) -> str:
    """The full name of a file that a header names by its number, or by folder and name."""
    found = [m.name for m in all_files() if name in (m.number, m.name)]
    if len(found) != 1:
        raise ConfigurationError(f"sql/{asker.name}.up.sql names a file that does not exist: {name}")
    return found[0]


def _folder(folder: str) -> list[Migration]:
    names = (path.name.removesuffix(".up.sql") for path in (sql_root() / folder).glob("*.up.sql"))
    return sorted(Migration(f"{folder}/{name}") for name in names)
