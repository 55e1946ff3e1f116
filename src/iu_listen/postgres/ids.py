"""Ids as people type them: whole, or the beginning of one that no other has."""

from __future__ import annotations

import re
from typing import Final, Literal
from uuid import UUID

from iu_listen.model.errors import ConfigurationError
from iu_listen.postgres import census
from iu_listen.postgres.session import Connection

Kind = Literal["event", "dead_letter"]

#: Fewest characters of a beginning: less is rather a mistake.
SHORTEST: Final = 4
#: Where the ids of a kind are listed.
LISTED: Final = {"event": "iu-listen attempts", "dead_letter": "iu-listen dead-letter list"}


def is_id(text: str) -> bool:
    """Whether it is a UUID, with or without dashes, or the beginning of one."""
    digits = text.replace("-", "")
    return SHORTEST <= len(digits) <= 32 and re.fullmatch(r"[0-9a-fA-F]+", digits) is not None


def between(beginning: str) -> tuple[UUID, UUID]:
    """The lowest and the highest id with this beginning."""
    digits = beginning.replace("-", "")
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


async def whole(connection: Connection, kind: Kind, text: str) -> UUID:
    """The id that is meant. One that was typed whole is not looked up.

    Raises:
        ConfigurationError: none begins so, or several do, which are named.
    """
    low, high = between(text)
    if low == high:
        return low
    found = [row["id"] for row in await census.rows(connection, f"ids/{kind}", low, high)]
    if len(found) == 1:
        return UUID(str(found[0]))
    name = kind.replace("_", " ")
    if not found:
        raise ConfigurationError(f"there is no {name} whose id begins with {text}", LISTED[kind])
    more = ", and more" if len(found) > 5 else ""
    raise ConfigurationError(
        f"several {name}s have an id that begins with {text}: {', '.join(map(str, found[:5]))}{more}",
        "Type more of it.",
    )
