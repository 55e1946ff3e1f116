"""Everything that could be wrong with an installation, looked at in one go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from iu_listen.model.errors import IuListenError
from iu_listen.postgres import census
from iu_listen.postgres.migrate import package_state, substrate_missing
from iu_listen.postgres.session import Connection
from iu_listen.postgres.verify import verify
from iu_listen.postgres.worker import LEASE_KEY

#: From here on the NOTIFY queue is worth a look; at half full the bell stays silent.
QUEUE_WARNING: Final = 0.1


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found, and what to do about it."""

    level: Literal["ok", "warn", "fail"]
    what: str
    found: str
    hint: str = ""

    def as_json(self) -> dict[str, Any]:
        """The machine-readable form."""
        return asdict(self)


async def examine(connection: Connection, worker: str) -> list[Finding]:
    """Look at everything, in order; without the package most looks are left out."""
    found = [f async for f in _installation(connection)]
    if any(f.level == "fail" for f in found):
        return found
    looks: tuple[Callable[[Connection, str], Awaitable[Finding]], ...] = (
        _gates, _history, _health, _triggers, _verification, _path, _lease, _queue, _late,
    )  # fmt: skip
    for look in looks:
        try:
            found.append(await look(connection, worker))
        except IuListenError as error:
            found.append(Finding("warn", look.__name__.strip("_"), error.message, error.hint))
    return found


async def _installation(connection: Connection) -> AsyncIterator[Finding]:
    target = (await census.rows(connection, "target"))[0]
    name = f"{target['database']}, PostgreSQL {target['server_version']}"
    if target["standby"] or target["read_only"]:
        yield Finding("fail", "server", f"{name}: takes no writes", "Connect to the primary.")
    else:
        yield Finding("ok", "server", f"{name}: writable primary")
    if missing := await substrate_missing(connection):
        yield Finding(
            "fail",
            "substrate",
            f"{len(missing)} missing, {missing[0]} first",
            "Is this the database of IU Core? For an empty one: iu-listen apply --base",
        )
        return
    yield Finding("ok", "substrate", "in the expected shape")
    package = await package_state(connection)
    if drift := package.drift():
        yield Finding("fail", "package", "; ".join(drift[:3]), "docs/how-to/repair.md")
    elif not package.complete:
        yield Finding("fail", "package", f"{package.pending[0].name} is pending", "iu-listen apply --plan")
    else:
        yield Finding("ok", "package", f"{len(package.recorded)} files applied, unchanged since")


async def _gates(connection: Connection, worker: str) -> Finding:  # noqa: ARG001 one shape for all looks
    closed = [g["gate"] for g in await census.gates(connection) if not g["open"]]
    if closed:
        return Finding("warn", "gates", f"closed: {', '.join(closed)}", f"iu-listen gate open {closed[0]}")
    return Finding("ok", "gates", "open")


async def _history(connection: Connection, worker: str) -> Finding:
    for row in await census.rows(connection, "workers"):
        if row["worker_name"] == worker:
            if row["refusal"]:
                return Finding(
                    "fail", "history", row["refusal"], "The cursor was not written here. docs/how-to/repair.md"
                )
            return Finding("ok", "history", "our own")
    return Finding("fail", "worker", f"{worker} is not registered", "iu-listen cursor show")


async def _health(connection: Connection, worker: str) -> Finding:
    health = await census.worker_health(connection, worker)
    if not health["healthy"]:
        reasons = "; ".join(health["reasons"])
        return Finding("fail", "health", reasons, "Is a consumer running? iu-listen run" if "silent" in reasons else "")
    if health["warnings"]:
        words = ", ".join(f"{w['code'].replace('_', ' ')} {w['figure']}" for w in health["warnings"])
        return Finding("warn", "health", f"healthy, with {words}", "iu-listen status")
    return Finding("ok", "health", f"healthy, {health['state']}")


async def _triggers(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    wrong = [row["name"] for row in await census.rows(connection, "triggers") if not row["always"]]
    if wrong:
        table, _, trigger = wrong[0].partition(".")
        hint = f"alter table {table} enable always trigger {trigger}"
        return Finding("fail", "triggers", f"disabled, or not always firing: {', '.join(wrong)}", hint)
    return Finding("ok", "triggers", "stamps and bells fire always")


async def _verification(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    wrong = [c for c in await verify(connection, live=True) if not c.passed]
    if wrong:
        words = "; ".join(f"{c.id} {c.label}: expected {c.expected}, observed {c.observed}" for c in wrong)
        return Finding("fail", "verification", words, "docs/how-to/repair.md")
    return Finding("ok", "verification", "W checks as a running worker's must be")


async def _path(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    if connection.pooled:
        hint = "In transaction mode LISTEN does not work through it: give --listen-dsn a direct connection."
        return Finding("warn", "path", "a pooler stands between us and the server", hint)
    return Finding("ok", "path", "direct")


async def _lease(connection: Connection, worker: str) -> Finding:
    holder = await census.value(connection, "lease_holder", LEASE_KEY, worker)
    return Finding("ok", "lease", f"held by {holder}" if holder != "nobody any more" else "free: no consumer is active")


async def _queue(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    usage = await census.value(connection, "notification_queue")
    if usage > QUEUE_WARNING:
        hint = "A listening session is idle in transaction: find it in pg_stat_activity and end it."
        return Finding("warn", "notification queue", f"{usage:.0%} full", hint)
    return Finding("ok", "notification queue", f"{usage:.0%} full")


async def _late(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    rows = await census.rows(connection, "old_transactions")
    if rows:
        who = "; ".join(f"{row['who']} for {row['seconds']:.0f} s" for row in rows)
        return Finding(
            "warn", "open transactions", who, "Their events are routed when they commit; nothing else waits."
        )
    return Finding("ok", "open transactions", "none older than a minute")
