"""Dead letters and deliveries, many at once: found by filters, then replayed, resolved or cancelled in parts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import anyio

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.text import number
from iu_listen.postgres import census
from iu_listen.postgres.session import Connection

Row = census.Row

#: Longest count of dead letters in a list; beyond it is "more than".
MOST_COUNTED: Final = 10_000
#: How many dead letters or deliveries one transaction takes at most.
PART: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which dead letters. What is None lets everything through.

    Attributes:
        route: Of this route.
        failure: With this failure code.
        since: Created since then.
        event: Of this event.
        subject: About this subject: event_subject_ref or canonical_address.
    """

    route: str | None = None
    failure: str | None = None
    since: datetime | None = None
    event: UUID | None = None
    subject: str | None = None

    @property
    def columns(self) -> tuple[Any, ...]:
        """Those that are columns, in the order in which the queries expect them."""
        return self.route, self.failure, self.since, self.event


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A page of dead letters.

    Attributes:
        letters: They, the newest first.
        total: How many there are on all pages, counted up to MOST_COUNTED + 1.
    """

    letters: list[Row]
    total: int


@dataclass(kw_only=True)
class Plan:
    """What a replay or a resolution of many would concern.

    Attributes:
        until: Only what was created until then.
        groups: By route and failure code: count, oldest_at, newest_at, an example, route_enabled and route_dry_run.
    """

    until: datetime
    groups: list[Row] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many dead letters."""
        return sum(group["count"] for group in self.groups)


async def page(connection: Connection, which: Filter, *, resolved: bool, before: UUID | None, limit: int) -> Listed:
    """The dead letters that are older than ``before``, the newest first."""
    if before is not None and await census.rows(connection, "dead_letter/missing", [before]):
        raise no_such_letter(before)
    ids = await _of_subject(connection, which, resolved=resolved)
    letters = await census.rows(connection, "list_dead_letters", resolved, *which.columns, ids, before, limit)
    if before is None and len(letters) < limit:
        return Listed(letters=letters, total=len(letters))
    total = await census.value(connection, "dead_letter/count", resolved, *which.columns, ids, MOST_COUNTED + 1)
    return Listed(letters=letters, total=total)


async def kinds(connection: Connection) -> list[Row]:
    """Open dead letters by route and failure code, each counted up to MOST_COUNTED + 1."""
    return await census.rows(connection, "dead_letter/kinds", MOST_COUNTED + 1)


def counted(count: int) -> str:
    """A count that ended at MOST_COUNTED, in words."""
    words = number(min(count, MOST_COUNTED))
    return f"more than {words}" if count > MOST_COUNTED else words


async def plan(connection: Connection, which: Filter) -> Plan:
    """What replaying or resolving all of these would concern now."""
    until = await census.value(connection, "dead_letter/now")
    ids = await _of_subject(connection, which, resolved=False)
    return Plan(until=until, groups=await census.rows(connection, "dead_letter/plan", *which.columns, ids, until))


async def _of_subject(connection: Connection, which: Filter, *, resolved: bool) -> list[UUID] | None:
    if which.subject is None:
        return None
    return [row["id"] for row in await census.rows(connection, "dead_letter/of_subject", which.subject, resolved)]


async def show(connection: Connection, id: UUID) -> Row:
    """One dead letter, whole.

    Raises:
        ConfigurationError: there is none of this id.
    """
    found = await census.rows(connection, "show_dead_letter", id)
    if not found:
        raise no_such_letter(id)
    return found[0]


async def replay_all(
    connection: Connection, planned: Plan, which: Filter, actor: str | None, why: str | None, rate: float | None
) -> AsyncIterator[Row]:
    """Replay what was planned, part by part. Each part is a transaction, and yields route_code and the answers.

    Args:
        connection: The session.
        planned: What plan() found.
        which: The same filter.
        actor: Who asks; None: the database user.
        why: Why.
        rate: How many a second at most; None: as fast as it goes.
    """
    limit = max(1, min(PART, int(rate))) if rate else PART
    # One route after the other, so that a part is decided in one way.
    for route in dict.fromkeys(group["route_code"] for group in planned.groups):
        at: datetime | None = None
        id: UUID | None = None
        more = True
        while more:
            answer = json.loads(
                await census.value(
                    connection, "dead_letter/replay_part", route, which.failure, which.since, which.event,
                    which.subject, actor, why, planned.until, at, id, limit,
                )
            )  # fmt: skip
            yield {"route_code": route, **answer}
            more = answer["status"] == "ran" and answer["more"]
            if more:
                at, id = datetime.fromisoformat(answer["after_at"]), UUID(answer["after_id"])
                if rate:
                    await anyio.sleep(answer["done"] / rate)


async def resolve(connection: Connection, ids: list[UUID], why: str, actor: str | None) -> int:
    """Resolve these without a replay; how many were open and not on their way.

    Raises:
        ConfigurationError: there is none of one of these ids.
    """
    await require(connection, ids)
    count: int = await census.value(connection, "dead_letter/resolve", ids, why, actor)
    return count


async def resolve_all(
    connection: Connection, planned: Plan, which: Filter, why: str, actor: str | None
) -> AsyncIterator[tuple[int, int]]:
    """Resolve what was planned, part by part; of each part how many were looked at, and how many resolved."""
    at: datetime | None = None
    id: UUID | None = None
    while part := await census.rows(
        connection, "dead_letter/open_part", *which.columns, which.subject, planned.until, at, id, PART
    ):
        count: int = await census.value(connection, "dead_letter/resolve", [row["id"] for row in part], why, actor)
        yield len(part), count
        at, id = part[-1]["created_at"], part[-1]["id"]


async def require(connection: Connection, ids: list[UUID]) -> None:
    """Make sure that each of these is a dead letter.

    Raises:
        ConfigurationError: one is none.
    """
    if missing := await census.rows(connection, "dead_letter/missing", ids):
        raise no_such_letter(missing[0]["id"])


def no_such_letter(id: UUID) -> ConfigurationError:
    """The error for an id that no dead letter has."""
    return ConfigurationError(f"there is no dead letter {id}", "iu-listen dead-letter list --resolved")


async def cancel_plan(connection: Connection, route: str, event: UUID | None) -> Row:
    """What cancelling would end: count, last_id, oldest_at, newest_at; held_by and known of the route."""
    return (await census.rows(connection, "delivery/cancel_plan", route, event))[0]


async def cancel(
    connection: Connection, route: str, event: UUID | None, until: int, why: str, actor: str | None
) -> AsyncIterator[int]:
    """Cancel deliveries up to the id ``until``, part by part; how many of each part."""
    after, more = 0, True
    while more:
        answer = json.loads(
            await census.value(connection, "delivery/cancel", route, event, why, actor, after, until, PART)
        )
        after, more = answer["after"], answer["more"]
        yield answer["cancelled"]
