"""The commands delivery list, delivery cancel, route policy and route resume."""

from __future__ import annotations

import json
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import dead_letters as letters
from iu_listen.admin.ids import whole
from iu_listen.cli import output
from iu_listen.cli.ask import confirmed, progress, reason
from iu_listen.cli.change import Plan, no_such_route, route
from iu_listen.cli.context import ConnectionOptions, between, looking
from iu_listen.cli.ids import ID
from iu_listen.install import requirements
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.settings import mask
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection
from iu_listen.targets.check import check

#: The columns of the table of routes that deliver.
DELIVERIES = ("route", "target", "on its way", "retrying", "oldest", "held by", "because of")

delivery = App(name="delivery", help="List what is on its way to a target, and cancel it.")


def register(app: App) -> None:
    """Add these commands."""
    app.command(delivery)
    route.command(policy, name="policy")
    route.command(resume, name="resume")


def print_deliveries(routes: list[queries.Row]) -> None:
    """Print the table of routes that deliver, and below it the hints for paused routes."""
    output.table(DELIVERIES, delivery_rows(routes))
    for row in routes:
        if row["hint"]:
            output.note(f"{row['route_code']}: {row['hint']}")


def delivery_rows(routes: list[queries.Row]) -> list[tuple[Any, ...]]:
    """The rows of the table of routes that deliver."""
    return [
        (r["route_code"], f"{r['target_kind']} {mask(r['target_ref'])}", r["pending"], r["retrying"],
         output.ago(r["since"]), output.mark(not r["paused_by"], "–", output.text(r["paused_by"])), r["why"])
        for r in routes
    ]  # fmt: skip


@delivery.command(name="list")
def delivery_list(
    *,
    limit: Annotated[int, Parameter(help="How many parked subjects at most.", validator=between(1, 1_000_000))] = 20,
    where: ConnectionOptions | None = None,
) -> int:
    """List every route that delivers: how much is on its way, since when, and what holds it; and parked subjects.

    A subject is parked, on a route that keeps its order, while an earlier event of it waits for its next attempt.
    """

    async def run() -> dict[str, list[queries.Row]]:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            return {
                "routes": await queries.rows(connection, "delivery/routes"),
                "parked": await queries.rows(connection, "delivery/parked", limit + 1),
            }

    found = anyio.run(run)
    more, found["parked"] = len(found["parked"]) > limit, found["parked"][:limit]
    if where and where.json:
        output.as_json(found)
        return 0
    print_deliveries(found["routes"])
    if found["parked"]:
        output.table(
            ("route", "parked subject", "behind it", "waits for", "since", "attempts", "failure"),
            (
                (p["route_code"], p["subject"], p["depth"], p["waits_for"], output.ago(p["since"]), p["tries"],
                 p["failure_code"])
                for p in found["parked"]
            ),
        )  # fmt: skip
    if more:
        output.note(f"More than these {output.text(limit)} subjects are parked: --limit")
    return 0


@delivery.command(name="cancel")
def delivery_cancel(
    code: str,
    /,
    *,
    why: Annotated[str, Parameter(help="Why; kept in the dead letters.")],
    event: Annotated[str | None, ID, Parameter(help="Only the delivery of this event.")] = None,
    actor: Annotated[str | None, Parameter(help="Who asks; recorded. Default: the database user.")] = None,
    plan: Plan = False,
    yes: Annotated[bool, Parameter(help="Do it without asking.", negative=())] = False,
    where: ConnectionOptions | None = None,
) -> int:
    """End deliveries of a route that is held (route dry CODE). Each becomes a dead letter, and can be replayed.

    It is done in parts, a transaction each: the consumer goes on meanwhile, and Ctrl-C leaves the rest as it is.
    """
    reason(why)

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            one = await whole(connection, "event", event) if event else None
            found = await letters.cancel_plan(connection, code, one)
            if not found["known"] and not found["count"]:
                raise await no_such_route(connection, code)
            if found["known"] and not found["paused_by"]:
                raise Refused(
                    f"route {code} delivers: nothing of it can be cancelled", f"First: iu-listen route dry {code}"
                )
            if plan or (found["count"] and not yes and not (where and where.json)):
                _print_cancel_plan(code, found, where, plan=plan)
            if plan:
                return 0
            count = 0
            if found["count"]:
                if event is None:
                    confirmed(f"Cancel {output.text(found['count'])} deliveries of {code}?", yes=yes)
                with progress("cancelling", found["count"]) as advance:
                    async for part in letters.cancel(connection, code, one, found["last_id"], why, actor):
                        count += part
                        advance(part)
        if where and where.json:
            output.as_json({"route": code, "cancelled": count})
        else:
            output.line(f"{output.text(count)} cancelled.")
        return 0

    return anyio.run(run)


def _print_cancel_plan(code: str, found: queries.Row, where: ConnectionOptions | None, *, plan: bool) -> None:
    if where and where.json:
        output.as_json(
            {"route": code, "would_cancel": found["count"], "paused_by": found["paused_by"],
             "oldest_at": found["oldest_at"], "newest_at": found["newest_at"]}
        )  # fmt: skip
        return
    output.table(
        ("route", "held by", "deliveries", "oldest", "newest"),
        ((code, found["paused_by"], found["count"], output.ago(found["oldest_at"]), output.ago(found["newest_at"])),),
    )
    if plan:
        output.note(
            f"Plan: {output.text(found['count'])} delivery(ies) would become dead letters; nothing was changed."
        )


def policy(
    code: str,
    changes: Annotated[
        list[str] | None, Parameter(help="As in attempts=3; the value is JSON. name= takes it away.")
    ] = None,
    /,
    *,
    where: ConnectionOptions | None = None,
) -> int:
    """Show how a route delivers, or change it: attempts, backoff, deadline, concurrency, order, ...

    Durations are in seconds. docs/how-to/delivery.md lists all of them. A consumer takes a change at its next turn.

    dead_letters_in_a_row is the budget of dead letters: so many of them, with no event delivered in between, stop the
    route until its target takes an event.
    """

    async def run() -> queries.Row:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            found = await _policy(connection, code)
            if changes:
                await requirements.require_primary(connection)
                after = _changed(found["set"], changes)
                await _require_options(connection, code, found["set"], after)
                await queries.value(connection, "delivery/set_policy", code, json.dumps(after))
                found = await _policy(connection, code)
            return found

    found = anyio.run(run)
    if where and where.json:
        output.as_json(found)
    else:
        output.table(
            ("policy", "", ""),
            ((name, json.dumps(value), "" if name in found["set"] else "default")
             for name, value in sorted(found["policy"].items())),
        )  # fmt: skip
    return 0


async def _policy(connection: Any, code: str) -> queries.Row:
    found = await queries.rows(connection, "delivery/policy", code)
    if not found:
        raise await no_such_route(connection, code)
    return {name: json.loads(value) for name, value in found[0].items()}


async def _require_options(connection: Connection, code: str, before: queries.Row, after: queries.Row) -> None:
    """Make sure that a changed policy does not break the target of a route.

    Raises:
        Refused: The target is invalid with the changed options, and was valid before.
    """
    if not isinstance(after.get("target", {}), dict):
        # The policy is invalid; the database refuses it with its own message.
        return
    (found,) = await queries.rows(connection, "route_switches", code)
    then, now = (
        check(found["target_kind"], found["target_ref"], policy.get("target", {})) for policy in (before, after)
    )
    if now.problem and now.certain and now != then:
        raise Refused(now.problem, f"Nothing was changed. {now.hint}".strip())


def _changed(before: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    after = dict(before)
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ConfigurationError(f"{change} is no name=value", "As in attempts=3, order=subject, or deadline= .")
        if not value:
            after.pop(name, None)
            continue
        try:
            after[name] = json.loads(value)
        except (ValueError, RecursionError):
            # A value that is not JSON is a text. The database checks whether it is allowed.
            after[name] = value
    return after


def resume(code: str, /, *, where: ConnectionOptions | None = None) -> int:
    """Let a route go on at once that has spent its budget of dead letters, or that its circuit breaker holds.

    Both end by themselves with the first event that the target takes.
    """

    async def run() -> bool:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            await _policy(connection, code)
            return bool(await queries.value(connection, "delivery/resume", code))

    resumed = anyio.run(run)
    if where and where.json:
        output.as_json({"route": code, "resumed": resumed})
    else:
        output.line(f"{code} goes on." if resumed else f"{code} was not held by its breaker or its budget.")
    return 0
