"""The delivery session: takes deliveries that are due, and records the outcomes of their calls.

It consists of two database sessions, so that the next deliveries are taken while outcomes are recorded. The SQL is in
the files delivery_take, delivery_settle, delivery_lease, circuit_breaker and delivery_sweep of sql/functions/.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields, replace
from typing import Any, Final
from uuid import UUID

import anyio

from iu_listen.model.delivery import (
    DecidedCall,
    Delivery,
    Event,
    Lease,
    Outcome,
    Result,
    RouteState,
    Search,
    SearchResult,
    TakenDelivery,
    TakeRequest,
    TakeResult,
)
from iu_listen.model.errors import Refused, SessionLost
from iu_listen.model.settings import Settings
from iu_listen.postgres.admission import ADMISSION_TEXTS, site_of
from iu_listen.postgres.connection import SERVER_TIMEOUT_SHARE
from iu_listen.postgres.earlier_sessions import EarlierSessions, replacing_earlier
from iu_listen.postgres.lease import parse_lease
from iu_listen.postgres.session import Connection, Prepared, ask, ask_rows, translate_driver_errors
from iu_listen.postgres.sqlfiles import query

#: Classes of SQLSTATE of errors that concern one row of a set: data exception (22), integrity constraint (23), program
#: limit (54), PL/pgSQL (P0), triggered action (09), external routine (38, 39), WITH CHECK OPTION (44). An error of any
#: other class concerns the whole set.
_ROW_ERROR_CLASSES: Final = frozenset({"22", "23", "54", "P0", "09", "38", "39", "44"})


class DeliverySession:
    """Implements flow.ports.DeliveryStore. Created by delivery_session()."""

    def __init__(self, settler: Connection, taker: Connection, settings: Settings, consumer: UUID) -> None:
        self._settler = settler
        self._taker = taker
        self._settings = settings
        self._consumer = consumer
        self._settle: str | Prepared = query("delivery/settle")
        self._take: str | Prepared = query("delivery/take")
        #: Taken while a statement of the taking task or a peek uses the taker.
        self._taker_turn = anyio.Lock(fast_acquire=True)
        #: The prepared peek; None: the package in the database has no call ahead, or this login may not use it.
        self._peek: str | Prepared | None = None
        self.announces_changes = False
        self._settled_before = False
        self._positioned = False

    async def prepare(self) -> None:
        """Prepare the statements that are executed repeatedly."""
        with translate_driver_errors(), anyio.fail_after(self._settings.deadline):
            self._settle = await self._settler.prepare_once(query("delivery/settle"))
            self._take = await self._taker.prepare_once(query("delivery/take"))
            found = await self._taker.fetchrow(query("delivery/abilities"))
            self.announces_changes = found["announces_changes"]
            if self._settings.call_ahead and found["can_peek"]:
                self._peek = await self._taker.prepare_once(query("delivery/peek"))

    async def take_lease(self, gone_holder: str = "") -> Lease:
        """Take the delivery lease of the worker, if it is free.

        Args:
            gone_holder: The holder that had no session at the previous attempt; empty: there was none. A holder is
                replaced before its lease expires only if it has no session at two attempts in a row.
        """
        answer = await ask(
            self._settler, self._settings.deadline, query("delivery/lease"),
            self._settings.worker, self._consumer, self._settings.session_timeout, self._settler.pooled,
            gone_holder or None,
        )  # fmt: skip
        return parse_lease(answer)

    async def settle(self, outcomes: Sequence[Outcome]) -> int | None:
        """Record the outcomes of deliveries, and renew the delivery lease.

        The database may refuse one outcome, for example because of a CHECK or a trigger of the application, or because
        it cannot store a value. Such an outcome must not prevent the settlement of the others: the set is halved until
        the refused outcome is alone. It is then recorded as a failed attempt with a fixed text. If that is refused as
        well, only the row of the delivery is changed.

        The first set of a session may contain outcomes that a lost session did not record. They may belong to a history
        that this server does not have.

        Returns:
            The number of deliveries that became dead letters; None if the delivery lease is lost. The outcomes of these
            deliveries have ``dead_letter`` set.
        """
        if not self._settled_before:
            self._settled_before = True
            outcomes = await self._without_overtaken(outcomes)
        try:
            return await self._settle_set(outcomes)
        except Refused as refused:
            if not outcomes or refused.sqlstate[:2] not in _ROW_ERROR_CLASSES:
                raise
            if len(outcomes) == 1:
                return await self._settle_refused(outcomes[0], refused.sqlstate)
        middle = len(outcomes) // 2
        first = await self.settle(outcomes[:middle])
        second = None if first is None else await self.settle(outcomes[middle:])
        return None if first is None or second is None else first + second

    async def _without_overtaken(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        """These outcomes without those of ordered deliveries that have an unsettled earlier delivery of their subject.

        A copy of the database that is behind lacks the settlement of the earlier deliveries of a subject. These are
        attempted again, so the later ones must be attempted again after them.
        """
        ordered = [o.taken for o in outcomes if o.taken.subject_key is not None]
        if not ordered:
            return outcomes
        rows = await ask_rows(
            self._settler, self._settings.deadline, query("delivery/overtaken"),
            [t.delivery.route for t in ordered], [t.delivery.id for t in ordered], [t.subject_key for t in ordered],
        )  # fmt: skip
        overtaken = {row["id"] for row in rows}
        return [o for o in outcomes if o.taken.subject_key is None or o.taken.delivery.id not in overtaken]

    async def _settle_refused(self, outcome: Outcome, sqlstate: str) -> int | None:
        detail = f"The database refused to record the outcome of this attempt (SQLSTATE {sqlstate})."
        failed = replace(outcome, result=Result.FAILED, code="outcome_refused", detail=detail, retry_after=None)
        dead_letters: int | None
        try:
            dead_letters = await self._settle_set([failed])
        except Refused as refused:
            if refused.sqlstate[:2] not in _ROW_ERROR_CLASSES:
                raise
            dead_letters = await ask(
                self._settler, self._settings.deadline, query("delivery/unrecorded"), self._settings.worker,
                self._consumer, outcome.taken.delivery.route, outcome.taken.delivery.id, failed.code, detail,
            )  # fmt: skip
        outcome.code, outcome.detail, outcome.dead_letter = failed.code, detail, bool(dead_letters)
        return dead_letters

    async def _settle_set(self, outcomes: Sequence[Outcome]) -> int | None:
        now = time.monotonic()
        sent = [o for o in outcomes if o.result is Result.SENT]
        others = [o for o in outcomes if o.result is not Result.SENT]
        dead_letters: int | None = await ask(
            self._settler, self._settings.deadline, self._settle, self._settings.worker, self._consumer,
            [o.taken.delivery.route for o in sent], [o.taken.delivery.id for o in sent],
            [o.taken.delivery.event.id for o in sent], [o.called or None for o in sent],
            [now - o.began for o in sent], [now - o.ended for o in sent],
            [o.taken.delivery.route for o in others], [o.taken.delivery.id for o in others],
            [o.taken.delivery.event.id for o in others], [o.called or None for o in others],
            [now - o.began for o in others], [now - o.ended for o in others],
            [o.result.value for o in others], [o.code for o in others], [o.detail for o in others],
            [o.retry_after for o in others], [o.near_success for o in others],
        )  # fmt: skip
        if dead_letters:
            await self._mark_dead_letters(others, dead_letters)
        return dead_letters

    async def _mark_dead_letters(self, failed: Sequence[Outcome], count: int) -> None:
        """Set ``dead_letter`` of the outcomes whose deliveries do not exist any more after the settlement.

        An error must not repeat the settlement, which is committed. It only leaves the dead letters unknown.
        """
        gone = {o.taken.delivery.id for o in failed}
        if count < len(failed):
            with contextlib.suppress(SessionLost, Refused):
                rows = await ask_rows(
                    self._settler, self._settings.deadline, query("delivery/still_pending"),
                    [o.taken.delivery.route for o in failed], [o.taken.delivery.id for o in failed],
                )  # fmt: skip
                gone -= {row["id"] for row in rows}
            if len(gone) > count:
                return
        for outcome in failed:
            outcome.dead_letter = outcome.taken.delivery.id in gone

    async def take(
        self, requests: Sequence[TakeRequest], retried_ids: Sequence[int], unblocked: Sequence[tuple[str, int]]
    ) -> TakeResult:
        """Take the next deliveries for which there is capacity, and read the state of each route.

        The first take of a session begins at the first id. It reads past all settled deliveries that vacuum has not
        removed, so it may last as long as a batch (``batch_deadline``); the answer holds a position for the next take.

        Args:
            requests: For each route, how many deliveries and bytes the dispatcher has capacity for.
            retried_ids: Ids of deliveries that were attempted before and that the dispatcher already holds. They are
                not taken a second time.
            unblocked: Route and key of the subjects whose next parked delivery may go on.
        """
        longest = self._settings.deadline if self._positioned else self._settings.batch_deadline
        async with self._taker_turn:
            if not self._positioned:
                await self._limit_takes(longest)
            rows = await ask_rows(
                self._taker, longest, self._take, self._settings.worker, *columns(requests),
                [r.max_bytes for r in requests], retried_ids,
                [route for route, _ in unblocked], [key for _, key in unblocked],
                self._settings.payload_max,
            )  # fmt: skip
            if not self._positioned:
                await self._limit_takes(self._settings.deadline)
                self._positioned = True
        return _take_result(rows)

    async def peek(self, requests: Sequence[TakeRequest]) -> list[TakenDelivery]:
        """The deliveries of a single new event that the next batch will queue, with ids of 0.

        Empty if that is not certain, or if a take query is running.
        """
        if self._peek is None or self._taker_turn.locked():
            return []
        async with self._taker_turn:
            try:
                rows = await ask_rows(
                    self._taker, self._settings.deadline, self._peek, self._settings.worker, [r.route for r in requests]
                )
            except Refused:
                # The peek is an optimization. For example, the login lacks the privilege to execute its function.
                self._peek = None
                return []
        return taken_of(rows, {r.route: (r.deadline, r.span) for r in requests})

    async def of_call(self, route: str, event: UUID, *, sent: bool) -> DecidedCall | None:
        """The decision about an event that was called ahead; None: it is not decided yet, or the lease is lost."""
        async with self._taker_turn:
            rows = await ask_rows(
                self._taker, self._settings.deadline, query("delivery/of_call"),
                self._settings.worker, self._consumer, route, event, sent,
            )  # fmt: skip
        return (
            DecidedCall(id=rows[0]["id"], attempt=rows[0]["attempt"] or 0, subject_key=rows[0]["subject_key"])
            if rows
            else None
        )

    async def _limit_takes(self, longest: float) -> None:
        with translate_driver_errors(), anyio.fail_after(self._settings.deadline):
            await self._taker.limit_statements(round(1000 * SERVER_TIMEOUT_SHARE * longest))

    async def sweep(self, searches: Sequence[Search]) -> list[SearchResult]:
        """Search a bounded part of the deliveries that the positions of routes have passed."""
        async with self._taker_turn:
            rows = await ask_rows(
                self._taker, self._settings.deadline, query("delivery/sweep"), self._settings.worker,
                [s.route for s in searches], [s.from_key for s in searches], [s.after_id for s in searches],
                [s.position for s in searches],
            )  # fmt: skip
        return [SearchResult(**dict(row)) for row in rows]

    async def record_in_flight(self, pairs: Sequence[tuple[str, int]]) -> bool:
        """Record routes and ids of deliveries before their calls begin.

        Returns:
            Whether the consumer still holds the delivery lease.
        """
        async with self._taker_turn:
            held: bool = await ask(
                self._taker, self._settings.deadline, query("delivery/record_in_flight"),
                self._settings.worker, self._consumer, [route for route, _ in pairs], [id for _, id in pairs],
            )  # fmt: skip
        return held

    async def note_unusable(self, routes: Mapping[str, tuple[str, str]]) -> None:
        """Record the routes without a usable target, each with a reason and a hint; all other routes have a target."""
        async with self._taker_turn:
            await ask(
                self._taker, self._settings.deadline, query("delivery/note_unusable"),
                self._settings.worker, self._consumer, list(routes),
                [why for why, _ in routes.values()], [hint for _, hint in routes.values()],
            )  # fmt: skip

    async def release(self) -> None:
        """Give the delivery lease back."""
        await ask(
            self._settler, self._settings.deadline, query("delivery/release"),
            self._settings.worker, self._consumer,
        )  # fmt: skip


def columns(requests: Sequence[TakeRequest]) -> tuple[list[str], list[int], list[int]]:
    """Routes, capacities and positions, as fn_iu_delivery_take and fn_iu_delivery_hand_over expect them."""
    return [r.route for r in requests], [r.capacity for r in requests], [r.position for r in requests]


def taken_of(rows: Sequence[Any], terms: Mapping[str, tuple[float, str]]) -> list[TakenDelivery]:
    """The deliveries among these rows.

    Args:
        rows: The answer of fn_iu_delivery_take, or of a batch with its hand-over. The columns after the second one are
            read by position: reading them by name would take twice as long as the rest of this function.
        terms: Delivery.deadline (in seconds) and Delivery.span of each route.
    """
    taken = []
    for _, _, route, id, attempt, subject_key, alone, problem, *values in rows:
        if id is None:
            continue
        # All attributes of these frozen dataclasses are set at once: their __init__ makes one call for each attribute.
        event, delivery = object.__new__(Event), object.__new__(Delivery)
        event.__dict__.update(zip(_EVENT_FIELDS, values, strict=True))
        deadline, span = terms[route]
        delivery.__dict__.update(
            id=id, route=route, idempotency_key=f"outbound:{route}:{event.id}", attempt=attempt, event=event,
            deadline=deadline, span=span, called_ahead=False,
        )  # fmt: skip
        taken.append(TakenDelivery(delivery, subject_key, alone, problem or ""))
    return taken


def _take_result(rows: Sequence[Any]) -> TakeResult:
    """Read the answer of fn_iu_delivery_take: one row for each delivery, and one row for each route with its state."""
    states = [(row["route_code"], json.loads(row["route"])) for row in rows if row["route"] is not None]
    routes = [_state(code, answer) for code, answer in states]
    terms = {state.route: (float(state.policy["deadline"]), state.span) for state in routes}
    seconds = min((answer["took"] for _, answer in states), default=0.0)
    return TakeResult(taken=taken_of(rows, terms), routes=routes, seconds=seconds)


def _state(code: str, answer: Mapping[str, Any]) -> RouteState:
    return RouteState(
        route=code,
        kind=answer["kind"],
        reference=answer["ref"],
        policy=answer["policy"],
        paused_by=answer["paused_by"] or "",
        position=answer["position"] or 0,
        skipped_after=answer["passed"],
        kept_back=answer["kept_back"],
        due_in=answer["due_in"],
        failure=answer["why"],
        trial_id=answer["trial_id"],
    )


_EVENT_FIELDS: Final = tuple(field.name for field in fields(Event))


@asynccontextmanager
async def delivery_session(
    settings: Settings, earlier: EarlierSessions, consumer: UUID, wake: Callable[[], None]
) -> AsyncIterator[DeliverySession]:
    """Open the delivery session; ``wake`` is called when it is lost.

    Raises:
        SessionLost: No session could be opened.
        Refused: The consumer may not deliver on this database (admission.py).
    """
    options: dict[str, Any] = {
        "name": f"iu-listen delivery {settings.worker}", "deadline": settings.deadline,
        "answer_timeout": settings.deadline, "idle_timeout": settings.session_timeout,
    }  # fmt: skip

    def lost(_: object) -> None:
        wake()

    async with AsyncExitStack() as stack:
        connections: list[Connection] = []
        for purpose in ("settler", "taker"):
            connections.append(
                await stack.enter_async_context(replacing_earlier(earlier, purpose, settings.dsn, **options))
            )
            connections[-1].add_termination_listener(lost)
            # A planned end of the session must not call ``wake``: a task that waits for deliveries would then wake up
            # and open the next session.
            stack.callback(connections[-1].remove_termination_listener, lost)
        settler, taker = connections
        if refusal := await ask(
            settler, settings.deadline, query("delivery/admission"), site_of(settings), settings.worker
        ):
            raise Refused(*ADMISSION_TEXTS[refusal])
        session = DeliverySession(settler, taker, settings, consumer)
        await session.prepare()
        yield session
