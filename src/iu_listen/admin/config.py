"""Compares a configuration file with a database, applies the differences, and writes the state of a database as a file.

Entries of the database that the file does not name stay as they are. No route becomes live or dry by a file.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from iu_listen.admin import event_types, retention, routes, workers
from iu_listen.install.migrate import is_lock_conflict, retry_on_lock_timeout
from iu_listen.model.config_file import ConfigFile, RouteEntry, TypeEntry
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.settings import mask
from iu_listen.postgres.queries import rows, value
from iu_listen.postgres.session import NO_PRIVILEGE, Connection


@dataclass(frozen=True)
class Change:
    """One difference between a file and a database.

    Attributes:
        kind: ``type``, ``route``, ``policy``, ``worker``, ``retention`` or ``payload``.
        name: Name of the entry.
        before: The state in the database; None: there is no such entry.
        after: The state in the file.
        apply: Makes the change.
    """

    kind: str
    name: str
    before: str | None
    after: str
    apply: Callable[[], Awaitable[object]]


async def changes(connection: Connection, config: ConfigFile) -> list[Change]:
    """The differences between a file and a database, in the order in which they can be applied.

    Raises:
        Refused: An entry exists with properties that do not change, as the stream of a type or the target of a route;
            or the base of IU Core has a list of forbidden keys of its own.
    """
    return [
        *[c async for c in _types(connection, config)],
        *[c async for c in _workers(connection, config)],
        *[c async for c in _routes(connection, config)],
        *[c async for c in _retention(connection, config)],
        *[c async for c in _payload(connection, config)],
    ]


async def apply_changes(connection: Connection, found: list[Change]) -> None:
    """Apply all differences in one transaction, which is repeated while another session holds a lock that it needs.

    Raises:
        Refused: The database refuses a change; the message names its entry.
    """

    async def work() -> None:
        async with connection.transaction():
            for change in found:
                await _apply(change)

    await retry_on_lock_timeout(connection, work)


async def try_changes(connection: Connection, found: list[Change]) -> list[str]:
    """Make the changes in a transaction that is rolled back, so that a plan refuses each file that cannot be applied.

    New workers are left out, because they lock the outbox until the transaction ends.

    Returns:
        A text for each new route that cannot be made live in its planned form. If the session may not write, so that
        the changes cannot be tried, one text that says so.

    Raises:
        Refused: The database refuses a change; the message names its entry.
    """
    for row in await rows(connection, "takes_no_writes"):
        return [f"The changes were not tried: {row['problem']}."]
    transaction, problems = connection.transaction(), []
    await transaction.start()
    try:
        for change in found:
            if change.kind != "worker":
                await _apply(change)
        for change in found:
            if change.kind == "route":
                verdict = await routes.target_verdict(connection, await routes.switches(connection, change.name))
                if verdict.certain and verdict.problem:
                    problems.append(
                        f"Route {change.name} cannot be made live: {verdict.problem}. {verdict.hint}".strip()
                    )
    except Refused as error:
        if error.sqlstate != NO_PRIVILEGE:
            raise
        return [f"The changes were not tried: {error.message}."]
    finally:
        await transaction.rollback()
    return problems


async def _apply(change: Change) -> None:
    try:
        await change.apply()
    except Refused as error:
        # The caller recognizes these two by the error of the driver, and by the SQLSTATE.
        if is_lock_conflict(error) or error.sqlstate == NO_PRIVILEGE:
            raise
        raise Refused(f"{change.kind} {change.name}: {error.message}", error.hint, error.sqlstate) from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{change.kind} {change.name}: {error.message}", error.hint) from error


async def _types(connection: Connection, config: ConfigFile) -> AsyncIterator[Change]:
    there = {(t["event_domain"], t["event_type"]): t for t in await event_types.list_types(connection)}
    for entry in config.types:
        found = there.get((entry.domain, entry.name))
        wanted = f"stream {entry.stream}, lane {entry.lane}"
        present = f"stream {found['event_stream']}, lane {found['delivery_lane']}" if found else None
        if found and present != wanted:
            raise Refused(
                f"event type {entry.name} has {present}, and the file says {wanted}",
                "The stream and the lane of a type do not change. Correct the file, or use another type.",
            )
        if not found or not found["active"]:
            before = "inactive" if found else None
            yield Change("type", entry.name, before, wanted, partial(_add_type, connection, entry))


async def _add_type(connection: Connection, entry: TypeEntry) -> None:
    await event_types.add_type(
        connection, entry.name, domain=entry.domain, stream=entry.stream, lane=entry.lane, severity=entry.severity
    )


async def _workers(connection: Connection, config: ConfigFile) -> AsyncIterator[Change]:
    there = {row["worker_name"]: row["event_domain"] for row in await rows(connection, "workers")}
    for name, domain in config.workers.items():
        event_types.require_name("the worker", name)
        event_types.require_name("the domain", domain)
        if name not in there:
            add = partial(workers.add_worker, connection, name, domain)
            yield Change("worker", name, None, f"domain {domain}", add)
        elif there[name] != domain:
            raise Refused(
                f"worker {name} reads domain {there[name]}, and the file says {domain}",
                "The domain of a worker does not change. Use another name.",
            )


async def _routes(connection: Connection, config: ConfigFile) -> AsyncIterator[Change]:
    there = {row["route_code"]: row for row in await rows(connection, "list_routes", None)}
    for entry in config.routes:
        kind, target = routes.parse_target(entry.to)
        if mask(entry.to) != entry.to:
            raise Refused(
                f"the address of route {entry.code} contains a password", "docs/how-to/delivery.md: refer to secrets."
            )
        found = there.get(entry.code)
        wanted = f"{entry.type} to {kind} {target}"
        present = f"{found['event_type']} to {found['target_kind']} {mask(found['target_ref'])}" if found else None
        if found and present != wanted:
            raise Refused(
                f"route {entry.code} delivers {present}, and the file says {wanted}",
                "The events and the target of a route do not change. Use another code, and remove the old route.",
            )
        if not found:
            yield Change("route", entry.code, None, f"{wanted}, as a dry run", partial(_add_route, connection, entry))
        before = await _policy(connection, entry.code) if found else {}
        if before != dict(entry.policy):
            set_policy = partial(value, connection, "delivery/set_policy", entry.code, json.dumps(entry.policy))
            yield Change("policy", entry.code, json.dumps(before), json.dumps(entry.policy), set_policy)


async def _add_route(connection: Connection, entry: RouteEntry) -> None:
    await routes.add_route(connection, entry.code, event_type=entry.type, target=entry.to, domain=entry.domain)


async def _policy(connection: Connection, code: str) -> dict[str, Any]:
    (found,) = await rows(connection, "delivery/policy", code)
    policy: dict[str, Any] = json.loads(found["set"])
    return policy


async def _retention(connection: Connection, config: ConfigFile) -> AsyncIterator[Change]:
    there = {
        row["what"]: row["keep"] if row["enabled"] else "off" for row in await rows(connection, "retention/policies")
    }
    for what, keep in config.retention.items():
        wanted = "off" if keep == "off" else await retention.interval(connection, keep)
        if there[what] != wanted:
            set_policy = partial(retention.set_policy, connection, what, None if wanted == "off" else wanted)
            yield Change("retention", what, there[what], wanted, set_policy)


async def _payload(connection: Connection, config: ConfigFile) -> AsyncIterator[Change]:
    if config.forbidden_keys is None:
        return
    if await value(connection, "is_iu_core"):
        raise Refused(
            "the base of IU Core has a fixed list of forbidden keys",
            "Take [payload] out of the file.",
        )
    before, after = await value(connection, "payload/forbidden_keys"), ",".join(config.forbidden_keys) or None
    if before != after:
        forbid = partial(value, connection, "payload/forbid_keys", after)
        yield Change("payload", "forbidden_keys", before or "none", after or "none", forbid)


async def as_toml(connection: Connection) -> str:
    """The state of a database as the text of a configuration file."""
    lines: list[str] = []
    for found in await event_types.list_types(connection):
        entry = {"domain": found["event_domain"], "stream": found["event_stream"], "lane": found["delivery_lane"]}
        lines += [f"[types.{_key(found['event_type'])}]", *(f"{k} = {json.dumps(v)}" for k, v in entry.items()), ""]
    for found in await rows(connection, "list_routes", None):
        prefix = {"workflow": "coroutine:", "sql_function": "sql:"}.get(found["target_kind"], "")
        entry = {
            "type": found["event_type"], "to": prefix + mask(found["target_ref"]), "domain": found["event_domain"],
        }  # fmt: skip
        lines += [f"[routes.{_key(found['route_code'])}]", *(f"{k} = {json.dumps(v)}" for k, v in entry.items())]
        lines += [*_policy_lines(await _policy(connection, found["route_code"])), ""]
    for found in await rows(connection, "workers"):
        lines += [f"[workers.{_key(found['worker_name'])}]", f"domain = {json.dumps(found['event_domain'])}", ""]
    lines.append("[retention]")
    for found in await rows(connection, "retention/policies"):
        lines.append(f"{found['what']} = {json.dumps(found['keep'] if found['enabled'] else 'off')}")
    if forbidden := await value(connection, "payload/forbidden_keys"):
        lines += ["", "[payload]", f"forbidden_keys = {json.dumps([key.strip() for key in forbidden.split(',')])}"]
    return "\n".join(lines) + "\n"


def _policy_lines(policy: dict[str, Any]) -> list[str]:
    return [f"policy.{_key(name)} = {_toml(value)}" for name, value in sorted(policy.items())]


def _toml(given: Any) -> str:
    """A JSON value as TOML; an object becomes an inline table."""
    if isinstance(given, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_toml(value)}" for name, value in given.items()) + " }"
    if isinstance(given, list):
        return "[" + ", ".join(_toml(value) for value in given) + "]"
    return json.dumps(given)


def _key(name: str) -> str:
    return name if name and all(c.isalnum() or c in "_-" for c in name) and name.isascii() else json.dumps(name)
