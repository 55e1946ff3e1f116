"""The versions of iu-listen and of its SQL package, and which of them work together.

The version of the SQL package, the schema version, has two parts. A new minor version adds to the schema and changes
functions, so that every earlier version of iu-listen with the same major version keeps working. A new major version
removes something.
"""

from __future__ import annotations

import enum
import re
from typing import Final, NamedTuple, Self

#: The version of iu-listen. pyproject.toml has the same value.
VERSION: Final = "0.2.0"


class SchemaVersion(NamedTuple):
    """A version of the SQL package."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The version that a text such as ``1.0`` names.

        Raises:
            ValueError: The text is not of this form.
        """
        found = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", text)
        if not found:
            raise ValueError(f"a schema version has the form major.minor, as in 1.0, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


#: The version of the SQL package that belongs to this version of iu-listen.
SCHEMA: Final = SchemaVersion(1, 1)


class Compatibility(enum.StrEnum):
    """How the schema version of a database relates to that of a version of iu-listen."""

    SAME = "same"
    #: A later minor version: it has everything that this version of iu-listen uses.
    NEWER = "newer"
    #: The minor version before: this version of iu-listen works with it, without its new functions.
    OLDER = "older"
    #: A later major version.
    TOO_NEW = "too new"
    #: More than one minor version behind, or an earlier major version.
    TOO_OLD = "too old"

    @property
    def works(self) -> bool:
        """Whether this version of iu-listen works with the database."""
        return self in (Compatibility.SAME, Compatibility.NEWER, Compatibility.OLDER)


def compatibility(found: SchemaVersion, own: SchemaVersion = SCHEMA) -> Compatibility:
    """How the schema version of a database relates to that of a version of iu-listen.

    Args:
        found: The schema version of the database.
        own: The schema version of iu-listen.
    """
    if found.major != own.major:
        return Compatibility.TOO_NEW if found > own else Compatibility.TOO_OLD
    if found.minor == own.minor:
        return Compatibility.SAME
    if found.minor > own.minor:
        return Compatibility.NEWER
    return Compatibility.OLDER if found.minor == own.minor - 1 else Compatibility.TOO_OLD
