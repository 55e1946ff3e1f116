"""The commands route policy and route resume."""

from __future__ import annotations

import json
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import routes
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.route import route
from iu_listen.install import requirements
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection
from iu_listen.targets.check import check


def register(app: App) -> None:  # noqa: ARG001 the group route, which is registered, has these commands
    """Add these commands."""
    route.command(policy, name="policy")
    route.command(resume, name="resume")


def policy(
    code: str,
    changes: Annotated[
        list[str] | None,
        Parameter(help="For example attempts=3; the value is JSON or a word. NAME= restores the default."),
    ] = None,
    /,
    *,
    options: ConnectionOptions | None = None,
) -> int:
    """Show or change the delivery policy of a route: attempts, backoff, deadline, concurrency, order, ...

    Durations are in seconds. docs/how-to/delivery.md lists all names. A change is effective with the consumer's next
    take, within a second.

    dead_letters_in_a_row is the budget of dead letters: after so many dead letters without a successful delivery
    between them, the route is stopped until its target accepts an event.
    """

    async def run() -> queries.Row:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            found = await _policy(connection, code)
            if changes:
                await requirements.require_primary(connection)
                after = _changed(found["set"], changes)
                await _require_valid_target(connection, code, found["set"], after)
                await queries.value(connection, "delivery/set_policy", code, json.dumps(after))
                found = await _policy(connection, code)
            return found

    found = anyio.run(run)
    if options and options.json:
        output.as_json(found)
    else:
        output.table(
            ("name", "value", "source"),
            ((name, json.dumps(value), "route" if name in found["set"] else "default")
             for name, value in sorted(found["policy"].items())),
        )  # fmt: skip
    return 0


async def _policy(connection: Connection, code: str) -> queries.Row:
    found = await queries.rows(connection, "delivery/policy", code)
    if not found:
        raise await routes.no_such_route(connection, code)
    return {name: json.loads(value) for name, value in found[0].items()}


async def _require_valid_target(connection: Connection, code: str, before: queries.Row, after: queries.Row) -> None:
    """Make sure that a changed policy does not break the target of a route.

    Raises:
        Refused: The target is invalid with the changed options, and was valid before.
    """
    if not isinstance(after.get("target", {}), dict):
        # The policy is invalid; the database refuses it with its own message.
        return
    found = await routes.switches(connection, code)
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
            raise ConfigurationError(
                f"{change} has not the form NAME=VALUE", "For example attempts=3, order=subject, or deadline= ."
            )
        if not value:
            after.pop(name, None)
            continue
        try:
            after[name] = json.loads(value)
        except (ValueError, RecursionError):
            # A value that is not JSON is a text. The database checks whether it is allowed.
            after[name] = value
    return after


def resume(code: str, /, *, options: ConnectionOptions | None = None) -> int:
    """Resume at once a route that is paused by its budget of dead letters or by its circuit breaker.

    Both pauses also end by themselves, with the first event that the target accepts.
    """

    async def run() -> bool:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            await _policy(connection, code)
            return bool(await queries.value(connection, "delivery/resume", code))

    resumed = anyio.run(run)
    if options and options.json:
        output.as_json({"route": code, "resumed": resumed})
    elif resumed:
        output.line(f"{code} is resumed.")
    else:
        output.line(f"{code} was not paused by its circuit breaker or by its budget of dead letters.")
    return 0
