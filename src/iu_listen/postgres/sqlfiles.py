"""Finds sql/ in a wheel or in a checkout, and reads it. Knows files, no database.

base/ worker/ runtime/     NNN_name.up.sql, .down.sql, .verify.sql: the package, applied in order of the numbers
queries/                   one statement a file, named for the method that runs it
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
    """The folder sql/: beside the modules in a wheel, at the top of a checkout.

    Raises:
        ConfigurationError: the installation is incomplete.
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
    """One forward file and its companions.

    Attributes:
        name: Folder and file without suffix, as recorded in the ledger: ``worker/008_route_worker_substrate``.
    """

    name: str

    @property
    def number(self) -> str:
        """The three digits that order the files of a folder."""
        return self.name.partition("/")[2][:3]

    def path(self, kind: str) -> Path:
        """Path of the ``up``, ``down`` or ``verify`` file, whether it exists or not."""
        return sql_root() / f"{self.name}.{kind}.sql"

    def text(self, kind: str = "up") -> str:
        """Text of that file."""
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
        """The value of a ``-- key: value`` line of the header; empty when there is none."""
        found = re.search(rf"^-- {key}: (.*)$", self.text(), re.MULTILINE)
        return found[1] if found else ""

    @property
    def statements(self) -> list[str]:
        """What to execute one by one: the whole file, or each statement of a ``transaction: none`` file.

        Such a file holds no function bodies, so a semicolon at the end of a line ends a statement.
        """
        if self.header("transaction") != "none":
            return [self.text()]
        return [part for part in re.split(r";[ \t]*$", self.text(), flags=re.MULTILINE) if _code(part)]


def _code(text: str) -> str:
    return re.sub(r"--.*$", "", text, flags=re.MULTILINE).strip()


@cache
def base_files() -> tuple[Migration, ...]:
    """The substrate, in order."""
    return tuple(_folder("base"))


@cache
def package_files() -> tuple[Migration, ...]:
    """The forward files that are applied and recorded, in order; commands (070, 080) are not among them."""
    return tuple(m for folder in PACKAGE for m in _folder(folder) if not m.header("kind").startswith("command"))


def all_files() -> tuple[Migration, ...]:
    """Every forward file of the package, the commands 070 and 080 included, in order."""
    return tuple(m for folder in PACKAGE for m in _folder(folder))


def _folder(folder: str) -> list[Migration]:
    names = (path.name.removesuffix(".up.sql") for path in (sql_root() / folder).glob("*.up.sql"))
    return sorted(Migration(f"{folder}/{name}") for name in names)
