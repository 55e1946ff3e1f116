"""Bulk operations: finds dead letters or deliveries by filters, and replays, resolves or cancels them in parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import anyio

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.text import MAX_COUNT, MAX_SEARCHED, counted_up_to
from iu_listen.postgres import queries
from iu_listen.postgres.queries import Row
from iu_listen.postgres.session import Connection

#: Largest number of dead letters or deliveries in one transaction.
MAX_PART: Final = 1000


@dataclass(frozen=True, kw_only=True)
class DeadLetterFilter:
    """Selects dead letters. An attribute that is None does not restrict the selection.

    Attributes:
        route: Code of the route.
        failure: Failure code.
        since: Earliest time at which the dead letter was created.
        event: Id of the event.
        subject: Subject of the event: event_subject_ref or canonical_address.
    """

    route: str | None = None
    failure: str | None = None
    since: datetime | None = None
    event: UUID | None = None
    subject: str | None = None

    @property
    def columns(self) -> tuple[Any, ...]:
        """The attributes except ``subject``, in the order in which the queries expect them."""
        return self.route, self.failure, self.since, self.event


@dataclass(frozen=True, kw_only=True)
class DeadLetterPage:
    """A page of dead letters.

    Attributes:
        rows: The dead letters of this page, the newest first.
        total: Number of dead letters on all pages, counted up to MAX_COUNT + 1.
        whole: Whether all dead letters were searched; if not, the newest MAX_SEARCHED were.
    """

    rows: list[Row]
    total: int
    whole: bool


@dataclass(kw_only=True)
class BulkPlan:
    """The dead letters that a bulk replay or a bulk resolution would change.

    Attributes:
        until: Latest time of creation; newer dead letters are left out.
        groups: One row for each route and failure code: count, oldest_at, newest_at, an example, route_enabled and
            route_dry_run.
    """

    until: datetime
    groups: list[Row] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of dead letters in all groups."""
        return sum(group["count"] for group in self.groups)


async def page(
    connection: Connection,
    filter: DeadLetterFilter,
    *,
    resolved: bool,
    before: UUID | None,
    limit: int,
    exact: bool = False,
) -> DeadLetterPage:
    """A page of dead letters that are older than ``before``, the newest first.

    No index serves a search for a subject, nor one by route or failure code that includes resolved dead letters. Such a
    search ends after MAX_SEARCHED dead letters, unless it is ``exact``.

    Raises:
        ConfigurationError: There is no dead letter with the id ``before``.
    """
    if before is not None and await queries.rows(connection, "dead_letter/missing", [before]):
        raise no_such_dead_letter(before)
    lowest, since = None, filter.since
    if not exact and (filter.subject or (resolved and (filter.route or filter.failure))):
        lowest = await queries.value(connection, "dead_letter/from", before, MAX_SEARCHED)
        since = max((t for t in (lowest, since) if t), default=None)
    ids = await _of_subject(connection, filter, resolved=resolved, since=since)
    routes = [filter.route] if filter.route else None
    if filter.failure and not routes and not resolved:
        # The index on the kinds of dead letters begins with the route.
        routes = [row["route_code"] for row in await queries.rows(connection, "dead_letter/routes_of", filter.failure)]
    chosen = (resolved, routes, filter.failure, since, filter.event, ids)
    found = await queries.rows(connection, "list_dead_letters", *chosen, before, limit)
    total = len(found)
    if before is not None or total >= limit:
        total = await queries.value(connection, "dead_letter/count", *chosen, None if exact else MAX_COUNT + 1)
    return DeadLetterPage(rows=found, total=total, whole=lowest is None or since != lowest)


async def kinds(connection: Connection, *, exact: bool = False) -> list[Row]:
    """Open dead letters by route and failure code.

    Each kind is counted up to MAX_COUNT + 1, and to fewer if there are more than ten kinds; with ``exact`` all dead
    letters are counted.
    """
    return await queries.rows(connection, "dead_letter/kinds", None if exact else MAX_COUNT)


def open_phrase(kind: Row) -> str:
    """The number of dead letters of a kind, as text."""
    return counted_up_to(kind["open"], more=kind["more"])


async def plan(connection: Connection, filter: DeadLetterFilter) -> BulkPlan:
    """The dead letters that a bulk replay or resolution with this filter would change now."""
    until = await queries.value(connection, "dead_letter/now")
    ids = await _of_subject(connection, filter, resolved=False, since=filter.since)
    return BulkPlan(until=until, groups=await queries.rows(connection, "dead_letter/plan", *filter.columns, ids, until))


async def plan_of(connection: Connection, ids: list[UUID]) -> BulkPlan:
    """The open dead letters among these."""
    until = await queries.value(connection, "dead_letter/now")
    return BulkPlan(until=until, groups=await queries.rows(connection, "dead_letter/plan", *[None] * 4, ids, until))


async def _of_subject(
    connection: Connection, filter: DeadLetterFilter, *, resolved: bool, since: datetime | None
) -> list[UUID] | None:
    if filter.subject is None:
        return None
    found = await queries.rows(connection, "dead_letter/of_subject", filter.subject, resolved, since)
    return [row["id"] for row in found]


async def show(connection: Connection, id: UUID) -> Row:
    """All columns of one dead letter.

    Raises:
        ConfigurationError: There is no dead letter with this id.
    """
    found = await queries.rows(connection, "show_dead_letter", id)
    if not found:
        raise no_such_dead_letter(id)
    return found[0]


def undelivered(group: Row) -> str | None:
    """The decision with which a replay would resolve the dead letters of a group without a delivery.

    Returns:
        ``no_route``: the route does not exist. ``dry_run``: it is a dry run. None: the replay delivers, or the dead
        letter stays open.
    """
    if group["route_enabled"] is None:
        return "no_route"
    return "dry_run" if group["route_enabled"] and group["route_dry_run"] else None


async def replay_all(
    connection: Connection,
    planned: BulkPlan,
    filter: DeadLetterFilter,
    actor: str | None,
    why: str | None,
    rate: float | None,
    *,
    without_delivery: bool = False,
) -> AsyncIterator[Row]:
    """Replay the planned dead letters in parts. Each part is one transaction, and yields its route_code and its answer.

    Args:
        connection: The session.
        planned: The result of plan().
        filter: The filter that was given to plan().
        actor: Name that is recorded; None: the database user.
        why: Reason that is recorded.
        rate: Largest number of replays in a second; None: no limit.
        without_delivery: Also replay dead letters that would be resolved without a delivery, because their route is a
            dry run or does not exist. Else these stay open and unchanged.
    """
    limit = max(1, min(MAX_PART, int(rate))) if rate else MAX_PART
    kept: Counter[tuple[str, str]] = Counter()
    for group in () if without_delivery else planned.groups:
        if decision := undelivered(group):
            kept[group["route_code"], decision] += group["count"]
    for (route, decision), count in kept.items():
        yield {"route_code": route, "status": "ran", "done": count, "answers": {f"not_replayed {decision}": count}}
    # One route after the other, so that all dead letters of a part have the same route and get the same decision.
    for route in dict.fromkeys(g["route_code"] for g in planned.groups if without_delivery or not undelivered(g)):
        at: datetime | None = None
        id: UUID | None = None
        more = True
        while more:
            answer = json.loads(
                await queries.value(
                    connection, "dead_letter/replay_part", route, filter.failure, filter.since, filter.event,
                    filter.subject, actor, why, planned.until, at, id, limit,
                )
            )  # fmt: skip
            yield {"route_code": route, **answer}
            more = answer["status"] == "ran" and answer["more"]
            if more:
                at, id = datetime.fromisoformat(answer["after_at"]), UUID(answer["after_id"])
                if rate:
                    await anyio.sleep(answer["done"] / rate)


async def resolve(connection: Connection, ids: list[UUID], why: str, actor: str | None) -> int:
    """Resolve dead letters without a replay.

    Returns:
        The number of dead letters that were resolved: those that were open and had no delivery in progress.

    Raises:
        ConfigurationError: One of the ids belongs to no dead letter.
    """
    await require(connection, ids)
    count: int = await queries.value(connection, "dead_letter/resolve", ids, why, actor)
    return count


async def resolve_all(
    connection: Connection, planned: BulkPlan, filter: DeadLetterFilter, why: str, actor: str | None
) -> AsyncIterator[tuple[int, int]]:
    """Resolve the planned dead letters in parts; yields for each part the numbers of examined and resolved ones."""
    at: datetime | None = None
    id: UUID | None = None
    while part := await queries.rows(
        connection, "dead_letter/open_part", *filter.columns, filter.subject, planned.until, at, id, MAX_PART
    ):
        count: int = await queries.value(connection, "dead_letter/resolve", [row["id"] for row in part], why, actor)
        yield len(part), count
        at, id = part[-1]["created_at"], part[-1]["id"]


async def require(connection: Connection, ids: list[UUID]) -> None:
    """Make sure that a dead letter exists for each id.

    Raises:
        ConfigurationError: One of the ids belongs to no dead letter.
    """
    if missing := await queries.rows(connection, "dead_letter/missing", ids):
        raise no_such_dead_letter(missing[0]["id"])


def no_such_dead_letter(id: UUID) -> ConfigurationError:
    """The error for an id that no dead letter has."""
    return ConfigurationError(f"there is no dead letter {id}", "`iu-listen dead-letter list --resolved` lists all.")


async def cancel_plan(connection: Connection, route: str, event: UUID | None) -> Row:
    """The deliveries that a cancellation would end (count, last_id, oldest_at, newest_at), and the route's state.

    The state consists of the columns paused_by (why the route is paused; null: it is not, or it does not exist) and
    known (whether the route exists).
    """
    return (await queries.rows(connection, "delivery/cancel_plan", route, event))[0]


async def cancel(
    connection: Connection, route: str, event: UUID | None, until: int, why: str, actor: str | None
) -> AsyncIterator[int]:
    """Cancel deliveries up to the id ``until`` in parts; yields the number of cancelled deliveries of each part."""
    after, more = 0, True
    while more:
        answer = json.loads(
            await queries.value(connection, "delivery/cancel", route, event, why, actor, after, until, MAX_PART)
        )
        after, more = answer["after"], answer["more"]
        yield answer["cancelled"]


async def replay(
    connection: Connection,
    dead_letter: UUID,
    actor: str | None,
    why: str | None = None,
    *,
    without_delivery: bool = False,
) -> Row:
    """Replay a dead letter; returns the answer of fn_iu_route_dead_letter_replay.

    Unless ``without_delivery`` is true, a dead letter that would be resolved without a delivery stays open and
    unchanged. The answer then has the status ``not_replayed``, and the decision ``dry_run`` or ``no_route``.
    """
    if not without_delivery:
        for group in (await plan_of(connection, [dead_letter])).groups:
            if decision := undelivered(group):
                return {
                    "status": "not_replayed", "dead_letter_id": str(dead_letter), "route_code": group["route_code"],
                    "decision": decision, "resolved": False,
                }  # fmt: skip
    answer: Row = json.loads(await queries.value(connection, "replay_dead_letter", dead_letter, actor, why))
    return answer
