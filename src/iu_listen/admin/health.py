"""The health of a worker, and the description of a blocker."""

from __future__ import annotations

import json
from typing import Final

from iu_listen.install.package import Package
from iu_listen.model.text import counted, duration, number
from iu_listen.model.version import SCHEMA, VERSION, Compatibility
from iu_listen.postgres.queries import Row, value
from iu_listen.postgres.session import Connection

#: What to do if the schema version of the database differs from that of this version of iu-listen, and both work.
_UPGRADE: Final = {
    Compatibility.NEWER: f"install the newer version of iu-listen here; this is {VERSION}",
    Compatibility.OLDER: "run iu-listen apply",
}


#: Codes of the warnings whose figure is counted up to MAX_COUNT + 1.
_CAPPED: Final = frozenset({"backlog", "open_dead_letters"})


async def worker_health(connection: Connection, worker: str, package: Package | None = None) -> Row:
    """The answer of fn_iu_route_worker_health, with a warning if the schema version differs.

    Args:
        connection: A session.
        worker: The worker.
        package: The state of the package; None: no such warning.
    """
    health: Row = json.loads(await value(connection, "worker_health", worker))
    if package and (warning := schema_warning(package)):
        health["warnings"].append(warning)
    return health


def schema_warning(package: Package) -> Row | None:
    """The warning that the schema of the database is newer or older than that of this iu-listen; None: it is equal."""
    todo = _UPGRADE.get(package.compatibility)
    if todo is None:
        return None
    state = package.compatibility
    detail = f"schema {package.version} of this database is {state} than schema {SCHEMA} of this iu-listen: {todo}"
    return {"code": f"schema_{state}", "figure": str(package.version), "detail": detail}


def figure_phrase(warning: Row) -> str:
    """The figure of a warning, as text."""
    figure = warning["figure"]
    if not isinstance(figure, int):
        return str(figure)
    return counted(figure) if warning["code"] in _CAPPED else number(figure)


def blocker_phrase(row: Row) -> str:
    """A row of v_iu_blocker as one phrase: the blocker, its session, its duration and its number of transactions."""
    known = [row["application"], row["database"] and f"database {row['database']}", row["state"]]
    words = str(row["who"]) + (f" ({', '.join(k for k in known if k)})" if any(known) else "")
    if row["seconds"] is not None:
        words += f" for {duration(row['seconds'])}"
    return words + (f", {number(row['xids'])} transactions" if row["xids"] is not None else "")
