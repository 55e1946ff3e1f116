"""An outbox for one test."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import anyio

from iu_listen.admin import gates, routes
from iu_listen.admin.handlers import add_parts, missing_parts
from iu_listen.app import Consumer
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.model.delivery import Delivery
from iu_listen.model.observation import BatchRan, DeliveriesSettled, Observation, RoutePaused, SessionFailed
from iu_listen.model.settings import Settings
from iu_listen.model.text import nearest
from iu_listen.model.user_code import user_traceback
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection, session
from iu_listen.targets.handlers import Handler
from iu_listen.targets.python import PythonTarget, ReportedTarget

#: Longest pause between two looks whether a drain has ended, in seconds.
LONGEST_PAUSE = 0.1


@dataclass(frozen=True)
class Emitted:
    """One event of the outbox.

    Attributes:
        type: Its event type.
        payload: Its payload.
        subject: The id of its subject; None: it has none.
    """

    type: str
    payload: dict[str, Any]
    subject: str | None


@dataclass(frozen=True)
class Decided:
    """The last attempt of one event on one route.

    Attributes:
        event: The event.
        route: Code of the route.
        status: ``sent``, ``failed``, ``skipped`` or ``dry_run``.
        dead_letter: True: it became a dead letter.
        failure_code: The failure code; None: it did not fail.
        failure_detail: The reason of the failure, as a dead letter has it; None: it did not fail.
        traceback: The traceback of the failure in the code of the application; empty: it did not fail in this test.
    """

    event: Emitted
    route: str
    status: str
    dead_letter: bool
    failure_code: str | None
    failure_detail: str | None = None
    traceback: str = field(default="", repr=False)


class _Progress:
    """An observer that notes when a consumer has routed or delivered something, and the last failure of a session."""

    def __init__(self) -> None:
        self._wake = WakeEvent()
        self.failure = ""

    def observe(self, observation: Observation, /) -> None:
        match observation:
            case SessionFailed(_, why, _):
                self.failure = why
            case BatchRan(_, _, batch) if not batch.seen:
                pass
            case BatchRan() | DeliveriesSettled() | RoutePaused():
                self._wake.set()

    async def next(self) -> None:
        """Wait for the next progress since the last call, at most LONGEST_PAUSE seconds."""
        await self._wake.wait(LONGEST_PAUSE)
        self._wake.clear()


class Outbox:
    """The outbox of one test, in a database of its own.

    Args:
        dsn: The database, with the package and open gates.
        handlers: The handlers of the application.

    Attributes:
        dsn: Connection string of the database, for the application under test.
    """

    def __init__(self, dsn: str, handlers: Iterable[PythonTarget] = ()) -> None:
        self.dsn = dsn
        self._handlers = list(handlers)
        #: The traceback of the last failed attempt of each route and event.
        self._tracebacks: dict[tuple[str, UUID], str] = {}

    async def drain(self, *handlers: PythonTarget, seconds: float = 10) -> list[Decided]:
        """Run the consumer until every event is routed, and every delivery that can begin is settled.

        The traceback of each failed attempt is printed on stderr.

        Args:
            handlers: Further handlers, besides those of the application.
            seconds: Longest duration, in seconds.

        Returns:
            The last attempt of each event and route, in the order of the events.

        Raises:
            AssertionError: Something is not done after ``seconds`` seconds.
        """
        own = [*self._handlers, *handlers]
        settings = Settings(dsn=self.dsn, listen=False, poll_interval=0.02, completeness_interval=0, grace_period=0.5)
        progress = _Progress()
        async with self._session() as connection:
            await prepare_handlers(connection, own)
            reported = [ReportedTarget(one, self._report) for one in own]
            async with Consumer(settings, targets=reported, observers=[progress]):
                with anyio.move_on_after(seconds):
                    while not await queries.value(connection, "is_drained", settings.worker):
                        await progress.next()
                    return await self._decided(connection)
        why = f": {progress.failure}" if progress.failure else ""
        raise AssertionError(f"events or deliveries still wait after {seconds:g} s{why}")

    async def emitted(self, event_type: str | None = None) -> list[Emitted]:
        """The events that were written.

        Args:
            event_type: Their event type; None: all types.

        Returns:
            The events, in the order in which they were written.
        """
        async with self._session() as connection:
            rows = await queries.rows(connection, "testing/events", event_type)
        return [Emitted(row["event_type"], json.loads(row["payload"]), row["subject"]) for row in rows]

    async def decided(self, route: str | None = None) -> list[Decided]:
        """The last attempt of each event.

        Args:
            route: Code of the route; None: all routes.

        Returns:
            The attempts, in the order of the events.
        """
        async with self._session() as connection:
            return await self._decided(connection, route)

    async def _decided(self, connection: Connection, route: str | None = None) -> list[Decided]:
        rows = await queries.rows(connection, "testing/attempts", route)
        return [
            Decided(
                Emitted(row["event_type"], json.loads(row["payload"]), row["subject"]), row["route_code"],
                row["status"], row["decision"] == "dead_letter", row["failure_code"], row["failure_detail"],
                self._tracebacks.get((row["route_code"], row["id"]), "") if row["status"] == "failed" else "",
            )
            for row in rows
        ]  # fmt: skip

    def _report(self, delivery: Delivery, error: BaseException) -> None:
        """Print why an attempt failed, and keep it for assertions."""
        text = user_traceback(error)
        self._tracebacks[delivery.route, delivery.event.id] = text
        sys.stderr.write(f"{delivery.route} failed: {delivery.event.type} {delivery.event.payload}\n{text}")

    async def assert_emitted(
        self, event_type: str, payload: Mapping[str, Any] | None = None, *, count: int | None = None
    ) -> None:
        """Assert that events of a type were written.

        Args:
            event_type: The event type.
            payload: Keys and values that the payload of such an event has; further keys are possible.
            count: Exact number of such events. Default: at least one.

        Raises:
            AssertionError: There is no such event, or another number; the message lists the events.
        """
        __tracebackhide__ = True
        found = [e for e in await self.emitted(event_type) if _matches(e, payload)]
        if not _enough(len(found), count):
            listed = [_event(e) for e in await self.emitted()]
            raise AssertionError(_message(f"event {_shown(event_type, payload)}", len(found), count, listed))

    async def assert_delivered(
        self, route: str, payload: Mapping[str, Any] | None = None, *, count: int | None = None
    ) -> None:
        """Assert that events were delivered on a route.

        Args:
            route: Code of the route.
            payload: Keys and values that the payload of such an event has; further keys are possible.
            count: Exact number of such events. Default: at least one.

        Raises:
            AssertionError: No such event was delivered, or another number; the message lists the attempts, with the
                reasons of failures. Or there is no such route; the message lists the routes.
        """
        __tracebackhide__ = True
        decided = await self.decided(route)
        found = [d for d in decided if d.status == "sent" and _matches(d.event, payload)]
        await self._expect(f"delivery on {_shown(route, payload)}", route, len(found), count, decided)

    async def assert_dead_lettered(self, route: str, code: str | None = None, *, count: int | None = None) -> None:
        """Assert that events became dead letters on a route, with a failure code.

        Args:
            route: Code of the route.
            code: The failure code. Default: any.
            count: Exact number of dead letters. Default: at least one.

        Raises:
            AssertionError: There is no such dead letter, or another number; the message lists the attempts, with the
                reasons of failures. Or there is no such route; the message lists the routes.
        """
        __tracebackhide__ = True
        decided = await self.decided(route)
        found = [d for d in decided if d.dead_letter and code in (None, d.failure_code)]
        await self._expect(f"dead letter on {route} {code or ''}".strip(), route, len(found), count, decided)

    async def _expect(self, what: str, route: str, found: int, count: int | None, decided: Sequence[Decided]) -> None:
        __tracebackhide__ = True
        if not decided:
            async with self._session() as connection:
                known = [row["route_code"] for row in await queries.rows(connection, "list_routes", None)]
            if route not in known:
                raise AssertionError(f"there is no route {route}; routes: {', '.join(nearest(route, known)) or 'none'}")
        if not _enough(found, count):
            raise AssertionError(_message(what, found, count, [_attempt(d) for d in decided]))

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Connection]:
        async with session(self.dsn, name="iu-listen testing") as connection:
            yield connection


def explain(outbox: Outbox, text: str) -> str:
    """The reason why the type of an event is not registered in the database of a test; empty: the text names no type.

    Args:
        outbox: The outbox of the test.
        text: The text of an exception of the test.
    """
    found = re.search(r"event type (\S+) is not registered and active", text)
    if not found:
        return ""
    types = {handler.event_type for handler in outbox._handlers if isinstance(handler, Handler)}  # noqa: SLF001 its own module
    if not types:
        return (
            "The database of a test has the event types of the handlers, and there is no handler: iu_listen_app in the "
            "configuration of pytest names their module (docs/how-to/test.md)."
        )
    known = ", ".join(nearest(found[1], types))
    return f"No handler has the event type {found[1]}. Event types of the handlers: {known}."


async def prepare(dsn: str, handlers: Iterable[PythonTarget]) -> None:
    """Create the neutral base and the package in an empty database, open its gates, and add the handlers."""
    async with session(dsn, name="iu-listen testing") as connection:
        await migrate.apply_base(connection, "neutral")
        await migrate.apply_files(connection, (await package_state(connection)).pending, {}, lambda _: None)
        for gate in ("master", "worker", "delivery"):
            await gates.set_gate(connection, gate, opened=True)
        await prepare_handlers(connection, handlers)


async def prepare_handlers(connection: Connection, handlers: Iterable[PythonTarget]) -> None:
    """Add the event types and routes of handlers that are missing, with live routes of one attempt."""
    found = [handler for handler in handlers if isinstance(handler, Handler)]
    parts = await missing_parts(connection, found)
    await add_parts(connection, parts)
    for code, _ in parts.routes:
        await routes.route_live(connection, code, live=True, why="a test", actor=None)
    if parts.routes:
        await queries.rows(connection, "testing/set_attempts", 1)


def _matches(event: Emitted, payload: Mapping[str, Any] | None) -> bool:
    return all(key in event.payload and event.payload[key] == value for key, value in (payload or {}).items())


def _enough(found: int, count: int | None) -> bool:
    return found >= 1 if count is None else found == count


def _message(what: str, found: int, count: int | None, listed: Sequence[str]) -> str:
    """The message of an assertion that fails, with the events or attempts that exist."""
    wanted = "at least 1" if count is None else str(count)
    return "\n".join([f"{what}: found {found}, expected {wanted}; there is" + ("" if listed else " nothing"), *listed])


def _shown(name: str, payload: Mapping[str, Any] | None) -> str:
    return f"{name} {dict(payload)}" if payload else name


def _event(event: Emitted) -> str:
    subject = f" about {event.subject}" if event.subject is not None else ""
    return f"  {event.type}{subject} {event.payload}"


def _attempt(decided: Decided) -> str:
    """An attempt as a line, with the reason and the traceback of a failure."""
    line = f"{_event(decided.event)} on {decided.route}: {'dead letter' if decided.dead_letter else decided.status}"
    if decided.failure_code:
        line += f", {decided.failure_code}" + (f": {decided.failure_detail}" if decided.failure_detail else "")
    return "\n".join([line, *(f"    {one}" for one in decided.traceback.splitlines())])
