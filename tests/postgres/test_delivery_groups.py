"""Handlers that take several deliveries in one call, with a real database."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any
from uuid import uuid4

import anyio
import asyncpg
import pytest

from iu_listen import Delivery
from iu_listen.model.delivery import Failed, Reject
from iu_listen.model.observation import GroupFailed, RoutePaused
from iu_listen.targets.python import PythonTarget
from postgres.delivery_helpers import (
    ROUTE,
    attempts,
    count_deliveries,
    dead_letters,
    delivering,
    open_route,
    wait_until_settled,
)
from postgres.test_quarantine import end_uncleanly
from support import MANY, connected, drain, insert_event, wait_until

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

Behaviour = Callable[[list[Delivery]], Awaitable[Any]]


class Groups:
    """A target for groups of at most 50 deliveries that records every call, and then calls ``behave``."""

    def __init__(self, behave: Behaviour | None = None, *, group: int = 50, group_wait: float = 0.0) -> None:
        self._behave = behave
        self._options = group, group_wait
        self.calls: list[list[Delivery]] = []

    async def _call(self, deliveries: list[Delivery]) -> Any:
        self.calls.append(deliveries)
        return await self._behave(deliveries) if self._behave else None

    def target(self, name: str = "event_outbox") -> PythonTarget:
        return PythonTarget(name, self._call, *self._options)

    @property
    def sizes(self) -> list[int]:
        return [len(call) for call in self.calls]

    @property
    def notes(self) -> list[list[str]]:
        """The note of each event, by call."""
        return [[one.event.data["note"] for one in call] for call in self.calls]


async def queue(connection: asyncpg.Connection, notes: list[str], **policy: Any) -> dict[str, Any]:
    """Queue one delivery for each note, in this order, on a route with this policy. Returns the events by note."""
    await open_route(connection, **{"concurrency": 1, "backoff": 0.01, **policy})
    async with connection.transaction():
        events = {note: await insert_event(connection, note=note) for note in notes}
    await drain(connection)
    return events


async def wait_until_delivering(connection: asyncpg.Connection) -> None:
    """Wait until the consumer holds the delivery lease."""
    lease = "select exists (select from iu_delivery_lease where not released)"
    await wait_until(lambda: connection.fetchval(lease), "a dispatcher that works")


def noted(number: int, *others: str) -> list[str]:
    """Notes for ``number`` good events, and these in their middle."""
    good = [f"good {n}" for n in range(number)]
    return [*good[: number // 2], *others, *good[number // 2 :]]


async def test_waiting_deliveries_are_called_in_groups(live):
    """Deliveries that wait at the same time come in groups, each once; each has an attempt of its own.

    Fails when: the handler gets single deliveries, or an attempt stands for a group.
    """
    groups = Groups(group=40)
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=2)
        await connection.execute(MANY, 400)
        await drain(connection)
        async with delivering(live.dsn, groups.target()):
            await wait_until_settled(connection)
        rows = await connection.fetch("select event_ref from iu_route_attempt where status = 'sent'")
    assert sum(groups.sizes) == 400
    assert max(groups.sizes) == 40
    assert len(groups.sizes) <= 20
    assert Counter(row["event_ref"] for row in rows) == Counter(one.event.id for one in chain(*groups.calls))


@pytest.mark.parametrize("how", ["rejected", "error", "late", "returned"])
async def test_a_poison_event_fails_alone(live, how):
    """One event that fails its group, in any way, becomes a dead letter; the others arrive in their first attempt.

    Each event has one attempt only, so even an exception or a deadline of the group makes no other dead letter.

    Fails when: a failure of a group is one of each of its deliveries.
    """

    async def behave(deliveries: list[Delivery]) -> Any:
        poison = [one for one in deliveries if one.event.data["note"] == "poison"]
        if poison and how == "returned":
            return {poison[0]: Reject("no", code="rejected")}
        if poison and how == "late":
            await anyio.sleep(60)
        if poison:
            raise Reject("no", code="rejected") if how == "rejected" else KeyError("x")
        return None

    groups = Groups(behave)
    async with connected(live.dsn) as connection:
        events = await queue(connection, noted(30, "poison"), attempts=1, deadline=0.3, concurrency=4)
        async with delivering(live.dsn, groups.target()) as recorder:
            await wait_until_settled(connection)
        code = {"error": "target_error", "late": "timeout"}.get(how, "rejected")
        assert [found[0] for found in await dead_letters(connection)] == [code]
        for note, event in events.items():
            (attempt,) = await attempts(connection, event)
            assert attempt[:2] == ((1, "failed") if note == "poison" else (1, "sent")), note
    assert groups.sizes == ([31] if how == "returned" else [31, *[1] * 31])
    reports = [(o.route, o.called, o.deliveries) for o in recorder.of(GroupFailed)]
    assert reports == ([] if how == "returned" else [(ROUTE, "workflow event_outbox", 31)])


async def test_a_rejected_group_stays_within_the_budget_of_dead_letters(live):
    """A group that is rejected completely makes as many dead letters as the budget of its route allows.

    Its other deliveries wait, and arrive when the target accepts events again.

    Fails when: the settlement counts the dead letters of a set only afterwards.
    """
    broken = True

    async def behave(deliveries: list[Delivery]) -> Any:
        return {one: Reject("no") for one in deliveries} if broken else None

    groups = Groups(behave)
    async with connected(live.dsn) as connection:
        await queue(connection, noted(50), dead_letters_in_a_row=8, trial_interval_max=0.1)
        async with delivering(live.dsn, groups.target()) as recorder:
            await recorder.wait_for(RoutePaused)
            assert (groups.sizes[0], len(await dead_letters(connection))) == (50, 8)
            broken = False
            await wait_until_settled(connection)
            assert len(await dead_letters(connection)) == 8


async def test_a_repeated_attempt_is_called_alone(live):
    """A delivery that has failed is called alone in its later attempts, so it fails no further group.

    Fails when: an event that fails five times takes five groups apart.
    """

    async def behave(deliveries: list[Delivery]) -> Any:
        return {one: Failed("no") for one in deliveries if one.event.data["note"] == "poison"}

    groups = Groups(behave)
    async with connected(live.dsn) as connection:
        await queue(connection, noted(20, "poison"), attempts=3)
        async with delivering(live.dsn, groups.target()):
            await wait_until_settled(connection)
        assert len(await dead_letters(connection)) == 1
    assert groups.notes[1:] == [["poison"], ["poison"]]


async def test_the_calls_of_a_failed_group_begin_at_once(live):
    """The deliveries of a failed group are called as soon as the state of their route was read, and not a second later.

    Fails when: only the next take query, once in a second, begins these calls.
    """

    async def behave(deliveries: list[Delivery]) -> None:
        if len(deliveries) > 1:
            raise Failed("not as a group")

    groups = Groups(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, groups.target()):
            await wait_until_delivering(connection)
            began = anyio.current_time()
            for _ in range(3):
                await connection.execute(MANY, 2)
                await wait_until_settled(connection)
            assert anyio.current_time() - began < 2
    assert groups.sizes == [2, 1, 1] * 3


@pytest.mark.parametrize("fails", [False, True])
async def test_an_ordered_route_keeps_the_order_of_each_subject_in_groups(live, fails):
    """In an ordered route a group has at most one event of each subject, and the events of a subject keep their order.

    Fails when: a group contains two events of a subject, or a later event begins before the failed one of its subject.
    """
    failed: set[Any] = set()

    async def behave(deliveries: list[Delivery]) -> Any:
        if fails and len(deliveries) > 1:
            raise Failed("not as a group")
        new = [one for one in deliveries if fails and one.event.data["note"] == "2" and one.id not in failed]
        failed.update(one.id for one in new)
        return {one: Failed("not yet") for one in new}

    groups = Groups(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, order="subject", concurrency=3, backoff=0.01, breaker=1000)
        subjects = [uuid4() for _ in range(10)]
        async with connection.transaction():
            for number in range(6):
                for subject in subjects:
                    await insert_event(connection, subject=subject, note=str(number))
        await drain(connection)
        async with delivering(live.dsn, groups.target()):
            await wait_until_settled(connection)
    assert max(groups.sizes) > 5
    for call in groups.calls:
        assert len({one.event.subject for one in call}) == len(call)
    for subject in subjects:
        order = [one.event.data["note"] for one in chain(*groups.calls) if one.event.subject == str(subject)]
        assert list(dict.fromkeys(order)) == list("012345")
        assert order == sorted(order)


async def test_a_closed_switch_stops_the_deliveries_of_a_failed_group(live):
    """If a switch is closed while a group is called, and the group fails, none of its deliveries begins.

    They are delivered when the switch is open again.

    Fails when: the deliveries of a failed group begin before the state of their route was read again.
    """
    closed, fail = asyncio.Event(), True

    async def behave(_: list[Delivery]) -> None:
        if fail:
            await closed.wait()
            raise Failed("all of them")

    groups = Groups(behave)
    gate = "update dot_config set value = $1 where key = 'iu_core.delivery_enabled'"
    async with connected(live.dsn) as connection:
        await queue(connection, noted(20))
        async with delivering(live.dsn, groups.target()) as recorder:
            await wait_until(lambda: asyncio.sleep(0, groups.calls), "a group")
            await connection.execute(gate, "false")
            await anyio.sleep(0.1)  # No delivery begins later than this after a switch was closed.
            closed.set()
            await recorder.wait_for(GroupFailed)
            await anyio.sleep(0.3)
            assert groups.sizes == [20]
            fail = False
            await connection.execute(gate, "true")
            await wait_until_settled(connection)
    assert Counter(chain(*groups.notes)) == dict.fromkeys(noted(20), 2)


async def test_a_graceful_shutdown_returns_the_deliveries_of_a_failed_group(live):
    """A shutdown waits for the group that is called; if it fails, its deliveries are left to the next consumer.

    Fails when: the shutdown begins calls for them, or does not wait for the group.
    """
    stopping = asyncio.Event()

    async def behave(_: list[Delivery]) -> None:
        await stopping.wait()
        await anyio.sleep(0.1)
        raise Failed("all of them")

    groups, later = Groups(behave), Groups()
    async with connected(live.dsn) as connection:
        await queue(connection, noted(20))
        async with delivering(live.dsn, groups.target()):
            await wait_until(lambda: asyncio.sleep(0, groups.calls), "a group")
            stopping.set()
        assert (groups.sizes, await count_deliveries(connection)) == ([20], 20)
        assert await connection.fetchval("select released from iu_delivery_lease")
        async with delivering(live.dsn, later.target()):
            await wait_until_settled(connection)
    assert sum(later.sizes) == 20


async def test_quarantined_deliveries_are_in_no_group(live):
    """After a process has ended, each delivery that was in flight is called alone, while no other call runs.

    Fails when: a delivery in quarantine is called in a group, or beside one.
    """
    running, beside = 0, []

    async def behave(deliveries: list[Delivery]) -> None:
        nonlocal running
        running += 1
        await anyio.sleep(0.05)
        if running == 1 and len(deliveries) == 1:
            beside.append(deliveries[0].id)
        running -= 1

    groups, others = Groups(behave), Groups(behave)
    async with connected(live.dsn) as connection:
        suspects = await end_uncleanly(connection, 5)
        async with delivering(live.dsn, groups.target(), others.target("other")):
            await wait_until_settled(connection)
    assert set(beside) >= suspects
    assert max(groups.sizes) > 1


async def test_a_group_has_at_most_the_prefetch_in_bytes(live):
    """The payloads of a group are within prefetch_bytes, however many deliveries wait.

    Fails when: a group is filled beyond the deliveries that the prefetch allows.
    """
    groups = Groups(group=1000)
    async with connected(live.dsn) as connection:
        await queue(connection, [f"{n:04}" + "x" * 2000 for n in range(60)])
        async with delivering(live.dsn, groups.target(), prefetch_bytes=30_000):
            await wait_until_settled(connection)
    assert sum(groups.sizes) == 60
    assert 1 < max(groups.sizes) <= 15


@pytest.mark.parametrize("wait", [0.0, 2.0])
async def test_a_group_waits_for_more_deliveries_only_if_asked(live, wait):
    """Without group_wait an event that comes alone is called at once; with it, its call waits until the group is full.

    Fails when: a call waits for deliveries although it was not asked to, or a full group waits for the end of the wait,
    or the first event is called before the wait is over.
    """
    groups = Groups(group=4, group_wait=wait)
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, groups.target()):
            await wait_until_delivering(connection)
            began = anyio.current_time()
            for number in range(4):
                await insert_event(connection, note=str(number))
                if not wait:
                    await wait_until_settled(connection)
                elif number == 0:
                    await wait_until(lambda: count_deliveries(connection), "the first delivery")
            await wait_until_settled(connection)
            took = anyio.current_time() - began
            assert groups.notes == ([["0"], ["1"], ["2"], ["3"]] if not wait else [["0", "1", "2", "3"]])
            assert took < 1.9


async def test_a_group_that_is_not_full_is_called_at_the_end_of_its_wait(live):
    """Deliveries that wait for a full group are called together when group_wait is over, and not a second later.

    Fails when: only the next take query, once in a second, begins the call.
    """
    groups = Groups(group=4, group_wait=0.3)
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, groups.target()):
            await wait_until_delivering(connection)
            for _ in range(2):
                began = anyio.current_time()
                for number in range(2):
                    await insert_event(connection, note=str(number))
                await wait_until_settled(connection)
                assert 0.29 < anyio.current_time() - began < 0.9
    assert groups.notes == [["0", "1"], ["0", "1"]]


PROGRAM = """
import asyncio
import sys
import os
import sys

from iu_listen import Consumer, Delivery, Settings, target


@target("event_outbox")
async def handle(deliveries: list[Delivery]) -> None:
    print(len(deliveries), flush=True)
    if any(one.event.data["note"] == "poison" for one in deliveries):
        os._exit(9)


async def main():
    async with Consumer(Settings(dsn=sys.argv[1]), targets=[handle], observers=()):
        await asyncio.sleep(60)


asyncio.run(main())
"""


async def test_an_event_that_ends_the_process_is_called_alone(live):
    """An event that ends the process of each group with it becomes a dead letter, and the others arrive.

    After the second end, the events that were in flight are called alone, as many as the concurrency of the route.

    Fails when: the group of such an event is called again and again, or its other events become dead letters.
    """
    starts = 0

    async def supervise() -> None:
        nonlocal starts
        while True:
            starts += 1
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, live.dsn)
            try:
                await process.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    if process.returncode is None:
                        process.kill()
                        await process.wait()

    async with connected(live.dsn) as connection:
        events = await queue(connection, noted(20, "poison"), attempts=1, concurrency=4)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervise)
            await wait_until_settled(connection, 40)
            tasks.cancel_scope.cancel()
        assert [found[0] for found in await dead_letters(connection)] == ["interrupted"]
        assert (await attempts(connection, events["poison"]))[-1][1] == "failed"
        sent = await connection.fetchval("select count(*) from iu_route_attempt where status = 'sent'")
    assert (sent, starts) == (len(events) - 1, 4)
