"""Questions for people and their tools: how many, how old, what failed. And the few things that they may change."""

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

#: How long a reanchor waits for a batch that still runs, in milliseconds.
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
        ConfigurationError: it is not.
    """
    if missing := await substrate_missing(connection):
        database = await connection.fetchval("select current_database()")
        raise ConfigurationError(
            f"database {database} is not one of IU Core: {missing[0]} is missing",
            "Is the connection string right? For an empty database: iu-listen apply --base",
        )


async def require_package(connection: Connection) -> None:
    """Make sure that the package is applied, whole.

    Raises:
        ConfigurationError: it is absent or half applied.
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
    # Only a refusal names the others: that query counts every backlog, too much for each start after an absence.
    if not await value(connection, "cursor_exists", worker):
        names = ", ".join(row["worker_name"] for row in await rows(connection, "workers"))
        raise ConfigurationError(f"worker {worker} is not registered", f"Registered: {names or 'none'}.")


async def require_primary(connection: Connection) -> None:
    """Make sure that this server takes writes.

    Raises:
        ConfigurationError: it is a standby, or set read-only.
    """
    for row in await rows(connection, "takes_no_writes"):
        raise ConfigurationError(row["problem"], row["hint"])


async def gates(connection: Connection) -> list[Row]:
    """Every gate: name, key, whether it is open, its raw value, since when. A missing key is a closed gate."""
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
    """The closed gates that keep events from being decided. That of delivery does not, and is closed by default."""
    return [g["gate"] for g in await gates(connection) if not g["open"] and g["gate"] != "delivery"]


async def set_gate(connection: Connection, gate: str, *, opened: bool) -> None:
    """Open or close a gate.

    Raises:
        Refused: the gate's key is missing.
    """
    changed = await rows(connection, "set_gate", GATES[gate], "true" if opened else "false")
    if not changed:
        raise Refused(f"{GATES[gate]} is missing from dot_config, so the gate is closed", "iu-listen apply creates it.")


async def route_live(connection: Connection, code: str, *, live: bool, why: str | None, actor: str | None) -> None:
    """Let a route deliver, or turn it back to dry run; ``actor`` and ``why`` are recorded.

    Raises:
        Refused: its target cannot be delivered to, or this role may not.
    """
    await value(connection, "route_live", code, live, why, actor)


async def worker_health(connection: Connection, worker: str) -> Row:
    """The answer of fn_iu_route_worker_health."""
    health: Row = json.loads(await value(connection, "worker_health", worker))
    return health


def culprit_words(row: Row) -> str:
    """A row of v_iu_culprit in one phrase: who, what is known of the session, since when."""
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
        ConfigurationError: the payload carries a forbidden key or is no JSON, or the type is not registered.
        Refused: the master gate is closed.
    """
    try:
        found = await connection.fetch(query("emit_event"), event_type, address, subject, actor, payload, count)
    except asyncpg.UndefinedObjectError:
        # The emitter of the neutral base says so; that of IU Core answers null.
        found = []
    except asyncpg.CheckViolationError as error:
        if error.constraint_name != "event_outbox_safe_payload_chk":
            raise
        hint = "Events carry metadata only. Forbidden: body, content, raw, vector, embedding, secret, token, password."
        raise ConfigurationError("the payload has a key that must not enter the log", hint) from error
    except (asyncpg.InvalidTextRepresentationError, asyncpg.UntranslatableCharacterError) as error:
        # Python reads NaN and NUL in JSON; PostgreSQL refuses them, and characters that its encoding does not have.
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
    """Decide a dead letter again; the answer of fn_iu_route_dead_letter_replay."""
    answer: Row = json.loads(await value(connection, "replay_dead_letter", dead_letter, actor, why))
    return answer


async def reanchor(connection: Connection, since: datetime | None, *, force: bool, plan: bool) -> Row:
    """Make the history our own, all or nothing; the answer of fn_iu_outbox_reanchor.

    Raises:
        Refused: the gate is open, a batch still runs, or the history is our own already and nobody said force.
    """
    try:
        # A transaction of its own, without savepoints: the anchor must carry its id.
        async with connection.transaction():
            await connection.execute(f"set local lock_timeout = {REANCHOR_WAIT_MS}")
            answer: Row = json.loads(await connection.fetchval(query("reanchor"), since, force, plan))
    except asyncpg.LockNotAvailableError as error:
        raise Refused("somebody holds a cursor: a batch, or another reanchor", "Try again in a moment.") from error
    return answer


async def moment(connection: Connection, text: str) -> datetime:
    """A point in time, or how long ago it was. A time without a zone is UTC, as everything that we print.

    Raises:
        ConfigurationError: it is neither.
    """
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    # PostgreSQL reads a number without a unit as seconds; whoever types one means something else, perhaps a year.
    if not text.strip().isdigit():
        with suppress(asyncpg.DataError):
            ago: datetime = await connection.fetchval(query("ago"), text)
            return ago
    raise ConfigurationError(
        f"{text} is no point in time and no interval", "As in 2h, '3 days' or 2026-11-24T15:00:00Z."
    )
