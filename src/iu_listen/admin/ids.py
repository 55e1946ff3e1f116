"""Ids as a user types them: complete, or the first characters if only one id begins with them."""

from __future__ import annotations

import re
from typing import Final, Literal
from uuid import UUID

from iu_listen.model.errors import ConfigurationError
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection

IdKind = Literal["event", "dead_letter"]

#: Smallest number of characters of a shortened id. A shorter text is probably a mistake.
MIN_PREFIX_CHARS: Final = 4
#: The commands that list the ids of a kind.
LIST_COMMANDS: Final = {"event": "iu-listen attempts", "dead_letter": "iu-listen dead-letter list"}


def is_id(text: str) -> bool:
    """Whether the text is a UUID, with or without dashes, or the first characters of one."""
    digits = text.replace("-", "")
    return MIN_PREFIX_CHARS <= len(digits) <= 32 and re.fullmatch(r"[0-9a-fA-F]+", digits) is not None


def id_range(beginning: str) -> tuple[UUID, UUID]:
    """The lowest and the highest id that begin with this text."""
    digits = beginning.replace("-", "")
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


async def complete_id(connection: Connection, kind: IdKind, text: str) -> UUID:
    """The complete id for a text. A complete id is returned without a query.

    Raises:
        ConfigurationError: No id begins with the text, or several ids do; the message names up to five of them.
    """
    low, high = id_range(text)
    if low == high:
        return low
    found = [row["id"] for row in await queries.rows(connection, f"ids/{kind}", low, high)]
    if len(found) == 1:
        return UUID(str(found[0]))
    name = kind.replace("_", " ")
    if not found:
        raise ConfigurationError(
            f"there is no {name} whose id begins with {text}", f"`{LIST_COMMANDS[kind]}` lists the ids."
        )
    more = ", and more" if len(found) > 5 else ""
    raise ConfigurationError(
        f"the id {text} is ambiguous; it begins the ids of several {name}s: {', '.join(map(str, found[:5]))}{more}",
        "Use more characters of the id.",
    )
