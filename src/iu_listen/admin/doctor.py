"""All checks of the command doctor: problems of an installation, each with a hint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from iu_listen.admin import dead_letters, event_types, gates
from iu_listen.admin.adoption import adopted_tables
from iu_listen.admin.health import blocker_phrase, figure_phrase, schema_warning, worker_health
from iu_listen.admin.routes import pending_phrase
from iu_listen.install.package import missing_base_objects, package_state, unsupported_base_types
from iu_listen.install.verify import verify
from iu_listen.model.errors import IuListenError
from iu_listen.model.text import MAX_COUNT, counted, duration, humane, number
from iu_listen.postgres import queries
from iu_listen.postgres.lease import LEASE_KEY
from iu_listen.postgres.session import Connection

#: Age of the oldest attempt that is not exported from which the trace export counts as late, in seconds.
LATE_EXPORT_SECONDS: Final = 60.0


#: Kinds of blockers that can be found only by a role that sees the state and the age of other sessions.
SESSION_BLOCKERS: Final = frozenset({"late_event", "vacuum", "notify_queue"})

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
    checks: tuple[Callable[[Connection, str], Awaitable[Finding | list[Finding]]], ...] = (
        _gates, _delivery, _dead_letters, _history, _policies, _site, _health, _completeness, _traces, _retention,
        _verification, _path, _lease, _queue, _emits, _adopted,
    )  # fmt: skip
    for check in checks:
        try:
            one = await check(connection, worker)
            found += one if isinstance(one, list) else [one]
        except IuListenError as error:
            found.append(Finding("warn", check.__name__.strip("_"), error.message, error.hint))
    return found + [f async for f in _blockers(connection)]


async def _installation(connection: Connection) -> AsyncIterator[Finding]:
    target = (await queries.rows(connection, "target"))[0]
    name = f"{target['database']}, PostgreSQL {target['server_version']}"
    if closed := await queries.rows(connection, "takes_no_writes"):
        yield Finding("fail", "server", f"{name}: {closed[0]['problem']}", closed[0]["hint"])
    else:
        yield Finding("ok", "server", f"{name}: writable primary")
    if missing := await missing_base_objects(connection):
        yield Finding(
            "fail",
            "base",
            f"{len(missing)} objects are missing, for example {missing[0]}",
            "Check the connection string. To create an outbox for your application: iu-listen init",
        )
        return
    if odd := await unsupported_base_types(connection):
        yield Finding("fail", "base", "; ".join(odd[:3]), "Restore the type of the column.")
    else:
        yield Finding("ok", "base", "all tables and columns are as expected")
    package = await package_state(connection)
    if drift := package.drift():
        yield Finding("fail", "package", "; ".join(drift[:3]), "See docs/how-to/repair.md.")
    elif not package.usable:
        pending = (*package.missing, *package.pending)
        words = f"{pending[0].name} is pending" if pending else f"schema {package.version} is {package.compatibility}"
        yield Finding("fail", "package", words, "iu-listen apply --plan")
    elif schema := schema_warning(package):
        yield Finding("warn", "package", schema["detail"], "docs/how-to/upgrade.md")
    else:
        files = len(package.recorded)
        yield Finding("ok", "package", f"{files} files are applied and unchanged; schema {package.version}")


async def _gates(connection: Connection, worker: str) -> Finding:  # noqa: ARG001 one signature for all checks
    if closed := await gates.closed_gates(connection):
        return Finding("warn", "gates", f"closed: {', '.join(closed)}", f"iu-listen gate open {closed[0]}")
    return Finding("ok", "gates", "the master gate and the worker gate are open")


async def _delivery(connection: Connection, worker: str) -> list[Finding]:  # noqa: ARG001
    live = await queries.rows(connection, "live_routes")
    found = []
    for route in live:
        if route["closed_switch"]:
            result = "wait" if route["queued"] else "become dead letters"
            switch = route["closed_switch"].replace("_", " ")
            words = f"route {route['route_code']} is live, but a switch is closed ({switch}): its events {result}"
            found.append(Finding("warn", "delivery", words, f"iu-listen route live {route['route_code']} --plan"))
    switched_off = {route["route_code"] for route in live if route["closed_switch"]}
    for row in await queries.rows(connection, "delivery/routes", MAX_COUNT):
        if row["paused_by"] and row["route_code"] not in switched_off:
            pause = row["paused_by"].replace("_", " ")
            words = f"route {row['route_code']} is paused: {pause}; deliveries that wait: {pending_phrase(row)}"
            # Retries cannot repair these problems; an operator must act.
            level: Level = "fail" if row["paused_by"] == "no_target" or row["why"] == "address_refused" else "warn"
            hint = row["hint"] or "iu-listen delivery list"
            found.append(Finding(level, "delivery", f"{words} ({row['why']})" if row["why"] else words, hint))
    return found or [Finding("ok", "delivery", f"live routes: {', '.join(r['route_code'] for r in live) or 'none'}")]


async def _dead_letters(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    kinds = await dead_letters.kinds(connection)
    if not kinds:
        return Finding("ok", "dead letters", "no dead letter is open")
    words = ", ".join(
        f"{dead_letters.open_phrase(k)} with {k['failure_code']} of route {k['route_code']}" for k in kinds
    )
    return Finding("warn", "dead letters", words, "iu-listen dead-letter list")


async def _history(connection: Connection, worker: str) -> Finding:
    for row in await queries.rows(connection, "workers"):
        if row["worker_name"] == worker:
            if row["refusal"]:
                hint = "The cursor does not belong to this database's history: iu-listen cursor reanchor --plan"
                return Finding("fail", "history", row["refusal"], hint)
            return Finding("ok", "history", "the cursor belongs to this database's history")
    return Finding("fail", "worker", f"{worker} is not registered", "iu-listen cursor show")


async def _policies(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    rows = await queries.rows(connection, "row_security")
    if not rows:
        return Finding("ok", "row level security", "off for all tables")
    words = ", ".join(row["name"] for row in rows)
    hint = "The role of a consumer needs BYPASSRLS, or must own these tables without FORCE."
    if any(row["active"] for row in rows):
        return Finding("fail", "row level security", f"hides rows from this role in {words}", hint)
    return Finding("warn", "row level security", f"on for {words}: other roles are refused", hint)


async def _site(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    rows = await queries.rows(connection, "sites")
    if waiting := next((row for row in rows if row["accepted_at"] is None and row["recent"]), None):
        words = f"a consumer at {waiting['site']} may not deliver: this database may be a copy"
        return Finding("fail", "site", words, f"If it is not a copy: iu-listen cursor site --accept {waiting['site']}")
    known = ", ".join(row["site"] for row in rows if row["accepted_at"]) or "none yet"
    return Finding("ok", "site", f"accepted sites: {known}")


async def _health(connection: Connection, worker: str) -> Finding:
    health = await worker_health(connection, worker)
    if not health["healthy"]:
        reasons = humane("; ".join(health["reasons"]))
        absent = "silent" in reasons or "no consumer routes" in reasons
        return Finding("fail", "health", reasons, "Check that a consumer is running: iu-listen run" if absent else "")
    if health["warnings"]:
        words = ", ".join(f"{w['code'].replace('_', ' ')} {figure_phrase(w)}" for w in health["warnings"])
        return Finding("warn", "health", f"healthy, with {words}", "iu-listen status")
    return Finding("ok", "health", f"healthy, {health['condition'].replace('_', ' ')}")


async def _completeness(connection: Connection, worker: str) -> Finding:
    for row in await queries.rows(connection, "completeness/passes", MAX_COUNT):
        if row["worker_name"] == worker and row["missing"]:
            return Finding(
                "fail",
                "completeness",
                f"{counted(row['missing'])} events lack attempts",
                "iu-listen completeness --repair",
            )
        if row["worker_name"] == worker and row["finished_at"]:
            accepted = f", {counted(row['accepted'])} incomplete events accepted" if row["accepted"] else ""
            return Finding("ok", "completeness", f"complete at {row['finished_at']:%Y-%m-%d %H:%M:%S}Z{accepted}")
    return Finding("ok", "completeness", "no pass has ended yet", "iu-listen completeness")


async def _traces(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    exports = await queries.rows(connection, "trace/exports")
    if not exports:
        return Finding("ok", "traces", "not exported")
    row = exports[0]
    if row["refusal"]:
        return Finding(
            "fail",
            "traces",
            f"the cursor of the export does not belong to this database's history: {row['refusal']}",
            "See docs/how-to/repair.md.",
        )
    if row["seconds"] > LATE_EXPORT_SECONDS:
        words = f"{number(row['waiting'])} attempts are not exported, the oldest for {duration(row['seconds'])}"
        hint = "Check the collector (docs/how-to/traces.md), or end the export: iu-listen trace-export --end"
        return Finding("warn", "traces", words, hint)
    return Finding("ok", "traces", f"{number(row['exported'])} spans are exported")


async def _retention(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    on = [p for p in await queries.rows(connection, "retention/policies") if p["enabled"]]
    idle = [p["what"] for p in on if p["idle"]]
    if idle:
        hint = "Check the timer of `iu-listen retention run`; `iu-listen retention plan` shows the old rows."
        return Finding("warn", "retention", f"no run for two days: {', '.join(idle)}", hint)
    words = ", ".join(f"{p['what']} {p['keep']}" for p in on) or "off: all rows are kept"
    return Finding("ok", "retention", words)


async def _verification(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    wrong = [c for c in await verify(connection, live=True) if not c.passed]
    if wrong:
        words = "; ".join(f"{c.id} {c.label}: expected {c.expected}, observed {c.observed}" for c in wrong)
        return Finding("fail", "verification", words, "See docs/how-to/repair.md.")
    return Finding("ok", "verification", "all W checks pass, for a running worker")


async def _path(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    if connection.pooled:
        hint = "LISTEN does not work through a transaction pooler: set --listen-dsn to a direct connection."
        return Finding("warn", "connection", "through a pooler", hint)
    return Finding("ok", "connection", "direct")


async def _lease(connection: Connection, worker: str) -> Finding:
    (row,) = await queries.rows(connection, "lease_holder", LEASE_KEY, worker)
    holder = row["description"]
    if row["all_unauthorized"]:
        hint = "Consumers ignore that lock. End the session: select pg_terminate_backend(pid)"
        return Finding("fail", "lease", f"a foreign session holds the lock of the lease: {holder}", hint)
    return Finding("ok", "lease", f"held by {holder}" if holder else "free: no consumer is active")


async def _queue(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    return Finding("ok", "notification queue", f"{await queries.value(connection, 'notification_queue'):.0%} full")


async def _emits(connection: Connection, worker: str) -> Finding:  # noqa: ARG001
    count = await event_types.refused(connection)
    if count is None:
        hint = "docs/how-to/producers.md#an-event-that-is-refused"
        return Finding("ok", "refused events", "not counted: this emitter returns null for unregistered types", hint)
    if count:
        words = (
            "1 event of an unregistered type was"
            if count == 1
            else f"{number(count)} events of unregistered types were"
        )
        hint = "Register the type, or correct the producer; then: iu-listen event-type refused --reset"
        return Finding("warn", "refused events", f"{words} refused", hint)
    return Finding("ok", "refused events", "none")


async def _adopted(connection: Connection, worker: str) -> list[Finding]:  # noqa: ARG001
    """One finding for each adopted table; none if there is none."""
    return [
        Finding("fail", "adopted table", f"{table.table}: {table.problem}", "docs/how-to/adopt.md#check-and-end-it")
        if table.problem
        else Finding("ok", "adopted table", table.table)
        for table in await adopted_tables(connection)
    ]


#: For each kind of blocker (v_iu_blocker): severity, title and hint of the finding, and the text if there is none.
_BLOCKER_FINDINGS: Final[dict[str, tuple[Literal["warn", "fail"], str, str, str]]] = {
    "trigger": (
        "fail", "triggers", "alter table {table} enable always trigger {name}",
        "the triggers of the package always fire",
    ),
    "lease": (
        "fail", "foreign lease", "Find the owner of that session, and end it: select pg_terminate_backend({pid})", "",
    ),
    "bell_key": (
        "warn", "bell keys", "That session uses the advisory locks of iu-listen. Find its owner.",
        "used only by iu-listen",
    ),
    "notify_queue": ("warn", "notification queue blocked", "End that session: select pg_terminate_backend({pid})", ""),
    "late_event": (
        "warn", "open transactions", "Their events are routed when they commit; nothing else waits.",
        "no transaction that may have written events is older than 10 s",
    ),
    "vacuum": (
        "warn", "vacuum", "See docs/how-to/repair.md#vacuum-is-held-back.", "not delayed for five minutes or longer",
    ),
}  # fmt: skip


async def _blockers(connection: Connection) -> AsyncIterator[Finding]:
    rows = await queries.rows(connection, "blockers")
    sees = await queries.value(connection, "sees_sessions")
    if not sees:
        yield Finding(
            "warn",
            "other sessions",
            "this role cannot see their state and age, so some blockers cannot be found",
            "Use the login of the consumer. (pg_read_all_stats would also show the statements of other sessions.)",
        )
    for what, (level, title, hint, fine) in _BLOCKER_FINDINGS.items():
        mine = [row for row in rows if row["what"] == what]
        if mine:
            table, _, name = mine[0]["who"].partition(".")
            words = "; ".join(blocker_phrase(row) for row in mine[:5])
            words += f"; and {len(mine) - 5} more" if len(mine) > 5 else ""
            yield Finding(level, title, words, hint.format(table=table, name=name, pid=mine[0]["pid"]))
        elif fine and (sees or what not in SESSION_BLOCKERS):
            yield Finding("ok", title, fine)
