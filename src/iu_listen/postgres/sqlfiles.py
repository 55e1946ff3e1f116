"""Finds the folder sql/ in a wheel or in a checkout, and reads its files. It uses no database.

base/ worker/ runtime/     NNN_name.up.sql, .down.sql, .verify.sql: the package, applied in order of the numbers
queries/                   one statement in each file, named after the method that executes it
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from iu_listen.model.errors import ConfigurationError

#: The folders of the package, in the order in which they are applied.
PACKAGE = ("worker", "runtime")


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


@dataclass(frozen=True, slots=True, order=True)
class Migration:
    """One forward file of the package, with its down file and its verify file.

    Attributes:
        name: Folder and file name without suffix, as recorded in the ledger: ``worker/008_route_worker_substrate``.
    """

    name: str

    @property
    def number(self) -> str:
        """The three digits at the beginning of the file name, which order the files of a folder."""
        return self.name.partition("/")[2][:3]

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


@cache
def base_files() -> tuple[Migration, ...]:
    """The files of the base, in order."""
    return tuple(_folder("base"))


@cache
def package_files() -> tuple[Migration, ...]:
    """The forward files that are applied and recorded, in order, without the commands 070 and 080."""
    return tuple(m for folder in PACKAGE for m in _folder(folder) if not m.header("kind").startswith("command"))


def all_files() -> tuple[Migration, ...]:
    """All forward files of the package in order, with the commands 070 and 080."""
    return tuple(m for folder in PACKAGE for m in _folder(folder))


def _folder(folder: str) -> list[Migration]:
    names = (path.name.removesuffix(".up.sql") for path in (sql_root() / folder).glob("*.up.sql"))
    return sorted(Migration(f"{folder}/{name}") for name in names)
