"""The command group delivery: list and cancel deliveries."""

from __future__ import annotations

from typing import Annotated

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import dead_letters
from iu_listen.admin.ids import complete_id
from iu_listen.admin.routes import no_such_route, pending_phrase
from iu_listen.cli import output
from iu_listen.cli.confirm import require_confirmation, require_reason
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.parameters import ID, Actor, Exact, NoQuestion, Plan, in_range
from iu_listen.cli.progress import progress_bar
from iu_listen.install import requirements
from iu_listen.model.errors import Refused
from iu_listen.model.settings import mask
from iu_listen.model.text import MAX_COUNT, number
from iu_listen.postgres import queries

delivery: App = App(name="delivery", help="List and cancel deliveries.")


def register(app: App) -> None:
    """Add this group."""
    app.command(delivery)


def print_delivering_routes(routes: list[queries.Row]) -> None:
    """Print the table of routes that deliver, and below it the hints for paused routes."""
    output.table(
        ("route", "target", "deliveries", "retrying", "oldest", "paused by", "reason"),
        (
            (r["route_code"], f"{r['target_kind']} {mask(r['target_ref'])}", pending_phrase(r),
             "at least " * (r["more"] and r["retrying"] > 0) + number(r["retrying"]),
             output.ago(r["since"]), output.mark(not r["paused_by"], "–", output.text(r["paused_by"])), r["why"])
            for r in routes
        ),
    )  # fmt: skip
    for row in routes:
        if row["hint"]:
            output.note(f"{row['route_code']}: {row['hint']}")


@delivery.command(name="list")
def delivery_list(
    *,
    limit: Annotated[int, Parameter(help="Largest number of parked subjects.", validator=in_range(1, 1_000_000))] = 20,
    exact: Exact = False,
    options: ConnectionOptions | None = None,
) -> int:
    """List every route that delivers, and the subjects with parked deliveries.

    The list shows the number of deliveries of each route, the age of the oldest, and the reason if the route is paused.
    On an ordered route, a delivery is parked while an earlier event of its subject waits for its next attempt.
    """

    async def run() -> dict[str, list[queries.Row]]:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            most = None if exact else MAX_COUNT
            return {
                "routes": await queries.rows(connection, "delivery/routes", most),
                "parked": await queries.rows(connection, "delivery/parked", limit + 1, most),
            }

    found = anyio.run(run)
    more, found["parked"] = len(found["parked"]) > limit, found["parked"][:limit]
    if options and options.json:
        output.as_json(found)
        return 0
    print_delivering_routes(found["routes"])
    if found["parked"]:
        output.table(
            ("route", "parked subject", "parked deliveries", "waits for event", "since", "attempts", "failure"),
            (
                (p["route_code"], p["subject"], p["depth"], p["waits_for"], output.ago(p["since"]), p["tries"],
                 p["failure_code"])
                for p in found["parked"]
            ),
        )  # fmt: skip
    if more:
        output.note(f"Only {output.text(limit)} parked subjects are shown. To see more, use --limit.")
    if partly := [r["route_code"] for r in found["routes"] if r["more"]]:
        output.note(f"Only the oldest deliveries were searched for parked ones: {', '.join(partly)}. For all: --exact.")
    return 0


@delivery.command(name="cancel")
def delivery_cancel(
    code: str,
    /,
    *,
    why: Annotated[str, Parameter(help="Reason; stored in the dead letters.")],
    event: Annotated[str | None, ID, Parameter(help="Only the delivery of this event.")] = None,
    actor: Actor = None,
    plan: Plan = False,
    yes: NoQuestion = False,
    options: ConnectionOptions | None = None,
) -> int:
    """End the deliveries of a paused route (route dry CODE). Each becomes a dead letter, which can be replayed.

    The command works in parts, one transaction each: the consumer goes on meanwhile, and after Ctrl-C the rest is
    unchanged.
    """
    require_reason(why)

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            one = await complete_id(connection, "event", event) if event else None
            found = await dead_letters.cancel_plan(connection, code, one)
            if not found["known"] and not found["count"]:
                raise await no_such_route(connection, code)
            if found["known"] and not found["paused_by"]:
                raise Refused(
                    f"route {code} is live: its deliveries cannot be cancelled",
                    f"Make it a dry run first: iu-listen route dry {code}",
                )
            if plan or (found["count"] and not yes and not (options and options.json)):
                _print_plan(code, found, options, plan=plan)
            if plan:
                return 0
            count = 0
            if found["count"]:
                if event is None:
                    require_confirmation(f"Cancel {output.text(found['count'])} deliveries of {code}?", yes=yes)
                with progress_bar("cancelling", found["count"]) as advance:
                    async for part in dead_letters.cancel(connection, code, one, found["last_id"], why, actor):
                        count += part
                        advance(part)
        if options and options.json:
            output.as_json({"route": code, "cancelled": count})
        else:
            output.line(f"Cancelled: {output.plural(count, 'delivery', 'deliveries')}.")
        return 0

    return anyio.run(run)


def _print_plan(code: str, found: queries.Row, options: ConnectionOptions | None, *, plan: bool) -> None:
    if options and options.json:
        output.as_json(
            {"route": code, "would_cancel": found["count"], "paused_by": found["paused_by"],
             "oldest_at": found["oldest_at"], "newest_at": found["newest_at"]}
        )  # fmt: skip
        return
    output.table(
        ("route", "paused by", "deliveries", "oldest", "newest"),
        ((code, found["paused_by"], found["count"], output.ago(found["oldest_at"]), output.ago(found["newest_at"])),),
    )
    if plan:
        output.note(
            f"Plan: {output.plural(found['count'], 'delivery', 'deliveries')} would be cancelled; nothing was changed."
        )
