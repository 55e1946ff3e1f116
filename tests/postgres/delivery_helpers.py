"""Helpers for the tests of deliveries: a consumer that delivers in the test's process,
and targets that record calls."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import anyio
import asyncpg

from iu_listen import Consumer, Delivery, Settings
from iu_listen.model.observation import Stopped
from iu_listen.targets.python import PythonTarget
from support import Recorder

ROUTE = "iu.version_applied.workflow"


@dataclass
class RecordingTarget:
    """A coroutine target that records every call, and then calls ``behave``."""

    behave: Callable[[Delivery], Awaitable[Any]] | None = None
    calls: list[Delivery] = field(default_factory=list)
    delivered: Counter[UUID] = field(default_factory=Counter)
    running: Counter[str | None] = field(default_factory=Counter)
    max_running: int = 0
    """The highest number of simultaneous calls, of all subjects."""
    overlapping: set[str | None] = field(default_factory=set)
    """Subjects that had two simultaneous calls."""

    async def __call__(self, delivery: Delivery) -> None:
        subject = delivery.event.subject
        self.calls.append(delivery)
        self.running[subject] += 1
        self.max_running = max(self.max_running, self.running.total())
        if self.running[subject] > 1:
            self.overlapping.add(subject)
        try:
            if self.behave is not None:
                await self.behave(delivery)
            self.delivered[delivery.event.id] += 1
        finally:
            self.running[subject] -= 1

    def target(self, name: str = "event_outbox") -> PythonTarget:
        return PythonTarget(name, self.__call__)

    @property
    def attempts(self) -> list[int]:
        return [call.attempt for call in self.calls]


async def open_route(
    connection: asyncpg.Connection, route: str = ROUTE, *, address: str | None = None, **policy: Any
) -> None:
    """Open all switches, and set the policy of the route; its target is this address, or else its coroutine."""
    if address is not None:
        await connection.execute(
            "update iu_outbound_route set target_kind = 'external_endpoint', target_ref = $2 where route_code = $1",
            route,
            address,
        )
    await connection.execute(
        "update iu_outbound_route set delivery_policy = $2::jsonb where route_code = $1", route, json.dumps(policy)
    )
    await connection.execute("update dot_config set value = 'true' where key = 'iu_core.delivery_enabled'")
    await connection.fetchval("select fn_iu_route_live($1, true, 'a test', 'tester')", route)


async def add_route(connection: asyncpg.Connection, code: str, **policy: Any) -> str:
    """Add a live route for the same events, to the coroutine of its name; the switches are open."""
    await connection.execute(
        """insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref)
           values ($1, 'iu', 'version_applied', 'update', 'workflow', $1)""",
        code,
    )
    await open_route(connection, code, **policy)
    return code


@asynccontextmanager
async def delivering(dsn: str, *targets: PythonTarget, **settings: Any) -> AsyncIterator[Recorder]:
    """A consumer that delivers, for the length of a block; at its end it is asked to stop, and waited for."""
    recorder = Recorder()
    async with Consumer(Settings(dsn=dsn, **settings), targets=targets, observers=[recorder]):
        yield recorder
    assert recorder.of(Stopped), "the consumer had to be cancelled"


async def count_deliveries(connection: asyncpg.Connection) -> int:
    count: int = await connection.fetchval("select count(*) from iu_route_delivery")
    return count


async def wait_until_settled(connection: asyncpg.Connection, timeout: float = 20) -> None:
    """Wait until there is no backlog and no delivery."""
    with anyio.fail_after(timeout):
        while await connection.fetchval("select sum(backlog) from v_iu_event_backlog") or await count_deliveries(
            connection
        ):
            await anyio.sleep(0.01)


async def attempts(
    connection: asyncpg.Connection, event: UUID, route: str = ROUTE
) -> list[tuple[int, str, str, str | None]]:
    """Number, status, decision and failure code of the attempts of an event, in order."""
    rows = await connection.fetch(
        """select attempt_no, status, decision, failure_code from iu_route_attempt
            where event_ref = $1 and route_code = $2 order by attempt_no""",
        event,
        route,
    )
    return [tuple(row) for row in rows]


async def dead_letters(connection: asyncpg.Connection) -> list[tuple[str, str, bool]]:
    """Failure code, failure detail, and whether it is resolved, of each dead letter, in order."""
    rows = await connection.fetch(
        "select failure_code, failure_detail, resolved_at is not null from iu_route_dead_letter order by created_at"
    )
    return [tuple(row) for row in rows]
