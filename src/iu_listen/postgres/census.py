"""Queries and small changes for the commands: preconditions, gates, routes, health, events, replays and reanchor."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.facts import GATES
from iu_listen.model.text import duration, number
from iu_listen.postgres.migrate import package_state, substrate_missing
from iu_listen.postgres.session import Connection, errors_become_ours
from iu_listen.postgres.sqlfiles import query

Row = dict[str, Any]

#: Longest wait of a reanchor for a batch that is running, in milliseconds.
REANCHOR_WAIT_MS: Final = 5000


async def rows(connection: Connection, name: str, *args: Any) -> list[Row]:
    """The rows of sql/queries/<name>.sql."""
    with errors_become_ours():
        return [dict(row) for row in await connection.fetch(query(name), *args)]


async def value(connection: Connection, name: str, *args: Any) -> Any:
    """The one value of sql/queries/<name>.sql."""
    with errors_become_ours():
        return await connection.fetchval(query(name), *args)


async def require_substrate(connection: Connection) -> None:
    """Make sure that this is a database of IU Core.

    Raises:
        ConfigurationError: Tables or columns of IU Core are missing.
    """
    if missing := await substrate_missing(connection):
        database = await connection.fetchval("select current_database()")
        raise ConfigurationError(
            f"database {database} is not one of IU Core: {missing[0]} is missing",
            "Is the connection string right? For an empty database: iu-listen apply --base",
        )


async def require_package(connection: Connection) -> None:
    """Make sure that the package is applied completely.

    Raises:
        ConfigurationError: The base or the package is absent, the package is half applied, or it has drift.
    """
    await require_substrate(connection)
    package = await package_state(connection)
    if package.complete:
        return
    if not package.present:
        raise ConfigurationError(
            "the package is not applied to this database", "iu-listen apply --plan, then iu-listen apply"
        )
    if drift := package.drift():
        more = f"; and {len(drift) - 3} more" if len(drift) > 3 else ""
        raise ConfigurationError(
            "; ".join(drift[:3]) + more, "docs/how-to/repair.md, or take it back with iu-listen rollback."
        )
    raise ConfigurationError(
        f"half applied: {package.pending[0].name} is pending",
        "Finish with iu-listen apply, or take it back with iu-listen rollback.",
    )


async def require_worker(connection: Connection, worker: str) -> None:
    """Make sure that a worker of this name is registered.

    Raises:
        ConfigurationError: it is not.
    """
    # The other workers are queried only for the error message: that query counts each backlog, which would take too
    # long at each start after an absence.
    if not await value(connection, "cursor_exists", worker):
        names = ", ".join(row["worker_name"] for row in await rows(connection, "workers"))
        raise ConfigurationError(f"worker {worker} is not registered", f"Registered: {names or 'none'}.")


async def require_primary(connection: Connection) -> None:
    """Make sure that this server accepts writes.

    Raises:
        ConfigurationError: The server is a standby or read-only.
    """
    for row in await rows(connection, "takes_no_writes"):
        raise ConfigurationError(row["problem"], row["hint"])


async def gates(connection: Connection) -> list[Row]:
    """All gates with name, key, state, stored value and time of the last change. A missing key is a closed gate."""
    stored = {row["key"]: row for row in await rows(connection, "gate_values")}
    return [
        {
            "gate": name,
            "key": key,
            "open": key in stored and stored[key]["value"] == "true",
            "value": stored[key]["value"] if key in stored else None,
            "since": stored[key]["updated_at"] if key in stored else None,
        }
        for name, key in GATES.items()
    ]


async def in_the_way(connection: Connection) -> list[str]:
    """The closed gates that stop routing. The delivery gate does not stop routing, and is closed by default."""
    return [g["gate"] for g in await gates(connection) if not g["open"] and g["gate"] != "delivery"]


async def set_gate(connection: Connection, gate: str, *, opened: bool) -> None:
    """Open or close a gate.

    Raises:
        Refused: The key of the gate is missing in dot_config.
    """
    changed = await rows(connection, "set_gate", GATES[gate], "true" if opened else "false")
    if not changed:
        raise Refused(f"{GATES[gate]} is missing from dot_config, so the gate is closed", "iu-listen apply creates it.")


async def route_live(connection: Connection, code: str, *, live: bool, why: str | None, actor: str | None) -> None:
    """Let a route deliver, or turn it back to dry run; ``actor`` and ``why`` are recorded.

    Raises:
        Refused: Its target does not support deliveries, or the role lacks the privilege.
    """
    await value(connection, "route_live", code, live, why, actor)


async def worker_health(connection: Connection, worker: str) -> Row:
    """The answer of fn_iu_route_worker_health."""
    health: Row = json.loads(await value(connection, "worker_health", worker))
    return health


def culprit_words(row: Row) -> str:
    """A row of v_iu_culprit as one phrase: the blocker, its session, its duration and its number of transactions."""
    known = [row["application"], row["database"] and f"database {row['database']}", row["state"]]
    words = str(row["who"]) + (f" ({', '.join(k for k in known if k)})" if any(known) else "")
    if row["seconds"] is not None:
        words += f" for {duration(row['seconds'])}"
    return words + (f", {number(row['xids'])} transactions" if row["xids"] is not None else "")


async def emit(
    connection: Connection, event_type: str, address: str, subject: UUID | None, actor: str, payload: str, count: int
) -> list[UUID]:
    """Emit events through the governed emitter.

    Raises:
        ConfigurationError: The payload has a forbidden key or cannot be stored, or the type is not registered.
        Refused: The master gate is closed.
    """
    try:
        found = await connection.fetch(query("emit_event"), event_type, address, subject, actor, payload, count)
    except asyncpg.UndefinedObjectError:
        # An unregistered type: the emitter of the neutral base raises this error, that of IU Core returns null.
        found = []
    except asyncpg.CheckViolationError as error:
        if error.constraint_name != "event_outbox_safe_payload_chk":
            raise
        hint = "Events carry metadata only. Forbidden: body, content, raw, vector, embedding, secret, token, password."
        raise ConfigurationError("the payload has a key that must not enter the log", hint) from error
    except (asyncpg.InvalidTextRepresentationError, asyncpg.UntranslatableCharacterError) as error:
        # Python accepts NaN and NUL in JSON. PostgreSQL refuses them, and characters that its encoding does not have.
        raise ConfigurationError(f"the database cannot hold what was given: {error}") from error
    ids = [row["id"] for row in found if row["id"] is not None]
    if ids:
        return ids
    known = [row["event_type"] for row in await rows(connection, "registered_types")]
    if event_type not in known:
        raise ConfigurationError(
            f"event type {event_type} is not registered and active", f"Registered: {', '.join(known)}."
        )
    raise Refused("the master gate is closed: nothing is emitted", "iu-listen gate open master")


async def replay(connection: Connection, dead_letter: UUID, actor: str | None, why: str | None = None) -> Row:
    """Replay a dead letter; returns the answer of fn_iu_route_dead_letter_replay."""
    answer: Row = json.loads(await value(connection, "replay_dead_letter", dead_letter, actor, why))
    return answer


async def reanchor(connection: Connection, since: datetime | None, *, force: bool, plan: bool) -> Row:
    """Adopt the history of this database for all cursors in one transaction; the answer of fn_iu_outbox_reanchor.

    Raises:
        Refused: The worker gate is open, a batch is running, or the history is not foreign and ``force`` is not given.
    """
    try:
        # The anchor must contain the id of this transaction, so there must be no savepoint.
        async with connection.transaction():
            await connection.execute(f"set local lock_timeout = {REANCHOR_WAIT_MS}")
            answer: Row = json.loads(await connection.fetchval(query("reanchor"), since, force, plan))
    except asyncpg.LockNotAvailableError as error:
        raise Refused("somebody holds a cursor: a batch, or another reanchor", "Try again in a moment.") from error
    return answer


async def moment(connection: Connection, text: str) -> datetime:
    """A point in time from a timestamp or from an interval before now. A timestamp without a zone is UTC.

    Raises:
        ConfigurationError: The text is neither a timestamp nor an interval.
    """
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    # PostgreSQL reads a number without a unit as seconds. A user who types such a number probably means something else,
    # for example a year.
    if not text.strip().isdigit():
        with suppress(asyncpg.DataError):
            ago: datetime = await connection.fetchval(query("ago"), text)
            return ago
    raise ConfigurationError(
        f"{text} is no point in time and no interval", "As in 2h, '3 days' or 2026-11-24T15:00:00Z."
    )
