"""The health of a worker, and the description of a blocker."""

from __future__ import annotations

import json

from iu_listen.model.text import duration, number
from iu_listen.postgres.queries import Row, value
from iu_listen.postgres.session import Connection


async def worker_health(connection: Connection, worker: str) -> Row:
    """The answer of fn_iu_route_worker_health."""
    health: Row = json.loads(await value(connection, "worker_health", worker))
    return health


def blocker_phrase(row: Row) -> str:
    """A row of v_iu_blocker as one phrase: the blocker, its session, its duration and its number of transactions."""
    known = [row["application"], row["database"] and f"database {row['database']}", row["state"]]
    words = str(row["who"]) + (f" ({', '.join(k for k in known if k)})" if any(known) else "")
    if row["seconds"] is not None:
        words += f" for {duration(row['seconds'])}"
    return words + (f", {number(row['xids'])} transactions" if row["xids"] is not None else "")
