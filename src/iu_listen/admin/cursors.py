"""Adopts the history of a restored database for the cursors."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Final

import asyncpg

from iu_listen.model.errors import Refused
from iu_listen.postgres.queries import Row
from iu_listen.postgres.session import Connection
from iu_listen.postgres.sqlfiles import query

#: Longest wait of a reanchor for a batch that is running, in milliseconds.
REANCHOR_LOCK_TIMEOUT_MS: Final = 5000


async def reanchor(connection: Connection, since: datetime | None, *, force: bool, plan: bool) -> Row:
    """Adopt the history of this database for all cursors in one transaction; the answer of fn_iu_outbox_reanchor.

    Raises:
        Refused: The worker gate is open, a batch is running, or the history is not foreign and ``force`` is not given.
    """
    try:
        # The anchor must contain the id of this transaction, so there must be no savepoint.
        async with connection.transaction():
            await connection.execute(f"set local lock_timeout = {REANCHOR_LOCK_TIMEOUT_MS}")
            answer: Row = json.loads(await connection.fetchval(query("reanchor"), since, force, plan))
    except asyncpg.LockNotAvailableError as error:
        raise Refused(
            "a cursor is locked by a running batch or by another reanchor", "Repeat the command in a few seconds."
        ) from error
    return answer
