"""The delivery session: what is to be delivered, and what came of it. The lease and the breaker are in 019."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any, Final
from uuid import UUID

import anyio

from iu_listen.model.delivery import Delivery, Event, Lease, Outcome, Result, RouteState, Taken, Turn, Want
from iu_listen.model.settings import Settings
from iu_listen.postgres.session import Connection, Prepared, ask, ask_rows, connect_again, errors_become_ours
from iu_listen.postgres.sqlfiles import query


class DeliverySession:
    """Satisfies flow.ports.Deliveries. Made by delivery_session()."""

    def __init__(self, connection: Connection, settings: Settings, consumer: UUID) -> None:
        self._connection = connection
        self._settings = settings
        self._consumer = consumer
        self._turn: str | Prepared = query("delivery/turn")

    async def prepare(self) -> None:
        """Prepare what is asked for again and again, where the session is ours alone."""
        if not self._connection.pooled:
            with errors_become_ours(), anyio.fail_after(self._settings.deadline):
                self._turn = await self._connection.prepare(query("delivery/turn"))

    async def take_lease(self, gone: str = "") -> Lease:
        """Become the one who delivers for the worker, if nobody is; ``gone`` had no session when we asked before."""
        answer = await ask(
            self._connection, self._settings.deadline, query("delivery/lease"),
            self._settings.worker, self._consumer, self._settings.lease, self._connection.pooled,
            gone or None,
        )  # fmt: skip
        return Lease(**json.loads(answer))

    async def turn(self, done: Sequence[Outcome], wants: Sequence[Want], busy: Sequence[int]) -> Turn | None:
        """Settle what is done, and take what there is room for. None: the lease is lost, and nothing was settled."""
        now = time.monotonic()
        sent = [o for o in done if o.result is Result.SENT]
        others = [o for o in done if o.result is not Result.SENT]
        freed = [o.taken for o in done if o.taken.subject_key is not None]
        rows = await ask_rows(
            self._connection, self._settings.deadline, self._turn, self._settings.worker, self._consumer,
            [o.taken.delivery.route for o in sent], [o.taken.delivery.id for o in sent],
            [now - o.began for o in sent], [now - o.ended for o in sent],
            [o.taken.delivery.route for o in others], [o.taken.delivery.id for o in others],
            [o.result.value for o in others], [now - o.began for o in others], [now - o.ended for o in others],
            [o.code for o in others], [o.detail for o in others], [o.retry_after for o in others],
            [w.route for w in wants], [w.room for w in wants], [w.after for w in wants], busy,
            [t.delivery.route for t in freed], [t.subject_key for t in freed],
        )  # fmt: skip
        return None if rows[0]["dead"] is None else turn_of(rows, rows[0]["dead"])

    async def release(self) -> None:
        """Give the lease back."""
        await ask(
            self._connection, self._settings.deadline, query("delivery/release"),
            self._settings.worker, self._consumer,
        )  # fmt: skip


def turn_of(rows: Sequence[Any], dead: int = 0) -> Turn:
    """What fn_iu_delivery_take answered: a row for each route, with its state, and a row for each delivery."""
    routes = [_state(row) for row in rows if row["route"] is not None]
    deadlines = {state.route: float(state.policy["deadline"]) for state in routes}
    taken = [_taken(row, deadlines) for row in rows if row["delivery_id"] is not None]
    return Turn(taken=taken, routes=routes, dead=dead)


def _state(row: Any) -> RouteState:
    answer = json.loads(row["route"])
    return RouteState(
        route=row["route_code"],
        kind=answer["kind"],
        reference=answer["ref"],
        policy=answer["policy"],
        held=answer["held"] or "",
        after=answer["after"] or 0,
        due_in=answer["due_in"],
        more=answer["more"],
        why=answer["why"],
    )


def _taken(row: Any, deadlines: Mapping[str, float]) -> Taken:
    # Frozen dataclasses, their attributes set as one: their own __init__ makes a call for each.
    event, delivery = object.__new__(Event), object.__new__(Delivery)
    event.__dict__.update(zip(_EVENT, row[-len(_EVENT) :], strict=True))
    route = row["route_code"]
    delivery.__dict__.update(
        id=row["delivery_id"], route=route, idempotency_key=f"outbound:{route}:{event.id}", attempt=row["attempt_no"],
        event=event, deadline=deadlines[route],
    )  # fmt: skip
    return Taken(delivery, row["subject_key"])


_EVENT: Final = tuple(field.name for field in fields(Event))


@asynccontextmanager
async def delivery_session(
    settings: Settings, consumer: UUID, ring: Callable[[], None]
) -> AsyncIterator[DeliverySession]:
    """Open the delivery session; ``ring`` is called when it ends.

    Raises:
        SessionLost: no session can be had.
    """
    name = f"iu-listen delivery {settings.worker}"
    connection = await connect_again(settings.dsn, name=name, deadline=settings.deadline, idle_timeout=settings.lease)
    try:
        connection.add_termination_listener(lambda _: ring())
        session = DeliverySession(connection, settings, consumer)
        await session.prepare()
        yield session
    finally:
        connection.terminate()
