"""All checks of the command doctor: problems of an installation, each with a hint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from iu_listen.admin import dead_letters as letters
from iu_listen.admin import gates
from iu_listen.admin.health import blocker_phrase, worker_health
from iu_listen.install.migrate import package_state, substrate_missing, substrate_odd
from iu_listen.install.verify import verify
from iu_listen.model.errors import IuListenError
from iu_listen.model.text import duration, humane, number
from iu_listen.postgres import queries
from iu_listen.postgres.lease import LEASE_KEY
from iu_listen.postgres.session import Connection

#: Age of the oldest attempt that is not exported from which the trace export counts as late, in seconds.
LATE_TRACES: Final = 60.0


#: Kinds of blockers that can be found only by a role that sees the state and the age of other sessions.
OF_SESSIONS: Final = frozenset({"late_event", "vacuum", "notify_queue"})

#: Severity of a finding.
Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, with a hint for the operator."""

    level: Level
    what: str
    found: str
    hint: str = ""

    def as_json(self) -> dict[str, Any]:
        """The machine-readable form."""
        return asdict(self)


async def examine(connection: Connection, worker: str) -> list[Finding]:
    """Run all checks in order. If a check of the installation fails, the checks after it are left out."""
    found = [f async for f in _installation(connection)]
    if any(f.level == "fail" for f in found):
        return found
    looks: tuple[Callable[[Connection, str], Awaitable[Finding | list[Finding]]], ...] = (
        _gates, _delivery, _letters, _history, _policies, _site, _health, _audit, _traces, _retention, _verification,
        _path, _lease, _queue, _emits,
    )  # fmt: skip
    for look in looks:
        try:
            one = await look(connection, worker)
            found += one if isinstance(one, list) else [one]
        except IuListenError as error:
            found.append(Finding("warn", look.__name__.strip("_"), error.message, error.hint))
    return found + [f async for f in _culprits(connection)]


async def _installation(connection: Connection) -> AsyncIterator[Finding]:
    target = (await queries.rows(connection, "target"))[0]
    name = f"{target['database']}, PostgreSQL {target['server_version']}"
    if closed := await queries.rows(connection, "takes_no_writes"):
        yield Finding("fail", "server", f"{name}: {closed[0]['problem']}", closed[0]["hint"])
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
    if odd := await substrate_odd(connection):
        yield Finding("fail", "substrate", "; ".join(odd[:3]), "Give the column its type back.")
    else:
        yield Finding("ok", "substrate", "in the expected shape")
    package = await package_state(connection)
    if drift := package.drift():
        yield Finding("fail", "package", "; ".join(drift[:3]), "docs/how-to/repair.md")
    elif not package.complete:
        yield Finding("fail", "package", f"{package.pending[0].name} is pending", "iu-listen apply --plan")
    else:
        yield Finding("ok", "package", f"{len(package.recorded)} files applied, unchanged since")


async def _gates(connection: Connection, worker: str) -> Finding:  # noqa: ARG001 one shape for all looks
    if closed := await gates.in_the_way(connection):
        return Finding("warn", "gates", f"closed: {', '.join(closed)}", f"iu-listen gate open {closed[0]}")
    return Finding("ok", "gates", "open")


async def _delivery(connection: Connection, worker: str) -> list[Finding]:  # noqa: ARG001
    live = await queries.rows(connection, "live_routes")
    found = []
    for route in live:
        if route["lock"]:
            comes = "wait" if route["queued"] else "become dead letters"
            words = f"{route['route_code']} is live, and {route['lock'].replace('_', ' ')}: its events {comes}"
            found.append(Finding("warn", "delivery", words, f"iu-listen route live {route['route_code']} --plan"))
    locked = {route["route_code"] for route in live if route["lock"]}
    for row in await queries.rows(connection, "delivery/routes"):
        if row["paused_by"] and row["route_code"] not in locked:
            words = f"{row['route_code']}: {number(row['pending'])} wait, paused by {row['paused_by']}"
            # Retries cannot repair these problems; an operator must act.
            level: Level = "fail" if row["paused_by"] == "no_target" or row["why"] == "address_refused" else "warn"
            hint = row["hint"] or "iu-listen delivery list"
            found.append(Finding(level, "delivery", f"{words} ({row['why']})" if row["why"] else words, hint))
    return found or [Finding("ok", "delivery", f"live: {', '.join(r['route_code'] for r in live) or 'none'}")]


async def _letters(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    kinds = await letters.kinds(connection)
    if not kinds:
        return Finding("ok", "dead letters", "none is open")
    words = ", ".join(f"{letters.counted(k['open'])} {k['failure_code']} of {k['route_code']}" for k in kinds)
    return Finding("warn", "dead letters", words, "iu-listen dead-letter list")


async def _history(connection: Connection, worker: str) -> Finding:
    for row in await queries.rows(connection, "workers"):
        if row["worker_name"] == worker:
            if row["refusal"]:
                hint = "The cursor was not written here: iu-listen cursor reanchor --plan"
                return Finding("fail", "history", row["refusal"], hint)
            return Finding("ok", "history", "our own")
    return Finding("fail", "worker", f"{worker} is not registered", "iu-listen cursor show")


async def _policies(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    rows = await queries.rows(connection, "row_security")
    if not rows:
        return Finding("ok", "row level security", "on none of the tables")
    words = ", ".join(row["name"] for row in rows)
    hint = "A role that consumes needs BYPASSRLS, or to own these tables without FORCE."
    if any(row["active"] for row in rows):
        return Finding("fail", "row level security", f"hides rows from this role: {words}", hint)
    return Finding("warn", "row level security", f"on {words}: other roles are refused", hint)


async def _site(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    rows = await queries.rows(connection, "sites")
    if waiting := next((row for row in rows if row["accepted_at"] is None and row["recent"]), None):
        words = f"a consumer at {waiting['site']} may not deliver: is this database a copy?"
        return Finding("fail", "site", words, f"If it may: iu-listen cursor site --accept {waiting['site']}")
    known = ", ".join(row["site"] for row in rows if row["accepted_at"]) or "none yet"
    return Finding("ok", "site", f"consumers deliver from: {known}")


async def _health(connection: Connection, worker: str) -> Finding:
    health = await worker_health(connection, worker)
    if not health["healthy"]:
        reasons = humane("; ".join(health["reasons"]))
        absent = "silent" in reasons or "nobody routes" in reasons
        return Finding("fail", "health", reasons, "Is a consumer running? iu-listen run" if absent else "")
    if health["warnings"]:
        words = ", ".join(f"{w['code'].replace('_', ' ')} {number(w['figure'])}" for w in health["warnings"])
        return Finding("warn", "health", f"healthy, with {words}", "iu-listen status")
    return Finding("ok", "health", f"healthy, {health['condition'].replace('_', ' ')}")


async def _audit(connection: Connection, worker: str) -> Finding:
    for row in await queries.rows(connection, "completeness/passes"):
        if row["worker_name"] == worker and row["missing"]:
            return Finding(
                "fail",
                "completeness",
                f"{number(row['missing'])} events lack attempts",
                "iu-listen completeness --repair",
            )
        if row["worker_name"] == worker and row["finished_at"]:
            accepted = f", {number(row['accepted'])} accepted as they are" if row["accepted"] else ""
            return Finding("ok", "completeness", f"complete at {row['finished_at']:%Y-%m-%d %H:%M:%S}Z{accepted}")
    return Finding("ok", "completeness", "none has ended yet", "iu-listen completeness")


async def _traces(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    exports = await queries.rows(connection, "trace/exports")
    if not exports:
        return Finding("ok", "traces", "not exported")
    row = exports[0]
    if row["refusal"]:
        return Finding("fail", "traces", f"the cursor is not believed: {row['refusal']}", "docs/how-to/repair.md")
    if row["seconds"] > LATE_TRACES:
        words = f"{number(row['waiting'])} attempts are not exported, the oldest for {duration(row['seconds'])}"
        hint = "Does the collector take them? docs/how-to/traces.md. Or for good: iu-listen trace-export --end"
        return Finding("warn", "traces", words, hint)
    return Finding("ok", "traces", f"exported: {number(row['exported'])} spans")


async def _retention(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    on = [p for p in await queries.rows(connection, "retention/policies") if p["enabled"]]
    idle = [p["what"] for p in on if p["idle"]]
    if idle:
        hint = "Does its timer run? iu-listen retention plan"
        return Finding("warn", "retention", f"no run for two days: {', '.join(idle)}", hint)
    words = ", ".join(f"{p['what']} {p['keep']}" for p in on) or "off: everything is kept"
    return Finding("ok", "retention", words)


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
    (row,) = await queries.rows(connection, "lease_holder", LEASE_KEY, worker)
    holder = row["words"]
    if row["strangers"]:
        hint = "Consumers work without it. Whose session is it? End it: select pg_terminate_backend(pid)"
        return Finding("fail", "lease", f"its lock is held by a stranger: {holder}", hint)
    return Finding("ok", "lease", f"held by {holder}" if holder != "nobody any more" else "free: no consumer is active")


async def _queue(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    return Finding("ok", "notification queue", f"{await queries.value(connection, 'notification_queue'):.0%} full")


async def _emits(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    rows = await queries.rows(connection, "refused_emits")
    if not rows:
        hint = "docs/how-to/producers.md#an-event-that-is-refused"
        return Finding("ok", "refused events", "not counted: this emitter answers null for unregistered types", hint)
    if rows[0]["refused"]:
        return Finding(
            "warn",
            "refused events",
            f"{number(rows[0]['refused'])} of unregistered types, so far",
            "Register the type; then count anew: select setval('iu_emit_refused_seq', 1, false)",
        )
    return Finding("ok", "refused events", "none")


#: For each kind of blocker (v_iu_blocker): severity, title and hint of the finding, and the text if there is none.
_BLOCKERS: Final[dict[str, tuple[Literal["warn", "fail"], str, str, str]]] = {
    "trigger": (
        "fail", "triggers", "alter table {table} enable always trigger {name}", "stamps and bells fire always",
    ),
    "lease": ("fail", "foreign lease", "Whose session is it? End it: select pg_terminate_backend({pid})", ""),
    "bell_key": ("warn", "bell keys", "Whose session is it? It uses our advisory locks.", "held by ours only"),
    "notify_queue": ("warn", "notify queue held", "End that session: select pg_terminate_backend({pid})", ""),
    "late_event": (
        "warn", "open transactions", "Their events are routed when they commit; nothing else waits.",
        "none that may have written events is older than 10 s",
    ),
    "vacuum": ("warn", "vacuum", "docs/how-to/repair.md#vacuum-is-held-back", "held back by nobody for five minutes"),
}  # fmt: skip


async def _culprits(connection: Connection) -> AsyncIterator[Finding]:
    rows = await queries.rows(connection, "blockers")
    sees = await queries.value(connection, "sees_sessions")
    if not sees:
        yield Finding(
            "warn",
            "other sessions",
            "this role sees neither their state nor their age, so not all who are in the way can be named",
            "Ask as the login of the consumer. (pg_read_all_stats would show the statements of everybody, too.)",
        )
    for what, (level, title, hint, fine) in _BLOCKERS.items():
        mine = [row for row in rows if row["what"] == what]
        if mine:
            table, _, name = mine[0]["who"].partition(".")
            words = "; ".join(blocker_phrase(row) for row in mine[:5])
            words += f"; and {len(mine) - 5} more" if len(mine) > 5 else ""
            yield Finding(level, title, words, hint.format(table=table, name=name, pid=mine[0]["pid"]))
        elif fine and (sees or what not in OF_SESSIONS):
            yield Finding("ok", title, fine)
